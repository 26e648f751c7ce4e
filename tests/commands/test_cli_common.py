"""What all commands have in common: settings, help, progress, interruption, tracebacks, a quick start."""

import dataclasses
import io
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from antpipe import __version__
from antpipe.cli import app, changed
from antpipe.commands.flags import together
from antpipe.errors import SameCommand
from antpipe.runtime.devices import choose_precision
from antpipe.runtime.logs import log
from antpipe.runtime.progress import Progress
from antpipe.runtime.terminal import on_stderr
from antpipe.settings.base import Config, flag_name, parts_of
from antpipe.settings.comparison import CompareConfig, ComparedTraining, RaceConfig
from antpipe.settings.demo import DemoConfig
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.settings.features import (
    EngineConfig,
    FetchConfig,
    ImageConfig,
    PriceConfig,
    SequenceConfig,
    SubsetConfig,
    TextConfig,
    WhitenConfig,
)
from antpipe.settings.fork_merge import ForkMergeConfig
from antpipe.settings.ingest import (
    AmazonConfig,
    DownloadConfig,
    EmbeddingsConfig,
    IngestConfig,
    LayoutConfig,
    SampleConfig,
    TableConfig,
)
from antpipe.settings.model import ModelConfig
from antpipe.settings.report import PlotConfig, ReportConfig
from antpipe.settings.sections import CONFIGS
from antpipe.settings.serving import RecommendConfig, ServeConfig, SimilarConfig
from antpipe.settings.training import TrainConfig
from antpipe.settings.tuning import TuneConfig
from antpipe.store.store import Store
from tests.support.commands import ingested, names_of, run, run_named, unfolded, words_of
from tests.support.releases import snapshot
from tests.support.trainable import make_trainable

SETTINGS: dict[str, tuple[type[Config], ...]] = {
    "ingest amazon": (IngestConfig, AmazonConfig, DownloadConfig),
    "ingest sample": (SampleConfig,),
    "ingest table": (IngestConfig, TableConfig),
    "import recbole": (IngestConfig, TableConfig),
    "import unisrec": (LayoutConfig,),
    "import embeddings": (EmbeddingsConfig,),
    "embed-text": (TextConfig, EngineConfig),
    "fetch-images": (FetchConfig,),
    "embed-image": (ImageConfig,),
    "quantize-price": (PriceConfig,),
    "whiten": (WhitenConfig,),
    "build-sequences": (SequenceConfig,),
    "subset": (SubsetConfig,),
    "train": (TrainConfig, ModelConfig, RaceConfig, ForkMergeConfig),
    "tune": (TuneConfig, TrainConfig, ModelConfig),
    "evaluate": (EvaluateConfig,),
    "compare": (CompareConfig, ComparedTraining, ModelConfig, RaceConfig, ForkMergeConfig),
    "report": (ReportConfig,),
    "plot": (PlotConfig,),
    "recommend": (RecommendConfig,),
    "similar": (SimilarConfig,),
    "serve": (ServeConfig,),
    "demo": (DemoConfig,),
}
HEAVY = {
    "torch",
    "torchvision",
    "sentence_transformers",
    "transformers",
    "open_clip",
    "faiss",
    "polars",
    "pyarrow",
    "numpy",
    "PIL",
}


@pytest.fixture
def priced(tmp_path: Path) -> Path:
    """A folder with published files and a store of two shops whose items were ingested."""
    return ingested(tmp_path)


@pytest.fixture
def trainable(tmp_path: Path) -> Path:
    """A folder with a store of one shop that has all features, made up, and sequences."""
    make_trainable(Store(tmp_path / "store"), "Ring")
    return tmp_path


def test_the_demo_prints_json_and_speaks_on_stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def instead(store: Store, config: DemoConfig, *, force: bool, progress: Progress) -> dict[str, Any]:  # noqa: ARG001
        log.info("a step")
        return {
            "table": "a table",
            "report": "page.html",
            "next": [{"about": "more", "command": "antpipe stats"}],
            "seeds": config.seeds,
            "force": force,
            "store": str(store.root),
        }

    monkeypatch.setattr("antpipe.demonstration.run_demo", instead)
    words = ("demo", "--store", tmp_path, "--seeds", "2")
    assert run(*words).out == "a table\n\nreport: page.html\n\nnext, more:\n  antpipe stats\n"
    outcome = run(*words, "--json")
    steps = [{"about": "more", "command": "antpipe stats"}]
    expected = {"table": "a table", "report": "page.html", "next": steps, "seeds": 2, "force": False}
    assert outcome.json() == expected | {"store": str(tmp_path)}
    assert outcome.err == "antpipe: a step\n"


# -- settings -------------------------------------------------------------------------------------------------


def bins_of(folder: Path) -> int:
    bins: int = Store(folder / "store").domain("Ring").entry("price")["parameters"]["bins"]
    return bins


def test_a_flag_goes_before_environment_before_toml_before_default(
    priced: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (priced / "settings.toml").write_text("[quantize-price]\nbins = 5\n")
    toml = ("--config", priced / "settings.toml")
    run_named("quantize-price", priced)
    assert bins_of(priced) == PriceConfig().bins
    run_named("quantize-price", priced, *toml)
    assert bins_of(priced) == 5
    monkeypatch.setenv("ANTPIPE_QUANTIZE_PRICE_BINS", "6")
    run_named("quantize-price", priced, *toml)
    assert bins_of(priced) == 6
    run_named("quantize-price", priced, *toml, "--bins", "7")
    assert bins_of(priced) == 7


def test_a_repeated_list_flag_adds_to_the_list(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("buyer,sku,time\nu0,a,1\nu1,a,2\nu2,b,3\nx,b,4\n")
    (tmp_path / "i.csv").write_text("sku,stock,color\na,1,red\nb,2,blue\n")
    source = ("--interactions", tmp_path / "r.csv", "--items", tmp_path / "i.csv")
    columns = ("--map", "user=buyer", "--map", "item=sku", "--keep-column", "stock", "--keep-column", "color")
    dropped = ("--drop-users", "u0,u1", "--drop-users", "x", "--min-user", "1", "--min-item", "1")
    store = ("--domain", "Shop", "--store", tmp_path / "store")
    outcome = run("ingest", "table", *store, *source, *columns, *dropped)
    assert outcome.code == 0, outcome.err
    entry = Store(tmp_path / "store").domain("Shop").entry("items")
    assert entry["report"]["interactions"]["users_dropped"] == 3
    assert entry["report"]["items"]["columns"]["keep"] == ["stock", "color"]


def test_repeated_domains_add_up(priced: Path) -> None:
    outcome = run("stats", "--domains", "Ring", "--domains", "Loop", "--store", priced / "store", "--json")
    assert outcome.code == 0, outcome.err
    assert {one["domain"] for one in outcome.json()["domains"]} == {"Ring", "Loop"}


def test_each_value_of_a_repeated_list_flag_keeps_its_quotes() -> None:
    assert together(None) is None
    assert together(['"a,b",c']) == '"a,b",c'
    assert parts_of(str(together(['"a,b",c', "d", 'five"']))) == ["a,b", "c", "d", 'five"']


def test_the_store_is_named_by_flag_or_environment_or_is_in_the_current_folder(
    priced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(priced / "store", tmp_path / "here" / "antpipe-store")
    monkeypatch.chdir(tmp_path / "here")
    assert set(run("status", "--json").json()) == {"Ring", "Loop"}
    monkeypatch.setenv("ANTPIPE_STORE", str(tmp_path / "elsewhere"))
    assert run("status", "--json").json() == {}
    assert set(run("status", "--json", "--store", priced / "store").json()) == {"Ring", "Loop"}


def test_a_checkpoint_holds_the_settings_that_were_resolved(trainable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (trainable / "settings.toml").write_text("[train]\nlr = 0.25\nseed = 1\n\n[model]\nfusion = 0.5\n")
    monkeypatch.setenv("ANTPIPE_TRAIN_SEED", "2")
    assert run_named("scratch", trainable, "--config", trainable / "settings.toml").code == 0
    kept = json.loads((trainable / "runs" / "scratch" / "checkpoint.json").read_text())
    precision = choose_precision("auto", torch.device("cpu"))
    given = {"lr": 0.25, "seed": 2, "epochs": 2, "batch_size": 32, "device": "cpu", "precision": precision}
    assert kept["train"] == json.loads(json.dumps(dataclasses.asdict(TrainConfig()) | given))
    assert kept["model"] == dataclasses.asdict(ModelConfig(fusion=0.5, width=16, experts=2, layers=1))


def test_every_command_with_settings_is_in_this_file() -> None:
    commands = set(names_of(app))
    assert set(SETTINGS) <= commands
    assert {config for configs in SETTINGS.values() for config in configs} == {*CONFIGS, ComparedTraining}


@pytest.mark.parametrize("command", sorted(names_of(app)))
def test_every_setting_is_a_flag_of_its_command_with_its_default(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # each flag on one line
    outcome = run(*command.split(), "--help")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    fields = [field for config in SETTINGS.get(command, ()) for field in dataclasses.fields(config)]
    for flag in ("store", "json", *(["config"] if fields else []), *(flag_name(field.name) for field in fields)):
        assert any(re.search(rf" --{flag}(?![\w-])", line) for line in lines), flag
    for field in fields:
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        if default not in (None, ""):
            [line] = [line for line in lines if re.match(rf"│ [* ]*--{flag_name(field.name)}(?![\w-])", line)]
            assert f"[default: {default}]" in line


def test_version_prints_the_version() -> None:
    outcome = run("--version")
    assert (outcome.code, outcome.out) == (0, f"antpipe {__version__}\n")


def test_without_a_word_the_help_is_shown() -> None:
    outcome = run()
    assert outcome.code == 0
    assert "quantize-price" in outcome.out


@pytest.mark.parametrize(
    ("words", "change", "expected"),
    [
        ("--out a --device cuda --epochs 2", SameCommand({"--device": "cpu"}), "--out a --epochs 2 --device cpu"),
        ("--device=cuda --epochs 2", SameCommand({"--device": "cpu"}), "--epochs 2 --device cpu"),
        ("--epochs 2", SameCommand({"--device": "cpu"}), "--epochs 2 --device cpu"),
        ("--compile --out a", SameCommand({"--no-compile": None}, ("--compile",)), "--out a --no-compile"),
        ("--whitened text --out a", SameCommand(without=("--whitened",)), "--out a"),
        ("--out a", SameCommand(without=("torchrun",)), "--out a"),
    ],
)
def test_the_next_command_is_the_one_typed_with_its_flags_changed(
    words: str, change: SameCommand, expected: str
) -> None:
    assert changed(words.split(), change) == expected.split()


# -- progress, interruption, traceback ------------------------------------------------------------------------


def test_epochs_are_told_on_stderr(trainable: Path) -> None:
    outcome = run_named("scratch", trainable)
    assert re.search(r"(?m)^scratch: 2/2 loss=\S+ valid_recall@10=\S+ seconds=\S+$", outcome.err)
    assert len(unfolded(outcome.out).splitlines()) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_on_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with on_stderr("Ring text") as update:
        update(2, 4, "loss=1")
    assert "Ring text" in terminal.getvalue()
    assert "2/4" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def raising(error: BaseException) -> Callable[..., None]:
    def stage(*_: Any, **__: Any) -> None:
        raise error

    return stage


STAGE = "antpipe.features.quantize_price.quantize_price"


def test_an_interrupted_command_ends_with_130_and_leaves_the_store(
    priced: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(priced)
    monkeypatch.setattr(STAGE, raising(KeyboardInterrupt()))
    outcome = run_named("quantize-price", priced)
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err == "antpipe: interrupted; what was complete is kept\n"
    assert snapshot(priced) == before


def test_an_interruption_within_an_artefact_leaves_no_half_of_it(priced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name for name in snapshot(priced) if not name.endswith(".lock")}
    monkeypatch.setattr("antpipe.features.quantize_price.sinusoid", raising(KeyboardInterrupt()))
    assert run_named("quantize-price", priced).code == 130
    assert {name for name in snapshot(priced) if not name.endswith(".lock")} == before


@pytest.mark.parametrize("value", [None, "0", "1"])
def test_a_traceback_is_shown_only_where_it_is_asked_for(
    priced: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv("ANTPIPE_DEBUG", value)
    outcome = run("quantize-price", "--domains", "Nowhere", "--store", priced / "store")
    assert outcome.code == 3
    assert ("Traceback" in outcome.err) == (value == "1")
    assert outcome.err.count("antpipe: error: ") == 1


def test_a_bug_ends_with_1_and_one_line(priced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STAGE, raising(ValueError("first line\nsecond line")))
    outcome = run_named("quantize-price", priced)
    assert outcome.code == 1
    command = shlex.join(["antpipe", *words_of("quantize-price", priced)])
    assert outcome.err.splitlines() == [
        "antpipe: error: unexpected ValueError: first line second line",
        f"antpipe: next: ANTPIPE_DEBUG=1 {command}",
    ]


def test_a_failing_disk_is_named_by_file_and_reason(priced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = priced / "gone" / "price.arrow"
    monkeypatch.setattr(STAGE, raising(OSError(28, "No space left on device", str(file))))
    outcome = run_named("quantize-price", priced)
    assert outcome.code == 1
    assert outcome.err.splitlines() == [
        f"antpipe: error: {file}: No space left on device",
        f"antpipe: next: df -h {priced}",
    ]


# -- as a program of its own ----------------------------------------------------------------------------------


def program(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANTPIPE_")}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, env=environment, timeout=60
    )


def test_the_module_is_the_command(tmp_path: Path) -> None:
    assert program("-m", "antpipe", "--version").stdout == f"antpipe {__version__}\n"
    done = program("-m", "antpipe", "status", "--store", str(tmp_path), "--domains", "Nowhere")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("antpipe: error: no domain 'Nowhere'")


def test_help_takes_less_than_three_times_what_its_libraries_take_to_load() -> None:
    """Processor time, the least of five in alternation: about 2.2 times, whatever the machine."""
    ways = {"help": ("-m", "antpipe", "--help"), "libraries": ("-c", "import msgspec, typer.rich_utils, rich.markdown")}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(5):
        for name, words in ways.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert program(*words).returncode == 0
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(taken["help"]) < 3 * min(taken["libraries"])


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["train", "--epoch", "3"], ["--version"]])
def test_no_heavy_library_is_loaded_to_answer(words: list[str]) -> None:
    script = (
        "import sys\nfrom antpipe.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    print('loaded', *sorted(sys.modules), file=sys.stderr)\n"
    )
    [loaded] = [line for line in program("-c", script).stderr.splitlines() if line.startswith("loaded ")]
    assert "antpipe.cli" in loaded.split()
    assert HEAVY & set(loaded.split()) == set()


def test_quiet_leaves_results_and_warnings(tmp_path: Path) -> None:
    words = ["ingest", "sample", "--users", "40", "--items", "40", "--store", tmp_path / "store"]
    loud, quiet = run(*words), run(*words, "--force", "--quiet")
    assert loud.code == quiet.code == 0
    assert "antpipe: " in loud.err
    assert quiet.err == ""
    assert quiet.out == loud.out

"""`--preset`: settings that go together, and what overrides them."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest

from antpipe.errors import UsageError
from antpipe.settings.model import ModelConfig
from antpipe.settings.presets import PRESETS, TARGET, find_preset
from antpipe.settings.sources import resolve
from antpipe.settings.training import TrainConfig
from antpipe.store.store import Store
from antpipe.training import validation
from tests.support.commands import run
from tests.support.trainable import make_trainable

STRONG = PRESETS["strong"]


def test_ant_equals_the_defaults() -> None:
    ant = PRESETS["ant"]
    assert resolve(ModelConfig, {}, {}, {}, preset=ant["model"]) == ModelConfig()
    assert resolve(TrainConfig, {}, {}, {}, preset=ant["train"]) == TrainConfig()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_only_existing_settings(name: str) -> None:
    resolve(ModelConfig, {}, {}, {}, preset=PRESETS[name]["model"])
    resolve(TrainConfig, {}, {}, {}, preset=PRESETS[name]["train"])
    assert set(PRESETS[name]) <= {"model", "train", TARGET}
    resolve(ModelConfig, {}, {}, {}, preset=PRESETS[name].get(TARGET, {}))


def test_flag_variable_and_toml_override_a_preset_and_a_preset_overrides_a_checkpoint() -> None:
    inherited = ModelConfig(width=64, experts=5, hidden_dropout=0.9, attention_dropout=0.9)
    found = resolve(
        ModelConfig,
        {"attention_dropout": 0.1},
        {"model": {"hidden_dropout": 0.4}},
        {"ANTPIPE_MODEL_HEADS": "4"},
        inherited=inherited,
        preset=STRONG["model"],
    )
    assert asdict(found) == asdict(inherited) | dict(STRONG["model"]) | {
        "attention_dropout": 0.1,
        "hidden_dropout": 0.4,
        "heads": 4,
    }


def test_an_unknown_preset_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="--preset weak: choose from ant, strong"):
        find_preset("weak", on_target=True)


@pytest.mark.parametrize(("stage", "ids"), [("pretrain", False), ("scratch", True)])
def test_a_run_keeps_the_settings_of_its_preset_and_only_stages_on_a_target_have_ids(
    tmp_path: Path, stage: str, ids: bool
) -> None:
    make_trainable(Store(tmp_path / "store"), "Shop")
    words = ["--preset", "strong", "--width", "8", "--epochs", "1", "--store", tmp_path / "store"]
    assert run("train", "--stage", stage, "--domains", "Shop", "--out", tmp_path / "run", *words).code == 0
    kept = json.loads((tmp_path / "run" / "checkpoint.json").read_text(encoding="utf-8"))
    assert kept["model"].items() >= STRONG["model"].items()
    assert kept["train"].items() >= STRONG["train"].items()
    assert kept["model"]["width"] == 8
    assert kept["model"]["transductive"] is ids


def test_compare_pre_trains_without_ids_and_starts_with_them(tmp_path: Path) -> None:
    for name in ("Shop", "Source"):
        make_trainable(Store(tmp_path / "store"), name)
    found = run(
        "compare",
        "--target",
        "Shop",
        "--sources",
        "Source",
        "--arms",
        "scratch,finetune",
        "--seeds",
        "2",
        "--preset",
        "strong",
        "--width",
        "8",
        "--epochs",
        "1",
        "--out",
        tmp_path / "out",
        "--store",
        tmp_path / "store",
    )
    assert found.code == 0, found.err
    models = {
        path: json.loads((tmp_path / "out" / path / "checkpoint.json").read_text(encoding="utf-8"))["model"]
        for path in ("pretrain/all", "Shop/scratch-0", "Shop/all/finetune-1")
    }
    assert [model["transductive"] for model in models.values()] == [False, True, True]


def described(run_folder: Path) -> dict[str, dict[str, object]]:
    return json.loads((run_folder / "checkpoint.json").read_text(encoding="utf-8"))


def test_compare_pre_trains_without_ids_even_if_a_given_run_has_them(tmp_path: Path) -> None:
    for name in ("Shop", "Source"):
        make_trainable(Store(tmp_path / "store"), name)
    words = ["--preset", "strong", "--width", "8", "--epochs", "1", "--store", tmp_path / "store"]
    assert run("train", "--stage", "scratch", "--domains", "Shop", "--out", tmp_path / "mine", *words).code == 0
    found = run(
        "compare",
        "--target",
        "Shop",
        "--sources",
        "Source",
        "--run",
        f"scratch={tmp_path / 'mine'}",
        "--arms",
        "finetune",
        "--seeds",
        "1",
        "--out",
        tmp_path / "out",
        *words,
    )
    assert found.code == 0, found.err
    ids = [
        described(tmp_path / "out" / path)["model"]["transductive"] for path in ("pretrain/all", "Shop/all/finetune-0")
    ]
    assert ids == [False, True]


def test_the_command_an_interrupted_run_proposes_continues_it_without_the_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ant` sets defaults, so values that differ from the run to start from must be spelt out."""
    for name in ("Shop", "Source"):
        make_trainable(Store(tmp_path / "store"), name)
    words = ["--epochs", "1", "--save-every", "0", "--store", tmp_path / "store"]
    before = ["train", "--stage", "pretrain", "--domains", "Source", "--out", tmp_path / "source", "--width", "8"]
    assert run(*before, "--preset", "strong", "--transductive", *words).code == 0
    asked = ["train", "--stage", "finetune", "--domains", "Shop", "--from", tmp_path / "source", "--preset", "ant"]
    asked += ["--width", "8", "--experts", "0", *words]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(validation, "validate", interrupt)
        stopped = run(*asked, "--out", tmp_path / "run")
    [line] = [line for line in stopped.err.splitlines() if "next: antpipe train" in line]
    assert "--preset" not in line
    again = run(*shlex.split(line.partition("next: antpipe ")[2]))
    assert again.code == 0, again.err
    assert run(*asked, "--out", tmp_path / "whole").code == 0
    assert described(tmp_path / "run") == described(tmp_path / "whole")


@pytest.mark.parametrize(("flags", "flag"), [([], "--width 8"), (["--width", "8"], "--experts 0")])
def test_a_preset_that_does_not_fit_a_run_is_refused_with_the_flag_that_overrides_it(
    tmp_path: Path, flags: list[str], flag: str
) -> None:
    for name in ("Shop", "Source"):
        make_trainable(Store(tmp_path / "store"), name)
    words = ["--epochs", "1", "--store", tmp_path / "store"]
    before = ["train", "--stage", "pretrain", "--domains", "Source", "--out", tmp_path / "source", "--width", "8"]
    assert run(*before, "--preset", "strong", *words).code == 0
    asked = ["train", "--stage", "finetune", "--domains", "Shop", "--from", tmp_path / "source", "--preset", "ant"]
    refused = run(*asked, *flags, *words, "--out", tmp_path / "run")
    assert refused.code == 3
    [following] = [line for line in refused.err.splitlines() if line.startswith("antpipe: next: ")]
    assert f" {flag}" in following
    repaired = run(*shlex.split(following.removeprefix("antpipe: next: "))[1:])
    assert repaired.code == 0, repaired.err

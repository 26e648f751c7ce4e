"""Training by two processes, compared with training by one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from antpipe.features.build_sequences import build_sequences
from antpipe.settings.features import SequenceConfig
from antpipe.store.lock import alone
from antpipe.store.store import Store
from antpipe.training import rehearsal
from antpipe.training.folder import RunFolder
from antpipe.training.parallel import ALONE, World, rows_of, world_of
from antpipe.training.state import position_of
from tests.conftest import REPOSITORY
from tests.support import commands
from tests.support.trainable import make_trainable

FLAGS = (
    "--width",
    "16",
    "--experts",
    "2",
    "--item-dropout",
    "0",
    "--hidden-dropout",
    "0",
    "--attention-dropout",
    "0",
    "--no-gate-noise",
    "--epochs",
    "3",
    "--batch-size",
    "50",
    "--device",
    "cpu",
    "--precision",
    "fp32",
)


def antpipe(processes: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in one process, or in several by torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    # The dashes: torchrun would take --run for the beginning of an option of its own.
    program = [sys.executable, *([*launcher, "-m", "--"] if processes > 1 else ["-m"]), "antpipe"]
    return subprocess.run([*program, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)


def rows(run: Path) -> list[dict[str, Any]]:
    return RunFolder(run).read_rows()


def test_without_torchrun_there_is_one_process() -> None:
    assert world_of({}) == ALONE
    assert world_of({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == World(3, 4, 1)


@pytest.mark.parametrize(("n", "size"), [(7, 2), (1, 3), (0, 2), (10, 4), (9, 3), (2, 5)])
def test_shares_are_every_row_once_in_order(n: int, size: int) -> None:
    taken = [row for rank in range(size) for row in range(n)[rows_of(n, World(rank, size))]]
    assert taken == list(range(n))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("parallel") / "store")
    make_trainable(store, "Shop", seed=1)
    make_trainable(store, "Other", seed=2)
    make_trainable(store, "Long", seed=3)
    build_sequences(store, ["Long"], SequenceConfig(max_len=2))  # windows of one user go to several processes
    return store


CASES = {
    "pretrain": "--stage pretrain --domains Shop,Other --image-text-weight 0.5",
    "pretrain-history": "--stage pretrain --domains Shop,Other --image-text-weight 0.5 --history-score",
    "pretrain-drawn": "--stage pretrain --domains Shop,Other --image-text-weight 0.5 --pretrain-drawn 5",
    "pretrain-windows": "--stage pretrain --domains Long --batch-size 23",
    "scratch": "--stage scratch --domains Shop",
    "sampled": "--stage scratch --domains Shop --sampled-above 10 --drawn 2 --transductive --history-score",
    "with-floor": "--stage scratch --domains Shop --floor --transductive --no-unsold-negatives",
    # Steps of 5 positions: one of the processes often has none.
    "sampled-with-floor": "--stage scratch --domains Shop --floor --batch-size 5 --sampled-above 10",
    "pretrain-with-floor": "--stage pretrain --domains Shop,Other --floor --smallest-batch 30 --least-steps 12",
    "pretrain-drawn-with-floor": "--stage pretrain --domains Shop,Other --floor --pretrain-drawn 5",
    "re-ranked": "--stage scratch --domains Shop --floor --reranker",
    "floor-alone": "--stage floor --domains Shop",
    "refitted": "--stage scratch --domains Shop --refit",
}

# Runs command lines one after the other, in processes that connect once, since most of a start is loading libraries.
SEVERAL = """
import json, sys
import torch
from antpipe import cli
from antpipe.training import rehearsal
from antpipe.training.parallel import together, world_of
rehearsal.ALONE_POSITIONS = 10
with together(world_of(), torch.device("cpu")):
    codes = [cli.run(words) for words in json.load(open(sys.argv[1]))]
assert not any(codes), codes
"""


@pytest.fixture(scope="module")
def by_two(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The runs of all cases, each in a folder of its name, trained by two processes; and what these printed."""
    folder = tmp_path_factory.mktemp("by-two")
    lines = [
        ["train", *FLAGS, *words.split(), "--out", str(folder / name), "--store", str(store.root)]
        for name, words in CASES.items()
    ]
    (folder / "lines.json").write_text(json.dumps(lines))
    (folder / "several.py").write_text(SEVERAL)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]
    words = [sys.executable, *launcher, str(folder / "several.py"), str(folder / "lines.json")]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_and_judge_like_one(
    store: Store, tmp_path: Path, by_two: tuple[Path, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "ALONE_POSITIONS", 10)
    words, runs = CASES[name].split(), (tmp_path / "one", by_two[0] / name)
    alone = commands.run("train", *FLAGS, *words, "--out", runs[0], "--store", store.root)
    assert alone.code == 0, alone.err
    assert by_two[1].count(f"{runs[1]}  ") == 1  # one of them speaks
    one, two = map(rows, runs)
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)
    assert bool(one) == (name != "floor-alone")
    for figure in [figure for figure in (one or [{}])[0] if figure.startswith(("valid_", "start_"))]:
        close = 1e-5 if figure == "valid_gain" else 1e-9  # it is of vectors, which differ by rounding, as losses do
        assert [row.get(figure) for row in two] == pytest.approx([row.get(figure) for row in one], abs=close)
    if "--refit" in words:
        losses = [[row["loss"] for row in rows(RunFolder(run).refit)] for run in runs]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    domain = words[3].split(",")[0]
    figures = [
        commands.run("evaluate", "--run", run, "--domains", domain, "--store", store.root, "--json").json()
        for run in runs
    ]
    assert figures[0][0]["protocols"] == figures[1][0]["protocols"]


@pytest.mark.slow
def test_a_run_of_two_processes_is_not_resumed_by_one(store: Store, tmp_path: Path) -> None:
    words = [
        "train",
        "--stage",
        "scratch",
        "--domains",
        "Shop",
        *FLAGS,
        "--out",
        str(tmp_path / "run"),
        "--store",
        str(store.root),
    ]
    begun = antpipe(2, *words, "--save-every", "0", "--lr", "1e38")  # diverges in its second step
    assert begun.returncode != 0
    alone = commands.run(*words, "--save-every", "0", "--lr", "1e38", "--resume")
    assert alone.code == 2
    assert "a run of 2 process(es), not of 1" in alone.err


# Trains with the command line it is given; the second process alone finds a loss that is not finite, in step 5.
ONE_DIVERGES = """
import os, sys
import torch
from antpipe import cli
from antpipe.training import loop
loss, steps = loop.target_loss, 0
def counted(*arguments):
    global steps
    steps += 1
    return loss(*arguments) * (float("nan") if steps == 5 and os.environ["RANK"] == "1" else 1.0)
loop.target_loss = counted
step = torch.optim.Adam.step
def stepped(optimiser, *rest):
    done = step(optimiser, *rest)
    values = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    assert all(torch.isfinite(value).all() for value in values), "poisoned"
    return done
torch.optim.Adam.step = stepped
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_all_processes_stop_before_the_step_if_one_finds_a_loss_that_is_not_finite(
    store: Store, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(ONE_DIVERGES)
    words = [
        "train",
        "--stage",
        "scratch",
        "--domains",
        "Shop",
        *FLAGS,
        "--out",
        str(tmp_path / "run"),
        "--store",
        str(store.root),
        "--save-every",
        "0",
    ]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--", str(program)]
    ended = subprocess.run(
        [sys.executable, *launcher, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode != 0
    assert "poisoned" not in ended.stderr
    assert "the loss is not finite (nan) in epoch 2, step 2" in ended.stderr
    assert str(position_of(RunFolder(tmp_path / "run"))) == "epoch 2, step 1"


@pytest.mark.slow
def test_processes_of_a_second_training_are_all_refused(store: Store, tmp_path: Path) -> None:
    words = ["train", "--stage", "scratch", "--domains", "Shop", *FLAGS, "--out", str(tmp_path), "--store"]
    with alone(tmp_path, "run"):
        refused = antpipe(2, *words, str(store.root))
    assert refused.returncode != 0
    assert "run is being written by process" in refused.stderr
    assert not RunFolder(tmp_path).metrics.exists()


@pytest.mark.slow
def test_other_commands_run_once_under_torchrun(store: Store) -> None:
    done = antpipe(2, "status", "--store", str(store.root), "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"Shop", "Other", "Long"}

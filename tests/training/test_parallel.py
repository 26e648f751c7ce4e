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


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--stage", "pretrain", "--domains", "Shop,Other", "--image-text-weight", "0.5"],
        ["--stage", "pretrain", "--domains", "Shop,Other", "--image-text-weight", "0.5", "--history-score"],
        ["--stage", "pretrain", "--domains", "Shop,Other", "--image-text-weight", "0.5", "--pretrain-drawn", "5"],
        ["--stage", "pretrain", "--domains", "Long", "--batch-size", "23"],
        ["--stage", "scratch", "--domains", "Shop"],
        [
            "--stage",
            "scratch",
            "--domains",
            "Shop",
            "--sampled-above",
            "10",
            "--drawn",
            "2",
            "--transductive",
            "--history-score",
        ],
        ["--stage", "scratch", "--domains", "Shop", "--floor", "--transductive", "--no-unsold-negatives"],
        # Steps of 5 positions: one of the processes often has none.
        ["--stage", "scratch", "--domains", "Shop", "--floor", "--batch-size", "5", "--sampled-above", "10"],
        ["--stage", "pretrain", "--domains", "Shop,Other", "--floor", "--smallest-batch", "30", "--least-steps", "12"],
        ["--stage", "pretrain", "--domains", "Shop,Other", "--floor", "--pretrain-drawn", "5"],
        ["--stage", "floor", "--domains", "Shop"],
    ],
    ids=[
        "pretrain",
        "pretrain-history",
        "pretrain-drawn",
        "pretrain-windows",
        "scratch",
        "sampled",
        "with-floor",
        "sampled-with-floor",
        "pretrain-with-floor",
        "pretrain-drawn-with-floor",
        "floor-alone",
    ],
)
def test_two_processes_train_and_judge_like_one(store: Store, tmp_path: Path, words: list[str]) -> None:
    runs, domain = [tmp_path / "one", tmp_path / "two"], words[3].split(",")[0]
    lines = [["train", *FLAGS, *words, "--out", str(run), "--store", str(store.root)] for run in runs]
    alone, both = commands.run(*lines[0]), antpipe(2, *lines[1])
    assert alone.code == 0, alone.err
    assert both.returncode == 0, both.stderr
    assert both.stdout.count(str(runs[1])) == 1  # one of them speaks
    one, two = map(rows, runs)
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)
    assert bool(one) == (words[1] != "floor")
    for name in [name for name in (one or [{}])[0] if name.startswith(("valid_", "start_"))]:
        assert [row.get(name) for row in two] == pytest.approx([row.get(name) for row in one], abs=1e-9)
    figures = [
        commands.run("evaluate", "--run", run, "--domains", domain, "--store", store.root, "--json").json()
        for run in runs
    ]
    assert figures[0][0]["protocols"] == figures[1][0]["protocols"]


@pytest.mark.slow
def test_two_processes_refit_like_one(store: Store, tmp_path: Path) -> None:
    words = ["train", "--stage", "scratch", "--domains", "Shop", *FLAGS, "--refit", "--store", str(store.root), "--out"]
    alone, both = commands.run(*words, tmp_path / "one"), antpipe(2, *words, str(tmp_path / "two"))
    assert alone.code == 0, alone.err
    assert both.returncode == 0, both.stderr
    one, two = (rows(tmp_path / name / "refit") for name in ("one", "two"))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)


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

"""Training that stops: by Ctrl-C, a kill, a full disk, a loss that is not finite, or a limit."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from antpipe.errors import AntpipeError, DivergedError, Interrupted
from antpipe.runtime import process
from antpipe.store import lock
from antpipe.store.store import Store
from antpipe.training import checkpoint, loop, state, validation, worth
from antpipe.training.folder import RunFolder
from tests.conftest import REPOSITORY
from tests.support.interruptions import CONFIG, STEPS, asked, command, failing_at, result, trained, two_shops, watching


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return two_shops(tmp_path_factory.mktemp("shops"))


@pytest.fixture(scope="module")
def undisturbed(store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = tmp_path_factory.mktemp("undisturbed")
    trained(store, run)
    return result(run)


# -- signals, in a process of its own -------------------------------------------------------------------------

# Runs the command line it is given, and sends itself a signal when the loss of step 5 is computed.
PROGRAM = """
import os, sys
from antpipe import cli
from antpipe.training import loop
number, words = int(sys.argv[1]), sys.argv[2:]
loss, steps = loop.target_loss, 0
def counted(*arguments):
    global steps
    steps += 1
    if steps == 5:
        os.kill(os.getpid(), number)
    return loss(*arguments)
loop.target_loss = counted
cli.main(words)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_gets_a_signal_is_resumed_bit_equal(
    store: Store, tmp_path: Path, undisturbed: dict[str, Any], number: signal.Signals
) -> None:
    words = command(store, tmp_path / "run")
    killed = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(int(number)), *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    at = state.position_of(RunFolder(tmp_path / "run"))
    if number == signal.SIGINT:
        assert killed.returncode == 130
        assert f"next: antpipe {' '.join(words[:5])}" in killed.stderr
        assert "--resume" in killed.stderr
        assert (at.epoch, at.step) == (2, 2)  # the step under way was finished
    else:
        assert killed.returncode == -signal.SIGKILL
        assert (at.epoch, at.step) == (2, 1)
    again = subprocess.run(
        [sys.executable, "-m", "antpipe", *words, "--resume"],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    assert again.returncode == 0, again.stderr
    found = result(tmp_path / "run")
    assert (found["weights"], found["rows"]) == (undisturbed["weights"], undisturbed["rows"])


def test_ctrl_c_between_steps_keeps_the_state_and_names_the_command(store: Store, tmp_path: Path) -> None:
    def press(done: float) -> None:
        if done > 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as stopped:
        trained(store, tmp_path, replace(CONFIG, save_every=1000.0), progress=watching(press))
    assert str(state.position_of(RunFolder(tmp_path))) == "epoch 2, step 1"
    assert stopped.value.message == f"{tmp_path}: interrupted; epoch 2, step 1 kept"
    assert str(stopped.value.next_command).startswith("antpipe train --stage scratch --domains Target --store ")
    assert str(stopped.value.next_command).endswith(" --resume")


def test_the_handler_of_ctrl_c_is_put_back(store: Store, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    trained(store, tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_stops_at_once() -> None:
    with process.stopping() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


# -- a full disk ----------------------------------------------------------------------------------------------


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_during_a_state_loses_no_earlier_one(
    store: Store, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AntpipeError) as failed:
        patch.setattr(
            state,
            "write_tensors",
            failing_at(4, state.write_tensors, FULL, after=False),
        )
        trained(store, tmp_path)
    assert "No space left on device; the earlier state is kept: epoch 1, step 3" in failed.value.message
    trained(store, tmp_path, resume=True)
    assert result(tmp_path) == undisturbed


@pytest.mark.parametrize(("name", "after"), [("write_tensors", False), ("write_tensors", True), ("write_json", False)])
def test_a_disk_that_fills_up_during_the_checkpoint_keeps_state_and_earlier_checkpoint(
    store: Store, tmp_path: Path, undisturbed: dict[str, Any], name: str, after: bool
) -> None:
    trained(store, tmp_path, replace(CONFIG, seed=9, epochs=1))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AntpipeError, match=r"earlier checkpoint .* untouched"):
        patch.setattr(checkpoint, name, failing_at(1, getattr(checkpoint, name), FULL, after=after))
        trained(store, tmp_path, force=True)
    assert checkpoint.load(tmp_path)[1].train["seed"] == 9
    assert str(state.position_of(RunFolder(tmp_path))) == "all 3 epochs"
    trained(store, tmp_path, resume=True)
    assert result(tmp_path) == undisturbed


def test_a_file_that_cannot_be_written_whole_is_not_left_behind(tmp_path: Path) -> None:
    """A limit on file sizes stands in for a full disk: the system refuses during the writing."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        refused = pytest.raises(AntpipeError, match=r"cannot be written: .*; all is kept")
        with refused, checkpoint.keeping(tmp_path / "state", "all is kept"):
            checkpoint.write_tensors(tmp_path / "state", {"a": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


# -- a loss that is not finite --------------------------------------------------------------------------------


def poisoned(step: int, value: float) -> Callable[..., torch.Tensor]:
    loss, calls = loop.target_loss, 0

    def instead(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return loss(*arguments) * (value if calls == step else 1.0)

    return instead


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_stops_and_saves_its_batch(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(loop, "target_loss", poisoned(5, value))
    with pytest.raises(DivergedError, match=r"in epoch 2, step 2; its batch is in .*nan-batch\.npz") as failed:
        trained(store, tmp_path)
    assert failed.value.exit_code == 1
    assert failed.value.next_command is not None
    assert failed.value.next_command.endswith("--lr 0.0001 --force")
    with np.load(tmp_path / "nan-batch.npz") as batch:
        assert set(batch) >= {"items", "targets", "inputs_0"}
        assert np.isin(batch["targets"], batch["items"]).all()
        assert np.isin(batch["inputs_0"], batch["items"]).all()
    assert str(state.position_of(RunFolder(tmp_path))) == "epoch 2, step 1"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_no_weight(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """The model is the one that the step before left, so Adam never sees a gradient of such a loss."""
    after_steps: list[dict[str, torch.Tensor]] = []
    original, models = loop.target_loss, []

    def watched(model: torch.nn.Module, *rest: Any) -> torch.Tensor:
        models.append(model)
        after_steps.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return original(model, *rest) * (value if len(models) == 5 else 1.0)

    monkeypatch.setattr(loop, "target_loss", watched)
    with pytest.raises(DivergedError):
        trained(store, tmp_path)
    assert len(after_steps) == 5
    left = models[-1].state_dict()
    assert all(torch.equal(left[name], tensor) for name, tensor in after_steps[-1].items())


# -- when to stop, and what it cost ---------------------------------------------------------------------------


def scripted(values: list[float]) -> Callable[..., dict[str, float]]:
    """A validation that finds these figures in turn."""
    left = iter(values)
    return lambda *_: dict.fromkeys((worth.SELECTION, worth.TIE_BREAK), next(left))


@pytest.mark.parametrize(
    ("patience", "epochs"), [(0, 6), (1, 3), (2, 4), (3, 6)]
)  # best at epoch 2 until epoch 5, which is better
def test_patience_is_the_number_of_epochs_without_a_better_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int, epochs: int
) -> None:
    monkeypatch.setattr(validation, "validate", scripted([0.1, 0.3, 0.2, 0.29, 0.4, 0.1]))
    done, _ = trained(store, tmp_path, replace(CONFIG, epochs=6, patience=patience))
    assert done.epochs == epochs
    assert done.best_epoch == (2 if epochs < 5 else 5)


@pytest.mark.parametrize(("limit", "epochs"), [(1, 1), (3, 1), (4, 2), (100, 3)])
def test_limited_steps_still_validate_and_leave_a_checkpoint(
    store: Store, tmp_path: Path, limit: int, epochs: int
) -> None:
    done, _ = trained(store, tmp_path, replace(CONFIG, limit_steps=limit))
    assert (done.epochs, RunFolder(tmp_path).read_cost()["steps"]) == (epochs, min(limit, STEPS))
    assert "valid_recall@10" in result(tmp_path)["rows"][-1]


def test_clipping_bounds_what_a_step_may_change(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    original = torch.optim.Adam.step

    def watched(optimiser: torch.optim.Adam, *rest: Any) -> Any:
        gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))
        return original(optimiser, *rest)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    trained(store, tmp_path / "free")
    assert max(norms) > 0.02
    norms.clear()
    trained(store, tmp_path / "clipped", replace(CONFIG, clip=0.01))
    assert max(norms) <= 0.01 * 1.001


def test_the_cost_of_a_run_is_kept_beside_its_checkpoint(store: Store, tmp_path: Path) -> None:
    trained(store, tmp_path)
    cost = RunFolder(tmp_path).read_cost()
    assert (cost["epochs"], cost["steps"]) == (3, STEPS)
    assert cost["seconds"] > 0
    assert cost["positions_per_second"] > 0
    assert 50 < cost["peak_memory_mb"] < 100_000


def test_progress_counts_steps_as_fractions_of_epochs(store: Store, tmp_path: Path) -> None:
    done: list[float] = []
    trained(store, tmp_path, progress=watching(done.append))
    assert len(done) == STEPS + 3
    assert done == sorted(done)
    assert [value for value in done if value == int(value)] == [1, 2, 3]  # after each validation
    assert [int(value) for value in done if value != int(value)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("field", ["device", "save_every", "track"])
def test_settings_without_effect_are_not_part_of_the_fingerprint(store: Store, field: str) -> None:
    other = {"device": "cpu", "save_every": 7.0, "track": "tensorboard"}[field]
    assert asked(store).fingerprint() == asked(store, replace(CONFIG, **{field: other})).fingerprint()


def test_epochs_shorter_than_writing_states_are_not_slowed_by_them(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    original = state.write_tensors

    def slow(*arguments: Any) -> None:
        original(*arguments)
        time.sleep(0.3)
        written.append(
            str(state.position_of(RunFolder(tmp_path))) if RunFolder(tmp_path).is_unfinished() else "nothing before"
        )

    monkeypatch.setattr(state, "write_tensors", slow)
    trained(store, tmp_path, replace(CONFIG, epochs=6, save_every=300.0))
    assert written == ["nothing before", "1 epoch"]  # the first epoch's and the last one's


# -- two trainings in one folder ------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"force": True}, {"resume": True}])
def test_a_second_training_in_a_folder_is_refused_and_names_the_first(
    store: Store, tmp_path: Path, undisturbed: dict[str, Any], more: dict[str, bool]
) -> None:
    refused: list[AntpipeError] = []

    def intrude(done: float) -> None:
        if done > 1 and not refused:
            with torch.random.fork_rng(), pytest.raises(AntpipeError) as error:
                trained(store, tmp_path, **more)
            refused.append(error.value)

    trained(store, tmp_path, progress=watching(intrude))
    assert f"{tmp_path}: run is being written by process {os.getpid()} on " in refused[0].message
    assert result(tmp_path) == undisturbed


def test_a_finished_run_is_read_without_a_lock(store: Store, tmp_path: Path) -> None:
    trained(store, tmp_path)
    with lock.alone(tmp_path, "run"):
        assert trained(store, tmp_path)[1]


@pytest.mark.slow
def test_a_killed_training_leaves_no_lock(store: Store, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    words = command(store, tmp_path)
    killed = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(int(signal.SIGKILL)), *words],
        check=False,
        cwd=REPOSITORY,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / ".run.holder").exists()
    trained(store, tmp_path, resume=True)
    assert result(tmp_path)["weights"] == undisturbed["weights"]

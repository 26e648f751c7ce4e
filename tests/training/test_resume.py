"""After an interruption anywhere, --resume ends where an undisturbed run ends, bit for bit."""

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antpipe.errors import IntegrityError, UsageError
from antpipe.settings.training import TrainConfig
from antpipe.store.store import Store
from antpipe.training import checkpoint, loop, state, validation
from antpipe.training import run as runs
from antpipe.training.folder import RunFolder
from antpipe.training.run import run_stage
from tests.support.commands import run as run_words
from tests.support.interruptions import (
    CONFIG,
    STEPS,
    Killed,
    asked,
    command,
    failing_at,
    interrupted,
    result,
    trained,
    two_shops,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return two_shops(tmp_path_factory.mktemp("shops"))


@pytest.fixture(scope="module")
def undisturbed(store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = tmp_path_factory.mktemp("undisturbed")
    trained(store, run)
    return result(run)


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_run_killed_at_any_step_ends_bit_equal_after_resuming(
    store: Store, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "target_loss", failing_at(step, loop.target_loss, Killed(), after=False))
        trained(store, tmp_path)
    assert RunFolder(tmp_path).is_unfinished() == (step > 1)
    trained(store, tmp_path, resume=True)
    assert result(tmp_path) == undisturbed


def test_the_step_test_above_kills_at_every_step(store: Store, tmp_path: Path) -> None:
    trained(store, tmp_path)
    assert RunFolder(tmp_path).read_cost()["steps"] == STEPS


MOMENTS = [
    (state.Keeping, "save", True),
    (state.Keeping, "save", False),
    (validation, "validate", False),
    (validation, "validate", True),
    (state, "add_row", False),
    (state, "add_row", True),
    (checkpoint, "write_tensors", False),
    (checkpoint, "write_json", False),
    (checkpoint, "write_json", True),
    (runs, "write_json", True),
    (runs, "remove_state", False),
    (runs, "remove_state", True),
    (state, "write_tensors", True),
]


@pytest.mark.parametrize(("module", "name", "after"), MOMENTS)
@pytest.mark.parametrize("call", [1, 2])
def test_a_run_killed_around_writing_ends_bit_equal_after_resuming(
    store: Store,
    tmp_path: Path,
    undisturbed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    after: bool,
    call: int,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing_at(call, getattr(module, name), Killed(), after=after))
        try:
            trained(store, tmp_path)
        except Killed:
            trained(store, tmp_path, resume=True)
    assert result(tmp_path) == undisturbed
    assert not RunFolder(tmp_path).is_unfinished()


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(line=st.integers(1, 7400))  # about as many as the run has
def test_a_run_killed_at_any_line_ends_bit_equal_after_resuming(
    store: Store, tmp_path_factory: pytest.TempPathFactory, undisturbed: dict[str, Any], line: int
) -> None:
    """A trace function counts the lines that run in the training modules, and raises at one of them."""
    run = tmp_path_factory.mktemp("killed")
    files = {module.__file__ for module in (loop, runs, state, checkpoint)}
    left = line

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        left -= event == "line"
        if left <= 0:
            raise Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        trained(store, run)
    except Killed:
        sys.settrace(before)
        trained(store, run, resume=True)
    finally:
        sys.settrace(before)
    assert result(run) == undisturbed


@pytest.mark.slow
def test_a_run_may_be_killed_again_and_again(
    store: Store, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(STEPS - 1):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(loop, "target_loss", failing_at(2, loop.target_loss, Killed(), after=False))
            trained(store, tmp_path, resume=True)
    trained(store, tmp_path, resume=True)
    assert result(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"clip": 0.5}, {"limit_steps": 5}, {"patience": 1, "epochs": 20}, {"eval_every": 2}])
@pytest.mark.parametrize("stage", ["scratch", "pretrain"])
def test_resuming_is_exact_with_other_settings_too(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, more: dict[str, Any]
) -> None:
    config = replace(CONFIG, **more)
    trained(store, tmp_path / "whole", config, stage)
    loss = "pretraining_loss" if stage == "pretrain" else "target_loss"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, loss, failing_at(5, getattr(loop, loss), Killed(), after=False))
        trained(store, tmp_path / "killed", config, stage)
    trained(store, tmp_path / "killed", config, stage, resume=True)
    assert result(tmp_path / "killed") == result(tmp_path / "whole")


def test_relearning_is_resumed_with_its_frozen_encoder(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(store, tmp_path / "source", stage="pretrain")
    more = {"stage": "relearn", "source": tmp_path / "source"}
    trained(store, tmp_path / "whole", **more)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "target_loss", failing_at(5, loop.target_loss, Killed(), after=False))
        trained(store, tmp_path / "killed", **more)
    trained(store, tmp_path / "killed", resume=True, **more)
    assert result(tmp_path / "killed") == result(tmp_path / "whole")


def test_within_an_epoch_states_are_written_only_as_often_as_requested(store: Store, tmp_path: Path) -> None:
    interrupted(store, tmp_path, replace(CONFIG, save_every=1000.0))
    at = state.position_of(RunFolder(tmp_path))
    assert (at.epoch, at.step, len(at.rows)) == (2, 0, 1)


# -- what is there already ------------------------------------------------------------------------------------


def test_without_resume_an_unfinished_run_is_neither_lost_nor_continued(store: Store, tmp_path: Path) -> None:
    interrupted(store, tmp_path)
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(
        UsageError, match=r"unfinished \(epoch 2, step 1\): --resume continues it, --force starts over"
    ) as refused:
        trained(store, tmp_path)
    assert refused.value.next_command is not None
    assert refused.value.next_command.endswith("--resume")
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_the_command_that_a_refusal_names_resumes_the_run(
    store: Store, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    interrupted(store, tmp_path)
    refused = run_words(*command(store, tmp_path))
    assert refused.code == 2
    words = shlex.split(refused.err.splitlines()[-1].removeprefix("antpipe: next: antpipe "))
    assert words[-1] == "--resume"
    assert run_words(*words).code == 0
    found = result(tmp_path)
    assert (found["weights"], found["rows"]) == (undisturbed["weights"], undisturbed["rows"])


def test_the_command_says_what_training_took(store: Store, tmp_path: Path) -> None:
    outcome = run_words(*command(store, tmp_path))
    said = r"epochs=3 steps=9 seconds=\S+ positions_per_second=\S+ peak_memory_mb=\S+$"
    assert re.search(rf"(?m)^antpipe: {re.escape(str(tmp_path))}: {said}", outcome.err)


def test_force_begins_an_unfinished_run_again(store: Store, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    interrupted(store, tmp_path)
    trained(store, tmp_path, force=True)
    assert result(tmp_path) == undisturbed


@pytest.mark.parametrize("more", [{}, {"resume": True}])
def test_the_state_of_other_settings_is_refused_by_name(store: Store, tmp_path: Path, more: dict[str, Any]) -> None:
    interrupted(store, tmp_path)
    with pytest.raises(UsageError, match=r"other settings: --lr 0.001 \(now 0.5\); --seed 0 \(now 3\)\. "):
        trained(store, tmp_path, replace(CONFIG, lr=0.5, seed=3), **more)
    assert RunFolder(tmp_path).is_unfinished()


def test_pre_training_with_the_negatives_of_0_1_0_is_not_continued(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(state.Paused):
        patch.setattr(TrainConfig, "in_batch", lambda _: False)  # describes it as 0.1.0 did
        run_stage(asked(store, stage="pretrain"), tmp_path, pause_after=1)
    with pytest.raises(UsageError, match="other settings: negatives that include the user's own next items"):
        trained(store, tmp_path, stage="pretrain", resume=True)


def test_settings_without_effect_may_change_on_resuming(
    store: Store, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    interrupted(store, tmp_path)
    trained(store, tmp_path, replace(CONFIG, save_every=9.0, device="cpu"), resume=True)
    found = result(tmp_path)
    assert found["weights"] == undisturbed["weights"]
    assert found["described"]["fingerprint"] == undisturbed["described"]["fingerprint"]


def test_resuming_an_empty_folder_begins_with_a_message(
    store: Store, tmp_path: Path, undisturbed: dict[str, Any], messages: list[str]
) -> None:
    trained(store, tmp_path, resume=True)
    assert messages == [f"{tmp_path} holds nothing to resume; training begins"]
    assert result(tmp_path) == undisturbed


def test_resuming_a_finished_run_does_nothing(store: Store, tmp_path: Path) -> None:
    trained(store, tmp_path)
    stamp = (tmp_path / "checkpoint.json").stat().st_mtime_ns
    assert trained(store, tmp_path, resume=True)[1]
    assert (tmp_path / "checkpoint.json").stat().st_mtime_ns == stamp


def test_force_and_resume_exclude_each_other(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose one"):
        trained(store, tmp_path, force=True, resume=True)


def test_a_damaged_state_is_refused(store: Store, tmp_path: Path) -> None:
    interrupted(store, tmp_path)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="not a training state"):
        trained(store, tmp_path, resume=True)


def test_a_finished_run_leaves_no_state_and_no_scratch_files(store: Store, tmp_path: Path) -> None:
    trained(store, tmp_path)
    [weights], [items] = tmp_path.glob("model-*.safetensors"), tmp_path.glob("items-*.parquet")
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint.json",
        "cost.json",
        "metrics.jsonl",
        weights.name,
        items.name,
        ".run.lock",
    }

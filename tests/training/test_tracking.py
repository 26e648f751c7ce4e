"""Figures of the epochs in TensorBoard and Weights & Biases, if they are installed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from antpipe.errors import UsageError
from antpipe.store.store import Store
from antpipe.training import state, tracking, worth
from antpipe.training.request import RunRequest
from antpipe.training.run import run_stage
from antpipe.training.state import Keeping
from tests.support.interruptions import Killed, failing_at
from tests.support.trainable import MODEL, TRAINING, make_trainable


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("shops") / "store")
    make_trainable(store, "Target", seed=2)
    return store


def trained(store: Store, out: Path, track: str, **more: Any) -> None:
    run_stage(RunRequest(store, ["Target"], "scratch", MODEL, replace(TRAINING, track=track)), out, **more)


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """By name, (step, value) of all points that TensorBoard shows for a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {name: [(point.step, point.value) for point in events.Scalars(name)] for name in events.Tags()["scalars"]}


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_done(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=f"{name} is not installed") as refused:
        trained(store, tmp_path / "run", name)
    assert refused.value.next_command == f"pip install 'antpipe[{name}]'"
    assert not (tmp_path / "run").exists()


def test_tensorboard_shows_the_figures_of_metrics_jsonl(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'antpipe[tensorboard]'")
    trained(store, tmp_path, "tensorboard")
    shown, rows = curves(tmp_path), rows_of(tmp_path)
    assert [step for step, _ in shown["loss"]] == [1, 2, 3]
    assert [value for _, value in shown["loss"]] == pytest.approx([row["loss"] for row in rows])
    assert [value for _, value in shown["valid/recall@10"]] == pytest.approx([row["valid_recall@10"] for row in rows])


def test_after_resuming_tensorboard_shows_each_epoch_once(store: Store, tmp_path: Path) -> None:
    """Killed after the second epoch was shown and before its state was written."""
    pytest.importorskip("tensorboard", reason="pip install 'antpipe[tensorboard]'")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(state, "add_row", failing_at(2, state.add_row, Killed(), after=False))
        patch.setattr(Keeping, "save", failing_at(2, Keeping.save, Killed(), after=False))
        trained(store, tmp_path, "tensorboard")
    trained(store, tmp_path, "tensorboard", resume=True)
    assert [step for step, _ in curves(tmp_path)["loss"]] == [1, 2, 3]


def test_tracking_does_not_change_what_is_learned(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'antpipe[tensorboard]'")
    for name in ("none", "tensorboard"):
        trained(store, tmp_path / name, name)
    found = [[row["loss"] for row in rows_of(tmp_path / name)] for name in ("none", "tensorboard")]
    assert found[0] == found[1]
    assert not (tmp_path / "none" / "tensorboard").exists()


def test_wandb_gets_one_row_per_epoch_and_one_identity_per_run(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="pip install 'antpipe[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged: list[tuple[int, dict[str, float]]] = []
    identities: list[str] = []
    original = wandb.Run.log

    def watched(run: Any, row: dict[str, float], step: int) -> None:
        logged.append((step, row))
        identities.append(run.id)
        original(run, row, step=step)

    monkeypatch.setattr(wandb.Run, "log", watched)
    trained(store, tmp_path, "wandb")
    assert [step for step, _ in logged] == [1, 2, 3]
    assert [row["loss"] for _, row in logged] == [row["loss"] for row in rows_of(tmp_path)]
    fingerprint = json.loads((tmp_path / "checkpoint.json").read_text())["fingerprint"]
    assert set(identities) == {fingerprint[:16]}
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_the_selection_is_among_the_figures_shown(store: Store, tmp_path: Path) -> None:
    trained(store, tmp_path, "none")
    assert f"valid_{worth.SELECTION}" in tracking.figures_of(rows_of(tmp_path)[0])

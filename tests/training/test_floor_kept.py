"""Trained vectors have to add enough to the floor; otherwise the run is that floor."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from antpipe.core import stages
from antpipe.core.ranking import PROTOCOLS
from antpipe.errors import UsageError
from antpipe.evaluation.evaluate import evaluate_run
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.store.store import Store
from antpipe.training import checkpoint, loop, validation, worth
from antpipe.training.folder import RunFolder
from antpipe.training.run import run_stage
from tests.support.interruptions import CONFIG, Killed, asked, failing_at, result, two_shops

POSITIONS = 500


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return two_shops(tmp_path_factory.mktemp("shops"))


def trained(store: Store, out: Path, stage: str = "scratch", *, resume: bool = False) -> checkpoint.Checkpoint:
    request = asked(store, CONFIG, stage)
    model = replace(request.model, floor=True, transductive=True)
    return run_stage(replace(request, model=model), out, resume=resume)[0]


def both(figure: float) -> dict[str, float]:
    return {worth.SELECTION: figure, worth.TIE_BREAK: figure}


def test_chance_is_smaller_with_more_positions() -> None:
    """By hand: .12 of 500 has an error of the difference of sqrt(2 * .1 * .12 * .88 / 500) = .0065."""
    assert not worth.beyond_chance(0.130, 0.12, POSITIONS)
    assert worth.beyond_chance(0.131, 0.12, POSITIONS)
    assert worth.beyond_chance(0.123, 0.12, 20 * POSITIONS)
    assert not worth.beyond_chance(0.122, 0.12, 20 * POSITIONS)


@pytest.mark.parametrize(("gain", "last", "best"), [(5.1, 0.31, 2), (5.1, 0.27, 2), (4.9, 0.31, 0), (99.0, 0.2, 0)])
def test_vectors_stay_if_they_tell_enough_and_recall_is_not_lower_beyond_chance(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    messages: list[str],
    gain: float,
    last: float,
    best: int,
) -> None:
    monkeypatch.setattr(worth, "fit_cosine", lambda *_: (2.0, gain))
    found = iter([0.3, 0.2, 0.6, 0.1, last])  # the floor, three epochs, and the floor with the best vectors
    monkeypatch.setattr(validation, "validate", lambda *_: both(next(found)))
    done = trained(store, tmp_path)
    assert done.best_epoch == best
    assert done.metrics == both(last if best else 0.3)
    model, _ = checkpoint.load(tmp_path)
    assert model.floor is not None
    assert float(model.floor["cosine"].detach()) == (2.0 if best else 0.0)
    assert any("the floor alone is kept: the vectors of epoch 2" in message for message in messages) == (not best)


def test_the_epoch_counts_whose_vectors_add_most_to_the_likelihood(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gains = iter([30.0, 50.0, 40.0, 50.0])  # of three epochs, and of the best one in the end
    monkeypatch.setattr(worth, "fit_cosine", lambda *_: (2.0, next(gains)))
    found = iter([0.3, 0.6, 0.4, 0.5, 0.4])  # the floor, three epochs, and the floor with the best vectors
    monkeypatch.setattr(validation, "validate", lambda *_: both(next(found)))
    done = trained(store, tmp_path)
    assert (done.best_epoch, done.metrics) == (2, both(0.4))
    assert [row["valid_gain"] for row in RunFolder(tmp_path).read_rows()] == [30.0, 50.0, 40.0]


def test_a_falling_loss_does_not_make_an_epoch_better_whose_vectors_add_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worth, "fit_cosine", lambda *_: (0.0, 0.0))
    request = asked(store, replace(CONFIG, epochs=9, patience=2, lr=0.01))
    run_stage(replace(request, model=replace(request.model, floor=True)), tmp_path)
    rows = RunFolder(tmp_path).read_rows()
    assert rows[1]["loss"] < rows[0]["loss"]
    assert len(rows) == 3


def test_a_run_that_did_not_beat_its_floor_ranks_as_the_floor(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor = trained(store, tmp_path / "floor", "floor")
    monkeypatch.setattr(worth, "LEAST_GAIN", np.inf)
    done = trained(store, tmp_path / "run")
    assert (done.best_epoch, done.metrics) == (0, floor.metrics)
    figures = [
        evaluate_run(store, tmp_path / name, "Target", EvaluateConfig())["protocols"] for name in ("run", "floor")
    ]
    assert all(figures[0][name] == figures[1][name] for name in PROTOCOLS)
    model, _ = checkpoint.load(tmp_path / "run")
    assert model.floor is not None
    assert torch.equal(model.floor["cosine"].detach(), torch.zeros(()))
    assert np.isfinite(figures[0]["all"]["recall@10"])


@pytest.mark.parametrize("step", [2, 3, 5, 9])
def test_a_run_killed_at_any_step_has_the_floor_it_began_with(store: Store, tmp_path: Path, step: int) -> None:
    trained(store, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "target_loss", failing_at(step, loop.target_loss, Killed(), after=False))
        trained(store, tmp_path / "run")
    trained(store, tmp_path / "run", resume=True)
    mine, theirs = result(tmp_path / "run"), result(tmp_path / "whole")
    assert mine == theirs
    assert mine["rows"][0]["start_recall@10"] == trained(store, tmp_path / "floor", "floor").metrics["recall@10"]
    assert all("start_recall@10" not in row for row in mine["rows"][1:])


def test_a_stage_that_leaves_weights_of_the_floor_alone_to_steps_has_nothing_to_train(
    store: Store, tmp_path: Path
) -> None:
    trained(store, tmp_path / "source")
    own = {"mine": {**dict.fromkeys(stages.GROUPS, stages.FREEZE), "ids": "reset", "floor": "keep"}}
    request = asked(store, CONFIG, "mine", tmp_path / "source")
    request = replace(request, model=replace(request.model, floor=True), own_stages=own)
    with pytest.raises(UsageError, match="nothing to train"):
        run_stage(request, tmp_path / "run")

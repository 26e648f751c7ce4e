"""Trained vectors have to add enough to the floor; otherwise the run is that floor."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from antpipe.core.ranking import PROTOCOLS
from antpipe.evaluation.evaluate import evaluate_run
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.store.store import Store
from antpipe.training import checkpoint, validation, worth
from antpipe.training.run import run_stage
from tests.support.interruptions import CONFIG, asked, two_shops

POSITIONS = 500


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return two_shops(tmp_path_factory.mktemp("shops"))


def trained(store: Store, out: Path, stage: str = "scratch") -> checkpoint.Checkpoint:
    request = asked(store, CONFIG, stage)
    return run_stage(replace(request, model=replace(request.model, floor=True, transductive=True)), out)[0]


def test_chance_is_smaller_with_more_positions() -> None:
    """By hand: .12 of 500 has an error of the difference of sqrt(2 * .1 * .12 * .88 / 500) = .0065."""
    assert not worth.beyond_chance(0.130, 0.12, POSITIONS)
    assert worth.beyond_chance(0.131, 0.12, POSITIONS)
    assert worth.beyond_chance(0.123, 0.12, 20 * POSITIONS)
    assert not worth.beyond_chance(0.122, 0.12, 20 * POSITIONS)


@pytest.mark.parametrize(("gain", "last", "best"), [(10.1, 0.31, 2), (10.1, 0.3, 2), (9.9, 0.31, 0), (99.0, 0.29, 0)])
def test_vectors_stay_if_they_tell_enough_and_no_figure_is_lower(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    messages: list[str],
    gain: float,
    last: float,
    best: int,
) -> None:
    monkeypatch.setattr(worth, "fit_cosine", lambda *_: (2.0, gain))
    found = iter([0.3, 0.2, 0.6, 0.1, 0.3, last])  # the beginning, three epochs, the floor, and with the best vectors
    monkeypatch.setattr(validation, "validate", lambda *_: {worth.SELECTION: next(found)})
    done = trained(store, tmp_path)
    assert done.best_epoch == best
    assert done.metrics == {worth.SELECTION: last if best else 0.3}
    model, _ = checkpoint.load(tmp_path)
    assert model.floor is not None
    assert float(model.floor["cosine"].detach()) == (2.0 if best else 0.0)
    assert any("add too little to the floor" in message for message in messages) == (not best)


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

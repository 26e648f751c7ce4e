"""An epoch has to beat the floor beyond chance; otherwise the run is that floor."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from antpipe.core.ranking import PROTOCOLS
from antpipe.evaluation.evaluate import evaluate_run
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.store.store import Store
from antpipe.training import checkpoint, loop, validation
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
    assert not loop.beyond_chance(0.130, 0.12, POSITIONS)
    assert loop.beyond_chance(0.131, 0.12, POSITIONS)
    assert loop.beyond_chance(0.123, 0.12, 20 * POSITIONS)
    assert not loop.beyond_chance(0.122, 0.12, 20 * POSITIONS)


@pytest.mark.parametrize(("epoch_1", "best"), [(0.6, 1), (0.31, 0)])
def test_an_epoch_counts_if_it_beats_the_floor_beyond_chance(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    messages: list[str],
    epoch_1: float,
    best: int,
) -> None:
    found = iter([0.3, 0.2, epoch_1, 0.1, 0.1, 0.3])  # the floor, the beginning, three epochs, the floor again
    monkeypatch.setattr(validation, "validate", lambda *_: {loop.SELECTION: next(found)})
    done = trained(store, tmp_path)
    assert done.best_epoch == best
    assert done.metrics == {loop.SELECTION: epoch_1 if best else 0.3}
    assert any("not better than the floor beyond chance" in message for message in messages) == (not best)


def test_a_run_that_did_not_beat_its_floor_ranks_as_the_floor(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor = trained(store, tmp_path / "floor", "floor")
    monkeypatch.setattr(loop, "beyond_chance", lambda *_: False)
    values = iter([0.0, 0.0, 0.5, 0.1, 0.1])
    original = validation.validate

    def validate(*arguments: Any) -> dict[str, float]:
        real = original(*arguments)
        return real | {loop.SELECTION: next(values, real[loop.SELECTION])}

    monkeypatch.setattr(validation, "validate", validate)
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

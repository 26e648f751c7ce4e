"""The refit of a run with a floor: what it begins with, what it knows, and one that no epoch has beaten."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from antpipe.core import untrained
from antpipe.core.batches import examples
from antpipe.core.ranking import metrics
from antpipe.evaluation.vectors import open_for
from antpipe.store.files import Sequences
from antpipe.store.store import Store
from antpipe.training import checkpoint, validation, worth
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.folder import RunFolder
from antpipe.training.run import run_and_refit
from tests.support.commands import run, unfolded
from tests.support.interruptions import CONFIG, asked, two_shops

# What validations find: of the floor, after three epochs, and of the floor with the best vectors.
FLOOR_WINS = [0.5, 0.1, 0.1, 0.1, 0.1]
EPOCH_1_WINS = [0.1, 0.5, 0.1, 0.1, 0.5]
BOTH = (worth.SELECTION, worth.TIE_BREAK)
Judging = Callable[[list[float]], None]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return two_shops(tmp_path_factory.mktemp("shops"))


@pytest.fixture
def judging(monkeypatch: pytest.MonkeyPatch) -> Judging:
    """Sets what validations find, in turn, of vectors that tell enough."""
    monkeypatch.setattr(worth, "fit_cosine", lambda *_: (2.0, 99.0))

    def instead(values: list[float]) -> None:
        found = iter(values)

        def validate(_: Any, data: Any, *__: Any) -> dict[str, float]:
            return dict.fromkeys(BOTH, next(found)) if data.validation else {}

        monkeypatch.setattr(validation, "validate", validate)

    return instead


def refitted(store: Store, out: Path, stage: str = "scratch", **settings: Any) -> tuple[Checkpoint, Checkpoint]:
    """A run with a floor, and its refit."""
    request = asked(store, replace(CONFIG, **settings), stage)
    request = replace(request, model=replace(request.model, floor=True, transductive=True))
    (first, _), (again, _) = run_and_refit(request, out)
    return first, again


def weights(folder: Path) -> dict[str, torch.Tensor]:
    [path] = folder.glob("model-*.safetensors")
    return load_file(path)


def occurring(sequences: Sequences, ends: np.ndarray, items: int) -> np.ndarray:
    """Whether an item is among the first `ends` of a user's sequence, written out."""
    there = np.zeros(items, np.bool_)
    for first, end in zip(sequences.offsets[:-1], ends, strict=True):
        there[sequences.items[first : first + end]] = True
    return there


def test_a_refit_begins_with_the_weights_fitted_to_the_validation_of_its_run(
    store: Store, tmp_path: Path, judging: Judging
) -> None:
    judging(EPOCH_1_WINS)
    refitted(store, tmp_path, lr=0.0)
    first, again = weights(tmp_path), weights(tmp_path / "refit")
    assert first["floor.transitions"] != 0
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_refit_is_not_validated_before_it_is_trained(store: Store, tmp_path: Path, judging: Judging) -> None:
    judging(EPOCH_1_WINS)
    _, again = refitted(store, tmp_path)
    assert (again.best_epoch, again.epochs, again.metrics) == (1, 1, {})
    first, row = RunFolder(tmp_path).read_rows()[0], RunFolder(tmp_path / "refit").read_rows()[0]
    judged = {f"{prefix}{name}" for prefix in ("start_", "floor_", "valid_") for name in BOTH}
    assert set(first) - set(row) == judged | {"reranked", "valid_gain"}


@pytest.mark.parametrize("judged", [EPOCH_1_WINS, FLOOR_WINS])
def test_a_refit_scores_with_what_validation_shows_of_items_and_transitions(
    store: Store, tmp_path: Path, judging: Judging, judged: list[float]
) -> None:
    judging(judged)
    refitted(store, tmp_path)
    domain = store.domain("Target")
    sequences, n = domain.sequences(), domain.rows()
    for folder, ends in ((tmp_path, sequences.train_end), (tmp_path / "refit", sequences.valid_end)):
        known = open_for(store, folder, "Target").known
        assert known is not None
        assert np.array_equal(~known.new, occurring(sequences, ends, n))
        expected = untrained.step_counts(replace(sequences, train_end=ends), n)
        assert abs(known.counts - expected).max() < 1e-6


def test_evaluation_and_recommendation_score_alike(store: Store, tmp_path: Path, judging: Judging) -> None:
    judging(EPOCH_1_WINS)
    refitted(store, tmp_path)
    where = ("--run", tmp_path / "refit", "--domains", "Target", "--store", store.root)
    found = run("evaluate", *where, "--json").json()[0]
    opened = open_for(store, tmp_path / "refit", "Target")
    part = examples(opened.domain.sequences(), "test")
    scores = opened.after(part) @ opened.items.T
    added = opened.added(part)(np.arange(len(part)))
    scores.ravel()[added.keys] += added.scores.astype(np.float32)
    ranks = (scores > scores[np.arange(len(part)), part.targets()][:, None]).sum(1) + 1
    assert metrics(ranks)["recall@10"] == pytest.approx(found["protocols"]["all"]["recall@10"])


def test_a_run_that_never_beat_its_floor_is_refitted_as_that_floor(
    store: Store, tmp_path: Path, judging: Judging
) -> None:
    judging(FLOOR_WINS)
    first, again = refitted(store, tmp_path)
    assert (first.best_epoch, again.refit) == (0, {"of": first.fingerprint, "epochs": 0})
    assert (again.epochs, again.metrics) == (0, {})
    before, after = weights(tmp_path), weights(tmp_path / "refit")
    assert before["floor.cosine"] == 0
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_of_stage_floor_is_refitted_and_says_that_nothing_was_trained(store: Store, tmp_path: Path) -> None:
    words = ["train", "--stage", "floor", "--domains", "Target", "--store", str(store.root), "--out", str(tmp_path)]
    lines = unfolded(run(*words, "--refit").out).splitlines()
    assert lines[1] == (f"{tmp_path}/refit  floor, refit  trained its floor, without epochs, on training + validation")
    assert "  fresh " in unfolded(run(*words, "--refit").out).splitlines()[1]
    where = ("--domains", "Target", "--store", store.root, "--json")
    assert run("evaluate", "--run", tmp_path / "refit", *where).json()[0]["stage"] == "floor"
    assert checkpoint.describe(tmp_path / "refit").refit == {
        "of": checkpoint.describe(tmp_path).fingerprint,
        "epochs": 0,
    }

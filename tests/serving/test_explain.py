"""Reasons: exact parts add up to scores, leave-one-out leaves one out, and the right items are named."""

from collections.abc import Callable

import numpy as np
import pytest

from antpipe.core.floor import weights_of
from antpipe.core.untrained import of_items
from antpipe.evaluation.vectors import OpenRun, as_examples
from antpipe.serving.explain import EXACT, LEAVE_ONE_OUT, explain, history_shares, modality_shares
from antpipe.serving.offer import offer_of
from antpipe.serving.recommend import Wishes, recommend_after
from antpipe.serving.top import top_items
from tests.serving.conftest import ITEMS, RUNS

Open = Callable[[str], OpenRun]
HISTORY = np.array([9, 3, 4, 5, 3], np.int32)


def scores_of(run: OpenRun, history: np.ndarray) -> np.ndarray:
    """(N,) scores of all items after a history."""
    found = top_items(run, as_examples([history], run.max_len), offer_of(run), ITEMS, include_seen=True)
    scores = np.empty(ITEMS)
    scores[found.rows[0]] = found.scores[0]
    return scores


@pytest.mark.parametrize("name", sorted(RUNS))
def test_what_the_modalities_add_is_the_score(opened: Open, name: str) -> None:
    run = opened(name)
    shares = modality_shares(run, as_examples([HISTORY], run.max_len), np.arange(ITEMS))
    assert np.sum(list(shares.values()), axis=0) == pytest.approx(scores_of(run, HISTORY), abs=1e-6)


def test_each_kind_of_run_has_its_own_modalities(opened: Open) -> None:
    def names(name: str) -> set[str]:
        return set(modality_shares(opened(name), as_examples([HISTORY], 6), np.arange(3)))

    read = {"text", "image", "price", "image × text"}
    assert names("plain") == read
    assert names("history") == read | {"history"}
    assert names("strong") == read | {"id", "words", "transitions", "history", "novelty", "popularity"}


@pytest.mark.parametrize("name", ["plain", "history", "strong"])
def test_an_item_of_the_history_is_worth_the_score_minus_that_without_it(opened: Open, name: str) -> None:
    run = opened(name)
    read, worth, method = history_shares(run, HISTORY, as_examples([HISTORY], run.max_len), np.arange(ITEMS))
    assert (read.tolist(), method) == ([3, 5, 4, 9], LEAVE_ONE_OUT)
    for row, values in zip(read, worth, strict=True):
        without = scores_of(run, HISTORY[row != HISTORY])
        assert values == pytest.approx(scores_of(run, HISTORY) - without, abs=1e-9)


def test_the_parts_of_a_floor_add_up_to_the_score_without_what_items_have_anyway(opened: Open) -> None:
    run = opened("floor")
    assert run.known is not None
    part = as_examples([HISTORY], run.max_len)
    _, worth, method = history_shares(run, HISTORY, part, np.arange(ITEMS))
    anyway = of_items(run.known.new, run.known.popularity, run.known.typical, weights_of(run.model))
    assert method == EXACT
    assert worth.sum(0) + anyway == pytest.approx(scores_of(run, HISTORY), abs=1e-6)


def test_a_single_item_has_the_whole_score(opened: Open) -> None:
    run = opened("plain")
    history = np.array([7, 7], np.int32)
    read, worth, method = history_shares(run, history, as_examples([history], run.max_len), np.arange(ITEMS))
    assert (read.tolist(), method) == ([7], EXACT)
    assert worth[0] == pytest.approx(scores_of(run, history), abs=1e-9)


def test_reasons_name_first_what_sets_an_item_apart_and_only_items_that_raise_the_score(opened: Open) -> None:
    run = opened("strong")
    shares = modality_shares(run, as_examples([HISTORY], run.max_len), np.arange(ITEMS))  # fewer than AVERAGED
    others = np.setdiff1d(np.arange(ITEMS), HISTORY)
    for row, reason in enumerate(explain(run, HISTORY, np.arange(ITEMS))):
        apart = {name: float(values[row] - values[others].mean()) for name, values in shares.items()}
        named_apart = [apart[one["modality"]] for one in reason["modalities"]]
        assert named_apart == pytest.approx(sorted(apart.values(), reverse=True), abs=1e-9)
        worths = {one["modality"]: one["worth"] for one in reason["modalities"]}
        assert worths == pytest.approx({name: float(values[row]) for name, values in shares.items()}, abs=1e-6)
        assert reason["modality"] == reason["modalities"][0]["modality"]
        named = [one["worth"] for one in reason["because"]]
        assert named == sorted(named, reverse=True)
        assert len(named) <= 3
        assert all(worth >= 0 for worth in named)
        assert {one["item_id"] for one in reason["because"]} <= {"i09", "i03", "i04", "i05"}


def test_a_recommendation_carries_its_reason_if_asked(opened: Open) -> None:
    run = opened("plain")
    known, popular = recommend_after(run, [HISTORY, HISTORY[:0]], wishes=Wishes(2, explain=True))
    assert all(row["why"]["method"] == LEAVE_ONE_OUT for row in known)
    assert {row["why"]["modality"] for row in popular} == {"popularity"}
    assert "why" not in recommend_after(run, [HISTORY])[0][0]

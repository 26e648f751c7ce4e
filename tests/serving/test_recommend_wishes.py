"""Choosing the best: unknown users, popularity, diversity, several at once."""

import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from antpipe.errors import DataError, UsageError
from antpipe.evaluation.vectors import OpenRun, as_examples
from antpipe.serving.diversity import diversified
from antpipe.serving.offer import offer_of
from antpipe.serving.recommend import Wishes, best_after, history_of, recommend_after, user_histories
from antpipe.serving.top import Top, top_items
from antpipe.settings.base import parts_of
from tests.serving.conftest import ITEMS, RUNS, USERS

Open = Callable[[str], OpenRun]


def histories(opened: OpenRun) -> list[np.ndarray]:
    return list(user_histories(opened, [f"u{user:02}" for user in range(USERS)]))


def test_the_next_command_can_name_an_item_whose_id_holds_a_comma() -> None:
    domain = SimpleNamespace(name="Shop", root=Path("store"))
    run = SimpleNamespace(row_of={"i,0": 0, "i,1": 1}, item_ids=["i,0", "i,1"], domain=domain, run=Path("run"))
    for asked, value in ((["i", "1"], "i,1"), (["x"], "i,0"), (["i,1", "x"], "i,1")):
        with pytest.raises(DataError) as caught:
            history_of(run, asked)  # type: ignore[arg-type]
        words = shlex.split(str(caught.value.next_command))
        assert parts_of(words[words.index("--items") + 1]) == [value]


@pytest.mark.parametrize("name", sorted(RUNS))
@pytest.mark.parametrize("include_seen", [True, False])
def test_many_users_at_once_get_exactly_what_each_gets_alone(opened: Open, name: str, include_seen: bool) -> None:
    run = opened(name)
    wishes = Wishes(7, include_seen)
    together = recommend_after(run, histories(run), wishes=wishes)
    alone = [recommend_after(run, [history], wishes=wishes)[0] for history in histories(run)]
    assert together == alone


@pytest.mark.parametrize("name", sorted(RUNS))
def test_scores_are_products_of_vectors_plus_what_is_added(opened: Open, name: str) -> None:
    run = opened(name)
    part = as_examples(histories(run), run.max_len)
    found = top_items(run, part, offer_of(run), ITEMS, include_seen=True)
    scores = run.after(part).astype(np.float64) @ run.items.T.astype(np.float64)
    more = run.added(part)(np.arange(len(part)))
    scores.reshape(-1)[more.keys] += more.scores
    assert found.scores == pytest.approx(np.take_along_axis(scores, found.rows, 1), abs=1e-9)
    assert (np.sort(found.rows, 1) == np.arange(ITEMS)).all()


def test_who_has_no_history_gets_the_most_popular_items(opened: Open) -> None:
    run = opened("plain")
    counts = np.bincount(run.domain.sequences().items, minlength=ITEMS)
    [rows] = recommend_after(run, user_histories(run, ["nobody"], "popularity"), 5)
    best = np.argsort(-counts, kind="stable")[:5]
    assert [(row["item_id"], row["score"]) for row in rows] == [(run.item_ids[item], counts[item]) for item in best]


def test_popularity_keeps_to_the_filters_and_stands_beside_others(opened: Open) -> None:
    run = opened("plain")
    known, unknown = user_histories(run, ["u03", "nobody"], "popularity")
    offer = offer_of(run, "stock >= 20")
    both = recommend_after(run, [unknown, known], offer=offer, wishes=Wishes(4))
    assert both[1] == recommend_after(run, [known], offer=offer, wishes=Wishes(4))[0]
    assert all(int(row["item_id"][1:]) >= 20 for row in both[0])


def test_unknown_items_of_a_history_are_skipped_if_asked(opened: Open) -> None:
    run = opened("plain")
    assert history_of(run, ["i03", "gone", "i01"], "popularity").tolist() == [3, 1]
    assert history_of(run, [], "popularity").tolist() == []
    with pytest.raises(DataError, match="no item 'gone'"):
        history_of(run, ["i03", "gone"])


def test_k_below_one_is_refused(opened: Open) -> None:
    with pytest.raises(UsageError, match="--k 0: must be at least 1"):
        recommend_after(opened("plain"), [np.array([1], np.int32)], 0)


# -- diversity --------------------------------------------------------------------------------------------------------


def chosen_one_by_one(run: OpenRun, rows: list[int], scores: list[float], k: int, share: float) -> list[int]:
    """Maximal marginal relevance, as the paper has it."""
    vectors = run.encoded.numpy() / np.linalg.norm(run.encoded.numpy(), axis=1, keepdims=True)
    worth = {row: (score - scores[-1]) / (scores[0] - scores[-1]) for row, score in zip(rows, scores, strict=True)}
    chosen: list[int] = []
    while len(chosen) < min(k, len(rows)):
        best = max(
            (row for row in rows if row not in chosen),
            key=lambda row: (
                (1 - share) * worth[row]
                - share * max((float(vectors[row] @ vectors[one]) for one in chosen), default=0.0)
            ),
        )
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("k", [1, 4, 30])
def test_diversity_chooses_as_maximal_marginal_relevance_does_one_by_one(opened: Open, share: float, k: int) -> None:
    run = opened("plain")
    part = as_examples(histories(run)[:6], run.max_len)
    pool = top_items(run, part, offer_of(run), 20)
    found = diversified(run, pool, k, share)
    for number in range(6):
        expected = chosen_one_by_one(run, pool.rows[number].tolist(), pool.scores[number].tolist(), k, share)
        assert found.rows[number].tolist() == expected
        own = dict(zip(pool.rows[number].tolist(), pool.scores[number].tolist(), strict=True))
        assert found.scores[number].tolist() == [own[row] for row in expected]


def test_diversity_leaves_places_empty_that_have_no_item(opened: Open) -> None:
    pool = Top(np.array([[4, 2, -1, -1], [-1, -1, -1, -1]]), np.array([[0.5, 0.4, -np.inf, -np.inf], [-np.inf] * 4]))
    found = diversified(opened("plain"), pool, 3, 0.5)
    assert found.rows.tolist() == [[4, 2, -1], [-1, -1, -1]]


def test_lists_are_more_diverse_with_diversity_than_without(opened: Open) -> None:
    run = opened("plain")
    vectors = run.encoded.numpy() / np.linalg.norm(run.encoded.numpy(), axis=1, keepdims=True)

    def likeness(share: float) -> float:
        rows = best_after(run, histories(run), offer_of(run), Wishes(5, diversify=share)).rows
        return float(np.mean([(vectors[one] @ vectors[one].T).sum() for one in rows]))

    assert likeness(0.7) < likeness(0.0)

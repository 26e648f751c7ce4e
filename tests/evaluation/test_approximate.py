"""Approximate indexes: they propose candidates, and their recall of the exact search is measured."""

import numpy as np
import pytest

from antpipe.core.ranking import Found, nearest, rank_examples
from antpipe.evaluation.approximate import build_index, list_count, recall_of_exact
from antpipe.settings.evaluation import EvaluateConfig
from tests.core.test_ranking import make_examples, unit


def shop(n: int = 900, queries: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors in a few loose clusters."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(12, 16))
    items = unit(centres[rng.integers(0, 12, n)] + rng.normal(size=(n, 16)))
    return unit(items[rng.integers(0, n, queries)] + 0.3 * rng.normal(size=(queries, 16))), items


@pytest.mark.parametrize(
    ("n", "asked", "lists"), [(20, 0, 1), (1000, 0, 25), (50_000, 0, 894), (1000, 7, 7), (5, 100, 5)]
)
def test_the_default_is_four_times_the_square_root_of_the_items_unless_there_are_too_few_vectors(
    n: int, asked: int, lists: int
) -> None:
    assert list_count(n, asked) == lists


@pytest.mark.parametrize(
    "config",
    [EvaluateConfig(index="ivf", nlist=9, nprobe=9), EvaluateConfig(index="hnsw", ef_search=900, ef_construction=200)],
)
def test_an_index_that_searches_everything_gives_the_exact_ranks(config: EvaluateConfig) -> None:
    queries, items = shop()
    index, _ = build_index(items, config)
    search = index.search
    rng = np.random.default_rng(0)
    part = make_examples(rng.integers(0, 900, (80, 5)).tolist(), rng.integers(0, 900, 80).tolist())
    exact, got = rank_examples(queries, items, part), rank_examples(queries, items, part, search=search)
    assert recall_of_exact(queries, items, search) == {f"recall_of_exact@{k}": 1.0 for k in (10, 20, 50)}
    for protocol, ranks in exact.by_protocol.items():
        assert got.by_protocol[protocol].tolist() == ranks.tolist()


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_a_narrow_search_reports_its_recall_and_is_reproducible(index: str) -> None:
    queries, items = shop()
    config = EvaluateConfig(index=index, nlist=30, nprobe=1, hnsw_m=4, ef_construction=4, ef_search=4)
    found = []
    for _ in range(2):
        built, sizes = build_index(items, config)
        search = built.search
        assert sizes["kind"] == index
        recall = recall_of_exact(queries, items, search)
        _, exact = nearest(queries, items, 10)
        _, rows = search(queries, 10)
        shared = sum(len(set(a) & set(b)) for a, b in zip(exact.tolist(), rows.tolist(), strict=True))
        assert recall["recall_of_exact@10"] == pytest.approx(shared / 800)
        assert recall["recall_of_exact@10"] < 0.99
        found.append(recall)
    assert found[0] == found[1]


def test_ranks_are_among_the_candidates_and_a_target_not_found_is_a_miss() -> None:
    items = unit(np.array([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]))

    def search(queries: np.ndarray, k: int) -> Found:
        scores = queries @ items.T
        rows = np.array([[2, 3, -1, -1]] * len(queries))
        return np.where(rows >= 0, scores[:, [2, 3, 0, 0]], -np.inf).astype(np.float32)[:, :k], rows[:, :k]

    part = make_examples([[2], [0], [0]], [3, 3, 1])
    ranks = rank_examples(np.repeat(items[:1], 3, axis=0), items, part, search=search)
    assert ranks.by_protocol["all"].tolist() == [2.0, 2.0, np.inf]
    assert ranks.by_protocol["unseen"].tolist() == [1.0, 2.0, np.inf]

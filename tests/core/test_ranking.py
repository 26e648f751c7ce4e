"""Ranks and metrics against a brute-force reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antpipe.core import ranking
from antpipe.core.batches import Examples
from antpipe.core.ranking import CUTOFFS, DEPTH, PROTOCOLS, Ranks, metrics, rank_examples, summary
from antpipe.errors import DataError


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make_examples(histories: list[list[int]], targets: list[int], max_len: int = 50) -> Examples:
    items, start, end = [], [], []
    for history, target in zip(histories, targets, strict=True):
        start.append(len(items))
        items += [*history, target]
        end.append(len(items) - 1)
    return Examples(
        np.arange(len(targets), dtype=np.int32), np.array(items, np.int32), np.array(start), np.array(end), max_len
    )


def brute_force(
    queries: np.ndarray, items: np.ndarray, part: Examples, history_score: float = 0.0
) -> dict[str, np.ndarray]:
    out = {"all": [], "unseen": []}
    for q in range(len(part)):
        scores = [float(sum(float(a) * float(b) for a, b in zip(queries[q], item, strict=True))) for item in items]
        for item in set(part.items[max(part.start[q], part.end[q] - part.max_len) : part.end[q]].tolist()):
            scores[item] += history_score
        target, history = part.items[part.end[q]], set(part.items[part.start[q] : part.end[q]].tolist())
        for name, ranks in out.items():
            others = [i for i in range(len(items)) if i != target and not (name == "unseen" and i in history)]
            better = sum(scores[i] > scores[target] + 1e-12 for i in others)
            equal = sum(abs(scores[i] - scores[target]) <= 1e-12 for i in others)
            miss = (name == "unseen" and target in history) or better >= DEPTH
            ranks.append(np.inf if miss else 1 + better + equal / 2)
    return {name: np.array(values) for name, values in out.items()}


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_ranks_equal_brute_force_with_ties_histories_and_a_history_score(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 200))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    # only a few distinct directions, so that whole groups of items tie exactly
    items = unit(rng.normal(size=(7, 6)))[rng.integers(0, 7, n)]
    some = st.integers(0, n - 1)
    histories = data.draw(st.lists(st.lists(some, min_size=1, max_size=12), min_size=1, max_size=9))
    targets = data.draw(st.lists(some, min_size=len(histories), max_size=len(histories)))
    part = make_examples(histories, targets, data.draw(st.integers(1, 12)))
    queries = unit(rng.normal(size=(len(part), 6)))
    score = data.draw(st.sampled_from([0.0, -0.4, 0.4, 3.0]))
    ranks = rank_examples(queries, items, part, data.draw(st.integers(0, 12)), history_score=score)
    for name, expected in brute_force(queries, items, part, score).items():
        assert ranks.by_protocol[name].tolist() == expected.tolist()


def test_a_history_score_lifts_items_that_the_search_would_not_propose() -> None:
    items = unit(np.stack([np.ones(500), np.arange(500)], 1))  # the lower the row, the closer to (1, 0)
    queries = unit(np.array([[1.0, 0.0]] * 2))
    part = make_examples([[400, 499], [400, 499]], [400, 0])
    plain, lifted = (rank_examples(queries, items, part, history_score=score) for score in (0.0, 2.0))
    assert plain.by_protocol["all"].tolist() == [np.inf, 1]
    assert lifted.by_protocol["all"].tolist() == [1, 3]
    assert lifted.by_protocol["unseen"].tolist() == [np.inf, 1]


def test_more_ties_than_candidates_are_all_counted() -> None:
    items = np.repeat(unit(np.ones((1, 4))), 500, axis=0)
    ranks = rank_examples(unit(np.ones((1, 4))), items, make_examples([[3]], [7]))
    assert ranks.by_protocol["all"].tolist() == [1 + 499 / 2]
    assert ranks.by_protocol["unseen"].tolist() == [1 + 498 / 2]


def test_ranks_do_not_depend_on_the_block_size() -> None:
    rng = np.random.default_rng(0)
    items, queries = unit(rng.normal(size=(700, 16))), unit(rng.normal(size=(300, 16)))
    part = make_examples(rng.integers(0, 700, (300, 20)).tolist(), rng.integers(0, 700, 300).tolist())
    one, many = (rank_examples(queries, items, part, block_size=size) for size in (1, 256))
    assert one.by_protocol["all"].tolist() == many.by_protocol["all"].tolist()
    assert one.by_protocol["unseen"].tolist() == many.by_protocol["unseen"].tolist()


def test_ranks_do_not_depend_on_how_many_scores_are_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    items = np.repeat(unit(rng.normal(size=(90, 16))), 3, axis=0)  # with ties
    part = make_examples(rng.integers(0, 270, (40, 20)).tolist(), rng.integers(0, 270, 40).tolist())
    queries = unit(rng.normal(size=(40, 16)))
    whole = rank_examples(queries, items, part)
    for limit in (1, 16 * 7, 16 * 200):
        monkeypatch.setattr(ranking, "SCORED_AT_ONCE", limit)
        pieces = rank_examples(queries, items, part)
        assert pieces.by_protocol["all"].tolist() == whole.by_protocol["all"].tolist()
        assert pieces.by_protocol["unseen"].tolist() == whole.by_protocol["unseen"].tolist()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["queries", "items"])
def test_vectors_that_are_not_finite_are_refused_instead_of_ranked_first(side: str, wrong: float) -> None:
    vectors = {"queries": unit(np.ones((1, 4))), "items": unit(np.eye(4) + 0.1)}
    vectors[side][0, 2] = wrong
    with pytest.raises(DataError, match="not finite"):
        rank_examples(vectors["queries"], vectors["items"], make_examples([[0]], [2]))


def test_a_target_in_its_own_history_is_a_miss_when_history_is_masked() -> None:
    items = unit(np.eye(3) + 0.1)
    ranks = rank_examples(items[[1]], items, make_examples([[1, 0]], [1]))
    assert ranks.by_protocol["all"].tolist() == [1.0]
    assert ranks.by_protocol["unseen"].tolist() == [np.inf]
    assert summary(ranks)["target_in_history"] == 1.0


def test_metrics_equal_those_computed_by_hand() -> None:
    values = metrics(np.array([1.0, 3.0, 10.5, np.inf]))
    assert values["recall@10"] == 0.5
    assert values["recall@20"] == 0.75
    assert values["ndcg@10"] == pytest.approx((1 + 1 / np.log2(4)) / 4)
    assert values["mrr@10"] == pytest.approx((1 + 1 / 3) / 4)
    assert values["mrr@50"] == pytest.approx((1 + 1 / 3 + 1 / 10.5) / 4)


def test_summary_keeps_the_protocols_apart() -> None:
    both = summary(Ranks({"all": np.array([1.0]), "unseen": np.array([np.inf])}, np.array([True])))
    assert both["protocols"]["all"]["recall@10"] == 1.0
    assert both["protocols"]["unseen"]["recall@10"] == 0.0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_metrics_equal_those_of_ir_measures(protocol: str) -> None:
    import ir_measures
    from ir_measures import RR, R, nDCG

    rng = np.random.default_rng(5)
    items, queries = unit(rng.normal(size=(120, 8))), unit(rng.normal(size=(60, 8)))
    part = make_examples(rng.integers(0, 120, (60, 9)).tolist(), rng.integers(0, 120, 60).tolist())
    scores = queries.astype(np.float64) @ items.astype(np.float64).T
    wanted, run = {}, {}
    for q, target in enumerate(part.targets()):
        history = set(part.items[part.start[q] : part.end[q]].tolist()) if protocol == "unseen" else set()
        wanted[str(q)] = {str(target): 1}
        run[str(q)] = {str(item): float(scores[q, item]) for item in range(120) if item not in history}
    ours = metrics(rank_examples(queries, items, part).by_protocol[protocol])
    for k in CUTOFFS:
        theirs = ir_measures.calc_aggregate([R @ k, nDCG @ k, RR @ k], wanted, run)
        expected = {f"recall@{k}": theirs[R @ k], f"ndcg@{k}": theirs[nDCG @ k], f"mrr@{k}": theirs[RR @ k]}
        assert {name: ours[name] for name in expected} == pytest.approx(expected, rel=1e-9)


def test_ranks_do_not_depend_on_the_number_of_threads() -> None:
    import faiss

    rng = np.random.default_rng(2)
    items = np.repeat(unit(rng.normal(size=(900, 24))), 2, axis=0)[rng.permutation(1800)]  # each item has a twin
    part = make_examples(rng.integers(0, 1800, (300, 15)).tolist(), rng.integers(0, 1800, 300).tolist())
    queries, threads = unit(rng.normal(size=(300, 24))), faiss.omp_get_max_threads()
    found = []
    try:
        for count in (1, 2, 5):
            faiss.omp_set_num_threads(count)
            ranks = rank_examples(queries, items, part, block_size=64 * count)
            found.append({name: values.tolist() for name, values in ranks.by_protocol.items()})
    finally:
        faiss.omp_set_num_threads(threads)
    assert found == [found[0]] * 3


def test_one_long_history_does_not_make_the_other_blocks_larger() -> None:
    histories = [[0, 1]] * 20 + [list(range(90))]
    part = make_examples(histories, [3] * 21)
    blocks = list(ranking._blocks(part, 1000, 10))
    assert [len(rows) for rows, _ in blocks] == [10, 10, 1]
    assert [k for _, k in blocks] == [DEPTH + 3, DEPTH + 3, DEPTH + 91]


def test_blocks_shrink_if_the_candidates_of_long_histories_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    part = make_examples([list(range(40))] * 30, [3] * 30)
    monkeypatch.setattr(ranking, "CANDIDATES_AT_ONCE", 500)
    blocks = list(ranking._blocks(part, 1000, 0))
    assert sorted(np.concatenate([rows for rows, _ in blocks]).tolist()) == list(range(30))
    assert all(len(rows) * k <= 500 for rows, k in blocks)


def test_no_matrix_of_all_scores_is_in_memory() -> None:
    import tracemalloc

    rng = np.random.default_rng(0)
    items, queries = unit(rng.normal(size=(4000, 8))), unit(rng.normal(size=(9000, 8)))
    part = make_examples(rng.integers(0, 4000, (9000, 4)).tolist(), rng.integers(0, 4000, 9000).tolist())
    tracemalloc.start()
    try:
        rank_examples(queries, items, part)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 9000 * 4000  # bytes: a quarter of that matrix in float32

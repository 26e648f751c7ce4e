"""Ranks counted as on a GPU are those of the CPU, whatever the blocks."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from antpipe.core.batches import Examples, examples
from antpipe.core.catalogue import features_on
from antpipe.core.floor import items_with_floor, known_in, queries_with_floor, weights_of
from antpipe.core.gpu import ranking as gpu_ranking
from antpipe.core.gpu.floor import known_on
from antpipe.core.gpu.ranking import Floor, count_ranks, evaluate_on_device, example_blocks, in_order
from antpipe.core.model import Ant
from antpipe.core.ranking import PROTOCOLS, Ranks, rank_examples
from antpipe.core.scoring import floor_pairs, scoring
from antpipe.core.untrained import Untrained, from_counts
from antpipe.errors import DataError
from antpipe.settings.model import FLOOR, ModelConfig
from benchmarks.synthetic_shops import MAX_LEN, WIDTHS, training_data
from tests.core.test_ranking import make_examples, unit

CPU = torch.device("cpu")
DATA = training_data((40, 60), 80, 500)
PART = examples(DATA.sequences[1], "valid")


def counted_ranks(queries: np.ndarray, items: np.ndarray, part: Examples, size: int, score: float) -> Ranks:
    blocks = example_blocks(part, len(items), CPU, size)
    table = torch.from_numpy(items)
    return in_order([count_ranks(torch.from_numpy(queries[one.rows]), table, one, score) for one in blocks], blocks)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_counted_ranks_are_those_of_the_cpu_with_ties_histories_and_a_history_score(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 200))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    items = unit(rng.normal(size=(7, 6)))[rng.integers(0, 7, n)]  # whole groups of items tie exactly
    some = st.integers(0, n - 1)
    histories = data.draw(st.lists(st.lists(some, min_size=1, max_size=12), min_size=1, max_size=9))
    targets = data.draw(st.lists(some, min_size=len(histories), max_size=len(histories)))
    part = make_examples(histories, targets, data.draw(st.integers(1, 12)))
    queries = unit(rng.normal(size=(len(part), 6)))
    score = data.draw(st.sampled_from([0.0, -0.4, 0.4, 3.0]))
    found = counted_ranks(queries, items, part, data.draw(st.integers(0, 4)), score)
    wanted = rank_examples(queries, items, part, history_score=score)
    for protocol in PROTOCOLS:
        assert np.array_equal(found.by_protocol[protocol], wanted.by_protocol[protocol])
    assert np.array_equal(found.seen, wanted.seen)


def floored(seed: int, n: int, width: int = 5) -> Untrained:
    """Few different texts and counts, so that many items tie, and some new items."""
    rng = np.random.default_rng(seed)
    texts = unit(rng.normal(size=(4, width)))[rng.integers(0, 4, n)]
    counts = rng.integers(1, 3, (n, n)) * (rng.random((n, n)) < 0.2)
    words = csr_array(rng.integers(1, 3, (n, n)) / 4 * (rng.random((n, n)) < 0.2))
    steps = csr_array(np.log1p(counts.astype(np.float64)))
    sold = rng.integers(0, 4, n)
    known = from_counts(texts, words, sold, csr_array(counts.astype(np.float64)))
    return replace(known, steps=steps)


def model_with_floor(weights: Mapping[str, float], widths: dict[str, int] = WIDTHS) -> Ant:
    torch.manual_seed(0)
    model = Ant(ModelConfig(width=32, experts=2, floor=True), widths, MAX_LEN)
    assert model.floor is not None
    assert model.history_score is not None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, place in (*model.floor.items(), ("history", model.history_score)):
            place.fill_(weights[name])
    return model


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_counted_ranks_are_those_of_the_cpu_with_a_floor(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 120))
    seed = data.draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    items = unit(rng.normal(size=(5, 6)))[rng.integers(0, 5, n)]
    some = st.integers(0, n - 1)
    histories = data.draw(st.lists(st.lists(some, min_size=1, max_size=12), min_size=1, max_size=9))
    targets = data.draw(st.lists(some, min_size=len(histories), max_size=len(histories)))
    part = make_examples(histories, targets, data.draw(st.integers(5, 12)))
    queries, known = unit(rng.normal(size=(len(part), 6))), floored(seed, n)
    # Another factor for each term: were two weights equal, items could tie through different terms, up to rounding.
    factors = zip(FLOOR, (1.0, 1.1, 1.3, 1.7, 1.9, 2.3, 2.9), strict=True)
    model = model_with_floor({name: data.draw(st.sampled_from([0.0, -0.7, 0.3, 2.0])) * by for name, by in factors})
    weights = weights_of(model)
    wanted = rank_examples(
        queries_with_floor(model, queries, known, part),
        items_with_floor(model, items, known),
        part,
        pairs=floor_pairs(known, part, weights),
    )
    blocks = example_blocks(part, n, CPU, data.draw(st.integers(0, 4)), known)
    floor, table = Floor(known_on(known, CPU), weights), torch.from_numpy(items)
    counted = [
        count_ranks(torch.from_numpy(queries[one.rows]), table, one, weights["history"], floor) for one in blocks
    ]
    found = in_order(counted, blocks)
    for protocol in PROTOCOLS:
        assert np.array_equal(found.by_protocol[protocol], wanted.by_protocol[protocol])
    assert np.array_equal(found.seen, wanted.seen)


def test_a_transition_is_told_from_another_in_float64() -> None:
    """Two items that differ by less than float32 has digits, in what transitions add to them alone."""
    n, counts = 4, np.zeros((4, 4))
    counts[0, 1:] = [3.0, 3.0 + 1e-9, 3.0]
    nothing = csr_array((n, n))
    known = from_counts(np.zeros((n, 0), np.float32), nothing, np.ones(n, np.int64), nothing)
    known = replace(known, steps=csr_array(counts))
    weights = weights_of(model_with_floor(dict.fromkeys(FLOOR, 1.0), {"image": 3}))
    items = queries = np.ones((n, 1), np.float32)
    for target, rank in ((1, 2.5), (2, 1.0)):  # the fourth item is equal to the second
        (block,) = example_blocks(make_examples([[0]], [target]), n, CPU, known=known)
        floor = Floor(known_on(known, CPU), weights)
        counted = count_ranks(torch.from_numpy(queries[:1]), torch.from_numpy(items), block, 0.0, floor)
        assert in_order([counted], [block]).by_protocol["all"].tolist() == [rank]


@pytest.mark.parametrize("with_texts", [True, False])
def test_a_model_with_a_floor_is_judged_as_on_the_cpu(with_texts: bool) -> None:
    widths = {name: width for name, width in WIDTHS.items() if with_texts or name != "text"}
    weights = {"cosine": 0.3, "text": 0.8, "words": 0.5, "transitions": 0.3, "novelty": -0.1, "history": -0.7} | {
        "popularity": 0.2
    }
    model = model_with_floor(weights, widths)
    known = known_in(DATA.catalogue, model.widths, "shop-1", DATA.sequences[1])
    wanted = scoring(model, DATA.catalogue, "shop-1", PART, CPU, known).ranks(PART)
    for size in (0, 7):
        blocks = example_blocks(PART, 60, CPU, size, known)
        found = evaluate_on_device(model, DATA.catalogue, "shop-1", CPU, blocks, known=known_on(known, CPU))
        assert all(np.array_equal(found.by_protocol[name], wanted.by_protocol[name]) for name in PROTOCOLS)


def test_blocks_are_bounded_by_the_links_of_their_last_items(monkeypatch: pytest.MonkeyPatch) -> None:
    known = known_in(DATA.catalogue, WIDTHS, "shop-1", DATA.sequences[1])
    (whole,) = example_blocks(PART, 60, CPU, known=known)
    monkeypatch.setattr(gpu_ranking, "LINKS_AT_ONCE", whole.links // 4)
    blocks = example_blocks(PART, 60, CPU, known=known)
    assert len(blocks) >= 4
    assert all(block.links <= whole.links // 4 for block in blocks)
    assert sum(block.links for block in blocks) == whole.links


def test_scores_that_float32_cannot_tell_apart_are_compared_in_float64() -> None:
    items = np.repeat(unit(np.array([[0.01, 1.0]])), 3, axis=0)
    items[1, 0] = np.nextafter(items[1, 0], np.float32(1))  # 1e-9 more
    queries = unit(np.array([[1.0, 1.0]]))
    assert len(set((queries @ items.T)[0].tolist())) == 1
    for target, rank in ((0, 2.5), (1, 1.0)):  # the third item is equal to the first
        ranks = counted_ranks(queries, items, make_examples([[target]], [target]), 0, 0.0)
        assert ranks.by_protocol["all"].tolist() == [rank]


def test_ranks_do_not_depend_on_what_is_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    items = unit(rng.normal(size=(5, 8)))[rng.integers(0, 5, 90)]
    part = make_examples([rng.integers(0, 90, n).tolist() for n in range(1, 30)], rng.integers(0, 90, 29).tolist())
    queries = unit(rng.normal(size=(29, 8)))
    whole = counted_ranks(queries, items, part, 0, 0.5)
    for name, least in (
        ("SCORES_AT_ONCE", 200),
        ("POSITIONS_AT_ONCE", 40),
        ("EXACT_AT_ONCE", 64),
        ("PAIRS_AT_ONCE", 9),
    ):
        monkeypatch.setattr(gpu_ranking, name, least)
    assert len(example_blocks(part, 90, CPU)) > 10
    parts = counted_ranks(queries, items, part, 0, 0.5)
    assert all(np.array_equal(whole.by_protocol[name], parts.by_protocol[name]) for name in PROTOCOLS)


@pytest.mark.parametrize("history_score", [False, True])
def test_a_model_is_judged_as_on_the_cpu(history_score: bool) -> None:
    torch.manual_seed(0)
    model = Ant(replace(ModelConfig(width=32, experts=2), history_score=history_score), WIDTHS, MAX_LEN)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    blocks = example_blocks(PART, 60, CPU, 7)
    features = features_on(DATA.catalogue, WIDTHS, CPU)
    wanted = scoring(model, DATA.catalogue, "shop-1", PART, CPU).ranks(PART)
    for kept in (None, features):
        found = evaluate_on_device(model, DATA.catalogue, "shop-1", CPU, blocks, kept)
        assert all(np.array_equal(found.by_protocol[name], wanted.by_protocol[name]) for name in PROTOCOLS)
    assert model.training


def test_vectors_that_are_not_finite_are_refused() -> None:
    model = Ant(ModelConfig(width=32, experts=2), WIDTHS, MAX_LEN)
    with torch.no_grad():
        model.positions.weight[0, 0] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        evaluate_on_device(model, DATA.catalogue, "shop-1", CPU, example_blocks(PART, 60, CPU))

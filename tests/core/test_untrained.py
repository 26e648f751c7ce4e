"""The untrained floor: its terms by hand, its blend against dense matrices, its weights against brute force."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_array

from antpipe.core.batches import Examples, examples
from antpipe.core.transitions import training_items, transitions
from antpipe.core.untrained import (
    TERMS,
    Doubles,
    Floats,
    Untrained,
    best_terms,
    blend,
    fit_weights,
    from_counts,
    from_sequences,
    history_matrix,
    inherited,
    log_counts,
    recent_matrix,
    step_counts,
    step_rows,
    text_queries,
    unit_texts,
    untrained,
    word_rows,
)
from antpipe.store.files import Sequences
from antpipe.store.store import Store
from tests.support.trainable import make_trainable


def shop(walks: list[list[int]]) -> Sequences:
    """Leave-one-out: the last item of each walk is the test target, the one before it the validation target."""
    lengths = np.array([len(walk) for walk in walks])
    offsets, items = np.concatenate([[0], np.cumsum(lengths)]), np.concatenate(walks).astype(np.int32)
    ends = (np.maximum(lengths - 2, 1).astype(np.int32), np.maximum(lengths - 1, 1).astype(np.int32))
    return Sequences(np.arange(len(walks), dtype=np.int32), offsets, items, *ends, 50)


def after(*history: int) -> Examples:
    items = np.array([*history, 0], np.int32)
    return Examples(np.zeros(1, np.int32), items, np.array([0]), np.array([len(history)]), 50)


def random_case(seed: int, users: int = 60, n: int = 15) -> tuple[Untrained, Sequences]:
    """A shop with random walks; items 0 and 1 have the same text, item 2 has none."""
    rng = np.random.default_rng(seed)
    walks = [rng.integers(0, n, rng.integers(3, 12)).tolist() for _ in range(users)]
    texts = rng.normal(size=(n, 4)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    texts[1], texts[2] = texts[0], 0
    words = csr_array(rng.random((n, n)) * (rng.random((n, n)) < 0.3))
    return from_sequences(shop(walks), texts, words), shop(walks)


def weights_of(
    text: float, words: float, transitions: float, history: float, novelty: float, popularity: float = 0
) -> dict[str, float]:
    return dict(zip(TERMS, (text, words, transitions, history, novelty, popularity), strict=True))


def without_transitions(texts: Floats, sold: NDArray[np.int64]) -> Untrained:
    nothing = csr_array((len(texts), len(texts)))
    return from_counts(texts, nothing, sold, nothing)


def mean_of_neighbours(words: Doubles, counts: Doubles, sold: list[bool]) -> Doubles:
    """What each item (a column) inherits, in a catalogue of fewer items than an item has neighbours."""
    found = np.zeros_like(counts)
    for i, j in np.ndindex(*counts.shape):
        near = [one for one in range(len(sold)) if sold[one] and words[j, one]]
        if near:
            found[i, j] = np.average(counts[i, near], weights=words[j, near])
    return found


def scores_written_out(
    known: Untrained, walks: Sequences, weights: Mapping[str, float], history: list[int]
) -> list[float]:
    """The formula of the module, item by item."""
    n, counts, (item, row) = len(known.texts), np.zeros(known.steps.shape), training_items(walks)
    for place, one in enumerate(item):
        for apart in range(1, 6):
            if place + apart < len(item) and row[place + apart] == row[place]:
                counts[one, item[place + apart]] += 1 / apart
                counts[item[place + apart], one] += 0.5 / apart
    counts = counts + 2 * mean_of_neighbours(known.words.toarray(), counts, [i in item for i in range(n)])
    recent = [(0.5**back, one) for back, one in enumerate(reversed(history[-5:]))]
    whole = sum(weight for weight, _ in recent)
    alike, described = known.texts @ known.texts.T, known.texts.any(1)
    return [
        weights["text"] * 0.4 * sum(weight * float(alike[i, j]) for weight, i in recent) / whole
        + weights["text"] * 0.6 * float(np.mean([alike[i, j] for i in history]))
        - weights["text"] * 0.85 * float(alike[described, j].mean())
        + weights["words"] * sum(weight * known.words[i, j] for weight, i in recent)
        + weights["transitions"] * sum(weight * np.log1p(counts[i, j]) for weight, i in recent)
        + weights["history"] * (j in history)
        + weights["novelty"] * (j not in item)
        + weights["popularity"] * np.log1p((item == j).sum())
        for j in range(n)
    ]


# -- transitions ------------------------------------------------------------------------------------------------


def test_transitions_count_what_followed_in_training_parts_and_never_from_user_to_user() -> None:
    walks = shop([[0, 1, 0, 1, 2, 2], [1, 0, 3, 3]])  # training parts 0 1 0 1 and 1 0
    assert transitions(walks, 4).toarray().tolist() == [[0, 2, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert transitions(walks, 4, apart=2).toarray().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]
    assert transitions(walks, 4, apart=9).nnz == 0


def test_items_further_apart_and_in_the_other_order_count_less() -> None:
    counts = step_counts(shop([[0, 1, 2, 3, 3], [0, 1, 3, 3]]), 4).toarray()
    assert counts[0, 1] == pytest.approx(2)
    assert counts[0, 2] == pytest.approx(1 / 2)
    assert counts[1, 0] == pytest.approx(2 / 2)
    assert counts[2, 0] == pytest.approx(1 / 2 / 2)
    assert counts[3].tolist() == counts[:, 3].tolist() == [0, 0, 0, 0]  # outside the training parts


def test_an_item_inherits_the_mean_counts_of_the_sold_items_whose_words_it_shares() -> None:
    counts = csr_array(np.array([[0, 4.0, 1.0, 0, 0], *[[0.0] * 5] * 4]))  # 1 came after 0 four times, 2 once
    words = csr_array(
        np.array([[0.0] * 5, [0.0] * 5, [0.0] * 5, [0, 0.6, 0.2, 0, 0.9], [0.0] * 5])  # 3 resembles 1, 2 and 4
    )
    new = np.array([False, False, False, True, True])  # nobody bought 3 and 4
    found = inherited(counts, words, new).toarray()
    assert found[0].tolist() == pytest.approx([0, 0, 0, (0.6 * 4 + 0.2 * 1) / 0.8, 0])
    assert not found[1:].any()
    assert log_counts(counts, words, new).toarray()[0] == pytest.approx(np.log1p([0, 4, 1, 2 * 3.25, 0]))


def test_what_further_items_inherit_changes_nothing_among_the_others() -> None:
    rng = np.random.default_rng(0)
    n, before = 130, 120
    new = np.append(rng.random(before) < 0.2, np.ones(n - before, np.bool_))
    counts = csr_array(rng.random((n, n)) * (rng.random((n, n)) < 0.7) * ~new * ~new[:, None])
    words = csr_array(rng.random((n, n)) * (rng.random((n, n)) < 0.3))
    small = log_counts(csr_array(counts[:before, :before]), csr_array(words[:before, :before]), new[:before])
    whole = log_counts(counts, words, new)
    assert abs(csr_array(whole[:before, :before]) - small).max() < 1e-12
    assert abs(csr_array(whole[:, before:]) - log_counts(counts, words, new, before)).max() == 0
    assert np.diff(csr_array(inherited(counts, words, new).T).indptr).max() == 50  # of more than that


def test_transitions_reach_five_positions() -> None:
    counts = step_counts(shop([[0, 1, 2, 3, 4, 5, 6, 7, 7]]), 8).toarray()
    assert counts[0].tolist() == pytest.approx([0, 1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 0, 0])


# -- terms ------------------------------------------------------------------------------------------------------


def test_the_last_five_items_count_each_half_of_the_one_after_it() -> None:
    assert recent_matrix(after(5, 0, 1, 2, 3, 4), 6).toarray().tolist() == [[1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 0]]
    assert recent_matrix(after(2, 0, 2), 3).toarray().tolist() == [[1 / 2, 0, 1 + 1 / 4]]


def test_text_queries_are_means_of_the_last_texts_and_of_all_that_is_read() -> None:
    known = without_transitions(np.array([[1, 0], [0, 1], [0, 0]], np.float32), np.ones(3, np.int64))  # item 2: no text
    assert text_queries(known, after(0))[0].tolist() == [1, 0]
    assert text_queries(known, after(0, 1))[0].tolist() == pytest.approx([0.4 / 3 + 0.6 / 2, 0.4 * 2 / 3 + 0.6 / 2])
    assert text_queries(known, after(0, 2))[0].tolist() == pytest.approx([0.4 / 3 + 0.6 / 2, 0])
    long = replace(after(*[0] * 9, *[1] * 6), max_len=8)  # reads two of item 0 and six of item 1
    assert text_queries(known, long)[0].tolist() == pytest.approx([0.6 * 2 / 8, 0.4 + 0.6 * 6 / 8])


def test_what_is_typical_is_the_cosine_with_the_mean_of_all_texts() -> None:
    known = without_transitions(np.array([[1, 0], [1, 0], [0, 1], [0, 0]], np.float32), np.ones(4, np.int64))
    assert known.middle.tolist() == pytest.approx([2 / 3, 1 / 3])  # of the three items with a text
    assert known.typical.tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3, 0])


def test_popularity_is_the_logarithm_of_occurrences_in_training() -> None:
    known = from_sequences(shop([[0, 1, 0, 3, 3], [0, 2, 3]]), np.zeros((4, 0), np.float32), csr_array((4, 4)))
    assert known.sold.tolist() == [3, 1, 0, 0]
    assert known.popularity.tolist() == pytest.approx(np.log([4, 2, 1, 1]).tolist())
    assert known.new.tolist() == [False, False, True, True]


def test_step_rows_add_up_the_logarithms_of_the_last_items() -> None:
    walks = shop([[0, 1, 3, 3], [0, 1, 3, 3], [2, 1, 3, 3]])
    known = from_sequences(walks, np.zeros((4, 0), np.float32), csr_array((4, 4)))
    expected = np.log1p([0, 2, 0, 0]) / 2 + np.log1p([0, 1, 0, 0])
    assert step_rows(known, after(0, 2)).toarray()[0].tolist() == pytest.approx(expected.tolist())


def test_word_rows_add_up_the_neighbours_of_the_last_items() -> None:
    walks = shop([[0, 1, 3, 3]])
    words = csr_array(np.array([[0, 0.5, 0.2, 0], [0.5, 0, 0, 0], [0.2, 0, 0, 0.8], [0, 0, 0.8, 0]]))
    known = from_sequences(walks, np.zeros((4, 0), np.float32), words)
    assert word_rows(known, after(0, 2)).toarray()[0].tolist() == pytest.approx([0.2, 0.25, 0.1, 0.8])


def test_the_history_is_the_whole_history() -> None:
    assert history_matrix(after(5, 0, 0, 1, 2, 3, 4), 7).toarray().tolist() == [[1, 1, 1, 1, 1, 1, 0]]


def test_texts_are_scaled_to_unit_length_and_items_without_text_stay_zero(tmp_path: Path) -> None:
    domain = make_trainable(Store(tmp_path), "Ring")
    texts = unit_texts(domain)
    assert np.linalg.norm(texts[1:], axis=1) == pytest.approx(np.ones(23), rel=1e-6)
    assert not texts[0].any()
    assert untrained(domain).steps.shape == (24, 24)


# -- blend ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weights",
    [
        weights_of(8, 4, 3, -7, 1, 0.7),
        weights_of(1, 0, 0, 0, 0),
        weights_of(2, -1, 0.5, -0.5, -1),
        weights_of(0, 1, 1, 2, 0),
        weights_of(0, 0, 0, 0, 0, 1),
    ],
)
def test_the_blend_is_the_written_formula(weights: dict[str, float]) -> None:
    known, walks = random_case(1, users=4)
    assert known.new.any()
    part = examples(walks, "test")
    found = blend(known, part, weights)
    for row in range(len(part)):
        history = part.items[part.start[row] : part.end[row]].tolist()
        assert found[row].tolist() == pytest.approx(scores_written_out(known, walks, weights, history), abs=1e-5)


def test_items_with_equal_text_and_transitions_tie_wherever_they_stand() -> None:
    rng = np.random.default_rng(0)
    half = rng.normal(size=(501, 384)).astype(np.float32)
    texts = np.vstack([half, half[:1], half[::-1]])  # item i equals item 1002 - i
    known = without_transitions(texts, np.ones(1003, np.int64))
    for _ in range(20):  # one at a time: BLAS then sums the last columns in another order
        scores = blend(known, after(*rng.integers(0, 1003, 3).tolist()), weights_of(1, 0, 1, 0, 0))[0]
        assert (scores[:501] == scores[:501:-1]).all()


def test_a_domain_without_texts_is_ranked_by_transitions_and_one_without_those_by_texts() -> None:
    known, walks = random_case(3)
    part, n = examples(walks, "test"), len(known.texts)
    bare = from_counts(np.zeros((n, 0), np.float32), known.words, known.sold, known.counts)
    assert np.allclose(blend(bare, part, weights_of(1, 0, 1, 0, 0)), step_rows(known, part).toarray(), atol=1e-6)
    single = from_counts(known.texts, known.words, known.sold, csr_array((n, n)))
    expected = text_queries(known, part) @ known.texts.T - 0.85 * known.typical
    assert np.allclose(blend(single, part, weights_of(1, 0, 1, 0, 0)), expected, atol=1e-6)


# -- weights (tests/core/test_floor.py has the fit against another minimiser) ------------------------------------


def test_the_fit_reads_a_bounded_number_of_positions_and_does_not_depend_on_how_many_at_once() -> None:
    known, walks = random_case(4, users=40, n=40)
    part = examples(walks, "valid")
    assert fit_weights(known, part) == fit_weights(known, part)


def test_a_fit_compares_the_best_items_and_leaves_out_positions_whose_target_is_not_among_them() -> None:
    rng = np.random.default_rng(0)
    n = 300  # more than the best 100
    texts = rng.normal(size=(n, 4)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    known = without_transitions(texts, rng.integers(0, 9, n))
    items = rng.integers(0, n, 100).astype(np.int32)
    part = Examples(np.arange(50, dtype=np.int32), items, np.arange(0, 100, 2), np.arange(1, 100, 2), 50)
    weights = weights_of(3, 0, 0, 0, 1, 0.5)
    terms, target = best_terms(known, part, weights)
    scores, goal = blend(known, part, weights), items[1::2]
    kept = [row for row in range(50) if (scores[row] > scores[row, goal[row]]).sum() < 100]
    assert 0 < len(kept) < 50
    assert len(terms) == len(target) == len(kept)
    found = terms @ np.array(list(weights.values()))
    for number, row in enumerate(kept):
        assert np.sort(found[number]) == pytest.approx(np.sort(scores[row])[-100:], abs=1e-5)
        assert found[number, target[number]] == pytest.approx(scores[row, goal[row]], abs=1e-5)


def test_few_positions_leave_the_weights_near_the_usual_ones_and_many_move_them() -> None:
    texts = np.hstack([0.6**0.5 * np.ones((40, 1)), 0.4**0.5 * np.eye(40)]).astype(np.float32)  # cosines of .6
    walks = shop([[item] * 6 for item in range(40)])  # people buy the same again
    known = without_transitions(texts, np.ones(40, np.int64))
    valid = examples(walks, "valid")
    few, many = fit_weights(known, valid.some(slice(0, 2))), fit_weights(known, valid)
    assert -7 < few["history"] < many["history"]
    assert many["history"] > 0


def test_novelty_counts_for_as_much_as_new_items_are_taken() -> None:
    """Of 40 items, 20 are new; validation targets are new or old."""
    rng = np.random.default_rng(0)
    known = without_transitions(np.zeros((40, 0), np.float32), np.where(np.arange(40) < 20, 1, 0))
    found = {}
    for share in (0.1, 0.5, 0.9):
        targets = np.where(rng.random(400) < share, rng.integers(20, 40, 400), rng.integers(0, 20, 400))
        items = np.stack([rng.integers(0, 20, 400), targets], 1).ravel().astype(np.int32)
        start = np.arange(0, 800, 2)
        part = Examples(np.arange(400, dtype=np.int32), items, start, start + 1, 50)
        weights = fit_weights(known, part)
        found[share] = weights["novelty"] - weights["popularity"] * np.log(2)  # against items that were sold once
    assert found[0.1] < -1
    assert found[0.5] == pytest.approx(0, abs=0.3)
    assert found[0.9] > 1

"""Slices of an evaluation: counted by hand, and adding up to the total."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from antpipe.core.batches import examples
from antpipe.core.catalogue import Catalogue
from antpipe.core.ranking import CUTOFFS, PROTOCOLS, Ranks, metrics
from antpipe.core.transitions import transitions
from antpipe.evaluation import slices
from antpipe.evaluation.slices import divide, head_items, path_lengths, slice_figures, training_counts
from antpipe.store.files import Feature, Sequences

# Users a, b, c: training part | validation | test. Item 4 never occurs in training, item 5 nowhere.
HISTORIES = [[0, 1, 0, 2, 3], [0, 1, 4, 4], [0, 0, 0, 0, 0, 1, 2]]


def sequences() -> Sequences:
    lengths = np.array([len(history) for history in HISTORIES])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.concatenate(HISTORIES).astype(np.int32)
    ends = (lengths - 2).astype(np.int32), (lengths - 1).astype(np.int32)
    return Sequences(np.array([7, 8, 9], np.int32), offsets, items, *ends, 50)


def catalogue() -> Catalogue:
    present = np.array([True, True, True, False, True, False])
    text = Feature(np.zeros((6, 2), np.float16), present)
    return Catalogue(("shop",), np.array([0, 6]), {"text": (text,), "image": (None,)}, {"text": 2, "image": 2}, {})


def test_training_counts_leave_validation_and_test_out() -> None:
    assert training_counts(sequences(), 6).tolist() == [8, 2, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("counts", "head"),
    [
        ([6, 2, 1, 0], [True, False, False, False]),
        ([3, 3, 3, 0], [True, True, True, False]),  # as popular as the last one
        ([4, 3, 3, 2], [True, False, False, False]),  # exactly a third
        ([1, 2, 2, 4, 4], [False, False, False, True, True]),
        ([0, 0], [False, False]),
    ],
)
def test_head_items_are_the_most_popular_until_they_have_a_third(counts: list[int], head: list[bool]) -> None:
    assert head_items(np.array(counts)).tolist() == head


def test_each_position_is_in_the_slice_of_its_target_and_history() -> None:
    part = examples(sequences(), "test")  # targets 3, 4, 2 after histories of 4, 3 and 6 items
    found = divide(part, sequences(), catalogue(), "shop", ("text", "image", "price"))
    names = {name: [group.names[number] for number in group.number] for name, group in found.items()}
    assert names == {
        "item": ["cold", "cold", "cold"],
        "occurrences": ["0", "0", "0"],
        "popularity": ["tail", "tail", "tail"],
        "path": ["new", "new", "new"],
        "history": ["4-5", "1-3", "6-10"],
        "text": ["missing", "present", "present"],
        "image": ["missing"] * 3,  # a modality the domain lacks
        "price": ["missing"] * 3,  # one that no domain of the run's catalogue has
    }
    part = examples(sequences(), "valid")  # targets 2, 4, 1
    found = divide(part, sequences(), catalogue(), "shop", ("text",))
    assert [found["item"].names[number] for number in found["item"].number] == ["cold", "cold", "warm"]
    assert [found["occurrences"].names[number] for number in found["occurrences"].number] == ["0", "0", "1-4"]


def test_the_slices_of_every_group_add_up_to_the_total() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 30, 400)
    items = (rng.integers(0, 40, int(lengths.sum())) * rng.random(int(lengths.sum()))).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    train = np.maximum(lengths - 5, 1).astype(np.int32)
    whole = Sequences(np.arange(400, dtype=np.int32), offsets, items, train, train + 1, 50)
    part = examples(whole, "test")  # up to four positions per user
    feature = Feature(np.zeros((40, 2), np.float16), rng.random(40) < 0.5)
    features = Catalogue(("shop",), np.array([0, 40]), {"text": (feature,)}, {"text": 2}, {})
    ranks = {name: np.where(rng.random(len(part)) < 0.7, rng.integers(1, 60, len(part)), np.inf) for name in PROTOCOLS}
    divided = divide(part, whole, features, "shop", ("text",))
    figures = slice_figures(Ranks(ranks, np.zeros(len(part), np.bool_)), part.user, divided)
    assert set(figures) == {"item", "occurrences", "popularity", "path", "history", "text"}
    for group in figures.values():
        assert sum(one["positions"] for one in group.values()) == len(part)
        assert max(one["users"] for one in group.values()) <= 400
        for protocol in PROTOCOLS:
            for name, value in metrics(ranks[protocol]).items():
                parts = [
                    one["positions"] * one["protocols"][protocol][name] for one in group.values() if one["positions"]
                ]
                assert sum(parts) / len(part) == pytest.approx(value, rel=1e-12)


def test_a_user_with_several_positions_counts_once_and_an_empty_slice_has_no_figures() -> None:
    offsets, items = np.array([0, 5]), np.array([0, 0, 1, 0, 0], np.int32)
    one = Sequences(np.zeros(1, np.int32), offsets, items, np.array([2], np.int32), np.array([2], np.int32), 50)
    part = examples(one, "test")
    features = Catalogue(("shop",), np.array([0, 6]), {}, {}, {})
    divided = divide(part, one, features, "shop", ())
    ranks = Ranks({name: np.array([1.0, np.inf, 3.0]) for name in PROTOCOLS}, np.zeros(3, np.bool_))
    figures = slice_figures(ranks, part.user, divided)
    warm, missing = figures["item"]["warm"], figures["history"]["21+"]
    assert (warm["positions"], warm["users"]) == (2, 1)
    assert warm["protocols"]["all"][f"recall@{CUTOFFS[0]}"] == 0.5
    assert missing == {"positions": 0, "users": 0, "protocols": {}}


# -- paths ------------------------------------------------------------------------------------------------------


def of(histories: list[list[int]]) -> Sequences:
    """Leave-one-out, as in `sequences`."""
    lengths = np.array([len(history) for history in histories])
    offsets, ends = np.concatenate([[0], np.cumsum(lengths)]), ((lengths - 2).astype(np.int32), lengths - 1)
    items = np.concatenate(histories).astype(np.int32)
    return Sequences(np.arange(len(lengths), dtype=np.int32), offsets, items, ends[0], ends[1].astype(np.int32), 50)


def path_names(histories: list[list[int]], split: str, n: int = 9) -> list[str]:
    shop = of(histories)
    group = divide(examples(shop, split), shop, Catalogue(("shop",), np.array([0, n]), {}, {}, {}), "shop", ())["path"]
    return [group.names[number] for number in group.number]


def test_a_target_is_as_many_steps_away_as_the_shortest_path_of_transitions_in_training() -> None:
    walks = [[0, 1, 2, 3, 8, 8], [0, 2, 8, 8]]  # 0 -> 1 -> 2 -> 3 and 0 -> 2
    cases = [([5, 5, 0, 1], "1-step"), ([5, 5, 0, 2], "1-step"), ([5, 5, 0, 3], "2-steps"), ([5, 5, 1, 3], "2-steps")]
    cases += [([5, 5, 3, 0], "new"), ([5, 5, 0, 0], "new"), ([5, 5, 0, 4], "new"), ([5, 5, 4, 0], "new")]
    assert path_names([*walks, *(case for case, _ in cases)], "test")[2:] == [name for _, name in cases]
    longer = [[0, 1, 2, 3, 4, 8, 8], [5, 5, 0, 3], [5, 5, 0, 4]]
    assert path_names(longer, "test")[1:] == ["3-steps", "new"]  # four steps are as good as none


def test_an_item_that_was_repeated_in_training_is_one_step_from_itself_and_a_circle_counts_its_steps() -> None:
    assert path_names([[1, 1, 8, 8], [5, 5, 1, 1]], "test")[1:] == ["1-step"]
    assert path_names([[1, 2, 1, 8, 8], [5, 5, 1, 1]], "test")[1:] == ["2-steps"]


def test_transitions_into_validation_and_test_items_and_between_users_are_not_known() -> None:
    # Training parts 0 1 and 2 3; 1 -> 4 -> 5 belongs to the first user's validation and test, 1 | 2 to two users.
    walks = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 8, 1, 4], [8, 8, 4, 5], [8, 8, 1, 2], [8, 8, 0, 1]]
    assert path_names(walks, "test") == ["new", "new", "new", "new", "new", "1-step"]
    assert path_names(walks, "valid") == ["new", "new", "new", "new", "new", "new"]


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_path_lengths_equal_brute_force_in_blocks_of_any_size(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 12))
    edges = data.draw(st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=3 * n))
    pairs = data.draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), min_size=1, max_size=30))
    dense = np.zeros((n, n))
    for edge in edges:
        dense[edge] = data.draw(st.integers(1, 300))
    first, last = np.array(pairs).T
    expected = [
        next((k for k in (1, 2, 3) if np.linalg.matrix_power(dense > 0, k)[one, other]), 0) for one, other in pairs
    ]
    before = slices.PATHS_AT_ONCE
    try:
        slices.PATHS_AT_ONCE = data.draw(st.sampled_from([1, 5, before]))
        assert path_lengths(csr_array(dense), first, last).tolist() == expected
    finally:
        slices.PATHS_AT_ONCE = before


def test_paths_through_a_hub_need_no_matrix_of_all_pairs() -> None:
    # Every item leads to item 0, and that to every item: 50 million pairs of items are two steps apart.
    n = 7000
    walk = np.zeros(2 * n + 1, np.int64)
    walk[1::2] = np.arange(n)
    follows = transitions(of([[*walk, n, n]]), n + 1)
    first, last = np.arange(n), np.full(n, n)  # item n is never reached, so three steps are tried for all
    tracemalloc.start()
    try:
        assert not path_lengths(follows, first, last).any()
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
    assert path_lengths(follows, first, (first * 7 + 3) % n).max() == 2

"""Slices of an evaluation: counted by hand, and adding up to the total."""

import numpy as np
import pytest

from antpipe.core.batches import examples
from antpipe.core.catalogue import Catalogue
from antpipe.core.ranking import CUTOFFS, PROTOCOLS, Ranks, metrics
from antpipe.evaluation.slices import divide, head_items, slice_figures, training_counts
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
    found = divide(part, training_counts(sequences(), 6), catalogue(), "shop", ("text", "image", "price"))
    names = {name: [group.names[number] for number in group.number] for name, group in found.items()}
    assert names == {
        "item": ["cold", "cold", "cold"],
        "occurrences": ["0", "0", "0"],
        "popularity": ["tail", "tail", "tail"],
        "history": ["4-5", "1-3", "6-10"],
        "text": ["missing", "present", "present"],
        "image": ["missing"] * 3,  # a modality the domain lacks
        "price": ["missing"] * 3,  # one that no domain of the run's catalogue has
    }
    part = examples(sequences(), "valid")  # targets 2, 4, 1
    found = divide(part, training_counts(sequences(), 6), catalogue(), "shop", ("text",))
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
    divided = divide(part, training_counts(whole, 40), features, "shop", ("text",))
    figures = slice_figures(Ranks(ranks, np.zeros(len(part), np.bool_)), part.user, divided)
    assert set(figures) == {"item", "occurrences", "popularity", "history", "text"}
    for slices in figures.values():
        assert sum(one["positions"] for one in slices.values()) == len(part)
        assert max(one["users"] for one in slices.values()) <= 400
        for protocol in PROTOCOLS:
            for name, value in metrics(ranks[protocol]).items():
                parts = [
                    one["positions"] * one["protocols"][protocol][name] for one in slices.values() if one["positions"]
                ]
                assert sum(parts) / len(part) == pytest.approx(value, rel=1e-12)


def test_a_user_with_several_positions_counts_once_and_an_empty_slice_has_no_figures() -> None:
    offsets, items = np.array([0, 5]), np.array([0, 0, 1, 0, 0], np.int32)
    one = Sequences(np.zeros(1, np.int32), offsets, items, np.array([2], np.int32), np.array([2], np.int32), 50)
    part = examples(one, "test")
    features = Catalogue(("shop",), np.array([0, 6]), {}, {}, {})
    divided = divide(part, training_counts(one, 6), features, "shop", ())
    ranks = Ranks({name: np.array([1.0, np.inf, 3.0]) for name in PROTOCOLS}, np.zeros(3, np.bool_))
    figures = slice_figures(ranks, part.user, divided)
    warm, missing = figures["item"]["warm"], figures["history"]["21+"]
    assert (warm["positions"], warm["users"]) == (2, 1)
    assert warm["protocols"]["all"][f"recall@{CUTOFFS[0]}"] == 0.5
    assert missing == {"positions": 0, "users": 0, "protocols": {}}

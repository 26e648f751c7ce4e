"""The split `cold-items`: some items are not in training at all, and targets may be them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antpipe.core.transitions import training_items
from antpipe.errors import DataError
from antpipe.evaluation.slices import training_counts
from antpipe.features.build_sequences import build_sequences
from antpipe.features.splits import ends_of_kept, held_out_items, kept_positions
from antpipe.settings.features import SequenceConfig
from antpipe.store.store import Store
from tests.support.commands import run
from tests.support.shops import make_domain
from tests.support.trainable import make_trainable

COLD = SequenceConfig(split="cold-items", cold_share=0.25, cold_seed=3)


def split(sequences: list[list[int]], held: set[int], items: int = 6) -> list[tuple[list[int], int, int]]:
    """What is left of sequences split by leave-one-out: items, train_end, valid_end, per user."""
    lengths = np.array([len(one) for one in sequences])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat = np.concatenate([np.array(one, np.int32) for one in sequences])
    train, valid = (np.maximum(lengths - n, 1).astype(np.int32) for n in (2, 1))
    kept = kept_positions(offsets, flat, train, np.isin(np.arange(items), list(held)))
    left, *ends = ends_of_kept(offsets, kept, train, valid)
    parts = np.split(flat[kept], left[1:-1])
    return [(part.tolist(), int(t), int(v)) for part, t, v in zip(parts, *ends, strict=True)]


def test_a_held_out_item_goes_from_training_and_stays_a_target() -> None:
    assert split([[0, 5, 1, 5, 5]], held={5}) == [([0, 1, 5, 5], 2, 3)]


def test_without_such_items_it_is_leave_one_out() -> None:
    assert split([[0, 1, 2, 3], [4], [1, 2]], held=set()) == [([0, 1, 2, 3], 2, 3), ([4], 1, 1), ([1, 2], 1, 1)]


def test_a_sequence_does_not_begin_with_one() -> None:
    assert split([[5, 5, 5, 1], [5, 5, 5, 5], [5, 0, 5, 1]], held={5}) == [
        ([1], 1, 1),
        ([], 1, 1),
        ([0, 5, 1], 1, 2),
    ]


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=9), min_size=1, max_size=6),
    st.sets(st.integers(0, 5), max_size=5),
)
def test_training_has_none_of_them_and_everything_else(sequences: list[list[int]], held: set[int]) -> None:
    for before, (after, train_end, valid_end) in zip(sequences, split(sequences, held), strict=True):
        assert not set(after[:train_end]) & held
        prefix = [item for item in before[: max(len(before) - 2, 1)] if item not in held]
        if prefix:
            assert after[:train_end] == prefix
            assert after[train_end:] == before[max(len(before) - 2, 1) :]
        assert 1 <= train_end <= valid_end <= max(len(after), 1)


@pytest.mark.parametrize(("items", "share", "count"), [(100, 0.1, 10), (3, 0.01, 1), (3, 0.9, 2), (1, 0.5, 1)])
def test_a_share_of_the_items_is_held_out(items: int, share: float, count: int) -> None:
    assert held_out_items(items, share, 0).sum() == count


def test_the_seed_decides_which_items() -> None:
    one, same, other = (held_out_items(50, 0.2, seed) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


def test_sequences_of_a_shop_have_cold_targets_only_of_these_items(tmp_path: Path) -> None:
    store = Store(tmp_path)
    shop = make_trainable(store, "Shop")
    [result] = build_sequences(store, ["Shop"], COLD)
    sequences, held = shop.sequences(), held_out_items(24, 0.25, 3)
    assert not held[training_items(sequences)[0]].any()
    assert (training_counts(sequences, 24)[held] == 0).all()
    assert held[sequences.items].any()
    assert result.figures["test"] > 0
    assert build_sequences(store, ["Shop"], COLD)[0].status == "fresh"
    other = SequenceConfig(split="cold-items", cold_share=0.25, cold_seed=4)
    assert build_sequences(store, ["Shop"], other)[0].status == "built"


def test_a_shop_without_training_left_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make_domain(
        store, "Shop", [{"item_id": item} for item in "abcd"], [("u", item, time) for time, item in enumerate("abcd")]
    )
    with pytest.raises(DataError, match="no user has two in training") as caught:
        build_sequences(store, ["Shop"], SequenceConfig(split="cold-items", cold_share=0.5, cold_seed=1))
    assert "--cold-share 0.25" in str(caught.value.next_command)


def test_the_command_takes_the_share_and_the_seed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make_trainable(store, "Shop")
    asked = ["build-sequences", "--domains", "Shop", "--store", str(tmp_path), "--split", "cold-items"]
    assert run(*asked, "--cold-share", "0.2", "--cold-seed", "5").code == 0
    assert store.domain("Shop").entry("sequences")["parameters"]["cold_share"] == 0.2

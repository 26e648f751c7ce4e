"""`build-sequences`: whole chronological sequences, and which positions are targets of which part."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antpipe.errors import DataError, UsageError
from antpipe.features.build_sequences import build_sequences
from antpipe.features.splits import cut_timestamps, leave_one_out, split_by_time
from antpipe.settings.features import SequenceConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.domain import Domain
from antpipe.store.store import Store
from tests.support.shops import make_domain

Rows = list[tuple[str, str, int]]
BY_TIME = SequenceConfig(split="time")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def shop(store: Store, name: str, rows: Rows) -> Domain:
    return make_domain(store, name, [{"item_id": item} for item in sorted({row[1] for row in rows})], rows)


def build(store: Store, name: str, config: SequenceConfig) -> StageResult:
    [result] = build_sequences(store, [name], config)
    return result


def journey(user: str, times: list[int]) -> Rows:
    return [(user, "abcdefgh"[i % 8], time) for i, time in enumerate(times)]


def test_sequences_are_whole_and_chronological(store: Store) -> None:
    domain = shop(store, "shop", [("u", "b", 30), ("v", "a", 5), ("u", "c", 10), ("u", "a", 20), ("v", "c", 4)])
    build(store, "shop", SequenceConfig())
    sequences = domain.sequences()
    assert sequences.user.tolist() == [0, 1]
    assert sequences.offsets.tolist() == [0, 3, 5]
    assert sequences.items.tolist() == [2, 0, 1, 2, 0]
    assert sequences.max_len == 50


def test_ties_in_time_keep_the_order_of_the_source(store: Store) -> None:
    domain = shop(store, "shop", [("u", "c", 1), ("u", "a", 1), ("u", "b", 1)])
    build(store, "shop", SequenceConfig())
    assert domain.sequences().items.tolist() == [2, 0, 1]


def test_hundreds_of_ties_keep_the_order_of_the_source(store: Store) -> None:
    order = np.random.default_rng(0).permutation(1000).tolist()
    rows = [("uv"[item % 2], f"{item:03}", item // 500) for item in order]
    domain = shop(store, "shop", rows)
    build(store, "shop", SequenceConfig())
    expected = [i for user in (0, 1) for time in (0, 1) for i in order if (i % 2, i // 500) == (user, time)]
    assert domain.sequences().items.tolist() == expected


def test_a_sequence_longer_than_max_len_is_stored_whole(store: Store) -> None:
    domain = shop(store, "shop", journey("u", list(range(9))))
    build(store, "shop", SequenceConfig(max_len=3))
    assert len(domain.sequences().items) == 9
    assert domain.sequences().max_len == 3


def test_leave_one_out_takes_the_last_for_test_and_the_one_before_for_validation() -> None:
    train_end, valid_end = leave_one_out(np.array([1, 2, 3, 6], dtype=np.int32))
    assert train_end.tolist() == [1, 1, 1, 4]
    assert valid_end.tolist() == [1, 1, 2, 5]


def test_figures_count_the_targets_of_each_split(store: Store) -> None:
    rows = journey("u", [1, 2, 3, 4, 5]) + journey("v", [1, 2]) + journey("w", [1])
    shop(store, "shop", rows)
    assert build(store, "shop", SequenceConfig()).figures == {
        "users": 3,
        "interactions": 8,
        "train": 2,
        "valid": 1,
        "test": 2,
        "min_length": 1,
        "median_length": 2.0,
        "max_length": 5,
    }


def test_cuts_leave_the_asked_shares_behind_them() -> None:
    assert cut_timestamps(np.arange(100, 200), 0.1, 0.2) == (170, 180)


def test_a_period_of_share_zero_has_no_cut() -> None:
    times = np.arange(10)
    assert cut_timestamps(times, 0.0, 0.2) == (None, 8)
    assert cut_timestamps(times, 0.2, 0.0) == (8, None)


def test_interactions_of_equal_time_fall_on_the_same_side() -> None:
    offsets, times = np.array([0, 4]), np.array([1, 2, 2, 2])
    assert cut_timestamps(times, 0.0, 0.25) == (None, 2)
    train_end, valid_end = split_by_time(offsets, times, (None, 2))
    assert (train_end.tolist(), valid_end.tolist()) == ([1], [1])


def test_time_split_puts_positions_into_the_periods_of_their_timestamps() -> None:
    offsets, times = np.array([0, 4, 6, 7]), np.array([1, 5, 6, 9, 7, 8, 2])
    train_end, valid_end = split_by_time(offsets, times, (6, 8))
    assert train_end.tolist() == [2, 1, 1]  # a user who begins after the cut has no training target
    assert valid_end.tolist() == [3, 1, 1]


def test_time_split_counts_its_targets_and_keeps_its_cuts(store: Store) -> None:
    shop(store, "shop", journey("u", list(range(0, 20, 2))) + journey("v", list(range(1, 21, 2))))
    figures = build(store, "shop", BY_TIME).figures
    assert (figures["train"], figures["valid"], figures["test"]) == (14, 2, 2)
    assert (figures["valid_from"], figures["test_from"]) == (16, 18)
    assert store.domain("shop").entry("sequences")["parameters"]["cuts"] == [16, 18]


def test_domains_named_together_share_their_cuts(store: Store) -> None:
    shop(store, "one", journey("u", list(range(0, 20, 2))))
    shop(store, "other", journey("u", list(range(1, 21, 2))))
    results = build_sequences(store, ["one", "other"], BY_TIME)
    assert {(result.figures["valid_from"], result.figures["test_from"]) for result in results} == {(16, 18)}


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.0, 1.0), (0.9, 0.2)])
def test_shares_that_leave_no_training_period_are_refused(store: Store, shares: tuple[float, float]) -> None:
    shop(store, "shop", journey("u", [1, 2, 3]))
    with pytest.raises(UsageError, match="leave nothing to train on"):
        build(store, "shop", SequenceConfig(split="time", valid_share=shares[0], test_share=shares[1]))


def test_a_domain_that_lies_after_the_cuts_is_refused_and_no_domain_changes(store: Store) -> None:
    shop(store, "early", journey("u", list(range(80))))
    shop(store, "late", journey("u", list(range(1000, 1004))))
    with pytest.raises(DataError, match="late") as caught:
        build_sequences(store, ["early", "late"], BY_TIME)
    assert "--domains late" in str(caught.value.next_command)
    assert "sequences" not in store.domain("early").manifest()


def test_the_command_proposed_for_a_late_domain_works(store: Store) -> None:
    shop(store, "early", journey("u", list(range(80))))
    shop(store, "late", journey("u", list(range(1000, 1010))))
    assert build(store, "late", BY_TIME).figures["train"] == 7


def test_interactions_all_at_one_time_leave_nothing_to_train_on(store: Store) -> None:
    shop(store, "shop", journey("u", [7, 7, 7]))
    with pytest.raises(DataError, match="no training target"):
        build(store, "shop", BY_TIME)


def test_leave_one_out_warns_once_of_domains_that_overlap_in_time(store: Store, messages: list[str]) -> None:
    for name, start in (("a", 0), ("b", 5), ("c", 8), ("later", 100)):
        shop(store, name, journey("u", list(range(start, start + 10))))
    messages.clear()
    build_sequences(store, ["a", "b", "c", "later"], SequenceConfig())
    assert len(messages) == 1
    assert "a, b, c overlap" in messages[0]
    assert "--split time" in messages[0]


def test_domains_that_do_not_overlap_in_time_give_no_warning(store: Store, messages: list[str]) -> None:
    for name, start in (("a", 0), ("b", 10)):
        shop(store, name, journey("u", list(range(start, start + 10))))
    messages.clear()
    results = build_sequences(store, ["a", "b"], SequenceConfig())
    assert [result.status for result in results] == ["built", "built"]
    assert not messages


def test_a_second_run_is_fresh_until_a_setting_changes(store: Store) -> None:
    shop(store, "shop", journey("u", list(range(10))))
    first, second = build(store, "shop", SequenceConfig()), build(store, "shop", SequenceConfig())
    assert (first.status, second.status) == ("built", "fresh")
    assert second.figures == first.figures
    assert build(store, "shop", SequenceConfig(valid_share=0.3)).status == "fresh"  # of no effect here
    assert build(store, "shop", SequenceConfig(max_len=9)).status == "built"
    assert build(store, "shop", BY_TIME).status == "built"
    assert build_sequences(store, ["shop"], BY_TIME, force=True)[0].status == "built"


TIMES = st.lists(st.lists(st.integers(-50, 50), min_size=1, max_size=12), min_size=1, max_size=8)


def laid_out(times: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    ordered = [sorted(one) for one in times]
    offsets = np.cumsum([0, *map(len, ordered)]).astype(np.int32)
    return offsets, np.concatenate(ordered).astype(np.int64)


@given(TIMES, st.floats(0, 0.45), st.floats(0, 0.45))
def test_time_split_gives_every_later_position_to_the_period_of_its_timestamp(
    times: list[list[int]], valid_share: float, test_share: float
) -> None:
    offsets, stamps = laid_out(times)
    cuts = cut_timestamps(stamps, valid_share, test_share)
    train_end, valid_end = split_by_time(offsets, stamps, cuts)
    valid_from, test_from = cuts
    assert (train_end >= 1).all()
    for user, one in enumerate(times):
        for position, stamp in enumerate(sorted(one)):
            if position == 0:
                continue
            is_test = test_from is not None and stamp >= test_from
            is_valid = not is_test and valid_from is not None and stamp >= valid_from
            assert (position >= valid_end[user]) == is_test
            assert (train_end[user] <= position < valid_end[user]) == is_valid


@given(TIMES)
def test_leave_one_out_gives_every_user_at_most_one_target_of_each_kind(times: list[list[int]]) -> None:
    lengths = np.array([len(one) for one in times], dtype=np.int32)
    train_end, valid_end = leave_one_out(lengths)
    assert (lengths - valid_end).tolist() == [int(length >= 2) for length in lengths]
    assert (valid_end - train_end).tolist() == [int(length >= 3) for length in lengths]
    assert (train_end >= 1).all()


@settings(deadline=None, max_examples=20)  # it writes files
@given(times=TIMES)
def test_lengths_add_up_and_timestamps_never_fall(
    tmp_path_factory: pytest.TempPathFactory, times: list[list[int]]
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    domain = shop(store, "shop", [row for user, one in enumerate(times) for row in journey(f"u{user}", one)])
    figures = build(store, "shop", SequenceConfig()).figures
    sequences = domain.sequences()
    assert np.diff(sequences.offsets).tolist() == [len(one) for one in times]
    assert figures["interactions"] == len(sequences.items) == sum(map(len, times))
    assert figures["train"] + figures["valid"] + figures["test"] == figures["interactions"] - figures["users"]

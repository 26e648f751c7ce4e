"""What ids, ties and cold targets say about the order of a domain, by hand and against chance."""

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import binom

from antpipe.features.build_sequences import build_sequences
from antpipe.features.splits import leave_one_out
from antpipe.settings.features import SequenceConfig
from antpipe.store.files import Sequences
from antpipe.store.order import (
    POSITIONS,
    ROWS,
    TIMES,
    UNLIKELY,
    ColdTargets,
    Order,
    basis_of,
    cold_doubts,
    cold_targets_of,
    id_orders,
    in_words,
    is_beyond_chance,
    measure_cold_targets,
    measure_order,
    order_doubts,
    order_of,
)
from antpipe.store.store import Store
from tests.support.shops import make_domain

LETTERS = [chr(ord("a") + number) for number in range(26)]


def order(walks: Sequence[Sequence[int]], ids: Sequence[str] = LETTERS, times: Sequence[int] | None = None) -> Order:
    """The order of users who met these items, one after the other or at these times (all users together)."""
    rows = pl.DataFrame(
        {
            "user": [user for user, walk in enumerate(walks) for _ in walk],
            "item": [item for walk in walks for item in walk],
            "timestamp": times or [time for walk in walks for time in range(len(walk))],
        },
        schema={"user": pl.Int32, "item": pl.Int32, "timestamp": pl.Int64},
    )
    found = measure_order(rows, pl.Series("item_id", ids, pl.String), TIMES)
    assert found is not None
    return found


def random_walks(rng: np.random.Generator, users: int, most: int = 9, items: int = 26) -> list[list[int]]:
    return [rng.permutation(items)[: rng.integers(1, most + 1)].tolist() for _ in range(users)]


# -- sorted by id ---------------------------------------------------------------------------------------------------


def test_the_share_of_sorted_users_is_that_of_users_whose_ids_only_rise_or_only_fall() -> None:
    found = order([[0, 1, 2], [5, 3, 2, 1], [0, 2, 1], [1, 0, 2, 3]])
    assert (found.judged_users, found.sorted_by_id) == (4, 2 / 4)
    assert found.by_chance == pytest.approx((2 / 6 + 2 / 24 + 2 / 6 + 2 / 24) / 4)


def test_users_of_fewer_than_three_different_items_say_nothing_and_are_left_out() -> None:
    found = order([[0], [0, 1], [3, 3, 2, 2], [0, 2, 1]])
    assert (found.judged_users, found.sorted_by_id, found.by_chance) == (1, 0.0, 2 / 6)
    none = order([[0], [0, 1]])
    assert (none.judged_users, none.sorted_by_id, none.by_chance, none.ids) == (0, None, None, "rows")
    assert order_doubts(none) == []


def test_an_item_met_twice_in_a_row_counts_once_and_one_that_comes_back_fits_no_order() -> None:
    assert order([[0, 0, 1, 2, 2]]).by_chance == 2 / 6
    assert order([[0, 0, 1, 2, 2]]).sorted_by_id == 1.0
    back = order([[0, 1, 2, 0]])
    assert (back.judged_users, back.sorted_by_id, back.by_chance) == (1, 0.0, 0.0)


def test_the_chance_is_the_share_of_all_orders_of_the_ids_that_sort_the_user() -> None:
    walk = [0, 0, 1, 2, 3, 3]
    renamed = [[names[item] for item in walk] for names in permutations(range(4))]
    found = order(renamed)
    assert found.sorted_by_id == found.by_chance == 2 / 24


def test_the_chance_is_what_shuffled_tables_have() -> None:
    found = order(random_walks(np.random.default_rng(1), users=20_000))
    assert found.sorted_by_id is not None
    assert found.by_chance is not None
    error = np.sqrt(found.by_chance / found.judged_users)
    assert found.sorted_by_id == pytest.approx(found.by_chance, abs=4 * error)


def test_long_sequences_have_no_chance_worth_counting() -> None:
    found = order([list(range(200))], [f"{number:03}" for number in range(200)])
    assert (found.sorted_by_id, found.by_chance) == (1.0, pytest.approx(0, abs=1e-17))


def test_ids_are_read_as_text_as_numbers_and_as_the_rows_of_the_catalogue() -> None:
    def read(*ids: str) -> dict[str, list[int]]:
        return {name: place.tolist() for name, place in id_orders(pl.Series("item_id", ids)).items()}

    assert read("a", "b", "c") == {"text": [0, 1, 2]}
    assert read("c", "a", "b") == {"rows": [0, 1, 2], "text": [2, 0, 1]}
    assert read("10", "9", "99") == {"text": [0, 1, 2], "numbers": [1, 0, 2]}
    assert read("item10", "item2") == {"text": [0, 1], "numbers": [1, 0]}
    assert read("item10", "thing2") == {"text": [0, 1]}
    assert read("007", "01", "1000000000000000000000000") == {"text": [0, 1, 2], "numbers": [1, 0, 2]}
    assert read("10", "9", "x") == {"text": [0, 1, 2]}
    assert read("0", "00", "1") == {"text": [0, 1, 2]}


def test_the_order_of_ids_that_sorts_most_users_is_reported() -> None:
    numbers = sorted(str(number) for number in range(12))
    row = {name: place for place, name in enumerate(numbers)}
    assert order([[row["8"], row["9"], row["10"]]], numbers).ids == "numbers"
    assert order([[row["8"], row["9"], row["10"]]], numbers).sorted_by_id == 1.0
    assert order([[row["1"], row["10"], row["2"]]], numbers).ids == "text"
    own = ["zebra", "apple", "mango"]  # the catalogue has its own numbering
    assert (order([[0, 1, 2]], own).ids, order([[1, 2, 0]], own).ids) == ("rows", "text")


# -- ties and what the order goes by --------------------------------------------------------------------------------


def test_the_tied_share_is_that_of_positions_with_the_time_of_their_users_previous_one() -> None:
    assert order([[0, 1, 2], [3, 4], [5]], times=[1, 1, 2, 2, 2, 2]).tied == 2 / 3
    assert order([[0], [1]], times=[1, 1]).tied is None


def test_the_order_goes_by_the_rows_of_the_file_if_all_times_are_equal() -> None:
    assert order([[0, 1, 2], [3, 4]], times=[7, 7, 7, 8, 8]).basis == ROWS
    assert order([[0, 1, 2], [3, 4]], times=[7, 7, 8, 8, 8]).basis == TIMES


def test_what_the_order_goes_by_is_read_from_the_ingest() -> None:
    with_time, without = ({"columns": {"interactions": roles}} for roles in ({"user": ["u"], "time": ["t"]}, {}))
    assert basis_of(with_time, {"time_unit": "s"}) == TIMES
    assert basis_of(with_time, {"time_unit": "order"}) == POSITIONS
    assert basis_of(without, {"time_unit": "order"}) == ROWS
    assert basis_of({}, {"time_unit": "order"}) == POSITIONS  # import unisrec
    assert basis_of({}, {}) == TIMES


# -- doubts ---------------------------------------------------------------------------------------------------------


def test_a_good_table_gives_no_warning_and_its_sorted_copy_one_with_the_figure() -> None:
    walks = [walk for walk in random_walks(np.random.default_rng(2), users=60) if len(walk) > 2]
    assert order_doubts(order(walks)) == []
    for spoilt in ([sorted(walk) for walk in walks], [sorted(walk, reverse=True) for walk in walks]):
        [doubt] = order_doubts(order(spoilt))
        assert f"100.0% of {len(walks)} users have their items in the order of ids (read as text)" in doubt
        assert f"where chance gives {order(walks).by_chance:.1%}" in doubt
        assert "check the times of the source" in doubt


@pytest.mark.parametrize("users", [13, 30])
def test_sorted_users_of_three_items_are_enough_if_there_are_thirteen(users: int) -> None:
    assert len(order_doubts(order([[0, 1, 2]] * users))) == 1
    assert order_doubts(order([[0, 1, 2]] * 12)) == []  # 3^-12 is above one in a million


@pytest.mark.parametrize("users", [1, 2, 5])
def test_a_few_sorted_users_give_no_warning(users: int) -> None:
    assert order_doubts(order([list(range(10))] * users)) == []


def test_shuffled_tables_of_any_size_give_no_warning() -> None:
    rng = np.random.default_rng(3)
    for users in (1, 2, 3, 5, 8, 13, 30, 100, 300):
        for most in (3, 4, 9):
            for _ in range(20):
                found = order(random_walks(rng, users, most))
                assert order_doubts(found) == [], (users, most, found)


def test_users_sorted_for_other_reasons_give_a_warning_only_from_a_third_of_the_users_on() -> None:
    good = [walk for walk in random_walks(np.random.default_rng(4), users=2000) if len(walk) > 5]
    spoilt = [sorted(walk) for walk in good]
    for share, warned in ((0.0, False), (0.25, False), (0.4, True), (1.0, True)):
        cut = int(share * len(good))
        assert bool(order_doubts(order(spoilt[:cut] + good[cut:]))) == warned, share


def test_ties_warn_if_they_decide_three_positions_of_four() -> None:
    def doubts(tied: int, of: int) -> list[str]:
        return order_doubts(order([[0, 5, 2, 4, 1][: of + 1]], times=[0] * (tied + 1) + list(range(1, of - tied + 1))))

    assert (doubts(2, 4), doubts(0, 4)) == ([], [])
    [doubt] = doubts(3, 4)
    assert doubt.startswith("75.0% of positions have the same time as the position before")
    [doubt] = doubts(4, 4)
    assert doubt.startswith("100.0% of positions")


def test_the_bound_never_calls_beyond_chance_what_is_more_likely_than_the_level() -> None:
    for of in (10, 20, 50, 400, 5000):
        for chance in (0.001, 0.01, 0.1, 1 / 3, 0.9):
            tail = binom.sf(np.arange(of + 1) - 1, of, chance)  # P(X >= found)
            called = [is_beyond_chance(found, chance * of, of) for found in range(of + 1)]
            assert all(tail[found] <= UNLIKELY for found in range(of + 1) if called[found])
            # nor is it blind: a probability a thousand times smaller is always called
            assert all(called[found] for found in range(of + 1) if tail[found] < UNLIKELY / 1000)


def test_a_certain_or_impossible_event_has_its_bound_too() -> None:
    assert is_beyond_chance(1, 0.0, 10)
    assert not is_beyond_chance(0, 0.0, 10)
    assert not is_beyond_chance(10, 10.0, 10)
    assert not is_beyond_chance(0, 0.0, 0)
    assert not is_beyond_chance(9, 0.0, 9)


def test_the_figures_are_said_in_one_line() -> None:
    assert in_words(order([[0, 1, 2], [0, 2, 1]], times=[1, 1, 2, 1, 2, 3])) == (
        "order by time; 50.0% of 2 users have their items in the order of ids (by chance 33.3%); 25.0% of positions "
        "have the time of the one before"
    )
    assert in_words(order([[0], [1]])) == "order by time"


# -- cold targets ---------------------------------------------------------------------------------------------------


def sequences(walks: Sequence[Sequence[int]]) -> Sequences:
    lengths = np.array([len(walk) for walk in walks], np.int32)
    train_end, valid_end = leave_one_out(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.array([item for walk in walks for item in walk], np.int32)
    return Sequences(np.arange(len(walks), dtype=np.int32), offsets, items, train_end, valid_end, 50)


def test_a_cold_target_is_in_nobodys_training_part() -> None:
    found = measure_cold_targets(sequences([[0, 1, 2, 3], [1, 4, 3, 0], [3, 5]]), 6, "leave-one-out")
    # training: 0 1, 1 4, 3; validation targets 2 (cold), 3; test targets 3, 0, 5 (cold)
    assert (found.validation, found.test, found.test_targets) == (1 / 2, 1 / 3, 3)


def test_the_chance_of_a_cold_target_is_that_all_other_occurrences_are_held_out() -> None:
    found = measure_cold_targets(sequences([[0, 1, 2, 3], [0, 4, 5, 6, 7]]), 8, "leave-one-out")
    # user 0: item 0 is also held out of the other user's training with 2/5; 1, 2, 3 occur only here; and so on
    assert found.by_chance == pytest.approx(((2 / 5 + 3) / 4 + (2 / 4 + 4) / 5) / 2)


def test_the_chance_is_what_random_orders_have() -> None:
    rng = np.random.default_rng(5)
    walks = [(rng.integers(0, 8, size=rng.integers(3, 7)) + 8 * rng.integers(0, 30)).tolist() for _ in range(120)]
    walks = [list(dict.fromkeys(walk)) for walk in walks]
    shuffled = [measure_cold_targets(sequences([rng.permutation(w) for w in walks]), 256, "") for _ in range(300)]
    found = np.array([one.test for one in shuffled], float)
    assert shuffled[0].by_chance == pytest.approx(found.mean(), abs=4 * found.std() / np.sqrt(len(found)))


def test_without_targets_there_is_no_share() -> None:
    assert measure_cold_targets(sequences([[0], [1]]), 2, "time") == ColdTargets("time", None, None, 0, None)
    no_validation = measure_cold_targets(sequences([[0, 1], [1, 0]]), 2, "leave-one-out")
    assert (no_validation.validation, no_validation.test) == (None, 0.0)


def test_a_user_without_targets_keeps_their_items_warm() -> None:
    found = measure_cold_targets(sequences([[1], [0, 1]]), 2, "leave-one-out")
    assert (found.test, found.by_chance) == (0.0, 0.5)


def test_cold_targets_warn_above_fifteen_percent_and_three_times_chance_unless_time_was_split() -> None:
    def warned(test: float | None, by_chance: float | None, targets: int = 1000, split: str = "leave-one-out") -> bool:
        return bool(cold_doubts(ColdTargets(split, 0.0, test, targets, by_chance)))

    assert warned(0.25, 0.03)
    assert warned(0.25, 0.03, split="given")
    assert not warned(0.036, 0.003)
    assert not warned(0.14, 0.0)
    assert not warned(0.25, 0.1)  # few of each item: many are cold in any order
    assert not warned(0.25, 0.03, split="time")
    assert not warned(0.25, 0.05, targets=8)
    assert not warned(None, None, targets=0)
    [doubt] = cold_doubts(ColdTargets("leave-one-out", 0.1, 0.25, 1000, 0.03))
    assert doubt.startswith("25.0% of test targets never occur in the training part (3.0% would if")
    assert "another sign of a wrong order" in doubt


# -- domains --------------------------------------------------------------------------------------------------------


def test_a_domain_is_measured_in_its_tables_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    walk = [("u", "x", 1), ("u", "y", 1), ("u", "z", 2), ("v", "z", 1)]
    domain = make_domain(store, "Shop", [{"item_id": item} for item in "xyz"], walk)
    assert order_of(domain) == Order(TIMES, 1, 1.0, 1 / 3, "text", 0.5)
    assert cold_targets_of(domain) is None
    build_sequences(store, ["Shop"], SequenceConfig())
    assert cold_targets_of(domain) == ColdTargets("leave-one-out", 1.0, 0.0, 1, pytest.approx(2 / 3))


def test_a_catalogue_without_interactions_has_no_order() -> None:
    rows = pl.DataFrame(schema={"user": pl.Int32, "item": pl.Int32, "timestamp": pl.Int64})
    assert measure_order(rows, pl.Series("item_id", ["a"]), TIMES) is None

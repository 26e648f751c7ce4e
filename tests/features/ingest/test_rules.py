"""Duplicate lines, repeats of a (user, item) and the k-core, compared to slow references."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antpipe.features.ingest.rules import drop_duplicate_lines, drop_repeats, k_core

Row = tuple[str, str, int]


def table(rows: list[Row]) -> pl.DataFrame:
    """Interactions; the rating is the number of the original row."""
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        pl.int_range(pl.len()).cast(pl.Float32).alias("rating")
    )


def kept_rows(interactions: pl.DataFrame) -> list[int]:
    return interactions["rating"].cast(pl.Int64).to_list()


def reference_core(rows: list[Row], min_user: int, min_item: int) -> list[int]:
    """Drop one user or item after another until all have enough."""
    left = dict(enumerate(rows))
    while True:
        users = Counter(user for user, _, _ in left.values())
        items = Counter(item for _, item, _ in left.values())
        rare = [("user", user) for user, count in users.items() if count < min_user]
        rare += [("item", item) for item, count in items.items() if count < min_item]
        if not rare:
            return sorted(left)
        kind, name = rare[0]
        left = {n: row for n, row in left.items() if row[0 if kind == "user" else 1] != name}


some_rows = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("uvwxyz"), st.integers(0, 3)), max_size=40)


@given(some_rows, st.integers(1, 4), st.integers(1, 4))
def test_the_k_core_is_that_of_the_reference(rows: list[Row], min_user: int, min_item: int) -> None:
    assert kept_rows(k_core(table(rows), min_user, min_item)[0]) == reference_core(rows, min_user, min_item)


def test_dropping_an_item_can_drop_its_users_in_a_second_round() -> None:
    rows = [("a", "x", 0), ("a", "y", 1), ("b", "x", 0), ("b", "z", 1), ("c", "z", 0), ("c", "x", 2)]
    core, rounds = k_core(table(rows), min_user=2, min_item=2)
    assert kept_rows(core) == [2, 3, 4, 5]
    assert rounds == 2


def test_the_k_core_counts_repeated_visits() -> None:
    assert kept_rows(k_core(table([("a", "x", 0), ("a", "x", 1)]), min_user=2, min_item=2)[0]) == [0, 1]


def test_a_table_that_is_its_own_core_takes_no_round() -> None:
    core, rounds = k_core(table([("a", "x", 0)]), min_user=1, min_item=1)
    assert kept_rows(core) == [0]
    assert rounds == 0


def test_the_k_core_can_be_empty() -> None:
    assert kept_rows(k_core(table([("a", "x", 0), ("b", "y", 0)]), min_user=2, min_item=1)[0]) == []


def test_keep_all_keeps_repeats_and_order() -> None:
    rows = [("a", "x", 5), ("a", "x", 1), ("a", "x", 5)]
    assert kept_rows(drop_repeats(table(rows), "keep-all")) == [0, 1, 2]


@pytest.mark.parametrize(("rule", "row"), [("keep-first", 1), ("keep-last", 2)])
def test_of_repeats_the_first_or_last_in_time_stays(rule: str, row: int) -> None:
    rows = [("a", "x", 5), ("a", "x", 1), ("a", "x", 9), ("a", "x", 7)]
    assert kept_rows(drop_repeats(table(rows), rule)) == [row]


@pytest.mark.parametrize(("rule", "row"), [("keep-first", 0), ("keep-last", 2)])
def test_repeats_at_the_same_time_are_ordered_by_row(rule: str, row: int) -> None:
    assert kept_rows(drop_repeats(table([("a", "x", 5)] * 3), rule)) == [row]


@given(some_rows, st.sampled_from(["keep-first", "keep-last"]))
def test_repeats_are_dropped_as_by_the_reference(rows: list[Row], rule: str) -> None:
    in_time = sorted(enumerate(rows), key=lambda pair: pair[1][2])
    chosen: dict[tuple[str, str], int] = {}
    for number, (user, item, _) in in_time:
        if rule == "keep-last" or (user, item) not in chosen:
            chosen[user, item] = number
    assert kept_rows(drop_repeats(table(rows), rule)) == sorted(chosen.values(), key=lambda row: (rows[row][2], row))


def test_of_lines_with_one_hash_the_first_stays() -> None:
    reviews = table([("a", "x", 0), ("b", "x", 0), ("a", "x", 0)]).with_columns(line_hash=pl.Series([7, 8, 7]))
    distinct = drop_duplicate_lines(reviews)
    assert kept_rows(distinct) == [0, 1]
    assert "line_hash" not in distinct.columns

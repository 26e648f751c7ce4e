"""Conditions on rows: what passes, and what is refused."""

from datetime import UTC, date, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antpipe.errors import UsageError
from antpipe.runtime.conditions import columns_named, row_filter

ROWS = pl.DataFrame(
    {
        "qty": [1.0, -1.0, float("nan"), None],
        "category": ["Guitars", "Drums", None, "bass guitars"],
        "bought": [datetime(2024, 1, 1, 5), datetime(2023, 1, 1), None, datetime(2025, 1, 1)],
        "in_stock": [True, False, None, True],
        "tags": [["a", "B"], [], None, ["c"]],
        "order date": ["3", "4,5", "x", ""],
    }
)


def passing(condition: str, rows: pl.DataFrame = ROWS, parse_text: bool = False) -> list[int]:
    wanted = row_filter(condition, rows.schema, parse_text=parse_text)
    return rows.with_row_index("row").filter(wanted)["row"].to_list()


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("qty > 0", [0]),
        ("qty <= -1", [1]),
        ("QTY <> 1", [1]),
        ("qty is null", [2, 3]),
        ("qty is not null and qty != 1", [1]),
        ("qty in (1, 7)", [0]),
        ("qty not in (1, 7)", [1]),
        ("qty between -2 and 0 or in_stock", [0, 1, 3]),
        ("abs(qty) = 1", [0, 1]),
        ('category contains "guitars"', [0, 3]),
        ("category contains 'S%'", []),
        ("category like '%uitar_'", [0, 3]),
        ("category not like 'G%'", [1, 3]),
        ('category = "Guitars"', [0]),
        ("lower(category) = 'drums' or length(category) > 8", [1, 3]),
        ("in_stock", [0, 3]),
        ("not in_stock", [1]),
        ("in_stock = false", [1]),
        ("bought = '2024-01-01'", [0]),
        ("bought <= '2024-01-01'", [0, 1]),
        ("bought > '2024-01-01 05:00'", [3]),
        ("year(bought) >= 2024", [0, 3]),
        ("tags contains 'b'", [0]),
        ("not (qty > 0 or category = 'Drums')", []),
    ],
)
def test_a_condition_keeps_the_rows_of_which_it_is_true(condition: str, rows: list[int]) -> None:
    assert passing(condition) == rows


def test_text_is_compared_with_numbers_only_if_asked() -> None:
    assert passing('"order date" >= 3', parse_text=True) == [0, 1]
    with pytest.raises(UsageError, match="text"):
        passing('"order date" >= 3')


def test_a_quote_in_a_text_is_doubled() -> None:
    assert passing("name = 'O''Neill'", pl.DataFrame({"name": ["O'Neill", "Neill"]})) == [0]


def test_times_with_a_zone_are_compared_in_utc() -> None:
    rows = pl.DataFrame({"at": [datetime(2024, 1, 1, tzinfo=UTC)]}).with_columns(
        pl.col("at").dt.convert_time_zone("Asia/Tokyo")
    )
    assert passing("at = '2024-01-01 01:00+01:00'", rows) == [0]
    assert passing("day = '2024-01-01'", pl.DataFrame({"day": [date(2024, 1, 1)]})) == [0]


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("", "empty"),
        ("qty", "not true or false"),
        ("qty > '1'", "cannot be compared"),
        ("category > 3", "cannot be compared"),
        ("qtx > 1", "did you mean qty"),
        ("price > 1", "unknown column price"),
        ("sleep(qty) > 1", "unknown function sleep"),
        ("lower(qty) = 'a'", "lower.. reads a text"),
        ("qty > (select 1)", "expected a column or a value"),
        ("qty > 0; drop table items", "cannot read it from character 8"),
        ("qty > 0 -- all", "expected 'and', 'or' or the end"),
        ("1 = 1", "names no column"),
        ("tags = 'a'", "write tags contains"),
        ("qty = null", "is null"),
        ("qty = ", "at the end"),
        ("qty > 1 2", "expected 'and', 'or' or the end"),
        ("qty > 1e999", "too large"),
        ("bought > 'x'", "not a date"),
        ("category contains 3", "in quotes"),
        ("(" * 50 + "qty > 1" + ")" * 50, "nested"),
        ("not " * 100 + "in_stock", "nested"),
        ("lower(" * 200 + "category" + ")" * 200 + " = 'a'", "nested"),
        ("qty > 1 and " * 200 + "qty > 1", "characters"),
    ],
)
def test_a_condition_that_cannot_be_read_is_refused(condition: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        row_filter(condition, ROWS.schema)


def test_a_column_that_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UsageError, match="Binary"):
        row_filter("a = 'b'", {"a": pl.Binary()})


def test_the_columns_a_condition_reads_are_known_without_types() -> None:
    columns = ["a", "qty", "Bought"]
    assert columns_named("year(bought) > 2000 and qty > 0", columns) == ["qty", "Bought"]
    with pytest.raises(UsageError, match="unknown column price"):
        columns_named("price > 0", columns)


WORDS = (
    "qty category tags bought in_stock 1 - 'a' \" ' ( ) , = < and or not in is null between like contains lower % \0"
)


@given(st.one_of(st.text(max_size=30), st.lists(st.sampled_from(WORDS.split()), max_size=12).map(" ".join)))
def test_any_text_gives_a_condition_that_can_be_evaluated_or_is_refused(text: str) -> None:
    try:
        wanted = row_filter(text, ROWS.schema)
    except UsageError:
        return
    assert ROWS.select(wanted).dtypes == [pl.Boolean]

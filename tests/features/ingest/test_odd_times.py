"""Times of tables at full precision, and those that lost it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antpipe.errors import DataError
from antpipe.features.ingest.table.times import Times, exact_order, parse_time, to_milliseconds
from antpipe.features.ingest_table import ingest_table, table_source
from antpipe.settings.ingest import TableConfig
from antpipe.store.store import Store
from tests.support.releases import UNDESCRIBED, interactions

BEGIN = 1_600_000_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def take(store: Store, path: Path, **options: Any) -> list[str]:
    """The items of the one user, in the stored order."""
    ingest_table(store, "Shop", table_source(path, None), UNDESCRIBED, TableConfig(**options))
    return [item for _, item, *_ in interactions(store.domain("Shop"))]


def csv_of(path: Path, times: list[Any]) -> Path:
    path.write_text("user,item,time\n" + "".join(f"u,i{at},{time}\n" for at, time in enumerate(times)))
    return path


@pytest.mark.parametrize(
    "times",
    [
        [f"{BEGIN}.0003", f"{BEGIN}.0001", f"{BEGIN}.0002"],  # seconds
        [f"{BEGIN}000.3", f"{BEGIN}000.1", f"{BEGIN}000.2"],  # milliseconds
        [BEGIN * 10**6 + 3, BEGIN * 10**6 + 1, BEGIN * 10**6 + 2],  # microseconds
        [BEGIN * 10**9 + 3, BEGIN * 10**9 + 1, BEGIN * 10**9 + 2],  # nanoseconds
        ["2020-09-13T12:26:40.000003", "2020-09-13T12:26:40.000001", "2020-09-13T12:26:40.000002"],
        ["13.09.2020 12:26:40.000003", "13.09.2020 12:26:40.000001", "13.09.2020 12:26:40.000002"],
        ["0.50003", "0.50001", "0.50002"],
        ["44087.501203", "44087.501201", "44087.501202"],
    ],
)
def test_times_closer_than_a_millisecond_keep_their_order(store: Store, tmp_path: Path, times: list[Any]) -> None:
    assert take(store, csv_of(tmp_path / "a.csv", times)) == ["i1", "i2", "i0"]


@pytest.mark.parametrize("unit", ["us", "ns"])
def test_typed_times_closer_than_a_millisecond_keep_their_order(store: Store, tmp_path: Path, unit: str) -> None:
    first = BEGIN * {"us": 10**6, "ns": 10**9}[unit]
    times = pa.array([first + 3, first + 1, first + 2, first + 1], pa.timestamp(unit, "UTC"))
    table = pa.table({"user": ["u"] * 4, "item": ["i0", "i1", "i2", "i1"], "time": times})
    pq.write_table(table, tmp_path / "a.parquet")
    assert take(store, tmp_path / "a.parquet") == ["i1", "i2", "i0"]  # the last row is the second one again
    assert take(store, tmp_path / "a.parquet", where="time >= '2020-01-01'") == ["i1", "i2", "i0"]


@given(st.lists(st.integers(BEGIN * 10**6, BEGIN * 10**6 + 5000), min_size=1, max_size=30))
def test_the_order_is_that_of_the_exact_times_and_then_of_the_rows(values: list[int]) -> None:
    times = Times()
    for line, value in enumerate(values):
        times.add(line, value)
    milliseconds, unit = to_milliseconds(times, "auto", Path("t.csv"))
    order = exact_order(times, unit)
    rows = np.arange(len(values)) if order is None else order
    assert rows.tolist() == sorted(range(len(values)), key=lambda row: (values[row], row))
    assert (np.diff(milliseconds[rows]) >= 0).all()


@pytest.mark.parametrize("kind", [pa.float32(), pa.float16()])
def test_whole_times_that_a_small_float_rounds_are_refused_with_its_step(
    store: Store, tmp_path: Path, kind: pa.DataType
) -> None:
    times = np.array([BEGIN, BEGIN + 60] if kind == pa.float32() else [3000, 3001], kind.to_pandas_dtype())
    table = pa.table({"user": ["u"] * 2, "item": ["i0", "i1"], "time": pa.array(times, kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=f"whose step at .* is {'1.3e.02' if kind == pa.float32() else '2'}, so different"
    ):
        take(store, tmp_path / "a.parquet")


def test_fractions_in_float32_are_told_with_their_step(store: Store, tmp_path: Path, messages: list[str]) -> None:
    times = pa.array(np.array([44087.5012, 44087.6], np.float32))
    pq.write_table(pa.table({"user": ["u"] * 2, "item": ["i0", "i1"], "time": times}), tmp_path / "a.parquet")
    take(store, tmp_path / "a.parquet")
    assert any("are float32, whose step at 44087 is 0.0039: closer ones are equal" in message for message in messages)


def test_times_with_few_digits_are_told_with_their_step(store: Store, tmp_path: Path, messages: list[str]) -> None:
    take(store, csv_of(tmp_path / "a.csv", ["1.60001e+09", "1.6e+09", "1.600000060e+09"]))
    assert any("exact to 1e+08 only" in message for message in messages)


def test_exact_numbers_with_exponents_are_not_told(store: Store, tmp_path: Path, messages: list[str]) -> None:
    take(store, csv_of(tmp_path / "a.csv", ["1.600000060e+09", "1.600000061e9"]))
    assert not any("exact to" in message for message in messages)


@pytest.mark.parametrize(
    ("times", "first"),
    [
        (["2020091312", "2020091315"], "2020-09-13 12:00:00"),
        (["20200913", "20200914"], "2020-09-13"),
        (["20200913122740", "20200914122740"], "2020-09-13 12:27:40"),
    ],
)
def test_dates_without_signs_are_dates(
    store: Store, tmp_path: Path, messages: list[str], times: list[str], first: str
) -> None:
    take(store, csv_of(tmp_path / "a.csv", times))
    assert any(f"times are dates (ISO 8601), from {first} to " in message for message in messages)


def test_a_decimal_comma_is_understood_unless_it_may_separate_thousands() -> None:
    assert parse_time("44087,5012") == parse_time("44087.5012")
    assert parse_time("44087,500") == (44087, 0.5, False)
    for text in ("1,600", "1,600,000", ",5"):
        with pytest.raises(ValueError, match="neither a number nor a date"):
            parse_time(text)


def test_a_damaged_date_among_dates_without_signs_is_refused(store: Store, tmp_path: Path) -> None:
    path = csv_of(tmp_path / "a.csv", ["20200913122740", "20200230122740", "20200914122740"])
    with pytest.raises(DataError, match=r"a\.csv:3: time 20200230122740 is not a date, though most"):
        take(store, path)


@pytest.mark.parametrize("text", ["0e999", "0E99999999999999999999", "1e-99999999999999999999"])
def test_a_time_with_an_exponent_beyond_all_floats_is_malformed(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number with a usable exponent"):
        Times().add(2, text)


def test_times_in_the_far_future_are_told(store: Store, tmp_path: Path, messages: list[str]) -> None:
    take(store, csv_of(tmp_path / "a.csv", ["2020-01-01", "9999-12-31"]))
    assert any("times reach to 9999-12-31; if that is wrong, say with --time-unit" in message for message in messages)


def test_times_in_the_near_future_are_told(store: Store, tmp_path: Path, messages: list[str]) -> None:
    now = datetime.now(UTC)
    take(store, csv_of(tmp_path / "a.csv", ["2020-01-01", f"{now:%Y-%m-%d}", f"{now + timedelta(days=40):%Y-%m-%d}"]))
    told = [message for message in messages if "in the future" in message]
    assert len(told) == 1
    assert (
        f"a.csv: 1 time lies in the future, the last of them {now + timedelta(days=40):%Y-%m-%d} in line 4" in told[0]
    )


@pytest.mark.parametrize("word", ["nan", "None", "NULL", r"\N", "<NA>"])
def test_ids_that_are_words_for_missing_values_are_told(
    store: Store, tmp_path: Path, messages: list[str], word: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"user,item,time\n{word},x,1\na,{word},2\nNA,x,3\n")
    ingest_table(store, "Shop", table_source(path, None), UNDESCRIBED, TableConfig())
    told = [message for message in messages if "programs write for a missing value" in message]
    assert [
        f"1 row has the {role} {word!r}" in message for role, message in zip(("user", "item"), told, strict=True)
    ] == [
        True,
        True,
    ]
    assert "NA" in {user for user, *_ in interactions(store.domain("Shop"))}


def test_the_exact_order_costs_nothing_if_milliseconds_tell_times_apart() -> None:
    times = Times()
    for line, value in enumerate([BEGIN + 2, BEGIN, BEGIN + 1]):
        times.add(line, value)
    assert exact_order(times, "s") is None
    assert pl.Series(to_milliseconds(times, "auto", Path("t.csv"))[0]).to_list()[1] == BEGIN * 1000

"""Tables of any format: rows with their line numbers, columns by name, times of any unit."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antpipe.errors import DataError, UsageError
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.table.columns import INTERACTION_ROLES, ITEM_ROLES, choose_columns, parse_map
from antpipe.features.ingest.table.files import Table, open_table, read_rows
from antpipe.features.ingest.table.times import Times, parse_time, to_milliseconds
from antpipe.features.ingest.table.values import to_id, to_rating
from antpipe.settings.ingest import TableConfig

Rows = list[tuple[int, list[Any]]]


def read(path: Path, quotes: bool = True, limit: int = 100) -> tuple[Rows, list[tuple[int, str]]]:
    """All rows with their lines, and the rejected lines with their reasons."""
    table, rejects = open_table(path, quotes), Rejects(limit)
    rows = [(row.line, row.values) for row in read_rows(table, table.columns, rejects)]
    return rows, [(row["line"], row["reason"]) for row in rejects.rows]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"u,i\n1,2\n3,4\n"),
        ("a.csv", b"\xef\xbb\xbfu,i\r\n1,2\r\n3,4"),
        ("a.csv", b"u;i\n1;2\n3;4\n"),
        ("a.csv.gz", b"u|i\n1|2\n3|4\n"),
        ("a.tsv", b"u\ti\n1\t2\n3\t4\n"),
        ("a.tsv.gz", b"u\ti\n1\t2\n3\t4\n"),
        ("a.inter", b"u:token\ti:token\n1\t2\n3\t4\n"),
    ],
)
def test_text_tables_of_every_format_are_read(tmp_path: Path, name: str, content: bytes) -> None:
    path = write(tmp_path / name, content)
    assert open_table(path, True).columns == ["u", "i"]
    assert read(path) == ([(2, ["1", "2"]), (3, ["3", "4"])], [])


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_binary_tables_are_read_row_by_row(tmp_path: Path, name: str) -> None:
    table = pa.table({"u": ["a", None], "i": [1, 2]})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        with pa.OSFile(str(tmp_path / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    assert read(tmp_path / name) == ([(1, ["a", 1]), (2, [None, 2])], [])


def test_an_arrow_stream_is_read_too(tmp_path: Path) -> None:
    table = pa.table({"u": ["a"]})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert read(tmp_path / "a.arrow")[0] == [(1, ["a"])]


def test_columns_of_dates_come_as_milliseconds(tmp_path: Path) -> None:
    moments = pa.array([1_500_000_000_123_456_789], pa.timestamp("ns"))
    pq.write_table(pa.table({"t": moments, "d": pa.array([2], pa.date32())}), tmp_path / "a.parquet")
    assert open_table(tmp_path / "a.parquet", True).dates == {"t", "d"}
    assert read(tmp_path / "a.parquet")[0] == [(1, [1_500_000_000_123, 2 * 86_400_000])]


def test_text_that_is_not_utf8_is_rejected_in_a_binary_table_too(tmp_path: Path) -> None:
    bad = pa.array([b"good", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"u": bad}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ([(1, ["good"])], [(2, "not UTF-8")])


def test_a_line_break_inside_quotes_does_not_shift_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'u,i\n"one\ntwo",2\n\n3\n4,"5""6"\n')
    rows, rejected = read(path)
    assert rows == [(2, ["one\ntwo", "2"]), (6, ["4", '5"6'])]
    assert rejected == [(5, "1 value(s), the header has 2")]


def test_rows_that_are_ragged_not_utf8_or_misquoted_are_rejected_with_their_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'u,i\n1,2,3\n\xff,2\n"1"x,2\n1,2\n')
    rows, rejected = read(path)
    assert rows == [(5, ["1", "2"])]
    assert [line for line, _ in rejected] == [2, 3, 4]
    assert [reason.split(":")[0] for _, reason in rejected] == [
        "3 value(s), the header has 2",
        "not UTF-8",
        "not a row",
    ]


@pytest.mark.parametrize("end", [b"", b'4,"5\n'])
def test_a_quote_that_swallows_lines_ends_the_reading(tmp_path: Path, end: bytes) -> None:
    path = write(tmp_path / "a.csv", b'u,i\n1,"2\n3,4\n5,6\n' + end)
    with pytest.raises(DataError, match=r"a\.csv:2: a quoted value that begins here") as caught:
        read(path)
    assert "--no-quotes" in caught.value.message
    assert read(path, quotes=False)[0][:2] == [(2, ["1", '"2']), (3, ["3", "4"])]


def test_atomic_files_know_no_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.item", b'item_id:token\ttitle:token_seq\n1\t"12 inch" pan\n')
    assert read(path)[0] == [(2, ["1", '"12 inch" pan'])]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"u\xff", "not UTF-8"),
        ("a.csv", b'"u\n1', "not a header"),
        ("a.csv.gz", None, "cannot be read"),
        ("a.inter", b"user_id\titem_id\n", "is not NAME:TYPE"),
        ("a.inter", b"user_id:words\titem_id:token\n", "is not NAME:TYPE"),
        ("a.parquet", b"PAR1 and no more", "cannot be read"),
        ("a.arrow", b"ARROW1 and no more", "cannot be read"),
        ("a.xlsx", b"PK", "unknown format"),
        ("a.json", b"{}", "no line is a JSON object"),
        ("a.json", b'[{"item_id": 1}]', "is a JSON array"),
        ("a.csv.zip", None, "cannot be read"),
        ("a.csv.bz2", None, "cannot be read"),
        ("a.csv.xz", None, "cannot be read"),
        ("a.csv.zst", None, "cannot be read"),
    ],
)
def test_a_file_that_is_not_a_table_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"no gzip" if content is None else content)
    with pytest.raises(DataError, match=says) as caught:
        open_table(path, True)
    assert str(path) in caught.value.message


def test_a_truncated_gz_file_is_refused(tmp_path: Path) -> None:
    lines = b"".join(b"%d,%d\n" % (n, n * 7919 % 10007) for n in range(20_000))
    path = write(tmp_path / "a.csv.gz", b"u,i\n" + lines)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match="breaks off or is corrupt"):
        read(path)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=200) | st.text('ab,"\n\r;é', max_size=80).map(str.encode))
def test_every_record_of_any_bytes_is_a_row_or_a_reject_or_the_file_is_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = write(tmp_path_factory.mktemp("wild") / "a.csv", b"u,i\n" + content)
    try:
        rows, rejected = read(path, limit=1000)
    except DataError as error:
        assert str(path) in error.message
        return
    lines = [line for line, _ in rows] + [line for line, _ in rejected]
    assert len(set(lines)) == len(lines)
    assert all(len(values) == 2 for _, values in rows)
    assert all(1 < line <= content.count(b"\n") + content.count(b"\r") + 2 for line in lines)


# -- columns --------------------------------------------------------------------------------------------------


def table(*columns: str) -> Table:
    return Table(Path("t.csv"), "comma-separated", list(columns), delimiter=",")


def test_columns_are_found_by_their_usual_names() -> None:
    found = choose_columns(
        table("Rating", "reviewerID", "parent_asin", "unixReviewTime"), INTERACTION_ROLES, {}, "user item"
    )
    assert found.roles == {
        "user": ["reviewerID"],
        "item": ["parent_asin"],
        "time": ["unixReviewTime"],
        "rating": ["Rating"],
    }


def test_the_surer_name_wins() -> None:
    assert choose_columns(table("id", "asin"), ITEM_ROLES, {}, ("item",)).roles["item"] == ["asin"]


def test_a_map_goes_before_usual_names_and_may_join_texts() -> None:
    wanted = parse_map(TableConfig(map=("text=title+brand", "item=sku no")))
    found = choose_columns(table("sku no", "id", "title", "brand", "text"), ITEM_ROLES, wanted, ("item",))
    assert (found.roles["item"], found.roles["text"]) == (["sku no"], ["title", "brand"])
    assert (
        found.in_words()
        == "t.csv: comma-separated, item=sku no title=title text=title+brand brand=brand; not used: id, text"
    )


@pytest.mark.parametrize(
    ("columns", "wanted", "says"),
    [
        (("user_id", "when"), {}, "no column looks like the item; columns there: user_id, when"),
        (("user_id", "item_id", "product_id"), {}, "the item could be 'item_id' or 'product_id'"),
        (("user_id", "item_id"), {"time": ["when"]}, r"no column 'when' \(--map time=when\); columns there"),
        (("user_id", "item_id", "item_id"), {}, "there are 2 columns 'item_id'"),
        (("user_id", "x", "x"), {"item": ["x"]}, "there are 2 columns 'x'"),
    ],
)
def test_a_missing_or_ambiguous_column_is_refused(
    columns: tuple[str, ...], wanted: dict[str, list[str]], says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        choose_columns(table(*columns), INTERACTION_ROLES, wanted, ("user", "item"))
    assert "--map" in caught.value.message


@pytest.mark.parametrize("part", ["colour=x", "user", "user=", "text=a+", "user=a,user=b"])
def test_an_invalid_map_is_refused(part: str) -> None:
    with pytest.raises(UsageError):
        parse_map(TableConfig(map=tuple(part.split(","))))


# -- times, ids, ratings --------------------------------------------------------------------------------------


def convert(values: list[Any], unit: str = "auto") -> tuple[list[int], str]:
    times = Times()
    for line, value in enumerate(values, 2):
        times.add(line, value)
    milliseconds, found = to_milliseconds(times, unit, Path("t.csv"))
    return milliseconds.tolist(), found


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1500000000", "1500000001.5"], ([1_500_000_000_000, 1_500_000_001_500], "s")),
        ([1_500_000_000_123], ([1_500_000_000_123], "ms")),
        (["1500000000123456"], ([1_500_000_000_123], "us")),
        (["1500000000123456789"], ([1_500_000_000_123], "ns")),
        ([0, 1, 549], ([0, 1, 549], "order")),
        ([0.0, 1.0], ([0, 1], "order")),
        (["2017-07-14T02:40:00Z", "2017-07-14 04:40:00.5+02:00"], ([1_500_000_000_000, 1_500_000_000_500], "date")),
        (["1970-01-02", "1970-01-01 00:00:01 UTC"], ([86_400_000, 1000], "date")),
    ],
)
def test_the_size_of_times_tells_their_unit(values: list[Any], expected: tuple[list[int], str]) -> None:
    assert convert(values) == expected


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [("s", 5, 5000), ("ms", 5, 5), ("us", 5000, 5), ("ns", 5_000_000, 5), ("order", 5, 5)],
)
def test_the_unit_can_be_set(unit: str, value: int, expected: int) -> None:
    assert convert([value], unit) == ([expected], unit)


def test_fractions_keep_their_order() -> None:
    assert convert([0.5, 0.25, 1], "order")[0] == [500, 250, 1000]


@pytest.mark.parametrize(
    ("values", "unit", "says"),
    [
        (
            [1_500_000_000, 1_500_000_000_000],
            "auto",
            "1500000000 in line 2 looks like s, 1500000000000 in line 3 like ms",
        ),
        ([0, 1_500_000_000], "auto", "0 in line 2 looks like order, 1500000000 in line 3 like s"),
        ([5, 1_500_000_000_000], "s", r"t\.csv:3: time 1500000000000 lies beyond the year 5138"),
        (["2017-07-14"], "s", "its times are dates"),
    ],
)
def test_times_that_do_not_fit_are_refused(values: list[Any], unit: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        convert(values, unit)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "no time"),
        (" ", "no time"),
        ("soon", "neither a number nor a date"),
        ("nan", "not a finite"),
        ("inf", "not a finite"),
        ("-1", "before 1970"),
        ("1969-12-31", "before 1970"),
        (str(2**63), "too large"),
        (True, "neither"),
        ("-0.5", "before 1970"),
    ],
)
def test_a_value_that_is_not_a_time_is_refused_with_the_reason(value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Times().add(2, value)


def test_a_date_among_numbers_is_refused() -> None:
    times = Times()
    times.add(2, "5")
    with pytest.raises(ValueError, match="is a date, those before are not"):
        times.add(3, "2017-07-14")


@given(st.integers(0, 2**63 - 1))
def test_whole_numbers_lose_nothing(number: int) -> None:
    assert parse_time(str(number)) == (number, 0.0, False)


@given(st.lists(st.integers(10**8, 10**11 - 1), min_size=1))
def test_seconds_are_seconds_however_written(seconds: list[int]) -> None:
    expected = (np.array(seconds) * 1000).tolist()
    assert convert(seconds)[0] == convert([f"{second}.0" for second in seconds])[0] == expected


def test_ids_are_texts_without_blanks_around() -> None:
    assert [to_id(value, "item") for value in (" B01 ", 7, 7.0, "007")] == ["B01", "7", "7", "007"]


@pytest.mark.parametrize("value", [None, "", " ", float("nan"), 7.5])
def test_a_value_that_is_not_an_id_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="item id"):
        to_id(value, "item")


def test_a_rating_may_be_missing_but_must_be_a_number() -> None:
    assert np.isnan([to_rating(value) for value in (None, "", float("nan"))]).all()
    assert to_rating("4.5") == 4.5
    for value in ("good", "inf", [5]):
        with pytest.raises(ValueError, match="rating"):
            to_rating(value)

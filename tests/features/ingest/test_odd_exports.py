"""Tables as spreadsheets, shops and packers leave them: values that are read as they were meant, or refused by name."""

import bz2
import lzma
import zipfile
from pathlib import Path

import pytest

from antpipe.errors import DataError
from antpipe.features.ingest.lines import read_lines
from antpipe.features.ingest.packed import open_unpacked
from antpipe.features.ingest.price import is_unread, parse_price
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.table.files import open_table, read_rows
from antpipe.features.ingest.table.values import levels_of, to_id
from antpipe.features.ingest_table import ingest_table, table_source
from antpipe.settings.ingest import IngestConfig, TableConfig
from antpipe.store.store import Store
from tests.support.releases import items

UNDESCRIBED = IngestConfig(min_user=1, min_item=1, keep_without_metadata=True)
ROWS = b"".join(b"u%d,i%d,%d\n" % (n % 7, n % 5, 1_600_000_000 + n) for n in range(3000))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def ingest(store: Store, name: str, text: str, of: str = "interactions") -> None:
    path = store.root.with_name(name)
    path.write_text(text, encoding="utf-8")
    source = table_source(path, None) if of == "interactions" else table_source(None, path)
    ingest_table(store, "Shop", source, UNDESCRIBED, TableConfig())


# -- ids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["\ufeff", "\u200b", "\u2060", "\u200e", "\u00a0", " \ufeff "])
def test_invisible_marks_around_an_id_are_no_part_of_it(mark: str) -> None:
    assert to_id(f"{mark}a b{mark}", "user") == "a b"


def test_a_file_appended_to_another_one_with_its_mark_makes_no_user_of_its_own(store: Store) -> None:
    ingest(store, "o.csv", "user_id,item_id,timestamp\nu,i,1600000000\n\ufeffu,j,1600000001\n")
    assert store.domain("Shop").table("users")["user_id"].to_pylist() == ["u"]


def test_an_id_with_a_zero_byte_is_malformed() -> None:
    with pytest.raises(ValueError, match=r"user id 'a.x00b' holds a zero byte"):
        to_id("a\0b", "user")


def test_texts_kept_from_excel_are_read_without_the_sign(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('item_id,title\n="007",a\n"=""008""",="b, c"\n=9,=1+1\n')
    rejects = Rejects(9)
    rows = [row.values for row in read_rows(open_table(path, None), ["item_id"], rejects)]
    assert rows == [["007"], ["=9"]]
    assert rejects.rows[0]["reason"] == "3 value(s), the header has 2"


@pytest.mark.parametrize("text", ["4.00638E+12", "4E+12", "1.23E+05"])
def test_ids_that_a_spreadsheet_cut_short_are_refused(store: Store, text: str) -> None:
    with pytest.raises(DataError, match=r"o\.csv:2: the id .* is a number with fewer digits than it had"):
        ingest(store, "o.csv", f"user_id,item_id,timestamp\nu,{text},1600000000\n")


@pytest.mark.parametrize("text", ["1.25E+02", "1e+05", "12E45", "A1.5E+10"])
def test_ids_that_lost_no_digit_are_kept_as_they_are(store: Store, text: str) -> None:
    ingest(store, "o.csv", f"user_id,item_id,timestamp\nu,{text},1600000000\n")
    assert store.domain("Shop").item_ids() == [text]


# -- prices -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "amount"),
    [("12,34,567.89", 1_234_567.89), ("₹1,20,000", 120_000.0), ("CHF 12.-", 12.0), ("12,\u2013 €", 12.0)],
)
def test_prices_of_india_and_prices_without_cents_are_read(written: str, amount: float) -> None:
    found = parse_price(written)
    assert found is not None
    assert found[0] == amount


@pytest.mark.parametrize(
    ("value", "unread"),
    [
        ("Rs. 500", True),
        ("$1.250", True),
        ("1e5", True),
        ("0.00", False),
        ("-3", False),
        ("ask us", False),
        (5, False),
        ({"cost": 3}, True),
        ([1, 2], True),
        ({"price": None}, False),
        ([], False),
    ],
)
def test_what_looks_like_a_price_and_is_none_is_told_from_what_has_none(value: object, unread: bool) -> None:
    assert is_unread(value) is unread


def test_prices_that_are_not_read_are_warned_of_with_an_example(store: Store, messages: list[str]) -> None:
    ingest(store, "t.csv", "item_id,title,price\na,A,Rs. 500\nb,B,3\nc,C,Rs. 7\n", of="items")
    assert [items(store.domain("Shop"))[name]["price"] for name in "abc"] == [None, 3.0, None]
    assert [one for one in messages if "price" in one and "could not" in one] == [
        "t.csv: 2 values in column 'price' could not be read as a price, such as 'Rs. 500'; these items have none"
    ]


def test_prices_of_a_column_are_read_alike_and_records_too(store: Store, messages: list[str]) -> None:
    rows = "item_id;title;price\na;A;1.299\nb;B;12,99\nc;C;{'amount': 5, 'currency': 'EUR'}\nd;D;{'cost': 3}\n"
    ingest(store, "t.csv", rows, of="items")
    assert [items(store.domain("Shop"))[name]["price"] for name in "abcd"] == [1299.0, pytest.approx(12.99), 5.0, None]
    assert [one for one in messages if "price" in one and "could not" in one] == [
        "t.csv: 1 value in column 'price' could not be read as a price, such as \"{'cost': '3'}\"; these items "
        "have none"
    ]


@pytest.mark.parametrize(
    ("written", "levels"),
    [
        ("'Toys & Games', \"Kid's\", 'A'", None),
        ("'Beauty', 'Hair Care'", ["Beauty", "Hair Care"]),
        ("'Beauty'", ["Beauty"]),
        ("'open", ["'open"]),
        ("'it's', 'b'", ["'it's', 'b'"]),
    ],
)
def test_lists_without_brackets_are_the_levels_of_a_category(written: str, levels: list[str] | None) -> None:
    assert levels_of(written) == (levels or ["Toys & Games", "Kid's", "A"])


# -- times ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dates", [("01032020", "28022020"), ("3012020", "12312020")])
def test_dates_without_signs_that_end_with_the_year_are_no_order(store: Store, dates: tuple[str, str]) -> None:
    rows = "".join(f"u,i{n},{date}\n" for n, date in enumerate(dates))
    with pytest.raises(DataError, match="looks like a date that ends with the year, as all of the column do"):
        ingest(store, "o.csv", f"user_id,item_id,timestamp\n{rows}")


def test_numbers_that_end_before_1995_are_warned_of(store: Store, messages: list[str]) -> None:
    ingest(store, "o.csv", "user_id,item_id,timestamp\nu,i,637101000000000000\nu,j,637102000000000000\n")
    assert any("times end at 1990-03-10" in message and "--time-unit" in message for message in messages)


# -- packed files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "pack"), [(".bz2", bz2.compress), (".xz", lzma.compress)])
def test_what_follows_a_packed_stream_is_read_or_an_error_and_never_left_out(
    tmp_path: Path, suffix: str, pack: object
) -> None:
    assert callable(pack)
    path, padding = tmp_path / f"o.csv{suffix}", bytes(8) if suffix == ".xz" else b""
    path.write_bytes(pack(ROWS[:999]) + padding + pack(ROWS[999:]) + padding)
    with open_unpacked(path) as stream:
        assert stream.read() == ROWS
    for broken in (pack(ROWS[:999]) + b"more", pack(ROWS) + pack(ROWS)[:-9], pack(ROWS[:999]) + b"X" + pack(ROWS)):
        path.write_bytes(broken)
        with open_unpacked(path) as stream, pytest.raises((OSError, EOFError, lzma.LZMAError)):
            stream.read()


@pytest.mark.parametrize("content", [bz2.compress(ROWS) + b"more", lzma.compress(ROWS)[:-9], bz2.compress(ROWS)[:-9]])
def test_packed_lines_that_are_damaged_are_said_to_be(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lines.json").write_bytes(content)
    with pytest.raises(DataError, match=r"corrupt packed data|the packed data break off"):
        list(read_lines(tmp_path / "lines.json"))


@pytest.mark.parametrize("name", ["o.jsonl", "o.csv"])
def test_half_a_character_of_utf_16_at_the_end_is_refused_by_name(tmp_path: Path, name: str) -> None:
    text = '{"user_id": "u"}\n{"user_id": "v"}\n' if name == "o.jsonl" else "user_id,item_id\nu,i\nv,j\n"
    (tmp_path / name).write_bytes(text.encode("utf-16-be")[:-1])
    with pytest.raises(DataError, match=rf"{name}: it is not UTF-16"):
        list(read_rows(open_table(tmp_path / name, None), ["user_id"], Rejects(9)))


def test_a_workbook_is_called_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "o.csv", "w") as archive:
        archive.writestr("[Content_Types].xml", "")
        archive.writestr("xl/workbook.xml", "")
    with pytest.raises(DataError, match=r"o\.csv: an Excel workbook; save its sheet"):
        open_table(tmp_path / "o.csv", None)


# -- proposed commands ------------------------------------------------------------------------------------------------


def test_a_proposed_command_never_writes_into_the_file_it_reads(tmp_path: Path) -> None:
    (tmp_path / "o.jsonl").write_text('[{"user_id": "u"}]')
    (tmp_path / "o.parquet").write_bytes(bz2.compress(b"x"))
    for name in ("o.jsonl", "o.parquet"):
        with pytest.raises(DataError) as caught:
            open_table(tmp_path / name, None)
        read, _, written = str(caught.value.next_command).partition(" > ")
        assert read.split(" | ")[0].endswith(name)
        assert written not in ("", name)
    assert read == f"bzip2 -dc < {tmp_path / 'o.parquet'}"


def test_separators_within_quoted_names_do_not_separate(tmp_path: Path) -> None:
    (tmp_path / "o.csv").write_text('user_id,item_id,"tags; more; and more"\nu,i,x\n')
    assert open_table(tmp_path / "o.csv", None).columns == ["user_id", "item_id", "tags; more; and more"]


def test_two_marks_of_an_encoding_before_a_header_are_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "o.csv").write_text("\ufeff\ufeffuser_id,item_id\nu,i\n", encoding="utf-8")
    assert open_table(tmp_path / "o.csv", None).columns == ["user_id", "item_id"]

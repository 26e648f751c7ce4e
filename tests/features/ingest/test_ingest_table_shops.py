"""`ingest table`: files as shops' programs write them: encodings, dates, returns, guests, categories."""

import gzip
import io
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antpipe.errors import DataError, UsageError
from antpipe.features.ingest.advice import SettingsError
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.table.dates import find_date_format, require_date_format
from antpipe.features.ingest.table.encoding import encoding_of, require_encoding
from antpipe.features.ingest.table.times import Times, to_milliseconds
from antpipe.features.ingest.table.values import listed, pictures_of
from antpipe.features.ingest_table import ingest_table, table_source
from antpipe.settings.ingest import IngestConfig, TableConfig
from antpipe.store.store import Store
from tests.support.commands import run
from tests.support.releases import EVERYTHING, UNDESCRIBED, interactions, items, report

ORDERS = (
    "Kunde;Artikelnummer;Datum;Menge\nK1;A;31.12.2024;1\nK1;B;02.01.2025;-1\nGAST;A;03.01.2025;2\nK2;A;04.01.2025;\n"
)
GOODS = "Artikelnummer;Bezeichnung;Preis;Kategorie;Bild\nA;Größe “L”;5,90 €;Küche/Töpfe;\nB;Hut;3 €;Mode;\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def take(store: Store, orders: str | bytes, goods: str | bytes | None = None, max_rejects: int = 0, **how: Any) -> None:
    """Ingest files of this content as Shop."""
    paths = []
    for name, content in (("orders.csv", orders), ("goods.csv", goods)):
        path = store.root.parent / name
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        paths.append(None if content is None else path)
    config = IngestConfig(min_user=1, min_item=1, keep_without_metadata=goods is None, max_rejects=max_rejects)
    ingest_table(store, "Shop", table_source(*paths), config, TableConfig(**how), force=True)


def visits(store: Store) -> list[tuple[str, str, int]]:
    return [(user, item, time) for user, item, time, _ in interactions(store.domain("Shop"))]


# -- encodings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_a_shop_of_any_usual_encoding_is_read(store: Store, encoding: str, messages: list[str]) -> None:
    take(store, ORDERS.encode(encoding), GOODS.encode(encoding))
    assert items(store.domain("Shop"))["A"]["title"] == "Größe “L”"
    told = [line for line in messages if line.startswith("goods.csv: semicolon-separated")]
    name = {"cp1252": ", cp1252 (detected)"}.get(encoding, ", UTF-16 (detected)" if "16" in encoding else "")
    assert told[0].startswith(f"goods.csv: semicolon-separated{name}, item=Artikelnummer title=Bezeichnung price=Preis")


@pytest.mark.parametrize(
    ("text", "encoding", "found"),
    [
        ("plain", "ascii", "utf-8-sig"),
        ("Kaffeemühle", "latin-1", "cp1252"),
        ("à la carte, 5 €", "cp1252", "cp1252"),
        ("Чайник большой", "cp1251", "utf-8-sig"),  # not Windows-1252: rejected unless its encoding is named
        ("电视机,1 冰箱", "gbk", "utf-8-sig"),
        ("Größe", "utf-32", "utf-32"),
    ],
)
def test_only_what_reads_as_windows_1252_is_taken_for_it(text: str, encoding: str, found: str) -> None:
    assert encoding_of(io.BytesIO(text.encode(encoding))) == found


def test_a_utf_8_file_with_one_damaged_line_stays_utf_8() -> None:
    assert encoding_of(io.BytesIO("Größe\n".encode() * 3 + b"Gr\xf6e\n")) == "utf-8-sig"


def test_an_encoding_that_is_named_is_used(store: Store) -> None:
    take(store, ORDERS.replace("K2", "Чай").encode("cp1251"), encoding="cp1251")
    assert "Чай" in {user for user, _, _ in visits(store)}
    with pytest.raises(UsageError, match="unknown encoding"):
        require_encoding("base64")


def test_where_every_row_fails_by_its_encoding_the_cure_is_the_encoding(store: Store) -> None:
    orders = ("user;item;time\n" + "Чайник;Чайник;1\n" * 3).encode("cp1251")
    with pytest.raises(DataError, match="name its encoding with --encoding") as caught:
        take(store, orders)
    assert str(caught.value.next_command).startswith("head -n 3 ")
    with pytest.raises(SettingsError, match="its encoding is not utf-8") as caught:
        take(store, ORDERS, GOODS.encode("cp1252"), encoding="utf-8")
    assert "--encoding" not in str(caught.value.next_command)
    assert "--max-rejects" not in str(caught.value.next_command)


@given(st.binary(max_size=300))
def test_any_bytes_have_an_encoding_that_python_knows(content: bytes) -> None:
    assert "".encode(encoding_of(io.BytesIO(content))) is not None


def test_gzip_data_are_read_under_a_plain_name(store: Store) -> None:
    take(store, gzip.compress(ORDERS.encode()))
    assert len(visits(store)) == 4


# -- dates ----------------------------------------------------------------------------------------------------

DAY = 86_400_000
NEW_YEAR = 1_735_689_600_000  # 2025-01-01


@pytest.mark.parametrize(
    ("dates", "days"),
    [
        (["31.12.2024", "02.01.2025"], [-1, 1]),
        (["1.2.2025"], [31]),
        (["31. 12. 2024"], [-1]),
        (["12/31/2024", "01/02/2025"], [-1, 1]),
        (["31/12/2024", "02/01/2025"], [-1, 1]),
        (["31-12-2024"], [-1]),
        (["2025/01/02"], [1]),
        (["2025-1-2"], [1]),
        (["02.01.25", "31.12.24"], [1, -1]),
        (["31-Dec-2024", "Jan 2, 2025", "2. Januar 2025"], [-1, 1, 1]),
        (["20250102", "20241231"], [1, -1]),
        (["202501020000"], [1]),
        (["20250102000000"], [1]),
        (["20250102000000000"], [1]),
    ],
)
def test_usual_dates_are_read_without_a_flag(store: Store, dates: list[str], days: list[int]) -> None:
    take(store, "user;item;date\n" + "".join(f"u{row};i;{date}\n" for row, date in enumerate(dates)))
    assert [(time - NEW_YEAR) // DAY for _, _, time in visits(store)] == days


@pytest.mark.parametrize(
    ("date", "hour", "minute"),
    [
        ("31.12.2024 14:30", 14, 30),
        ("12/31/2024 02:30:10 PM", 14, 30),
        ("12/31/2024 12:05 am", 0, 5),
        ("2024/12/31 14:30:45 +0200", 12, 30),
        ("2024/12/31 14:30:45Z", 14, 30),
        ("31.12.2024 14:30+02:00", 12, 30),
        ("31.12.2024 14:30-05", 19, 30),
        ("31/12/2024 02:30 pm -0530", 20, 0),
        ("31 Dec 2024 14:30:45 +0200", 12, 30),
        ("Tue, 31 Dec 2024 14:30:45 +0200", 12, 30),
        ("Tue, 31 Dec 2024 14:30:45 GMT", 14, 30),
        ("Dienstag, 31. Dezember 2024 14:30", 14, 30),
        ("Tue Dec 31 2024 14:30:45 GMT+0200 (Central European Summer Time)", 12, 30),
    ],
)
def test_dates_may_have_a_time_of_day(date: str, hour: int, minute: int) -> None:
    form = find_date_format([(2, date)], Path("t.csv"))
    assert form is not None
    assert form.microseconds(date) // 60_000_000 - (NEW_YEAR - DAY) // 60_000 == 60 * hour + minute


@pytest.mark.parametrize("date", ["31.12.98", "12/31/69", "31.12.68", "31.12.00"])
def test_years_of_two_digits_are_those_of_strptime(date: str) -> None:
    form = find_date_format([(2, date)], Path("t.csv"))
    assert form is not None
    pattern = require_date_format("%d.%m.%y" if "." in date else "%m/%d/%y")
    assert form.microseconds(date) == pattern.microseconds(date)


@pytest.mark.parametrize(
    "date", ["31.12.2024 14:30+25:00", "31.12.2024 14:30+01:75", "31.12.2024+0100", "May 5 6 2024"]
)
def test_dates_with_impossible_offsets_are_no_dates(date: str) -> None:
    with pytest.raises(ValueError, match="is not a date written day"):
        require_date_format("day-first").microseconds(date)


def test_dates_that_could_be_either_order_are_refused_with_the_flag(store: Store) -> None:
    orders = "user;item;date\nu;i;01/02/2025\nv;i;03/04/2025\n"
    with pytest.raises(SettingsError, match=r"csv:2: 01/02/2025 can be day/month or month/day") as caught:
        take(store, orders)
    assert str(caught.value.next_command).endswith("--date-format day-first --force")
    take(store, orders, date_format="month-first")
    assert visits(store)[0][2] == NEW_YEAR + DAY


def test_dates_of_both_orders_are_refused_with_both_lines(store: Store) -> None:
    orders = "user;item;date\nu;i;31/12/2024\nv;i;12/31/2024\nw;i;30/12/2024\n"
    with pytest.raises(
        SettingsError, match="31/12/2024 in line 2 is day-first, 12/31/2024 in line 3 is month-first"
    ) as caught:
        take(store, orders)
    assert run(*str(caught.value.next_command).split()[1:]).code == 0
    assert [user for user, _, _ in visits(store)] == ["u", "w"]


def test_the_cure_for_dates_that_nobody_knows_is_their_format(store: Store) -> None:
    orders = "user;item;date\nu;i;2024年12月31日\nv;i;2025年1月2日\n"
    with pytest.raises(
        DataError, match="no row of 2 is usable; say how its dates are written with --date-format"
    ) as caught:
        take(store, orders)
    assert "--max-rejects" not in str(caught.value.next_command)
    take(store, orders, date_format="%Y年%m月%d日")
    assert [(time - NEW_YEAR) // DAY for _, _, time in visits(store)] == [-1, 1]


def test_a_date_format_that_fits_no_row_is_taken_back(store: Store) -> None:
    with pytest.raises(SettingsError, match="they do not fit --date-format %Y/%m/%d") as caught:
        take(store, ORDERS, date_format="%Y/%m/%d")
    assert run(*str(caught.value.next_command).split()[1:]).code == 0


@pytest.mark.parametrize("pattern", ["%d.%m", "", "days", "%Q", "%H:%M"])
def test_a_date_format_without_a_date_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="not a date with year, month and day"):
        require_date_format(pattern)


@given(st.dates(min_value=date(1970, 1, 1), max_value=date(9999, 12, 31)))
def test_dates_written_with_dots_come_back(day: date) -> None:
    text = f"{day:%d}.{day:%m}.{day.year:04d}"
    form = find_date_format([(2, text)], Path("t.csv"))
    assert form is not None
    assert form.microseconds(text) // (1000 * DAY) == (day - date(1970, 1, 1)).days


def test_fractions_of_an_order_keep_it() -> None:
    times = Times()
    for line, value in enumerate(["0.50002", "0.50001", "0.50003"], 2):
        times.add(line, value)
    assert to_milliseconds(times, "auto", Path("t.csv"))[0].tolist() == [1, 0, 2]


def test_times_that_float32_rounded_are_refused(store: Store, tmp_path: Path) -> None:
    table = pa.table({"user": ["u"], "item": ["i"], "time": pa.array([1_600_000_000.0], pa.float32())})
    pq.write_table(table, tmp_path / "v.parquet")
    with pytest.raises(DataError, match="float32"):
        ingest_table(store, "Shop", table_source(tmp_path / "v.parquet", None), UNDESCRIBED, TableConfig())


# -- rows -----------------------------------------------------------------------------------------------------


def test_only_rows_of_which_the_condition_is_true_count(store: Store, messages: list[str]) -> None:
    take(store, ORDERS, where="Menge > 0")
    assert [user for user, _, _ in visits(store)] == ["GAST", "K1"]
    facts = report(store)["interactions"]
    assert (facts["lines"], facts["kept"], facts["where_dropped"]) == (4, 2, 2)
    assert "orders.csv: --where leaves out 2 rows, 1 of them because the condition is unknown" in messages


def test_a_condition_can_read_dates_of_the_file(store: Store) -> None:
    take(store, ORDERS, where="Datum < '2025-01-01' or Kunde = 'K2'")
    assert [user for user, _, _ in visits(store)] == ["K1", "K2"]


def test_rows_that_a_condition_leaves_out_are_not_malformed(store: Store) -> None:
    take(store, ORDERS + ";A;05.01.2025;1\n", where="Kunde is not null")
    assert (report(store)["interactions"]["malformed"], len(visits(store))) == (0, 4)


def test_a_row_whose_time_cannot_be_read_stays_malformed(store: Store) -> None:
    with pytest.raises(SettingsError, match=r"1 malformed line, 0 allowed; the first: .*:6: time 'soon'"):
        take(store, ORDERS + "K3;A;soon;1\n", where="Datum > '2020-01-01'")


def test_a_condition_on_a_typed_table_compares_numbers(store: Store, tmp_path: Path) -> None:
    table = pa.table({"user": ["u", "v"], "item": ["i", "i"], "time": [1, 2], "qty": [3, -1], "tags": [["a"], []]})
    pq.write_table(table, tmp_path / "v.parquet")
    for where, users in (("qty > 0", ["u"]), ("not (tags contains 'a')", ["v"])):
        how = TableConfig(where=where)
        ingest_table(store, "Shop", table_source(tmp_path / "v.parquet", None), UNDESCRIBED, how, force=True)
        assert [user for user, _, _ in visits(store)] == users


def test_a_condition_that_leaves_nothing_is_named(store: Store) -> None:
    with pytest.raises(SettingsError, match="--where 'Menge > 9' leaves none of its 4 rows") as caught:
        take(store, ORDERS, where="Menge > 9")
    assert run(*str(caught.value.next_command).split()[1:]).code == 0


def test_a_condition_selects_items_if_there_are_no_interactions(store: Store, tmp_path: Path) -> None:
    (tmp_path / "goods.csv").write_text(GOODS)
    how = TableConfig(where="Kategorie contains 'küche'")
    ingest_table(store, "Shop", table_source(None, tmp_path / "goods.csv"), EVERYTHING, how)
    assert list(items(store.domain("Shop"))) == ["A"]


def test_users_can_be_left_out_by_name(store: Store, messages: list[str]) -> None:
    take(store, ORDERS, drop_users=("GAST", "GUEST"))
    assert {user for user, _, _ in visits(store)} == {"K1", "K2"}
    assert report(store)["interactions"]["users_dropped"] == 1
    assert "orders.csv: 1 rows of user GAST are left out" in messages
    assert any("--drop-users GUEST: no row has this user" in line for line in messages)


def test_returns_that_stay_are_told(store: Store, messages: list[str]) -> None:
    take(store, ORDERS)
    assert any("1 rows have Menge of 0 or less" in line and "--where 'Menge > 0'" in line for line in messages)


def test_all_rejects_are_counted_before_a_number_is_proposed(store: Store) -> None:
    with pytest.raises(
        SettingsError, match=r"4 malformed lines, 0 allowed; 2 like .*soon.*; 1 like .*; 1 like "
    ) as caught:
        take(store, ORDERS + "K3;A;soon;1\nK4;A;later;1\nK5\n", GOODS + ";No id;1;;\n")
    assert "--max-rejects 4" in str(caught.value.next_command)
    assert run(*str(caught.value.next_command).split()[1:]).code == 0
    assert store.domain("Shop").table("rejects").num_rows == 4


def test_rejects_that_are_too_many_take_no_memory(tmp_path: Path) -> None:
    rejects = Rejects(2)
    for line in range(1000):
        rejects.add(tmp_path, line, "time 'x' is bad", b"")
    assert (rejects.total, len(rejects.rows)) == (1000, 2)


# -- items ----------------------------------------------------------------------------------------------------


def test_categories_are_split_as_the_shop_writes_them(store: Store) -> None:
    take(store, ORDERS, GOODS, category_separator="/")
    assert items(store.domain("Shop"))["A"]["category"] == ["Küche", "Töpfe"]
    take(store, ORDERS, GOODS)
    assert items(store.domain("Shop"))["A"]["category"] == ["Küche/Töpfe"]


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("['Beauty', \"Hair's\"]", ["Beauty", "Hair's"]),
        ("['a'\n 'b']", ["a", "b"]),  # numpy
        ("[limited edition]", ["[limited edition]"]),
        ("['a', nan]", ["a"]),
        ("nan", []),
        ("<NA>", []),
        ("None of the above", ["None of the above"]),
        (["x", None, "null"], ["x"]),
    ],
)
def test_lists_and_words_for_nothing_are_understood(value: Any, parts: list[str]) -> None:
    assert listed(value) == parts


@pytest.mark.parametrize(
    ("value", "urls"),
    [
        ("https://a/1.jpg, https://a/2.jpg", ["https://a/1.jpg", "https://a/2.jpg"]),
        ("https://a/1.jpg;https://a/2.jpg", ["https://a/1.jpg", "https://a/2.jpg"]),
        ("https://a/1.jpg https://a/2.jpg", ["https://a/1.jpg", "https://a/2.jpg"]),
        ("https://a/w=1,h=2/1.jpg", ["https://a/w=1,h=2/1.jpg"]),
        ({"hi_res": ["https://h", None], "large": ["https://l", "https://m"]}, ["https://h", "https://m"]),
        ([{"hi_res": None, "large": "https://l"}], ["https://l"]),
    ],
)
def test_several_urls_in_a_value_are_several(tmp_path: Path, value: Any, urls: list[str]) -> None:
    assert pictures_of(value, tmp_path, []) == (urls, [])


def test_a_file_without_a_header_is_told_so(store: Store) -> None:
    for how in ({}, {"map": ("user=u0", "item=i0", "time=1600000060")}):
        with pytest.raises(DataError, match="line 1 looks like data, not like a header"):
            take(store, "u0;i0;1600000060\nu1;i1;1600000061\n", **how)


@pytest.mark.parametrize("sign", [",", " "])
def test_atomic_files_may_have_other_separators(store: Store, tmp_path: Path, sign: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "x.inter").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\nu\ti\t5\n".replace("\t", sign)
    )
    words = [
        "import",
        "recbole",
        "--domain",
        "Shop",
        "--min-user",
        "1",
        "--min-item",
        "1",
        "--keep-without-metadata",
        "--path",
    ]
    assert run(*words, tmp_path / "x", "--store", store.root).code == 0
    assert visits(store) == [("u", "i", 5)]


def test_atomic_files_of_histories_are_refused_by_name(store: Store, tmp_path: Path) -> None:
    (tmp_path / "x.inter").write_text("session_id:token\titem_id_list:token_seq\titem_id:token\n1\ta b\tc\n")
    with pytest.raises(DataError, match="its rows are histories"):
        ingest_table(store, "Shop", table_source(tmp_path / "x.inter", None), UNDESCRIBED, TableConfig())

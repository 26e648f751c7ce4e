"""Tables of many kinds give the same domain: packed, in parts, as JSON lines, in UTF-16, with odd headers."""

import bz2
import gzip
import io
import json
import lzma
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antpipe.errors import DataError
from antpipe.features.ingest.lines import read_lines
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.table.files import open_table, read_rows
from antpipe.features.ingest_table import ingest_table, table_source
from antpipe.settings.ingest import TableConfig
from antpipe.store.store import Store
from tests.support.releases import UNDESCRIBED, interactions

ROWS = [("u1", "i1", 1_600_000_000), ("u1", "i2", 1_600_000_060), ("u2", "i1", 1_600_000_120)]
CSV = "user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in ROWS)


def zstd(content: bytes) -> bytes:
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, "zstd") as out:
        out.write(content)
    return bytes(stream.getvalue())


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def read(path: Path, **options: Any) -> list[tuple[str, ...]]:
    """Users, items and times of a file, as text; nothing is rejected."""
    table, rejects = open_table(path, None), Rejects(0)
    rows = [row.values for row in read_rows(table, ["user_id", "item_id", "timestamp"], rejects, **options)]
    assert rejects.total == 0, rejects.first
    return [tuple(map(str, row)) for row in rows]


EXPECTED = [(u, i, str(t)) for u, i, t in ROWS]


@pytest.mark.parametrize("suffix", sorted(PACKERS))
@pytest.mark.parametrize("plain_name", [False, True])
def test_packed_tables_are_read_also_under_a_plain_name(tmp_path: Path, suffix: str, plain_name: bool) -> None:
    path = tmp_path / ("a.csv" if plain_name else f"a.csv{suffix}")
    path.write_bytes(PACKERS[suffix](CSV.encode()))
    assert read(path) == EXPECTED


@pytest.mark.parametrize("inside", ["a.csv", "data/visits.CSV", "visits"])
def test_a_zip_archive_with_one_file_is_read(tmp_path: Path, inside: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.csv.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(inside, CSV)
        archive.writestr("__MACOSX/._a.csv", "junk")
    assert read(tmp_path / "a.csv.zip") == EXPECTED


def test_a_zip_archive_of_several_files_is_refused_with_their_names(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.csv", CSV)
        archive.writestr("b.csv", CSV)
    with pytest.raises(DataError, match=r"a zip archive of 2 files \(a.csv, b.csv\)") as caught:
        open_table(tmp_path / "a.zip", None)
    assert str(caught.value.next_command).startswith("unzip ")


def test_an_encrypted_zip_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.csv.zip", "w") as archive:
        archive.writestr("a.csv", CSV)
    content = bytearray((tmp_path / "a.csv.zip").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory
    (tmp_path / "a.csv.zip").write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        open_table(tmp_path / "a.csv.zip", None)


@pytest.mark.parametrize("suffix", sorted(PACKERS))
def test_damaged_packed_tables_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.csv{suffix}"
    long = "".join(f"u{n * 7919 % 9973},i{n},{n}\n" for n in range(50_000)).encode()
    path.write_bytes(PACKERS[suffix](CSV.encode() + long)[:-2000])
    with pytest.raises(DataError, match=r"a\.csv"):
        read(path)


@pytest.mark.parametrize("suffix", sorted(PACKERS))
def test_packed_lines_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "lines.json"
    path.write_bytes(PACKERS[suffix](b"one\ntwo\n"))
    assert list(read_lines(path)) == [b"one", b"two"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.jsonl.gz"])
def test_json_lines_are_a_table(tmp_path: Path, name: str) -> None:
    lines = [json.dumps({"user_id": u, "item_id": i, "timestamp": t}) for u, i, t in ROWS]
    content = "\n\n".join(lines).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read(tmp_path / name) == EXPECTED


def test_keys_that_come_later_are_columns_too_and_malformed_lines_are_listed(tmp_path: Path) -> None:
    lines = ['{"item_id": 1, "stock": 3}', "[1]", "{", '{"item_id": 2, "stock": null, "price": 2.5}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    table, rejects = open_table(tmp_path / "a.jsonl", None), Rejects(9)
    assert table.columns == ["item_id", "stock", "price"]
    assert table.types == {"item_id": pl.Int64(), "stock": pl.Int64(), "price": pl.Float64()}
    rows = [row.values for row in read_rows(table, ["item_id", "price"], rejects)]
    assert rows == [[1, None], [2, 2.5]]
    assert [(row["line"], row["reason"][:8]) for row in rejects.rows] == [(2, "not a JS"), (3, "not JSON")]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("NaN", None),
        ("Infinity", None),
        ("-Infinity", None),
        (r'"Card \ud83d"', "Card ?"),
        ('[1, NaN, "a"]', [1, None, "a"]),
    ],
)
def test_json_as_python_and_cut_texts_have_it_is_read(tmp_path: Path, written: str, read: Any) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"item_id": "i", "x": {written}}}\n')
    rejects = Rejects(0)
    rows = [row.values for row in read_rows(open_table(tmp_path / "a.jsonl", None), ["item_id", "x"], rejects)]
    assert (rows, rejects.total) == ([["i", read]], 0)


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"item_id": 1}, {"item_id": 2}]', "is a JSON array"),
        ('\n \n[{"item_id": 1},\n {"item_id": 2}]', "is a JSON array"),
        ('{"products": [\n{"item_id": 1},\n{"item_id": 2}\n]}', "is one JSON object, with a list in 'products'"),
        ('\n{\n "n": {"a": []}, "to sell": [\n {"item_id": 1}, {"item_id": 2}]}', "a list in 'to sell'"),
        ("""{"data": {"count": 2,\n"it's": [{"item_id": 1}, {"item_id": 2}]}}""", """a list in "data.it's\""""),
        ('{\n"item_id": 1\n}\n{\n"item_id": 2\n}\n', "has JSON objects that are written over several lines"),
    ],
)
def test_json_that_is_not_one_object_per_line_is_refused_with_the_command_that_makes_it_so(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError) as raised:
        open_table(path, None)
    assert message in raised.value.message
    subprocess.run(["bash", "-c", str(raised.value.next_command)], cwd=tmp_path, check=True)
    rows = read_rows(open_table(tmp_path / "a-lines.jsonl", None), ["item_id"], Rejects(0))
    assert [row.values for row in rows] == [[1], [2]]


@pytest.mark.parametrize("first", ['{"item_id": 1, "parts": [', '{"item_id": 1, "parts": [{"a": 1}', "{"])
def test_a_cut_line_at_the_start_of_json_lines_is_only_malformed(tmp_path: Path, first: str) -> None:
    (tmp_path / "a.jsonl").write_text(first + '"\n{"item_id": 2}\n')
    assert open_table(tmp_path / "a.jsonl", None).columns == ["item_id"]


def test_lines_that_are_not_json_are_no_matter_of_the_encoding(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"user_id": 1, "item_id": 1, "timestamp": 1}\n{"user_id": 1,\n"item_id": 2,\n')
    with pytest.raises(DataError) as raised:
        ingest_table(store, "Shop", table_source(tmp_path / "a.jsonl", None), UNDESCRIBED, TableConfig())
    assert "a.jsonl:2: not JSON" in raised.value.message
    assert raised.value.message.endswith("2 of 3 rows are like this; every line must be one JSON object")


def test_a_float_among_json_ids_that_may_stand_for_several_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"item_id": 1.2345678901234568e+18}\n')
    with pytest.raises(DataError, match="floating point"):
        list(read_rows(open_table(tmp_path / "a.jsonl", None), ["item_id"], Rejects(0), ids=["item_id"]))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig"])
def test_tables_in_other_encodings_are_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.csv").write_bytes(CSV.encode(encoding))
    assert read(tmp_path / "a.csv") == EXPECTED


@pytest.mark.parametrize("name", ["a.dat", "a.csv", "a.txt"])
def test_double_colons_separate(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(CSV.replace(",", "::"))
    assert read(tmp_path / name) == EXPECTED


def write_parts(folder: Path) -> None:
    (folder / "deep").mkdir(parents=True)
    for at, name in enumerate(("part-0.parquet", "part-1.snappy.parquet", "deep/x.parquet")):
        user, item, time = ROWS[(at + 1) % 3]
        kind = pa.int32() if at else pa.int64()
        columns = {"user_id": [user], "item_id": [item], "timestamp": pa.array([time], kind)}
        pq.write_table(pa.table(columns), folder / name)
    (folder / "_SUCCESS").touch()
    pq.write_table(pa.table({"other": [1]}), folder / "_metadata.parquet")


def test_a_folder_of_parquet_parts_is_one_table(tmp_path: Path) -> None:
    write_parts(tmp_path / "visits")
    assert sorted(read(tmp_path / "visits")) == sorted(EXPECTED)
    store = Store(tmp_path / "store")
    source = table_source(tmp_path / "visits", None)
    assert ingest_table(store, "Shop", source, UNDESCRIBED, TableConfig()).status == "built"
    assert len(interactions(store.domain("Shop"))) == 3
    assert ingest_table(store, "Shop", source, UNDESCRIBED, TableConfig()).status == "fresh"
    (tmp_path / "visits" / "part-1.snappy.parquet").unlink()
    assert ingest_table(store, "Shop", source, UNDESCRIBED, TableConfig()).status == "built"


@pytest.mark.parametrize(
    ("name", "columns", "says"),
    [
        ("part-2.parquet", {"user": ["u"]}, "part-2.parquet: it has the columns user, but"),
        ("a=2/a.parquet", {"user_id": ["u"], "item_id": ["i"], "timestamp": ["1"]}, "has no column from its folders"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    tmp_path: Path, name: str, columns: dict[str, list[str]], says: str
) -> None:
    write_parts(tmp_path / "visits")
    (tmp_path / "visits" / name).parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), tmp_path / "visits" / name)
    with pytest.raises(DataError, match=says):
        open_table(tmp_path / "visits", None)


def write_keyed(folder: Path, *names: str, **columns: list[str]) -> Path:
    """A folder of parts, each with one row of a user and an item of its own."""
    for at, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"user_id": [f"u{at}"], "item_id": [f"i{at}"], **columns}), folder / name)
    return folder


def test_names_of_folders_become_columns_in_the_order_of_their_values(tmp_path: Path) -> None:
    keyed = ("day=__HIVE_DEFAULT_PARTITION__/shop=a%2Fb", "day=10/shop=007", "day=2/shop=x")
    folder = write_keyed(tmp_path / "visits", *(f"{name}/part-0.parquet" for name in keyed))
    table = open_table(folder, None)
    assert table.columns == ["user_id", "item_id", "day", "shop"]
    assert (table.types["day"], table.types["shop"]) == (pl.Int64(), pl.String())
    assert [row.values for row in read_rows(table, table.columns, Rejects(0))] == [
        ["u2", "i2", 2, "x"],
        ["u1", "i1", 10, "007"],
        ["u0", "i0", None, "a/b"],
    ]


def test_a_shop_in_folders_by_date_is_built_again_if_a_folder_gets_another_name(store: Store, tmp_path: Path) -> None:
    folder = write_keyed(tmp_path / "visits", "date=2024-01-01/a.parquet", "date=2024-01-02/a.parquet")
    source = table_source(folder, None)
    assert ingest_table(store, "Shop", source, UNDESCRIBED, TableConfig()).status == "built"
    assert [row[2] for row in interactions(store.domain("Shop"))] == [1_704_067_200_000, 1_704_153_600_000]
    assert ingest_table(store, "Shop", source, UNDESCRIBED, TableConfig()).status == "fresh"
    (folder / "date=2024-01-02").rename(folder / "date=2024-02-02")
    assert ingest_table(store, "Shop", source, UNDESCRIBED, TableConfig()).status == "built"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("user_id=7/a.parquet",), "the column 'user_id' is in the names of folders"),
        (("a=1/a.parquet", "b=1/a.parquet"), "b=1/a.parquet has the column b from its folders, but a=1/a.parquet has"),
        (("a=1/a.parquet", "b.parquet"), "b.parquet has no column from its folders, but"),
        (("a=1/a=2/a.parquet",), "the folder a=2 holds the column 'a' again"),
        (("=1/a.parquet",), "the folder =1 holds a column without a name"),
        (("a=%FF/a.parquet",), "the folder a=%FF has a name that is not UTF-8"),
    ],
)
def test_folders_whose_names_contradict_the_files_or_each_other_are_refused_by_name(
    tmp_path: Path, names: tuple[str, ...], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        open_table(write_keyed(tmp_path / "visits", *names), None)


def test_a_folder_without_parquet_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a folder without Parquet files"):
        open_table(tmp_path, None)


# -- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("sep=,\n" + CSV, 3),
        ('"sep=;"\r\n' + CSV.replace(",", ";"), 3),
        ("\n\n" + CSV, 4),
        ("# " + CSV, 2),
        (CSV.replace("user_id,item_id,timestamp", "user_id:token,item_id:token,timestamp:float"), 2),
        (CSV.replace("u2", ",,\nu2"), 2),
    ],
)
def test_odd_beginnings_and_empty_rows_do_not_matter(tmp_path: Path, content: str, line: int) -> None:
    (tmp_path / "a.csv").write_text(content)
    assert read(tmp_path / "a.csv") == EXPECTED
    rows = read_rows(open_table(tmp_path / "a.csv", None), ["user_id"], Rejects(0))
    assert next(rows).line == line


def test_headers_in_the_middle_are_no_rows_and_are_told(tmp_path: Path, messages: list[str]) -> None:
    (tmp_path / "a.csv").write_bytes((CSV + "\ufeff" + CSV + CSV).encode())
    assert read(tmp_path / "a.csv", ids=["item_id"]) == EXPECTED * 3
    assert any("2 lines repeat the header" in message for message in messages)


def test_a_header_of_another_order_in_the_middle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV + "item_id,user_id,timestamp\ni1,u9,1600000000\n")
    with pytest.raises(DataError, match=r"a\.csv:5: another header, item_id, user_id, timestamp"):
        read(tmp_path / "a.csv")


def test_names_of_a_map_that_look_like_the_values_below_them_are_no_header(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("".join(f"b0{n},Thing number {n}\n" for n in range(20)))
    with pytest.raises(DataError, match="line 1 looks like data, not like a header: b00, Thing number 0"):
        ingest_table(
            store,
            "Shop",
            table_source(None, tmp_path / "a.csv"),
            UNDESCRIBED,
            TableConfig(map=("item=b00", "title=Thing number 0")),
        )


def test_a_name_with_a_digit_is_a_header_if_the_values_are_others(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sku1,title\nA,b\nB,c\n")
    source = table_source(None, tmp_path / "a.csv")
    assert ingest_table(store, "Shop", source, UNDESCRIBED, TableConfig(map=("item=sku1",))).status == "built"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_published_lines_in_utf_16_are_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('{"a": 1}\n'.encode("utf-16"))
    with pytest.raises(DataError, match="it is UTF-16") as caught:
        list(read_lines(tmp_path / "a.json"))
    assert str(caught.value.next_command).startswith("iconv -f UTF-16 -t UTF-8 ")


LINES = st.text('u,i:;|1.5"\n{}[]\t\\é', max_size=60).map(str.encode)
KINDS = [
    ".csv",
    ".txt",
    ".dat",
    ".jsonl",
    ".json",
    ".csv.gz",
    ".csv.bz2",
    ".csv.xz",
    ".csv.zst",
    ".csv.zip",
    ".parquet",
]


def zipped(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", content)
    return stream.getvalue()


@settings(max_examples=300, deadline=None)
@given(
    content=st.binary(max_size=80) | LINES | LINES.map(lambda text: b"u,i\n" + text),
    pack=st.sampled_from([bytes, *PACKERS.values(), zipped]),
    suffix=st.sampled_from(KINDS),
    cut=st.integers(0, 12),
    wrong=st.tuples(st.integers(0, 200), st.integers(0, 255)),
)
def test_any_bytes_under_any_name_are_a_table_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    content: bytes,
    pack: Callable[[bytes], bytes],
    suffix: str,
    cut: int,
    wrong: tuple[int, int],
) -> None:
    packed = bytearray(pack(content))
    if wrong[0] < len(packed):
        packed[wrong[0]] = wrong[1]
    path = tmp_path_factory.mktemp("any") / f"a{suffix}"
    path.write_bytes(packed[: len(packed) - cut] if cut % 3 == 0 else packed)
    rejects = Rejects(10**6)
    try:
        table = open_table(path, None)
        rows = list(read_rows(table, list(dict.fromkeys(table.columns))[:1], rejects))
    except DataError as error:
        assert str(path) in error.message
        return
    assert all(row.line >= 1 for row in rows)
    assert len({row.line for row in rows} | {row["line"] for row in rejects.rows}) == len(rows) + rejects.total

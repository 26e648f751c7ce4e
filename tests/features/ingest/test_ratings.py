"""Ratings without text: which column is what, which lines are malformed, and the benchmark of 2023 with its split."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antpipe.errors import DataError, UsageError
from antpipe.features.ingest.advice import SettingsError
from antpipe.features.ingest.amazon.ratings import FORMATS, find_format, header_roles, parse_row, read_ratings
from antpipe.features.ingest.rejects import Rejects
from antpipe.settings.ingest import AmazonConfig, IngestConfig
from antpipe.store.store import Store
from tests.support.commands import run, unfolded
from tests.support.releases import (
    EVERYTHING,
    UNDESCRIBED,
    ingest_release,
    interactions,
    product,
    publish,
    report,
    review,
)

USER, OTHER = "A1YS9MDZP93857", "A34A1UP40713F8"
ITEM, BOOK = "B00009W3I4", "039473707X"
OF_2014 = f"{USER},{ITEM},5.0,1377129600"
OF_2018 = f"{ITEM},{USER},5.0,1377129600"
OF_2023 = f"{USER},{ITEM},5.0,1588615855070"
HEADER = "user_id,parent_asin,rating,timestamp"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def write(path: Path, *lines: str | bytes) -> Path:
    content = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def named(tmp_path: Path, *lines: str | bytes, wanted: str = "auto") -> str:
    return find_format(write(tmp_path / "Shop.csv", *lines), wanted).name


# -- which column is what -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        ([OF_2014], "ratings-2014"),
        ([OF_2018], "ratings-2018"),
        ([OF_2014, f"{OTHER},{BOOK},1.0,1"] * 50, "ratings-2014"),
        ([OF_2018, f"{BOOK},{OTHER},1.0,1"] * 50, "ratings-2018"),
        ([OF_2023] * 3, "benchmark-2023"),
        ([HEADER, OF_2023], "benchmark-2023"),
        ([f"{HEADER},history", f"{OF_2023},{ITEM} {BOOK}"], "benchmark-2023"),
        (["UserId,ProductId,Rating,Timestamp", OF_2014], "ratings-2014"),
        (["item,user,rating,timestamp", "x,y,5,1"], "ratings-2018"),
        (["user,item,rating,timestamp", "x,y,5,1"], "ratings-2014"),
    ],
)
def test_the_lines_show_the_format(tmp_path: Path, lines: list[str], name: str) -> None:
    assert named(tmp_path, *lines) == name


def test_a_few_lines_without_evidence_or_against_it_do_not_matter(tmp_path: Path) -> None:
    lines = [OF_2018] * 97 + [OF_2014, "somebody,something,1,1", b"\xff", "broken"]
    assert named(tmp_path, *lines) == "ratings-2018"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["u1,i1,5,1", "u2,i2,5,1"], "of the first 2 lines, 0 look like user,item"),
        ([OF_2014, OF_2018], "1 look like user,item,rating,timestamp (release of 2014) and 1 like item,user"),
        ([OF_2014, "u,i,5,1", "u,i,5,2"], "of the first 3 lines, 1 look like user,item"),
        ([f"{ITEM},{BOOK},5,1"], "of the first 1 lines, 0"),
        (["nothing"], "of the first 0 lines"),
        ([OF_2014, OF_2023], "cannot tell the unit of time: of the first 2 lines, 1 look like milliseconds"),
        ([f"{ITEM},{USER},5,1588615855070"], "no release is published like this"),
    ],
)
def test_what_the_lines_do_not_show_is_refused_with_the_flag_that_says_it(
    tmp_path: Path, lines: list[str], said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        named(tmp_path, *lines)
    assert said in caught.value.message
    assert str(tmp_path / "Shop.csv") in caught.value.message
    assert set(caught.value.better) == {"review_format"}


def test_the_flag_decides_if_the_lines_do_not(tmp_path: Path) -> None:
    for name in FORMATS:
        assert named(tmp_path, "u,i,5,1", wanted=name) == name


def test_a_header_that_contradicts_the_flag_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Shop.csv:1: the header user,item,rating,timestamp is not that of"):
        named(tmp_path, HEADER, OF_2023, wanted="ratings-2018")


@pytest.mark.parametrize(
    "line", ["a,b,c,d", OF_2014, "user,rating,item,timestamp", "user,item,rating", "", HEADER + ",x"]
)
def test_other_first_lines_are_not_a_header(line: str) -> None:
    assert header_roles(line.split(",")) is None


# -- what a line says ---------------------------------------------------------------------------------------------


def test_a_line_says_who_what_when_and_how_good() -> None:
    for line, name, milliseconds in (
        (OF_2014, "ratings-2014", 1377129600000),
        (OF_2018, "ratings-2018", 1377129600000),
        (OF_2023, "benchmark-2023", 1588615855070),
        (f"{OF_2023},{BOOK} {ITEM}", "benchmark-2023", 1588615855070),
        (f'"{USER}", {ITEM} ,5.0,1377129600', "ratings-2014", 1377129600000),
    ):
        assert parse_row(line.encode(), FORMATS[name])[1:] == (USER, ITEM, milliseconds, 5.0)
    assert parse_row(f"{USER},{ITEM},,1".encode(), FORMATS["ratings-2014"])[4] is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"a,b,5", "3 column(s), expected 4"),
        (b"a,b,5,1,history", "5 column(s), expected 4"),
        (b",b,5,1", "no user"),
        (b"a, ,5,1", "no item"),
        (b"a,b,6,1", "rating '6': not a number between 0 and 5"),
        (b"a,b,-1,1", "rating '-1'"),
        (b"a,b,nan,1", "rating 'nan'"),
        (b"a,b,good,1", "rating 'good'"),
        (b"a,b,1_0,1", "rating '1_0'"),
        (b"a,b,5,", "timestamp '': not a whole number"),
        (b"a,b,5,1.5", "timestamp '1.5'"),
        (b"a,b,5,-1", "timestamp '-1'"),
        ("a,b,5,\u0661".encode(), "not a whole number"),
        (b"a,b,5,1588615855070", "timestamp 1588615855070: beyond the year 5000 in seconds"),
        (b"a,b,5," + b"9" * 5000, "beyond the year 5000"),
        (b'"a,b,5,1', "unexpected end of data"),
        (b"\xff,b,5,1", "not UTF-8: byte 0"),
    ],
)
def test_a_malformed_line_is_listed_with_its_number_and_reason(
    store: Store, tmp_path: Path, line: bytes, reason: str
) -> None:
    write(tmp_path / "in" / "Shop.csv.gz", OF_2014, line, f"{OTHER},{ITEM},1.0,2")
    config = IngestConfig(min_user=1, min_item=1, keep_without_metadata=True, max_rejects=1)
    ingest_release(store, tmp_path / "in", "Shop", config, options=AmazonConfig(review_format="ratings-2014"))
    (reject,) = store.domain("Shop").table("rejects").to_pylist()
    assert (reject["file"], reject["line"]) == ("Shop.csv.gz", 2)
    assert reason in reject["reason"]
    assert len(interactions(store.domain("Shop"))) == 2
    facts = report(store)["interactions"]
    assert (facts["lines"], facts["kept"], facts["malformed"], facts["duplicate_lines"]) == (3, 2, 1, 0)


@given(st.binary(max_size=40), st.sampled_from(sorted(FORMATS)))
def test_any_bytes_are_a_row_or_malformed(line: bytes, name: str) -> None:
    import csv

    try:
        _, user, item, milliseconds, stars = parse_row(line, FORMATS[name])
    except (ValueError, csv.Error) as error:
        assert str(error)
    else:
        assert user and item and 0 <= milliseconds <= 10**14
        assert stars is None or 0 <= stars <= 5


# -- ratings as a domain ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "line"), [("ratings_Shop.csv", OF_2014), ("Shop.csv", OF_2018), ("Shop.csv.gz", OF_2018)]
)
def test_ratings_become_a_domain(store: Store, tmp_path: Path, messages: list[str], name: str, line: str) -> None:
    write(tmp_path / "in" / name, line, line)
    publish(tmp_path / "in" / "meta_Shop.json.gz", product(ITEM))
    ingest_release(store, tmp_path / "in", "Shop", EVERYTHING)
    assert interactions(store.domain("Shop")) == [(USER, ITEM, 1377129600000, 5.0)]
    assert f"{name}: {FORMATS['ratings-2014' if line == OF_2014 else 'ratings-2018'].about}, 2 lines" in messages
    assert report(store)["interactions"]["duplicate_lines"] == 1


def test_empty_lines_between_ratings_are_no_lines(tmp_path: Path) -> None:
    path, rejects = tmp_path / "Shop.csv", Rejects(0)
    path.write_bytes(b"\n\r\nA000000001,B000000001,5,1\n\n  \nA000000002,B000000001,5,2\n\n")
    rows = list(read_ratings(path, FORMATS["ratings-2014"], rejects, 0))
    assert [row[1] for row in rows] == ["A000000001", "A000000002"]
    assert rejects.total == 0


def test_a_byte_order_mark_is_not_part_of_the_first_id(store: Store, tmp_path: Path) -> None:
    write(tmp_path / "in" / "Shop.csv", b"\xef\xbb\xbf" + OF_2014.encode())
    ingest_release(store, tmp_path / "in", "Shop", UNDESCRIBED)
    assert interactions(store.domain("Shop"))[0][0] == USER
    write(tmp_path / "in" / "Shop.csv", b"\xef\xbb\xbf" + HEADER.encode(), OF_2023)
    ingest_release(store, tmp_path / "in", "Shop", UNDESCRIBED)
    assert report(store)["interactions"]["lines"] == 1


def test_reviews_come_before_ratings_unless_ratings_are_asked_for(
    store: Store, tmp_path: Path, messages: list[str]
) -> None:
    write(tmp_path / "in" / "Shop.csv", OF_2014)
    publish(tmp_path / "in" / "Shop_5.json", review("a", "x"))
    ingest_release(store, tmp_path / "in", "Shop", UNDESCRIBED)
    assert report(store)["interactions"]["file"] == "Shop_5.json"
    assert "Shop.csv: not read, Shop_5.json is read instead" in messages
    ingest_release(store, tmp_path / "in", "Shop", UNDESCRIBED, options=AmazonConfig(files="ratings"))
    assert report(store)["interactions"]["file"] == "Shop.csv"


def test_a_kind_of_file_that_is_not_there_is_refused_with_those_that_are(store: Store, tmp_path: Path) -> None:
    write(tmp_path / "in" / "Shop.csv", OF_2014)
    with pytest.raises(DataError, match="no 5-core file of domain Shop; there: ratings"):
        ingest_release(store, tmp_path / "in", "Shop", UNDESCRIBED, options=AmazonConfig(files="5-core"))


def test_a_format_that_cannot_be_that_of_the_file_is_refused(store: Store, tmp_path: Path) -> None:
    write(tmp_path / "in" / "Shop.csv", OF_2014)
    with pytest.raises(UsageError, match=r"--review-format reviews-2018: Shop\.csv is comma-separated"):
        ingest_release(store, tmp_path / "in", "Shop", UNDESCRIBED, options=AmazonConfig(review_format="reviews-2018"))


@pytest.mark.parametrize(("content", "said"), [([], "Shop.csv: empty"), ([HEADER], "no line is usable")])
def test_a_table_without_lines_is_refused(store: Store, tmp_path: Path, content: list[str], said: str) -> None:
    write(tmp_path / "in" / "Shop.csv", *content)
    options = AmazonConfig(review_format="benchmark-2023")
    with pytest.raises(DataError, match=said):
        ingest_release(store, tmp_path / "in", "Shop", UNDESCRIBED, options=options)


# -- the benchmark of 2023 ----------------------------------------------------------------------------------------


def publish_split(folder: Path, history: bool = False, header: str = HEADER) -> Path:
    """Users A and B (of three and two items), the last one test, the one before validation."""
    rows = {
        "train": [f"{USER},B00000000A,4.0,1500000000001"],
        "valid": [f"{USER},B00000000B,5.0,1500000000002", f"{OTHER},B00000000A,5.0,1500000000001"],
        "test": [f"{USER},B00000000C,1.0,1500000000002", f"{OTHER},B00000000B,5.0,1500000000003"],
    }
    for name, lines in rows.items():
        told = [f"{line},B00000000A" for line in lines] if history else lines
        write(folder / f"Shop.{name}.csv.gz", f"{header}{',history' if history else ''}", *told)
    return folder


@pytest.mark.parametrize("place", ["", "benchmark/5core/last_out", "0core/timestamp", "benchmark/5core/last_out_w_his"])
def test_the_parts_of_a_benchmark_become_one_table_that_keeps_the_split(
    store: Store, tmp_path: Path, messages: list[str], place: str
) -> None:
    publish_split(tmp_path / "in" / place, history="w_his" in place)
    ingest_release(store, tmp_path / "in", "Shop", UNDESCRIBED)
    domain = store.domain("Shop")
    assert [(row["user"], row["item"], row["split"]) for row in domain.table("interactions").to_pylist()] == [
        (0, 0, 0),
        (0, 1, 1),
        (0, 2, 2),
        (1, 0, 1),
        (1, 1, 2),
    ]
    assert any("build-sequences keeps their split" in line for line in messages)
    facts = report(store)["interactions"]
    assert facts["file"] == "Shop.train.csv.gz, Shop.valid.csv.gz, Shop.test.csv.gz"
    assert [part["lines"] for part in facts["parts"]] == [1, 2, 2]
    outcome = run("build-sequences", "--domains", "Shop", "--store", store.root)
    assert ", 1 to validate, 2 to test" in unfolded(outcome.out), outcome.err


def test_a_part_that_is_missing_is_refused_by_name(store: Store, tmp_path: Path) -> None:
    publish_split(tmp_path / "in")
    (tmp_path / "in" / "Shop.valid.csv.gz").unlink()
    with pytest.raises(DataError, match=r"Shop.train.csv.gz, Shop.test.csv.gz without Shop.valid.csv"):
        ingest_release(store, tmp_path / "in", "Shop", UNDESCRIBED)


def test_of_several_benchmarks_the_5_core_is_read_unless_another_is_named(store: Store, tmp_path: Path) -> None:
    publish_split(tmp_path / "in" / "benchmark" / "5core" / "last_out")
    write(tmp_path / "in" / "benchmark" / "0core" / "rating_only" / "Shop.csv", HEADER, OF_2023)
    ingest_release(store, tmp_path / "in", "Shop", UNDESCRIBED)
    assert report(store)["interactions"]["lines"] == 5
    options = AmazonConfig(benchmark="0core/rating_only")
    ingest_release(store, tmp_path / "in", "Shop", UNDESCRIBED, options=options)
    assert report(store)["interactions"]["lines"] == 1
    assert "split" not in store.domain("Shop").table("interactions").column_names


def test_a_part_without_lines_is_fine(store: Store, tmp_path: Path) -> None:
    publish_split(tmp_path / "in")
    write(tmp_path / "in" / "Shop.valid.csv.gz", HEADER)
    ingest_release(store, tmp_path / "in", "Shop", UNDESCRIBED)
    assert [part["lines"] for part in report(store)["interactions"]["parts"]] == [1, 0, 2]


def test_metadata_of_2023_go_with_the_benchmark(store: Store, tmp_path: Path) -> None:
    publish_split(tmp_path / "in")
    publish(tmp_path / "in" / "meta_Shop.json.gz", product("B00000000A"))
    publish(tmp_path / "in" / "meta_Shop.jsonl.gz", {"parent_asin": "B00000000A", "title": "New"})
    ingest_release(store, tmp_path / "in", "Shop", EVERYTHING)
    assert report(store)["items"]["file"] == "meta_Shop.jsonl.gz"

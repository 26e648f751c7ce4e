"""`ingest amazon`: malformed lines, and the errors that leave the store as it was."""

import errno
import gzip
import math
import os
import shlex
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antpipe.cli import main
from antpipe.errors import DataError, UsageError
from antpipe.features.ingest.amazon.json_lines import MALFORMED, decode
from antpipe.features.ingest.amazon.reviews import Review2018
from antpipe.features.ingest.amazon.spill import Spill
from antpipe.settings.ingest import IngestConfig
from antpipe.store.store import Store
from tests.support.releases import (
    EVERYTHING,
    Line,
    encode,
    ingest_release,
    interactions,
    items,
    product,
    publish,
    review,
    small_shop,
    snapshot,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_shop(tmp_path / "source")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# -- malformed lines ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"reviewerID": "a", "asin"', "not JSON"),
        (b"<html>", "not JSON"),
        (b"[1]", "Expected `object`"),
        (b"{'reviewerID': open('x')}", "not JSON"),
        (encode(review("a", "x")).rstrip() + b" trailing", "not JSON"),
        (b'{"reviewerID": "\xff", "asin": "x", "unixReviewTime": 1}', "not UTF-8"),
        (b'{"reviewerID": "a", "asin": "x", "unixReviewTime": 1, "reviewText": "\xff"}', "not UTF-8"),
        (b'{"reviewerID": "a", "asin": "x", "unixReviewTime": 1, "style": ' + b"[" * 100_000, "not JSON"),
        ({"asin": "x", "unixReviewTime": 1}, "reviewerID"),
        ({"reviewerID": "a", "unixReviewTime": 1}, "asin"),
        ({"reviewerID": "a", "asin": "x"}, "unixReviewTime"),
        (review("", "x"), "length >= 1"),
        (review("a", None), "asin"),  # type: ignore[arg-type]
        (review("a", "x", "1"), "unixReviewTime"),  # type: ignore[arg-type]
        (review("a", "x", -1), "unixReviewTime"),
        (review("a", "x", 1_500_000_000_000), "unixReviewTime"),
        (review("a", "x", 10**30), "unixReviewTime"),
        (review("a", "x", overall="5"), "overall"),
        (review("a", "x", overall=6.0), "overall"),
        (b'{"reviewerID": "a", "asin": "x", "unixReviewTime": NaN}', "unixReviewTime"),
    ],
)
def test_a_malformed_review_is_listed_with_its_line_and_reason(
    store: Store, source: Path, line: Line | bytes, reason: str
) -> None:
    publish(source / "Shop_5.json.gz", review("a", "x"), line, review("b", "x"))
    ingest_release(store, source, "Shop", IngestConfig(min_user=1, min_item=1, max_rejects=1))
    (reject,) = store.domain("Shop").table("rejects").to_pylist()
    assert (reject["file"], reject["line"]) == ("Shop_5.json.gz", 2)
    assert reason in reject["reason"]
    assert len(reject["excerpt"]) <= 200
    assert len(interactions(store.domain("Shop"))) == 2


@pytest.mark.parametrize(
    "line",
    [
        {"title": "no id"},
        product(""),
        product("q", title=3),
        product("q", category=[1]),
        product("q", price=True),
        b"{",
    ],
)
def test_malformed_metadata_are_listed_as_well(store: Store, source: Path, line: Line | bytes) -> None:
    publish(source / "meta_Shop.json.gz", line, product("x"))
    ingest_release(store, source, "Shop", IngestConfig(min_user=1, min_item=1, max_rejects=1))
    (reject,) = store.domain("Shop").table("rejects").to_pylist()
    assert (reject["file"], reject["line"]) == ("meta_Shop.json.gz", 1)


def test_a_missing_rating_is_kept_as_missing(store: Store, source: Path) -> None:
    line = review("a", "x", 1)
    del line["overall"]
    publish(source / "Shop_5.json.gz", line, review("a", "y", 2, overall=None), review("b", "x", 3, overall=math.nan))
    ingest_release(store, source, "Shop", EVERYTHING)
    assert [row[3] for row in interactions(store.domain("Shop"))] == [None, None, None]


def test_half_a_surrogate_pair_in_a_text_does_not_cost_the_line(store: Store, source: Path) -> None:
    publish(source / "Shop_5.json.gz", review("a", "x", reviewText="\ud83d"))
    publish(source / "meta_Shop.json.gz", product("x", title="Card \ud83d"))
    ingest_release(store, source, "Shop", EVERYTHING)
    assert items(store.domain("Shop"))["x"]["title"] == "Card ?"


def test_all_malformed_lines_are_counted_before_more_are_to_be_allowed(store: Store, source: Path) -> None:
    lines = [review("a", "x"), b"first bad", b"second bad", b"third bad"]
    path = publish(source / "Shop_5.json.gz", *lines)
    with pytest.raises(DataError) as raised:
        ingest_release(store, source, "Shop", IngestConfig(min_user=1, min_item=1, max_rejects=1))
    assert raised.value.message.startswith("3 malformed lines, 1 allowed")
    assert f"{path}:2: not JSON" in raised.value.message
    assert raised.value.next_command == (
        f"antpipe ingest amazon --domains Shop --store {store.root} --source {source}"
        " --min-user 1 --min-item 1 --max-rejects 3"
    )


@given(st.binary(max_size=60))
def test_any_line_is_a_record_or_malformed(line: bytes) -> None:
    try:
        record = decode(line, msgspec.json.Decoder(Review2018))
    except MALFORMED as error:
        assert str(error) or error.args == ()
    else:
        assert record.user and record.item


# -- errors that leave the store alone ------------------------------------------------------------------------


def assert_refused(store: Store, source: Path, config: IngestConfig, *parts: str) -> DataError:
    """The run is refused with a message of these parts and a next command, and the store is as before."""
    before = snapshot(store.root)
    with pytest.raises(DataError) as raised:
        ingest_release(store, source, "Shop", config, force=True)
    assert snapshot(store.root) == before
    for part in parts:
        assert part in raised.value.message
    assert raised.value.exit_code == 3
    assert raised.value.next_command
    return raised.value


@pytest.fixture
def filled(store: Store, source: Path) -> Store:
    """A store that holds the domain already."""
    ingest_release(store, source, "Shop", EVERYTHING)
    return store


def test_a_missing_folder_is_refused(filled: Store, tmp_path: Path) -> None:
    assert_refused(filled, tmp_path / "nowhere", EVERYTHING, str(tmp_path / "nowhere"), "no such folder")


def test_a_missing_review_file_names_the_domains_that_are_there(filled: Store, source: Path) -> None:
    (source / "Shop_5.json.gz").unlink()
    publish(source / "Books_5.json.gz", review("a", "x"))
    publish(source / "reviews_Toys.json", review("a", "x"))
    error = assert_refused(filled, source, EVERYTHING, "no review file of domain Shop", "Books,Toys")
    assert error.next_command and "--domains Books,Toys" in error.next_command


def test_a_missing_metadata_file_is_refused_with_a_command_that_does_without(filled: Store, source: Path) -> None:
    (source / "meta_Shop.json.gz").unlink()
    error = assert_refused(filled, source, EVERYTHING, "no metadata file", "meta_Shop.json.gz")
    assert error.next_command and error.next_command.endswith("--keep-without-metadata")


@pytest.mark.parametrize("name", ["Shop_5.json.gz", "meta_Shop.json.gz"])
@pytest.mark.parametrize("content", [b"", gzip.compress(b"")], ids=["no byte", "no line"])
def test_an_empty_file_is_refused(filled: Store, source: Path, name: str, content: bytes) -> None:
    (source / name).write_bytes(content)
    assert_refused(filled, source, EVERYTHING, f"{source / name}: empty")


@pytest.mark.parametrize("name", ["Shop_5.json.gz", "meta_Shop.json.gz"])
def test_a_file_without_a_good_line_is_refused(filled: Store, source: Path, name: str) -> None:
    publish(source / name, b"one", b"two")
    config = IngestConfig(min_user=1, min_item=1, max_rejects=100)
    assert_refused(filled, source, config, f"{source / name}:1: not JSON", "no line of 2 is usable")


def test_a_truncated_file_tells_how_many_lines_were_good(filled: Store, source: Path) -> None:
    lines = [review(f"user {n}", f"item {n * n}", n, reviewText=str(n**9)) for n in range(2000)]
    whole = gzip.compress(encode(*lines))
    (source / "Shop_5.json.gz").write_bytes(whole[: len(whole) // 2])
    error = assert_refused(filled, source, EVERYTHING, str(source / "Shop_5.json.gz"), "break off")
    good = int(error.message.split(" after ")[1].split()[0])
    assert 500 < good < 1500


def test_damaged_gzip_data_are_refused(filled: Store, source: Path) -> None:
    content = bytearray((source / "Shop_5.json.gz").read_bytes())
    content[20:40] = bytes(20)
    (source / "Shop_5.json.gz").write_bytes(content)
    assert_refused(filled, source, EVERYTHING, str(source / "Shop_5.json.gz"), "corrupt gzip data")


def test_a_gz_file_that_is_not_compressed_is_refused(filled: Store, source: Path) -> None:
    (source / "Shop_5.json.gz").write_bytes(encode(review("a", "x")))
    assert_refused(filled, source, EVERYTHING, "corrupt gzip data", "Not a gzipped file")


def test_one_endless_line_is_refused(filled: Store, source: Path) -> None:
    publish(source / "Shop_5.json.gz", b"[" + b" " * (17 << 20))
    assert_refused(filled, source, EVERYTHING, "Shop_5.json.gz:1: longer than 16 MiB")


def test_a_malformed_line_is_refused_by_default(filled: Store, source: Path) -> None:
    path = publish(source / "meta_Shop.json.gz", product("x"), b"{")
    assert_refused(filled, source, EVERYTHING, f"{path}:2: not JSON")


def assert_command_mends(error: DataError) -> None:
    """The next command, as it is printed, gives a domain."""
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(str(error.next_command))[1:])
    assert ended.value.code == 0


def test_a_k_core_that_leaves_nothing_is_refused_with_the_numbers_and_a_weaker_one(store: Store, source: Path) -> None:
    error = assert_refused(
        store,
        source,
        IngestConfig(repeats="keep-first"),
        "domain Shop: no interaction is left. Of 3 distinct lines, 0 repeat an item of the same user (keep-first), 0 "
        "have items without metadata, and 3 have users with fewer than 5 interactions or items with fewer than 5",
    )
    assert error.next_command and error.next_command.endswith("--repeats keep-first --min-user 1 --min-item 1")
    assert_command_mends(error)


def test_metadata_of_other_items_are_refused_with_a_command_that_keeps_the_items(store: Store, source: Path) -> None:
    publish(source / "meta_Shop.json.gz", product("other"))
    error = assert_refused(
        store, source, EVERYTHING, "no interaction is left", "3 have items without metadata (do both files use"
    )
    assert error.next_command and error.next_command.endswith("--min-user 1 --min-item 1 --keep-without-metadata")
    assert_command_mends(error)


def test_a_domain_of_which_nothing_is_left_stays_as_it_was(filled: Store, source: Path) -> None:
    assert_refused(filled, source, IngestConfig(), "no interaction is left")


def test_a_refused_domain_leaves_no_folder(store: Store, source: Path) -> None:
    assert_refused(store, source, IngestConfig(), "no interaction is left")
    assert snapshot(store.root) == {}


def test_a_domain_name_that_is_a_path_is_refused(store: Store, source: Path) -> None:
    with pytest.raises(UsageError, match="domain name"):
        ingest_release(store, source, "../Shop", EVERYTHING)


def test_a_full_disk_while_lines_are_read_is_told_with_the_folder(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Spill, "read", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        ingest_release(store, source, "Shop", EVERYTHING)
    assert caught.value.filename == str(store.root.parent / "temporary file")

"""Lines of plain and gzip files: the same in any pieces, and never wrong ones if a file is damaged."""

import gzip
import random
import threading
from itertools import islice
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antpipe.errors import DataError
from antpipe.features.ingest import lines as module
from antpipe.features.ingest.amazon import metadata
from antpipe.features.ingest.amazon.json_lines import MALFORMED, decode, decode_block
from antpipe.features.ingest.amazon.reviews import Review2018
from antpipe.features.ingest.lines import block_of, line_hashes, read_blocks, read_lines
from antpipe.runtime.logs import log
from antpipe.settings.ingest import AmazonConfig, IngestConfig
from antpipe.store.store import Store
from tests.support.releases import encode, ingest_release, product, publish, review

EVERYTHING = IngestConfig(min_user=1, min_item=1, keep_without_metadata=True)
# Pieces of which some lines are whole objects, some hold two, and some are completed by the next one only.
PIECES = st.sampled_from(
    [
        encode(review("a", "x")).rstrip(),
        encode(review("b", "é")).rstrip(),
        b"{}",
        b"{",
        b"}",
        b"",
        b" ",
        b"\r",
        b"[{}",
        b'{"reviewerID":"c","asin":"y","unixReviewTime":1}',
        b'{"reviewerID":"d","asin":',
        b'"z","unixReviewTime":1}',
        b'{"reviewerID":"e","asin":"y","more":"}',
        b'{","unixReviewTime":1}',
        b'{"reviewerID":"f","asin":"y","more":[{}',
        b'{}],"unixReviewTime":1}',
        b",",
        b'"',
        b"\xff",
        b"null",
    ]
)
DECODER = msgspec.json.Decoder(Review2018)


@settings(deadline=None)
@given(st.lists(st.lists(PIECES, min_size=1, max_size=3).map(b"".join), min_size=1, max_size=6))
def test_a_block_is_decoded_as_its_lines_are_or_not_at_all(lines: list[bytes]) -> None:
    found = decode_block(block_of(lines), DECODER)
    if found is not None:
        assert found == [decode(line, DECODER) for line in lines]


def test_two_objects_in_a_line_and_one_over_two_lines_are_not_decoded_as_a_block() -> None:
    one = b'{"reviewerID":"a","asin":"x","unixReviewTime":1}'
    for end in (
        b"\n}",
        b',"m":[{}\n]}',
        b',"m":[{}\n{}]}',
        b',"m":[{},\n{}]}',
        b',"m":"}\n{"}',
        b',"m":{"}\n{":1}}',
        b',"m":\n{}}',
    ):
        assert decode_block(block_of([one + one, *(one[:-1] + end).split(b"\n")]), DECODER) is None
    assert decode_block(block_of([one, one]), DECODER) is not None


def test_good_blocks_of_real_reviews_are_decoded_in_one_go(real_data: Path) -> None:
    for block in read_blocks(real_data / "amazon2018" / "Gift_Cards_5.json.gz"):
        assert decode_block(block, DECODER) is not None


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.sampled_from([b"", b"a", b"bcd", b"\r", b"x" * 40]), max_size=8),
    st.integers(1, 30),
    st.booleans(),
    st.booleans(),
)
def test_lines_are_the_same_in_whatever_pieces_they_are_read(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], at_once: int, packed: bool, ended: bool
) -> None:
    content = b"\n".join(lines) + b"\n" * ended
    path = tmp_path_factory.mktemp("lines") / ("lines.gz" if packed else "lines")
    path.write_bytes(gzip.compress(content) if packed else content)
    whole = content.split(b"\n")
    if not whole[-1]:  # the last line has its end
        whole.pop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AT_ONCE", at_once)
        assert list(read_lines(path)) == [line.rstrip(b"\r") for line in whole]


def test_equal_lines_have_equal_hashes_wherever_they_stand() -> None:
    lines = [b"first", b"", b"a line that is longer than the others", b"first", b"firs"]
    hashes = line_hashes(block_of(lines)).to_list()
    assert hashes[0] == hashes[3]
    assert len(set(hashes)) == 4
    assert [line_hashes(block_of([line]))[0] for line in lines] == hashes


@pytest.mark.parametrize(
    "content",
    [gzip.compress(b"a\nb\n") + gzip.compress(b"c\n"), gzip.compress(b"a\nb\nc\n") + bytes(600)],
    ids=["members", "zeros"],
)
def test_several_gzip_members_and_zeros_at_the_end_are_read_like_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gz").write_bytes(content)
    assert list(read_lines(tmp_path / "x.gz")) == [b"a", b"b", b"c"]


def test_rubbish_after_the_gzip_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"a\nb\n") + b"rubbish")
    with pytest.raises(DataError, match="after 2 good lines"):
        list(read_lines(tmp_path / "x.gz"))


@pytest.mark.realdata
@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_published_file_is_refused_or_reads_as_it_was(real_data: Path, tmp_path: Path, damage: str) -> None:
    packed = (real_data / "amazon2018" / "Appliances_5.json.gz").read_bytes()
    true, chance, refused = gzip.decompress(packed).splitlines(), random.Random(damage), 0
    for _ in range(40):
        at = chance.randrange(len(packed))
        wrong = bytes([packed[at] ^ 1 << chance.randrange(8)]) + packed[at + 1 :] if damage == "flipped" else b""
        (tmp_path / "x.json.gz").write_bytes(packed[:at] + wrong)
        try:
            found = list(read_lines(tmp_path / "x.json.gz"))
        except DataError as error:
            refused += 1
            assert str(tmp_path / "x.json.gz") in error.message
            assert error.next_command
        else:
            assert found == (true if at or damage == "flipped" else [])  # the name or the time in the header
    assert refused > 30


@pytest.mark.realdata
def test_a_damaged_published_file_leaves_the_store_as_it_was(real_data: Path, tmp_path: Path) -> None:
    packed = bytearray((real_data / "amazon2018" / "Gift_Cards_5.json.gz").read_bytes())
    packed[len(packed) // 2] ^= 16
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "Shop_5.json.gz").write_bytes(packed)
    with pytest.raises(DataError, match="gzip data"):
        ingest_release(Store(tmp_path / "store"), tmp_path / "in", "Shop", EVERYTHING)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_reader_closed_early_leaves_no_thread(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"a line\n" * 10**6))
    before = threading.active_count()
    assert list(islice(read_lines(tmp_path / "x.gz"), 2)) == [b"a line"] * 2
    assert threading.active_count() == before


def test_many_blocks_give_what_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)
    rows = [review(f"A{chance.randrange(40)}", f"B{chance.randrange(30)}", chance.randrange(10**6)) for _ in range(400)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "Shop.json").write_bytes(encode(*rows, *rows[::7]) + b"no review\n" + encode(*rows[::5]))
    rules = IngestConfig(min_user=2, min_item=2, keep_without_metadata=True, max_rejects=1)
    tables = []
    for at_once in (1 << 22, 1 << 10):
        monkeypatch.setattr(module, "AT_ONCE", at_once)
        store = Store(tmp_path / f"store{at_once}")
        ingest_release(store, tmp_path / "in", "Shop", rules)
        domain = store.domain("Shop")
        assert domain.entry("items")["report"]["interactions"]["duplicate_lines"] == len(rows[::7]) + len(rows[::5])
        tables.append([domain.table(name).to_pylist() for name in ("users", "items", "interactions", "rejects")])
    assert tables[0] == tables[1]
    assert tables[0][3][0]["line"] == len(rows) + len(rows[::7]) + 1


def test_a_catalogue_is_the_same_however_many_items_are_kept_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path / "Shop_5.json", *(review("a", f"B{n}", n) for n in range(7)))
    publish(tmp_path / "meta_Shop.json", *(product(f"B{n}", price=f"${n}.50") for n in range(7)), product("B3"))
    tables = []
    for rows in (10_000, 3):
        monkeypatch.setattr(metadata, "ROWS_AT_ONCE", rows)
        store = Store(tmp_path / f"store{rows}")
        ingest_release(store, tmp_path, "Shop", IngestConfig(min_user=1, min_item=1))
        tables.append(store.domain("Shop").table("items").to_pylist())
    assert tables[0] == tables[1]
    assert len(tables[0]) == 7


def test_working_files_have_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Shop.json").write_bytes(encode(*(review("a", f"B{n}", n) for n in range(9))))
    seen: list[str] = []
    monkeypatch.setattr(log, "info", lambda _: seen.extend(path.name for path in tmp_path.iterdir()))
    store, options = Store(tmp_path / "store"), AmazonConfig(limit=5)
    ingest_release(store, tmp_path, "Shop", EVERYTHING, options=options, dry_run=True)
    assert set(seen) == {"Shop.json"}


def test_a_line_that_is_malformed_by_itself_is_malformed_in_a_block() -> None:
    for line in (
        b'{"reviewerID":"a","asin":"x","unixReviewTime":1,"z":"\xff"}',
        b'{"reviewerID":"a","asin":"x"}',
        b"{}",
    ):
        with pytest.raises(MALFORMED):
            decode(line, DECODER)
        assert decode_block(block_of([line]), DECODER) is None

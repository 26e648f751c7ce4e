"""Reading reviews in several threads and many lines at a time: the same as line by line, and nothing left behind."""

import gzip
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antpipe.errors import DataError
from antpipe.features.ingest import lines as lines_module
from antpipe.features.ingest.amazon import json_lines, metadata
from antpipe.features.ingest.amazon.json_lines import MALFORMED, decode, read_records, require_utf8
from antpipe.features.ingest.amazon.reviews import Review2018, review_layout
from antpipe.features.ingest.lines import WAITING, ahead, block_of, join
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest_amazon import hashing
from antpipe.store.files import file_sha256
from antpipe.store.store import Store
from tests.features.ingest.test_ingest_amazon_fuzz import NOISE, mutate
from tests.support.releases import UNDESCRIBED, encode, ingest_release, product, publish, review, small_shop, snapshot

DECODER = msgspec.json.Decoder(Review2018)
# Lines that are good or bad for reasons that only one of the two ways of decoding could miss.
ODD = st.sampled_from(
    [
        b'{"reviewerID":"a","asin":"x","unixReviewTime":1,"t":"\xff"}',
        b'{"reviewerID":"a","asin":"x"}',
        b"{}",
        b"",
        b'{"reviewerID":"a","asin":"x","unixReviewTime":1,"t":"\xed\xa0\xbd"}',
        b"null",
        b"[]",
        b"{",
        b"}",
        b"\r",
        b'{"reviewerID":"a","asin":"x","unixReviewTime":1,"t":"\\ud83d"}',
        b'{"reviewerID":"\\ud83d","asin":"x"}',
        b'{"reviewerID":"\\ud83d","asin":"x","unixReviewTime":1}',
        b'{"asin":"x","reviewerID":"a","unixReviewTime":1.0}',
        b'{"reviewerID":"a","reviewerID":"b","asin":"x","unixReviewTime":1}',
        b'{"reviewerID":"a","asin":"","u":1}',
        b'{"reviewerID":"a","asin":"x","unixReviewTime":1,"overall":NaN}',
        b'{"reviewerID":"a","asin":"x","z":1e999}',
        b'{"reviewerID":"a","asin":"x","unixReviewTime":1,"t":99999999999999999999999999}',
        b'{"reviewerID":"a","asin":"x","unixReviewTime":1,"t":1e999}',
        b'{"reviewerID":"a","asin":"x","t":NaN}',
        b'{"reviewerID":"a","asin":"x","unixReviewTime":1,"t":NaN}',
        b'{"reviewerID":"a","asin":"x","t":01}',
        b'{"reviewerID":"a","asin":"x","unixReviewTime":99999999999999999999}',
        b'{"reviewerID":1,"asin":"x"}',
        b'{"reviewerID":"a","asin":"x","unixReviewTime":-1}',
        b'{"reviewerID":"a","asin":"x","unixReviewTime":"1"}',
        b'{"reviewerID":"a","asin":"x","unixReviewTime":1,"overall":5.1}',
        b'\xef\xbb\xbf{"reviewerID":"a","asin":"x"}',
        b'{"reviewerID":"a","asin":"x","unixReviewTime":1,"overall":null}',
        b'{"reviewerID":"a","asin":"x","t":"\t"}',
        b'{"reviewerID":"a","asin":"x","unixReviewTime":1,"t":"\t"}',
        b'{"reviewerID":"a\x00","asin":"x"}',
        b'{"reviewerID":"a","asin":"x","unixReviewTime":1}{"reviewerID":"a","asin":"x","unixReviewTime":1}',
        b' {"reviewerID":"a","asin":"x","unixReviewTime":1} ',
        b"{'reviewerID':'a','asin':'x','unixReviewTime':1}",
        b'{"reviewerID":"a","asin":"x","unixReviewTime":1,}',
        b'{"reviewerID":"a","asin":"x","unixReviewTime":1}\r',
    ]
)


def one_by_one(lines: list[bytes]) -> tuple[list[Review2018], list[bytes], list[int]]:
    """Records of good lines, these lines, and the numbers of the others, as `decode` sees each."""
    records, good, bad = [], [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(decode(line, DECODER))
            good.append(line)
        except MALFORMED:
            bad.append(number)
    return records, good, bad


@settings(deadline=None, max_examples=200)
@given(
    st.lists(NOISE | ODD, max_size=8),
    st.randoms(use_true_random=False),
    st.sampled_from([1, 2, 5, 1000]),
    st.sampled_from([64, 500, 1 << 22]),
    st.integers(0, 25),
)
def test_blocks_are_decoded_and_refused_as_single_lines_are(
    tmp_path_factory: pytest.TempPathFactory,
    odd: list[bytes],
    chance: random.Random,
    piece: int,
    at_once: int,
    limit: int,
) -> None:
    good = [
        encode(review(f"A{n}é", f"B{n}", n, reviewText="ten\u00e9 \U0001f600" * (n % 3))).rstrip() for n in range(12)
    ]
    lines = [
        *good,
        *chain.from_iterable(line.split(b"\n") for line in odd),
        *(mutate(line, chance) for line in good[:4]),
    ]
    lines = list(chain.from_iterable(line.split(b"\n") for line in lines))
    chance.shuffle(lines)
    path = tmp_path_factory.mktemp("lines") / "lines.json.gz"
    path.write_bytes(gzip.compress(b"".join(line + b"\n" for line in lines)))
    last = [at for at, line in enumerate(lines) if line.strip(b"\r")][:limit][-1] if limit else None
    wanted = [line.rstrip(b"\r") for line in lines[: None if last is None else last + 1]]
    records, kept, bad = one_by_one(wanted)
    rejects, found, texts = Rejects(1000), [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "AT_ONCE", at_once)
        patch.setattr(json_lines, "PIECE", piece)
        try:
            for block, some in read_records(path, lambda _: Review2018, list, rejects, limit):
                found += chain.from_iterable(some)
                texts += block.lines()
        except DataError as error:
            assert "is usable" in error.message
            assert not records
    assert found == records
    assert texts == kept
    assert [row["line"] for row in rejects.rows] == bad
    assert all(row["reason"] for row in rejects.rows)


@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode) | st.sampled_from([b"\xed\xa0\x80", b"\xc0\x80"]))
def test_a_block_is_utf8_if_python_can_decode_it(content: bytes) -> None:
    try:
        content.decode()
    except UnicodeDecodeError:
        with pytest.raises(MALFORMED):
            require_utf8(np.frombuffer(content, np.uint8))
    else:
        require_utf8(np.frombuffer(content, np.uint8))


def test_a_malformed_line_does_not_slow_down_the_lines_far_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "Shop.json"
    path.write_bytes(encode(*(review("a", f"B{n}") for n in range(50)), b"bad", *(review("b", "x") for _ in range(50))))
    monkeypatch.setattr(json_lines, "PIECE", 10)
    looked_at: list[bytes] = []
    monkeypatch.setattr(json_lines, "decode", lambda line, decoder: looked_at.append(line) or decode(line, decoder))
    rejects = Rejects(1)
    found = [some for _, pieces in read_records(path, review_layout, list, rejects) for some in pieces]
    assert sum(map(len, found)) == 100
    assert len(looked_at) == 10 + 10  # those before the release was known, and those around the bad one
    assert rejects.rows[0]["line"] == 51


def test_blocks_are_joined_line_after_line() -> None:
    parts = [[b"a", b""], [], [b"bcd"]]
    whole = join([block_of(part) for part in parts])
    assert whole.lines() == [b"a", b"", b"bcd"]
    assert whole.ends.tolist() == [1, 2, 6]
    assert whole.part(1, 9).lines() == [b"", b"bcd"]


# -- threads --------------------------------------------------------------------------------------------------


def counted(made: list[int], last: int, error: Exception | None = None) -> Generator[int, None, None]:
    try:
        for number in range(1, last + 1):
            made.append(number)
            yield number
        if error:
            raise error
    finally:
        made.append(-1)


def test_values_made_ahead_come_in_order_and_are_limited() -> None:
    made: list[int] = []
    coming = ahead(counted(made, 20))
    assert list(islice(coming, 5)) == [1, 2, 3, 4, 5]
    time.sleep(0.05)
    assert len(made) <= 5 + WAITING
    assert list(coming) == list(range(6, 21))
    assert made == [*range(1, 21), -1]


def test_an_error_comes_after_the_values_before_it() -> None:
    coming = ahead(counted([], 4, ValueError("at the end")))
    assert [next(coming) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="at the end"):
        next(coming)


def test_closing_early_ends_the_thread_and_its_work() -> None:
    before, made = threading.active_count(), []
    coming = ahead(ahead(counted(made, 10**6)))
    assert next(coming) == 1
    coming.close()
    assert made[-1] == -1
    assert threading.active_count() == before


class ShutdownInterrupted(ThreadPoolExecutor):
    """Ctrl-C comes while the end of its thread is waited for."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        assert wait
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        raise KeyboardInterrupt


def test_a_second_interruption_while_the_thread_works_stays_a_keyboard_interrupt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def work() -> Generator[int, None, None]:
        yield 1
        inside.set()
        go_on.wait(10)

    pool = ShutdownInterrupted(1)
    monkeypatch.setattr(lines_module, "ThreadPoolExecutor", lambda _: pool)
    coming = ahead(work())
    assert next(coming) == 1
    assert inside.wait(10)
    try:
        with pytest.raises(KeyboardInterrupt):
            coming.close()
    finally:
        go_on.set()
        ThreadPoolExecutor.shutdown(pool)


def test_an_error_while_metadata_are_read_leaves_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "meta_Shop.json.gz"
    publish(path, product("x"))
    before = threading.active_count()

    def fail(*_: object) -> None:
        raise RuntimeError("on the way")

    monkeypatch.setattr(metadata, "describe", fail)
    with pytest.raises(RuntimeError, match="on the way") as caught:
        metadata.read_metadata(path, ("title",), Rejects(0), {"x"})
    assert threading.active_count() == before, caught  # whose traceback holds what was on the way


SLOWLY = """
import time
from antpipe.features.ingest.amazon import json_lines
whole = json_lines.decode_block
def slowly(block, decoder):
    print("reading", flush=True)
    time.sleep(0.05)
    return whole(block, decoder)
json_lines.decode_block = slowly
from antpipe.cli import main
main()
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_a_run_that_is_stopped_while_it_reads_leaves_the_store_as_it_was(tmp_path: Path, stop: signal.Signals) -> None:
    source, store = tmp_path / "in", Store(tmp_path / "store")
    publish(source / "Shop_5.json.gz", review("a", "x"))
    ingest_release(store, source, "Shop", UNDESCRIBED)
    before = snapshot(store.root)
    publish(source / "Shop_5.json.gz", *(review("b", f"B{n}", reviewText="long " * 50) for n in range(100_000)))
    words = [
        "ingest",
        "amazon",
        "--source",
        str(source),
        "--domains",
        "Shop",
        "--store",
        str(store.root),
        "--force",
        "--keep-without-metadata",
        "--min-user",
        "1",
        "--min-item",
        "1",
    ]
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        process.send_signal(stop)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == (130 if stop == signal.SIGINT else -signal.SIGKILL), said
    assert time.monotonic() - began < 30
    assert snapshot(store.root) == before


def test_files_are_hashed_while_they_are_read_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * (10 << 20))
    with hashing(paths) as hashes:
        assert hashes() == {path: file_sha256(path) for path in paths}
    before, begun = threading.active_count(), threading.Event()
    opened: list[Path] = []
    plain = Path.open

    def opening(path: Path, mode: str) -> IO[Any]:
        opened.append(path)
        begun.set()
        return plain(path, mode)

    monkeypatch.setattr(Path, "open", opening)
    with pytest.raises(RuntimeError, match="on the way"), hashing(paths * 1000):
        assert begun.wait(10)
        raise RuntimeError("on the way")
    assert threading.active_count() == before
    assert len(opened) < 2000
    monkeypatch.undo()
    with hashing([tmp_path / "none"]) as hashes, pytest.raises(DataError, match="none: cannot be read"):
        hashes()


LOADED = """
import sys
from pathlib import Path
from antpipe.settings.ingest import IngestConfig; from antpipe.settings.features import SequenceConfig
from antpipe.features.build_sequences import build_sequences
from antpipe.features.ingest.amazon.files import Release
from antpipe.features.ingest_amazon import ingest_amazon
from antpipe.store.store import Store
source, store = Path(sys.argv[1]), Store(Path(sys.argv[2]))
ingest_amazon(Release(store, source, "Shop", IngestConfig(min_user=1, min_item=1)))
build_sequences(store, ["Shop"], SequenceConfig())
print(*sorted({"pandas", "pyarrow.dataset", "torch"} & set(sys.modules)))
"""


def test_reading_and_building_sequences_load_no_unneeded_library(tmp_path: Path) -> None:
    words = [sys.executable, "-c", LOADED, str(small_shop(tmp_path / "in")), str(tmp_path / "store")]
    assert subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.strip() == ""

"""fetch-images cut short by kills, Ctrl-C, a full disk or a second run: complete files are kept, none is half there."""

import errno
import hashlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from antpipe.errors import AntpipeError, DataError
from antpipe.features.fetch import ledger, workers
from antpipe.features.fetch_images import fetch_images
from antpipe.settings.features import FetchConfig
from antpipe.store.domain import Domain
from antpipe.store.store import Store
from tests.conftest import REPOSITORY
from tests.support.fake_progress import calling
from tests.support.picture_server import PictureServer, answer, picture_server
from tests.support.shops import make_domain, picture

QUICK = FetchConfig(allow_private=True, rate=0, backoff=0.001, retries=1, timeout=5.0)
PACE = ("--allow-private", "--rate", "0", "--per-host", "1", "--save-every", "0.02")
COUNT = 12


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with picture_server() as running:
        yield running


@pytest.fixture
def domain(tmp_path: Path, server: PictureServer) -> Domain:
    """A shop of COUNT items whose pictures take a while each, the later ones longer.

    So a signal sent when the fifth is asked for comes in time even on a busy machine.
    """
    urls = [server.serve(f"/{n}", [0.1 if n < 5 else 0.5, answer(picture(n))]) for n in range(COUNT)]
    store = Store(tmp_path / "store")
    return make_domain(store, "shop", [{"item_id": f"i{n:02}", "image_urls": [url]} for n, url in enumerate(urls)])


def start(domain: Domain) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "antpipe", "fetch-images", "--domains", "shop", "--store", str(domain.root), *PACE]
    return subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def until(server: PictureServer, requests: int) -> None:
    wait_for(lambda: sum(server.hits.values()) >= requests)


def pictures(domain: Domain) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (domain.path / "fetched").glob("??/*")}


def all_are_whole(domain: Domain) -> bool:
    return all(name == f"{hashlib.sha256(content).hexdigest()}.png" for name, content in pictures(domain).items())


def test_a_killed_run_is_continued_asking_almost_nothing_twice(domain: Domain, server: PictureServer) -> None:
    process = start(domain)
    wait_for(lambda: len(ledger.read_ledger(domain.path / "fetched")) >= 3)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert "pictures" not in domain.manifest()
    known = ledger.read_ledger(domain.path / "fetched")
    assert 3 <= len(known) < COUNT
    result = fetch_images(Store(domain.root), "shop", QUICK)
    assert result.figures["asked"] == COUNT - len(known)
    assert result.figures["ok"] == COUNT
    assert all_are_whole(domain)
    assert len(pictures(domain)) == COUNT
    assert {server.hits[f"/{url.rpartition('/')[2]}"] for url in known} == {1}


def test_an_interrupted_run_keeps_and_writes_what_is_complete(domain: Domain, server: PictureServer) -> None:
    process = start(domain)
    until(server, 5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert "what was complete is kept" in err
    state = domain.state("pictures")
    assert state.status == "partial"
    assert "were not asked for yet" in state.why
    ok = pl.DataFrame(domain.table("pictures")).filter(pl.col("state") == "ok")
    assert 3 <= len(ok) <= 6
    assert {Path(name).name for name in ok["file"]} == set(pictures(domain))
    server.hits.clear()
    assert fetch_images(Store(domain.root), "shop", QUICK).figures["ok"] == COUNT
    assert sum(server.hits.values()) == COUNT - len(ok)


def test_a_full_disk_ends_the_run_with_no_half_picture(
    domain: Domain, server: PictureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = Path.write_bytes, []

    def full(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) == 4:
            real(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    says = r"fetched/../[0-9a-f]{64}\.png: No space left on device; what was complete is kept; make room, then run"
    with pytest.raises(AntpipeError, match=says) as caught:
        fetch_images(Store(domain.root), "shop", replace(QUICK, per_host=1))
    assert caught.value.exit_code == 1
    assert len(pictures(domain)) == 3
    assert all_are_whole(domain)
    monkeypatch.undo()
    server.hits.clear()
    assert fetch_images(Store(domain.root), "shop", QUICK).figures["ok"] == COUNT
    assert sum(server.hits.values()) == COUNT - 3


def test_a_ledger_that_cannot_be_written_ends_the_run_at_once(
    domain: Domain, server: PictureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "ledger.parquet")

    monkeypatch.setattr(workers, "write_ledger", full)
    with pytest.raises(AntpipeError, match=r"ledger\.parquet: No space left on device"):
        fetch_images(Store(domain.root), "shop", replace(QUICK, per_host=1, save_every=0.05))
    assert sum(server.hits.values()) < COUNT
    assert "pictures" not in domain.manifest()


def test_an_error_in_one_download_stops_the_others(
    domain: Domain, server: PictureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(workers, "check_and_keep", broken)
    before = set(threading.enumerate())  # other tests may have left some
    with pytest.raises(ZeroDivisionError):
        fetch_images(Store(domain.root), "shop", QUICK)
    assert sum(server.hits.values()) < COUNT
    assert len(set(threading.enumerate()) - before) < 10


def test_half_written_files_of_a_killed_run_are_removed(domain: Domain) -> None:
    folder = domain.path / "fetched" / "ab"
    folder.mkdir(parents=True)
    (folder / ".abcd.jpg.123.00").write_bytes(b"half")
    (folder.parent / ".ledger.parquet.123").write_bytes(b"half")
    fetch_images(Store(domain.root), "shop", QUICK)
    assert not list(folder.iterdir())
    assert {path.name for path in folder.parent.glob(".*")} == {".lock"}


@pytest.mark.slow
def test_a_second_run_at_the_same_time_is_refused(domain: Domain, server: PictureServer) -> None:
    process = start(domain)
    try:
        until(server, 1)
        with pytest.raises(DataError, match="another fetch-images is at work here"):
            fetch_images(Store(domain.root), "shop", QUICK)
    finally:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert all(hits == 1 for hits in server.hits.values())


def test_items_ingested_again_during_a_run_get_no_pictures_of_the_old_ones(
    domain: Domain, server: PictureServer
) -> None:
    store = Store(domain.root)
    url = server.url("/0")

    def reingest(*_: Any) -> None:
        if "X" not in domain.item_ids():
            make_domain(store, "shop", [{"item_id": "X", "image_urls": [url]}])

    with pytest.raises(DataError, match="items changed"):
        fetch_images(store, "shop", QUICK, progress=calling(reingest))
    assert "pictures" not in domain.manifest()
    server.hits.clear()
    assert fetch_images(store, "shop", QUICK).figures["ok"] == 1
    assert not server.hits


def test_a_ledger_is_read_as_it_was_written(tmp_path: Path) -> None:
    url = "http://a/ä"
    ok = ledger.Entry(url, "ok", 200, "", 1, 7, "f" * 64, "fetched/ff/x.png", 3, 4, "http://b", 123_456_789_012)
    refused = ledger.Entry("x", "refused", None, "neither http nor https", 0, None, None, None, None, None, "x", 5)
    entries = {url: ok, "x": refused}
    ledger.write_ledger(tmp_path, entries)
    assert ledger.read_ledger(tmp_path) == entries
    ledger.write_ledger(tmp_path, {})
    assert ledger.read_ledger(tmp_path) == {}

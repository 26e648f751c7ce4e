"""How fetch-images treats servers: slow, busy, lying, endless, and what it makes of their answers."""

import asyncio
import gzip
import io
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile

from antpipe.features.fetch import downloads
from antpipe.features.fetch.downloads import delay, retry_after
from antpipe.features.fetch.limits import RequestLimits
from antpipe.features.fetch_images import fetch_images
from antpipe.settings.features import FetchConfig
from antpipe.store.store import Store
from tests.support.picture_server import PictureServer, answer, picture_server, redirect
from tests.support.shops import make_domain, phone_picture, picture

QUICK = FetchConfig(allow_private=True, rate=0, backoff=0.001, retries=2, timeout=2.0, max_wait=2.0)
HTML = answer(b"<!DOCTYPE html><html></html>", headers=["Content-Type: text/html"])
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with picture_server() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def fetched(store: Store, urls: list[str], config: FetchConfig = QUICK) -> list[dict[str, Any]]:
    """What became of each URL, in a shop with one item for each."""
    make_domain(store, "shop", [{"item_id": f"i{n:03}", "image_urls": [url]} for n, url in enumerate(urls)])
    fetch_images(store, "shop", config)
    return pl.DataFrame(store.domain("shop").table("pictures")).to_dicts()


def outcome(store: Store, url: str, config: FetchConfig = QUICK) -> tuple[str, str]:
    [row] = fetched(store, [url], config)
    return row["state"], row["reason"]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, and is a few bytes long."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


# -- what is a picture ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_picture_is_kept_as_it_came(store: Store, server: PictureServer, form: str) -> None:
    content = picture(1, (40, 30), form)
    [row] = fetched(store, [server.serve("/a", answer(content))])
    facts = {name: row[name] for name in ("state", "status", "reason", "attempts", "bytes", "width", "height")}
    assert facts == {
        "state": "ok",
        "status": 200,
        "reason": "",
        "attempts": 1,
        "bytes": len(content),
        "width": 40,
        "height": 30,
    }
    assert (store.root / "shop" / row["file"]).read_bytes() == content
    assert Path(row["file"]).suffix == {"JPEG": ".jpg"}.get(form, f".{form.lower()}")


def test_a_phones_jpeg_with_a_second_picture_is_kept_as_a_jpeg(store: Store, server: PictureServer) -> None:
    content = phone_picture(1)
    before, phone, after = fetched(
        store,
        [
            server.serve("/before", answer(picture(2))),
            server.serve("/phone", answer(content)),
            server.serve("/after", answer(picture(3))),
        ],
    )
    assert [row["state"] for row in (before, phone, after)] == ["ok", "ok", "ok"]
    assert (phone["width"], phone["height"], Path(phone["file"]).suffix) == (40, 30, ".jpg")
    assert (store.root / "shop" / phone["file"]).read_bytes() == content


def test_a_picture_of_an_unknown_format_is_invalid_and_does_not_end_the_run(
    store: Store, server: PictureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BmpImageFile, "format", "odd")
    odd, plain = fetched(
        store,
        [
            server.serve("/odd", answer(picture(1, form="BMP"), headers=["Content-Type: image/bmp"])),
            server.serve("/plain", answer(picture(2))),
        ],
    )
    assert (odd["state"], odd["reason"]) == ("invalid", "not a picture: format odd (image/bmp)")
    assert plain["state"] == "ok"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<html>", "not a picture: a web page; formats read: JPEG, PNG, WEBP, GIF, BMP"),
        (picture(1, form="JPEG")[:-300], "damaged: "),
        (picture(1, form="PNG")[:60], "damaged: "),
        (picture(1, form="PCX"), "not a picture: "),
        (png_header(60_000, 60_000), "too many pixels"),
        (png_header(7000, 7000), "too many pixels: 7000 x 7000"),
        (png_header(5000, 100), "too long and narrow: 5000 x 100"),
    ],
)
def test_content_that_is_not_a_whole_picture_is_invalid_and_not_kept(
    store: Store, server: PictureServer, content: bytes, reason: str
) -> None:
    state, why = outcome(store, server.serve("/a", answer(content)))
    assert state == "invalid"
    assert why.startswith(reason)
    assert server.hits["/a"] == 1
    assert not list((store.root / "shop" / "fetched").glob("*/*"))


def test_a_page_instead_of_a_picture_is_reported_with_its_type(store: Store, server: PictureServer) -> None:
    assert outcome(store, server.serve("/a", HTML))[1].endswith("(text/html)")


def test_a_picture_served_with_the_wrong_type_is_a_picture(store: Store, server: PictureServer) -> None:
    url = server.serve("/a", answer(picture(1), headers=["Content-Type: text/plain"]))
    assert outcome(store, url) == ("ok", "")


def test_sizes_are_those_of_the_upright_picture(store: Store, server: PictureServer) -> None:
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(stream, "JPEG", exif=exif)
    [row] = fetched(store, [server.serve("/a", answer(stream.getvalue()))])
    assert (row["width"], row["height"]) == (30, 40)


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("deflate", zlib.compress),
        ("deflate", lambda content: zlib.compress(content)[2:-4]),
        ("gzip", gzip.compress),
        ("GZIP ", lambda content: gzip.compress(content[:50]) + gzip.compress(content[50:])),
        ("gzip, br", lambda content: packed(gzip.compress(content), "brotli")),
        ("zstd", lambda content: packed(content, "zstd")),
        ("gzip", bytes),  # it says so, but it is plain
        ("aws-chunked", bytes),
    ],
)
def test_compression_that_was_not_asked_for_is_undone(
    store: Store, server: PictureServer, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    url = server.serve("/a", answer(pack(picture(1)), headers=[f"Content-Encoding: {encoding}"]))
    [row] = fetched(store, [url])
    assert (row["state"], row["reason"]) == ("ok", "")
    assert (store.root / "shop" / row["file"]).read_bytes() == picture(1)


def packed(content: bytes, codec: str) -> bytes:
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, codec) as out:
        out.write(content)
    return bytes(stream.getvalue())


@pytest.mark.parametrize(
    ("encoding", "content", "state", "reason"),
    [
        ("gzip", gzip.compress(b"x" * 100_000), "refused", "more than 5000 bytes"),
        ("deflate", zlib.compress(b"x" * 100_000), "refused", "more than 5000 bytes"),
        ("zstd", packed(b"x" * 100_000, "zstd"), "refused", "more than 5000 bytes"),
        ("gzip", gzip.compress(b"x" * 100)[:-20], "invalid", "damaged gzip data: "),
        ("lzma", b"x", "invalid", "Content-Encoding lzma is not known"),
    ],
)
def test_a_compressed_body_is_held_to_the_limit_and_checked(
    store: Store, server: PictureServer, encoding: str, content: bytes, state: str, reason: str
) -> None:
    url = server.serve("/a", answer(content, headers=[f"Content-Encoding: {encoding}"]))
    found = outcome(store, url, replace(QUICK, max_bytes=5000))
    assert found[0] == state
    assert found[1].startswith(reason)


def test_a_body_below_the_least_rate_is_given_up(
    store: Store, server: PictureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "GRACE", 0.1)
    url = server.serve("/a", [b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", *([b"x", 0.05] * 100)])
    state, reason = outcome(store, url, replace(QUICK, retries=0))
    assert state == "failed"
    assert reason.endswith("bytes in 0 s, --least-rate is 500 per second")
    assert (
        outcome(store, url, replace(QUICK, retries=0, least_rate=0, deadline=0.4, retry_failed=True))[1]
        == "took longer than 0.4 s"
    )
    assert server.headers["accept-encoding"] == "identity"


# -- failures that may pass, and others -----------------------------------------------------------------------


@pytest.mark.parametrize("status", ["500 X", "502 X", "503 X", "429 X", "408 X", "425 X"])
def test_a_temporary_failure_is_tried_again(store: Store, server: PictureServer, status: str) -> None:
    [row] = fetched(store, [server.serve("/a", answer(status=status), answer(picture(1)))])
    assert (row["state"], row["attempts"], server.hits["/a"]) == ("ok", 2, 2)


def test_after_all_tries_the_failure_is_recorded(store: Store, server: PictureServer) -> None:
    [row] = fetched(store, [server.serve("/a", answer(status="503 X"))])
    assert (row["state"], row["reason"], row["status"], row["attempts"]) == ("failed", "HTTP 503", 503, 3)
    assert server.hits["/a"] == 3


@pytest.mark.parametrize("status", ["404 X", "410 X", "403 X", "401 X", "451 X", "204 X", "304 X", "206 X"])
def test_a_permanent_answer_is_not_asked_for_again(store: Store, server: PictureServer, status: str) -> None:
    assert outcome(store, server.serve("/a", answer(status=status))) == ("gone", f"HTTP {status[:3]}")
    assert server.hits["/a"] == 1


def test_a_slow_answer_is_a_timeout(store: Store, server: PictureServer) -> None:
    url = server.serve("/a", [5.0, answer(picture(1))])
    start = time.monotonic()
    assert outcome(store, url, replace(QUICK, timeout=0.1, retries=1)) == ("failed", "read timeout after 0.1 s")
    assert server.hits["/a"] == 2
    assert time.monotonic() - start < 2


def test_a_trickling_body_is_cut_off_by_the_deadline(store: Store, server: PictureServer) -> None:
    url = server.serve("/a", [b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", *([b"x", 0.05] * 100)])
    assert outcome(store, url, replace(QUICK, deadline=0.3, retries=0)) == ("failed", "took longer than 0.3 s")


def test_an_endless_body_is_read_only_up_to_the_limit(store: Store, server: PictureServer) -> None:
    url = server.serve("/a", [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", *([b"x" * 65_536] * 4000)])
    assert outcome(store, url, replace(QUICK, max_bytes=1000)) == ("refused", "more than 1000 bytes")


def test_a_chunked_body_is_held_to_the_limit(store: Store, server: PictureServer) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    url = server.serve("/a", [head, *([b"400\r\n" + b"x" * 1024 + b"\r\n"] * 100), b"0\r\n\r\n"])
    assert outcome(store, url, replace(QUICK, max_bytes=5000)) == ("refused", "more than 5000 bytes")


def test_a_content_length_above_the_limit_is_believed(store: Store, server: PictureServer) -> None:
    url = server.serve("/a", answer(b"", length=5_000_000_000))
    assert outcome(store, url) == ("refused", "5000000000 bytes, more than 20000000")


def test_a_body_shorter_than_its_content_length_is_a_failure(store: Store, server: PictureServer) -> None:
    content = picture(1)
    state, why = outcome(store, server.serve("/a", answer(content, length=len(content) + 9)), replace(QUICK, retries=1))
    assert (state, server.hits["/a"]) == ("failed", 2)
    assert why.startswith("remote protocol error: peer closed connection")


def test_a_body_longer_than_its_content_length_is_not_a_whole_picture(store: Store, server: PictureServer) -> None:
    content = picture(1, form="JPEG")
    assert outcome(store, server.serve("/a", answer(content, length=len(content) // 2)))[0] == "invalid"


@pytest.mark.parametrize(
    "nonsense", [b"", b"hello\r\n\r\n", b"HTTP/1.1 999999 X\r\n\r\n", b"HTTP/1.1 200 OK\r\nX\r\n\r\n"]
)
def test_an_answer_that_is_not_http_is_a_failure(store: Store, server: PictureServer, nonsense: bytes) -> None:
    state, why = outcome(store, server.serve("/a", nonsense), replace(QUICK, retries=0))
    assert state == "failed"
    assert "protocol error" in why or "read error" in why


def test_a_closed_port_is_a_failure(store: Store) -> None:
    state, why = outcome(store, "http://127.0.0.1:9/a", replace(QUICK, retries=0))
    assert state == "failed"
    assert why.startswith("connect error")


# -- redirects and private addresses --------------------------------------------------------------------------


def test_a_redirect_is_followed_and_its_end_recorded(store: Store, server: PictureServer) -> None:
    end = server.serve("/dir/end.png", answer(picture(1)))
    server.serve("/b", redirect("dir/end.png", "308 X"))
    [row] = fetched(store, [server.serve("/a", redirect(server.url("/b", "127.0.0.2"), "301 X"))])
    assert (row["state"], row["attempts"]) == ("ok", 1)
    assert row["final_url"] == end.replace("127.0.0.1", "127.0.0.2")


def test_redirects_in_a_circle_are_refused(store: Store, server: PictureServer) -> None:
    server.serve("/b", redirect("/a"))
    assert outcome(store, server.serve("/a", redirect("/b"))) == ("refused", "redirects in a circle")
    assert server.hits == {"/a": 1, "/b": 1}


def test_a_long_chain_of_redirects_is_refused(store: Store, server: PictureServer) -> None:
    for number in range(20):
        server.serve(f"/{number}", redirect(f"/{number + 1}"))
    config = replace(QUICK, max_redirects=3)
    assert outcome(store, server.url("/0"), config) == ("refused", "more than 3 redirects")
    assert sum(server.hits.values()) == 4


@pytest.mark.parametrize(
    ("to", "why"),
    [
        ("file:///etc/passwd", "neither http nor https"),
        ("ftp://127.0.0.1/", "neither http nor https"),
        ("http://user:secret@127.0.0.1/", "credentials in the URL"),
        ("http://a..b/", "not a host name"),
    ],
)
def test_a_redirect_is_checked_like_a_url(store: Store, server: PictureServer, to: str, why: str) -> None:
    assert outcome(store, server.serve("/a", redirect(to))) == ("refused", why)


def test_a_redirect_without_a_location_is_gone(store: Store, server: PictureServer) -> None:
    assert outcome(store, server.serve("/a", answer(status="302 X"))) == ("gone", "HTTP 302")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "0"])
def test_a_private_address_is_not_even_connected_to(store: Store, server: PictureServer, host: str) -> None:
    server.serve("/a", answer(picture(1)))
    state, why = outcome(store, server.url("/a", host), replace(QUICK, allow_private=False))
    assert state == "refused"
    assert "loopback address" in why or "unspecified address" in why
    assert not server.hits


def test_a_redirect_to_a_private_address_is_refused(
    store: Store, server: PictureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.1 plays the public server; the service it points to is on 127.0.0.2."""
    from antpipe.features.fetch import addresses

    real = addresses.why_not_public
    monkeypatch.setattr(addresses, "why_not_public", lambda ip: None if ip == "127.0.0.1" else real(ip))
    server.serve("/inside", answer(picture(1)))
    urls = [
        server.serve("/a", redirect(server.url("/inside", "127.0.0.2"))),
        server.serve("/b", redirect("http://169.254.169.254/latest/meta-data/")),
    ]
    rows = fetched(store, urls, replace(QUICK, allow_private=False))
    assert [(row["state"], row["reason"]) for row in rows] == [
        ("refused", "loopback address 127.0.0.2"),
        ("refused", "link-local address 169.254.169.254"),
    ]
    assert server.hits == {"/a": 1, "/b": 1}


# -- pace -----------------------------------------------------------------------------------------------------


def test_a_server_learns_who_asks(store: Store, server: PictureServer) -> None:
    fetched(store, [server.serve("/a", answer(picture(1)))], replace(QUICK, user_agent="antpipe (me@shop.example)"))
    assert server.headers["user-agent"] == "antpipe (me@shop.example)"
    assert server.headers["host"] == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        (" 7 ", 7),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("1.5", None),
        ("٣", None),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60),
        ("Fri, 02 Jan 2026 03:05:05 -0000", 60),
        ("Fri, 02 Jan 2026 03:00:00 GMT", 0),
        ("Fri, 99 Jan 2026 03:00:00 GMT", None),
        ("9" * 18, 10**18),
        (f"Fri, 02 Jan {'9' * 20} 03:05:05 GMT", None),
        (f"Fri, 02 Jan 2026 03:05:05 +{'9' * 20}", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


@given(st.text(max_size=40))
def test_any_retry_after_is_a_wait_or_nothing(value: str) -> None:
    wait = retry_after(value, NOW)
    assert wait is None or wait >= 0


def test_waits_double_up_to_the_longest_one() -> None:
    config = FetchConfig(backoff=1.0, max_wait=6.0)
    assert [delay(attempt, None, config, 0.5) for attempt in (1, 2, 3, 4, 2000)] == [1, 2, 4, 6, 6]
    assert [delay(1, None, config, chance) for chance in (0.0, 0.999)] == pytest.approx([0.5, 1.5], abs=0.01)
    assert [delay(1, asked, config, 0.5) for asked in (0.0, 3.0, 9999.0)] == [0, 3, 6]


def test_retry_after_pauses_the_host_and_is_capped(store: Store, server: PictureServer) -> None:
    busy = answer(status="429 X", headers=["Retry-After: 3600"])
    urls = [server.serve("/a", busy, answer(picture(1))), server.serve("/b", answer(picture(2)))]
    config = replace(QUICK, max_wait=0.4, per_host=1)
    assert [row["state"] for row in fetched(store, urls, config)] == ["ok", "ok"]
    gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert len(gaps) == 2
    assert gaps[0] >= 0.39  # whichever URL is next


def test_concurrent_requests_are_limited(store: Store, server: PictureServer) -> None:
    urls = []
    for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
        for number in range(4):
            server.serve(f"/{host}/{number}", [0.05, answer(picture(number))])
            urls.append(server.url(f"/{host}/{number}", host))
    fetched(store, urls, replace(QUICK, per_host=1, concurrency=2))
    assert server.busy == 2


def test_concurrent_requests_to_one_host_are_limited(store: Store, server: PictureServer) -> None:
    urls = [server.serve(f"/{number}", [0.05, answer(picture(number))]) for number in range(6)]
    fetched(store, urls, replace(QUICK, per_host=2))
    assert server.busy == 2


def test_requests_to_a_host_keep_the_rate(store: Store, server: PictureServer) -> None:
    urls = [server.serve(f"/{number}", answer(picture(number))) for number in range(6)]
    fetched(store, urls, replace(QUICK, rate=20.0))
    gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert min(gaps) > 0.03  # 0.05 when they start
    assert server.times[-1] - server.times[0] > 0.24


class Clock:
    """Stands still until everybody sleeps, then jumps to the time when the first one wakes up."""

    def __init__(self) -> None:
        self.time = 0.0
        self.sleepers: list[tuple[float, asyncio.Event]] = []

    async def sleep(self, seconds: float) -> None:
        awake = asyncio.Event()
        self.sleepers.append((self.time + seconds, awake))
        await awake.wait()

    async def tick(self) -> None:
        while True:
            for _ in range(20):
                await asyncio.sleep(0)
            if self.sleepers:
                self.sleepers.sort(key=lambda sleeper: sleeper[0])
                self.time, awake = self.sleepers.pop(0)
                awake.set()


def test_the_rate_holds_for_each_host_on_its_own() -> None:
    starts: dict[str, list[float]] = {"a": [], "b": []}

    async def ask(limits: RequestLimits, clock: Clock, host: str) -> None:
        async with limits.request(host):
            starts[host].append(clock.time)

    async def work() -> None:
        clock = Clock()
        limits = RequestLimits(8, 8, rate=4.0, now=lambda: clock.time, sleep=clock.sleep)
        ticking = asyncio.create_task(clock.tick())
        limits.pause("b", 2.0)
        await asyncio.gather(*(ask(limits, clock, host) for host in "aaaabb"))
        ticking.cancel()

    asyncio.run(work())
    assert starts == {"a": [0, 0.25, 0.5, 0.75], "b": [2.0, 2.25]}


def test_a_host_that_only_fails_is_left_alone(store: Store, server: PictureServer, messages: list[str]) -> None:
    for number in range(30):
        server.serve(f"/{number}", answer(status="503 X"))
    good = server.serve("/good", answer(picture(1)))
    urls = [*(server.url(f"/{number}", "127.0.0.2") for number in range(30)), good]
    make_domain(store, "shop", [{"item_id": f"i{n:03}", "image_urls": [url]} for n, url in enumerate(urls)])
    config = replace(QUICK, retries=0, give_up=5, per_host=1)
    figures = fetch_images(store, "shop", config).figures
    assert (figures["ok"], figures["failed"], figures["pending"]) == (1, 5, 25)
    assert messages[0].startswith("127.0.0.2: 5 failures in a row, the last: HTTP 503; its other 25 URLs are left")
    assert store.domain("shop").state("pictures").status == "partial"


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "503 Service Unavailable"])
def test_a_host_is_never_left_if_give_up_is_zero(
    store: Store, server: PictureServer, messages: list[str], status: str
) -> None:
    urls = [server.serve(f"/{number}", answer(picture(number), status=status)) for number in range(8)]
    make_domain(store, "shop", [{"item_id": f"i{n}", "image_urls": [url]} for n, url in enumerate(urls)])
    config = replace(QUICK, retries=0, give_up=0, per_host=1)
    figures = fetch_images(store, "shop", config).figures
    assert (figures["asked"], figures["pending"]) == (8, 0)
    assert not any("in a row" in line for line in messages)

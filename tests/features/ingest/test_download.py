"""Downloading a release from a server that misbehaves: the right bytes or a clear error, never a wrong file."""

import errno
import gzip
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time
from typing import Any

import pytest
from filelock import FileLock

from antpipe.errors import AntpipeError, DataError, UsageError
from antpipe.features.ingest.amazon import addresses as release_addresses
from antpipe.features.ingest.amazon.addresses import ADDRESSES, BASES, KNOWN_SHA256, plan_downloads
from antpipe.features.ingest.amazon.fetch_file import fetch_file
from antpipe.settings.ingest import AmazonConfig, DownloadConfig
from antpipe.store.store import Store
from tests.support.commands import run, unfolded
from tests.support.places import check_refusal
from tests.support.releases import encode, items, product, review, review_2023, snapshot

LINES = encode(*(review(f"user {n}", f"item {n % 7}", n, reviewText=str(n**9)) for n in range(300)))
GOOD = gzip.compress(LINES)
OTHER = gzip.compress(LINES * 2)
HALF = len(GOOD) // 2
PATIENT = DownloadConfig(backoff=0.0, timeout=5.0, retries=3)
COMMAND = "antpipe ingest amazon --source in --domains Shop --download"

Act = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers with the acts of the server's script, one per request, then properly."""

    protocol_version = "HTTP/1.1"
    server: "Mirror"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        act = self.server.script.pop(0) if self.server.script else properly
        act(self)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def answer(self, status: int, body: bytes = b"", announced: int | None = None, **headers: str) -> None:
        """A status, headers (`_` stands for `-`) and a body that may be announced as longer than it is."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if announced is None else announced))
        self.end_headers()
        self.wfile.write(body)
        if announced is not None and announced != len(body):
            self.close_connection = True


class Mirror(ThreadingHTTPServer):
    """A loopback server of one content, or of several by path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: bytes | dict[str, bytes] = GOOD
        self.tag = '"one"'
        self.script: list[Act] = []
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def properly(handler: Handler) -> None:
    """As a good server does, with Range and If-Range."""
    mirror = handler.server
    content = mirror.content if isinstance(mirror.content, bytes) else mirror.content.get(handler.path)
    if content is None:
        handler.answer(404)
        return
    wanted = handler.headers.get("Range")
    if wanted is None or handler.headers.get("If-Range") != mirror.tag:
        handler.answer(200, content, ETag=mirror.tag)
        return
    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
    if start >= len(content):
        handler.answer(416, Content_Range=f"bytes */{len(content)}")
        return
    place = f"bytes {start}-{len(content) - 1}/{len(content)}"
    handler.answer(206, content[start:], ETag=mirror.tag, Content_Range=place)


def cut(at: int, **headers: str) -> Act:
    """The connection breaks after `at` bytes of the file."""
    given = {"ETag": '"one"'} | headers
    return lambda handler: handler.answer(200, GOOD[:at], announced=len(GOOD), **given)


def say(status: int, body: bytes = b"", **headers: str) -> Act:
    return lambda handler: handler.answer(status, body, **headers)


def hang_up(handler: Handler) -> None:
    handler.close_connection = True


def redirect(handler: Handler) -> None:
    handler.answer(302, Location=f"{handler.server.base}/elsewhere")


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with Mirror() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "source" / "Shop_5.json.gz"


def fetch(
    mirror: Mirror,
    target: Path,
    config: DownloadConfig = PATIENT,
    slept: list[float] | None = None,
    sha256: str | None = None,
) -> dict[str, Any]:
    waits: list[float] = [] if slept is None else slept
    return fetch_file(
        f"{mirror.base}/{target.name}",
        target,
        config,
        sha256=sha256,
        command=COMMAND,
        sleep=waits.append,
    )


def refuse(mirror: Mirror, target: Path, *parts: str, config: DownloadConfig = PATIENT) -> DataError:
    """The download ends with an error that says these things, without the file."""
    with pytest.raises(DataError) as caught:
        fetch(mirror, target, config)
    for part in parts:
        assert part in caught.value.message
    assert caught.value.next_command
    assert not target.exists()
    return caught.value


def files(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


# -- what goes well ---------------------------------------------------------------------------------------------


def test_a_file_comes_whole_under_its_name_and_nothing_else_stays(mirror: Mirror, target: Path) -> None:
    facts = fetch(mirror, target)
    assert target.read_bytes() == GOOD
    assert (facts["bytes"], facts["sha256"]) == (len(GOOD), hashlib.sha256(GOOD).hexdigest())
    assert files(target) == [target.name]


def test_a_dropped_connection_is_resumed_where_it_broke(mirror: Mirror, target: Path) -> None:
    mirror.script = [cut(HALF)]
    fetch(mirror, target)
    assert target.read_bytes() == GOOD
    assert (mirror.asked[1][1]["Range"], mirror.asked[1][1]["If-Range"]) == (f"bytes={HALF}-", '"one"')


def test_a_later_run_continues_the_part_of_an_earlier_one(mirror: Mirror, target: Path) -> None:
    mirror.script = [cut(HALF)]
    refuse(mirror, target, "failed 1 times", f"{HALF:,} bytes are kept", config=DownloadConfig(retries=0))
    assert files(target) == [f"{target.name}.part", f"{target.name}.part.json"]
    fetch(mirror, target)
    assert target.read_bytes() == GOOD
    assert mirror.asked[1][1]["Range"] == f"bytes={HALF}-"


def test_a_complete_part_is_not_requested_again(mirror: Mirror, target: Path) -> None:
    target.parent.mkdir()
    target.with_name(f"{target.name}.part").write_bytes(GOOD)
    note = {"url": f"{mirror.base}/{target.name}", "validator": '"one"', "total": len(GOOD)}
    target.with_name(f"{target.name}.part.json").write_text(json.dumps(note))
    fetch(mirror, target)
    assert target.read_bytes() == GOOD
    assert mirror.asked == []


@pytest.mark.parametrize("note", ["", "{", "[]", '{"url": "http://other", "validator": "x", "total": null}'])
def test_a_part_of_unknown_origin_is_not_used(mirror: Mirror, target: Path, note: str) -> None:
    target.parent.mkdir()
    target.with_name(f"{target.name}.part").write_bytes(b"from somewhere")
    if note:
        target.with_name(f"{target.name}.part.json").write_text(note)
    fetch(mirror, target)
    assert target.read_bytes() == GOOD
    assert "Range" not in mirror.asked[0][1]


def test_a_part_whose_note_cannot_be_read_is_kept(mirror: Mirror, target: Path) -> None:
    part, note = (target.with_name(f"{target.name}.part{end}") for end in ("", ".json"))
    note.mkdir(parents=True)  # reading it fails, whatever this user may read
    part.write_bytes(GOOD[:HALF])
    with pytest.raises(AntpipeError, match="cannot be read") as caught:
        fetch(mirror, target)
    assert (part.read_bytes(), caught.value.next_command) == (GOOD[:HALF], f"ls -l {note}")


def test_a_whole_part_that_the_disk_does_not_give_is_kept(
    mirror: Mirror, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(gzip, "open", failing)
    with pytest.raises(OSError, match="Input/output error"):
        fetch(mirror, target)
    assert target.with_name(f"{target.name}.part").read_bytes() == GOOD


def test_a_redirect_is_followed_with_its_range(mirror: Mirror, target: Path) -> None:
    mirror.script = [redirect, cut(HALF), redirect]
    fetch(mirror, target)
    assert target.read_bytes() == GOOD
    assert [path for path, _ in mirror.asked] == [f"/{target.name}", "/elsewhere"] * 2


def test_a_date_replaces_a_weak_etag(mirror: Mirror, target: Path) -> None:
    mirror.script = [cut(HALF, ETag='W/"weak"', Last_Modified="Mon, 01 Jan 2018 00:00:00 GMT")]
    fetch(mirror, target)
    assert target.read_bytes() == GOOD
    assert mirror.asked[1][1]["If-Range"] == "Mon, 01 Jan 2018 00:00:00 GMT"


def test_without_a_validator_a_broken_download_starts_again(mirror: Mirror, target: Path) -> None:
    mirror.script = [cut(HALF, ETag="")]
    fetch(mirror, target)
    assert target.read_bytes() == GOOD
    assert "Range" not in mirror.asked[1][1]


def test_a_body_in_chunks_needs_no_length(mirror: Mirror, target: Path) -> None:
    def chunked(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD))

    mirror.script = [chunked]
    fetch(mirror, target)
    assert target.read_bytes() == GOOD


# -- a server that is busy or answers the wrong thing -----------------------------------------------------------


@pytest.mark.parametrize("act", [say(429), say(500), say(503), say(408), hang_up])
def test_a_passing_failure_is_retried(mirror: Mirror, target: Path, act: Act) -> None:
    mirror.script = [act, cut(HALF), act]
    fetch(mirror, target)
    assert target.read_bytes() == GOOD
    assert mirror.asked[-1][1]["Range"] == f"bytes={HALF}-"


def test_the_wait_doubles_and_is_never_shorter_than_the_server_asks(mirror: Mirror, target: Path) -> None:
    slept: list[float] = []
    mirror.script = [say(500), say(429, Retry_After="7"), say(500), say(503, Retry_After=formatdate(time() + 60))]
    fetch(mirror, target, DownloadConfig(backoff=1.0, timeout=5, retries=4), slept)
    assert slept[:3] == [1, 7, 4]
    assert 55 < slept[3] <= 60


def test_a_wait_beyond_the_limit_ends_the_download_with_the_command_to_wait(mirror: Mirror, target: Path) -> None:
    mirror.script = [say(429, Retry_After="3600")]
    error = refuse(mirror, target, "status 429", "3600 s")
    assert error.next_command == f"sleep 3600; {COMMAND}"


def test_too_many_failures_in_a_row_end_the_download(mirror: Mirror, target: Path) -> None:
    mirror.script = [say(500)] * 9
    error = refuse(mirror, target, "failed 4 times in a row", "status 500", f"{mirror.base}/{target.name}")
    assert error.next_command == COMMAND
    assert len(mirror.asked) == 4


@pytest.mark.parametrize(
    "place",
    [
        f"bytes {HALF - 1}-{len(GOOD) - 1}/{len(GOOD)}",
        f"bytes {HALF}-{len(GOOD) - 2}/{len(GOOD)}",
        f"bytes {HALF}-{len(GOOD)}/{len(GOOD) + 1}",
        f"bytes {HALF}-{len(GOOD) - 1}/*",
        "bytes",
        "",
    ],
)
def test_a_part_that_does_not_fit_makes_the_download_start_again(mirror: Mirror, target: Path, place: str) -> None:
    mirror.script = [cut(HALF), say(206, GOOD[HALF:], ETag='"one"', Content_Range=place)]
    fetch(mirror, target)
    assert target.read_bytes() == GOOD
    assert "Range" not in mirror.asked[2][1]


def test_a_whole_file_in_answer_to_a_range_replaces_the_part(mirror: Mirror, target: Path) -> None:
    mirror.script = [cut(HALF), say(200, GOOD, ETag='"one"')]
    fetch(mirror, target)
    assert target.read_bytes() == GOOD
    assert len(mirror.asked) == 2


def test_a_range_that_the_server_does_not_have_makes_the_download_start_again(mirror: Mirror, target: Path) -> None:
    mirror.script = [cut(HALF), say(416, Content_Range=f"bytes */{HALF}")]
    fetch(mirror, target)
    assert target.read_bytes() == GOOD
    assert "Range" not in mirror.asked[2][1]


def test_a_file_that_changes_between_two_tries_comes_as_it_is_now(mirror: Mirror, target: Path) -> None:
    mirror.script = [cut(HALF)]
    mirror.content, mirror.tag = OTHER, '"two"'
    fetch(mirror, target)
    assert target.read_bytes() == OTHER


def test_a_rest_with_another_etag_is_not_joined_to_the_first_part(mirror: Mirror, target: Path) -> None:
    place = f"bytes {HALF}-{len(GOOD) - 1}/{len(GOOD)}"
    mirror.script = [cut(HALF), say(206, bytes(len(GOOD) - HALF), ETag='"two"', Content_Range=place)]
    fetch(mirror, target)
    assert target.read_bytes() == GOOD
    assert "Range" not in mirror.asked[2][1]


def test_pieces_that_do_not_make_a_gzip_file_are_downloaded_again_once(mirror: Mirror, target: Path) -> None:
    """A server that lies about its ETag."""
    place = f"bytes {HALF}-{len(GOOD) - 1}/{len(GOOD)}"
    lie = say(206, bytes(len(GOOD) - HALF), ETag='"one"', Content_Range=place)
    mirror.script = [cut(HALF), lie]
    fetch(mirror, target)
    assert target.read_bytes() == GOOD
    target.unlink()
    mirror.script = [cut(HALF), lie, cut(HALF), lie]
    refuse(mirror, target, "damaged gzip data", "nothing of it is kept")
    assert files(target) == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_missing_file_is_not_requested_twice(mirror: Mirror, target: Path, status: int) -> None:
    mirror.script = [say(status)]
    refuse(mirror, target, f"the server says {status}")
    assert len(mirror.asked) == 1


@pytest.mark.parametrize("content", [GOOD[:HALF], GOOD[:-4], b"no gzip", LINES, GOOD[:100] + b"x" + GOOD[101:]])
def test_a_file_that_is_damaged_on_the_server_is_refused(mirror: Mirror, target: Path, content: bytes) -> None:
    mirror.content = content
    error = refuse(mirror, target, "damaged gzip data", "nothing of it is kept")
    assert error.next_command == f"curl -L -o {target} {mirror.base}/{target.name}"
    assert files(target) == []


def test_an_empty_file_a_web_page_and_mark_up_are_refused(mirror: Mirror, target: Path) -> None:
    table = target.with_name("Shop.csv")
    mirror.script = [say(200), say(200, b"<html>", Content_Type="text/html; charset=utf-8"), say(200, b"<p>Sign in")]
    refuse(mirror, table, "empty")
    refuse(mirror, table, "the server sent a web page instead of the file")
    refuse(mirror, table, "a page of mark-up")


def test_a_table_without_a_length_is_refused(mirror: Mirror, target: Path) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"A1,B1,5.0,1\n")
        handler.close_connection = True

    mirror.script = [endless]
    refuse(mirror, target.with_name("Shop.csv"), "does not say how long the file is")


def test_a_known_checksum_must_be_right(mirror: Mirror, target: Path) -> None:
    fetch(mirror, target, sha256=hashlib.sha256(GOOD).hexdigest())
    target.unlink()
    with pytest.raises(DataError, match="known for this file is 0000"):
        fetch(mirror, target, sha256="0" * 64)
    assert files(target) == []


def test_endless_redirects_and_invalid_urls_are_refused(mirror: Mirror, target: Path) -> None:
    mirror.script = [redirect] * 9
    refuse(mirror, target, "redirects")
    for url in ("ftp://127.0.0.1/x", "nonsense", "http://[x"):
        with pytest.raises(DataError):
            fetch_file(
                url,
                target,
                PATIENT,
                command=COMMAND,
                sleep=lambda _: None,
            )


def test_a_closed_port_is_retried_and_then_refused(tmp_path: Path) -> None:
    with Mirror() as server:
        closed = server.base
    waits: list[float] = []
    with pytest.raises(DataError, match="failed 3 times in a row"):
        fetch_file(
            f"{closed}/x.gz",
            tmp_path / "x.gz",
            DownloadConfig(retries=2),
            command=COMMAND,
            sleep=waits.append,
        )
    assert waits == [1, 2]


def test_a_file_larger_than_the_disk_is_refused_before_it_comes(mirror: Mirror, target: Path) -> None:
    mirror.script = [lambda handler: handler.answer(200, GOOD, announced=10**17, ETag='"one"')]
    refuse(mirror, target, "100,000,000,000,000,000 bytes are needed")
    assert files(target) == []


def test_the_rest_of_a_file_that_is_larger_than_the_disk_is_refused_and_what_came_is_kept(
    mirror: Mirror, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.script = [cut(HALF)]
    refuse(mirror, target, "failed 1 times", config=DownloadConfig(retries=0))
    rest, full = len(GOOD) - HALF, shutil.disk_usage(target.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full._replace(free=rest - 1))
    refuse(mirror, target, f"{rest:,} bytes are needed, {rest - 1:,} are free")
    assert target.with_name(f"{target.name}.part").read_bytes() == GOOD[:HALF]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full._replace(free=rest))
    fetch(mirror, target)
    assert target.read_bytes() == GOOD


# -- the releases -----------------------------------------------------------------------------------------------


def urls(release: str, **options: str) -> list[str]:
    plan = plan_downloads("Shop", AmazonConfig(**options), DownloadConfig(release=release))  # type: ignore[arg-type]
    return [file.url.removeprefix(BASES[release]) for file in plan]


def test_each_release_has_its_urls() -> None:
    assert urls("2014") == ["/categoryFiles/reviews_Shop_5.json.gz", "/categoryFiles/meta_Shop.json.gz"]
    assert urls("2018") == ["/categoryFilesSmall/Shop_5.json.gz", "/metaFiles2/meta_Shop.json.gz"]
    assert urls("2023") == ["/raw/review_categories/Shop.jsonl.gz", "/raw/meta_categories/meta_Shop.jsonl.gz"]
    assert urls("2018", files="complete")[0] == "/categoryFiles/Shop.json.gz"
    assert urls("2018", files="ratings")[0] == "/categoryFilesSmall/Shop.csv"
    assert urls("2014", files="ratings")[0] == "/categoryFiles/ratings_Shop.csv"
    assert urls("2023", files="benchmark")[:3] == [
        f"/benchmark/5core/last_out/Shop.{part}.csv.gz" for part in ("train", "valid", "test")
    ]
    assert urls("2023", files="benchmark", benchmark="0core/rating_only")[0] == (
        "/benchmark/0core/rating_only/Shop.csv.gz"
    )


@pytest.mark.parametrize(("release", "kind"), [("2023", "5-core"), ("2023", "ratings"), ("2018", "benchmark")])
def test_what_a_release_does_not_have_is_refused(release: str, kind: str) -> None:
    with pytest.raises(UsageError, match=f"--files {kind}: the release of {release} has none; it has "):
        urls(release, files=kind)


def test_all_urls_are_encrypted_and_known_checksums_belong_to_them() -> None:
    assert all(base.startswith("https://") for base in BASES.values())
    paths = {
        (address.release, address.path.format(domain="Musical_Instruments", benchmark="")) for address in ADDRESSES
    }
    assert set(KNOWN_SHA256) <= paths
    assert all(len(value) == 64 and int(value, 16) for value in KNOWN_SHA256.values())


def test_a_known_checksum_goes_with_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN_SHA256, ("2018", "metaFiles2/meta_Shop.json.gz"), "0" * 64)
    plan = plan_downloads("Shop", AmazonConfig(), DownloadConfig(release="2018"))
    assert [file.sha256 for file in plan] == [None, "0" * 64]


# -- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(mirror: Mirror) -> Mirror:
    """The server, with the 5-core of 2018 and the release of 2023 of a small shop."""
    mirror.content = {
        "/categoryFilesSmall/Shop_5.json.gz": gzip.compress(encode(review("a", "x"), review("b", "y"))),
        "/metaFiles2/meta_Shop.json.gz": gzip.compress(encode(product("x"), product("y"))),
        "/raw/review_categories/Shop.jsonl.gz": gzip.compress(encode(review_2023("c", "z"))),
        "/raw/meta_categories/meta_Shop.jsonl.gz": gzip.compress(encode({"parent_asin": "z", "title": "Z"})),
    }
    return mirror


def words(shop: Mirror, folder: Path, *more: str) -> list[str]:
    line = f"ingest amazon --source {folder}/in --domains Shop --store {folder}/store --min-user 1 --min-item 1"
    return [*line.split(), "--download", "--base-url", shop.base, "--backoff", "0", *more]


def test_a_domain_is_downloaded_and_ingested(shop: Mirror, tmp_path: Path) -> None:
    outcome = run(*words(shop, tmp_path))
    assert outcome.code == 0, outcome.err
    assert "Shop  items  built\n    2 users, 2 items" in outcome.out
    assert set(items(Store(tmp_path / "store").domain("Shop"))) == {"x", "y"}
    assert f"{shop.base}/categoryFilesSmall/Shop_5.json.gz -> {tmp_path}/in/Shop_5.json.gz" in outcome.err
    again = run(*words(shop, tmp_path))
    assert "Shop  items  fresh" in again.out
    assert len(shop.asked) == 2


def test_a_dry_run_fetches_and_writes_nothing(shop: Mirror, tmp_path: Path) -> None:
    outcome = run(*words(shop, tmp_path, "--dry-run"))
    assert (outcome.code, unfolded(outcome.out).splitlines()) == (
        0,
        [
            f"Shop  Shop_5.json.gz  would be fetched url {shop.base}/categoryFilesSmall/Shop_5.json.gz",
            f"Shop  meta_Shop.json.gz  would be fetched url {shop.base}/metaFiles2/meta_Shop.json.gz",
        ],
    )
    assert shop.asked == []
    assert list(tmp_path.iterdir()) == []
    run(*words(shop, tmp_path))
    before = snapshot(tmp_path)
    assert "Shop  items  fresh" in run(*words(shop, tmp_path, "--dry-run")).out
    assert snapshot(tmp_path) == before


def test_a_release_does_not_go_into_the_folder_of_another(shop: Mirror, tmp_path: Path) -> None:
    run(*words(shop, tmp_path))
    before = snapshot(tmp_path)
    for more in ([], ["--dry-run"]):
        outcome = run(*words(shop, tmp_path, "--release", "2023", *more))
        check_refusal(
            outcome, 3, "holds Shop_5.json.gz", "release of 2023", next_command=f"--source {tmp_path}/in-2023"
        )
        assert f"--download --release 2023 --base-url {shop.base}" in outcome.err
    assert len(shop.asked) == 2
    assert snapshot(tmp_path) == before


def test_metadata_of_another_release_under_the_same_name_are_refused(shop: Mirror, tmp_path: Path) -> None:
    run(*words(shop, tmp_path))
    (tmp_path / "in" / "Shop_5.json.gz").unlink()
    assert isinstance(shop.content, dict)
    shop.content["/categoryFiles/reviews_Shop_5.json.gz"] = shop.content["/categoryFilesSmall/Shop_5.json.gz"]
    outcome = run(*words(shop, tmp_path, "--release", "2014"))
    check_refusal(
        outcome, 3, "meta_Shop.json.gz: comes from", "metaFiles2", next_command=f"--source {tmp_path}/in-2014"
    )


def test_a_benchmark_that_comes_from_elsewhere_is_refused_with_another_folder(shop: Mirror, tmp_path: Path) -> None:
    assert isinstance(shop.content, dict)
    line = encode(b"user_id,parent_asin,rating,timestamp", b"AAAAAAAAAAA,B000000000,5,1600000000000")
    shop.content |= {
        f"/benchmark/5core/last_out/Shop.{part}.csv.gz": gzip.compress(line) for part in ("train", "valid", "test")
    }
    more = ("--release", "2023", "--files", "benchmark", "--keep-without-metadata")
    run(*words(shop, tmp_path, *more))
    ledger = tmp_path / "in" / ".antpipe-downloads.json"
    entries = json.loads(ledger.read_text().replace('"2023/', '"2022/'))
    del entries["checksum"]
    ledger.write_text(json.dumps(entries))
    check_refusal(run(*words(shop, tmp_path, *more)), 3, "comes from", next_command=f"--source {tmp_path}/in-2023")


@pytest.mark.parametrize("content", ["[]", '{"a": 1}', '{"Shop_5.json.gz": {}}', "{"])
def test_a_damaged_ledger_of_downloads_is_refused(shop: Mirror, tmp_path: Path, content: str) -> None:
    run(*words(shop, tmp_path))
    ledger = tmp_path / "in" / ".antpipe-downloads.json"
    ledger.write_text(content)
    check_refusal(run(*words(shop, tmp_path)), 5, f"{ledger}: damaged", next_command=f"rm {ledger}")


def test_a_file_that_was_put_there_by_hand_is_kept(shop: Mirror, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "meta_Shop.json.gz").write_bytes(gzip.compress(encode(product("x"))))
    outcome = run(*words(shop, tmp_path))
    assert "meta_Shop.json.gz: already there, not downloaded by antpipe; kept" in outcome.err
    assert set(items(Store(tmp_path / "store").domain("Shop"))) == {"x"}


def test_a_downloaded_file_of_another_size_is_refused(shop: Mirror, tmp_path: Path) -> None:
    run(*words(shop, tmp_path))
    path = tmp_path / "in" / "meta_Shop.json.gz"
    path.write_bytes(path.read_bytes()[:-1])
    check_refusal(run(*words(shop, tmp_path)), 3, str(path), "bytes", next_command=f"rm {path}; antpipe ingest amazon")


def test_a_missing_domain_is_refused_and_the_store_stays_empty(shop: Mirror, tmp_path: Path) -> None:
    outcome = run(*("Shops" if word == "Shop" else word for word in words(shop, tmp_path)))
    errors = [line for line in outcome.err.splitlines() if "error: " in line]
    assert outcome.code == 3
    assert len(errors) == 1
    assert "Shops_5.json.gz: the server says 404" in errors[0]
    assert not (tmp_path / "store").exists()


def test_a_second_download_into_the_same_folder_is_refused(shop: Mirror, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with FileLock(tmp_path / "in" / ".antpipe-downloads.lock"):
        outcome = run(*words(shop, tmp_path))
    check_refusal(outcome, 3, "another download into this folder", next_command="--download")


def test_the_table_of_addresses_is_the_only_place_that_names_hosts() -> None:
    package = Path(release_addresses.__file__).parents[3]
    named = {path.name for path in package.rglob("*.py") if any(base in path.read_text() for base in BASES.values())}
    assert named == {"addresses.py"}

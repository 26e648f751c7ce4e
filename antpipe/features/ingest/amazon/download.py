"""Fetching one large file: resumed, tried again, checked, and only then under its name.

Bytes arrive in NAME.part; NAME.part.json says what they are of (address, validator, size), so that a later run goes on
where this one ended. A server is asked to go on only if the file is still the same (Range with If-Range, RFC 9110
13.1.5 and 14.2), and its answer is believed only if it fits: any other makes the download start anew. A file gets its
name when its size is the one the server announced, its gzip data are whole, and its checksum, where known, is right.
"""

import gzip
import hashlib
import json
import re
import shlex
import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx2

from antpipe.errors import DataError
from antpipe.runtime.http import retry_after
from antpipe.settings.ingest import DownloadConfig
from antpipe.store.files import write_json

BLOCK = 1 << 20
PROGRESS = 1 << 20  # bytes after which a failure counts as the first one again
LONGEST_BACKOFF = 30.0
PASSING = (408, 425, 429)  # of the 4xx, those that ask to come again

Show = Callable[[float, int], None]


class PassingError(Exception):
    """What may go well next time. wait: seconds that the server asks for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class DamagedError(Exception):
    """The whole file is there, but it is not what it should be."""


@dataclass
class Part:
    """What is there of a file. validator: a strong ETag or a date, empty where there is none. total: None: unknown.
    resumed: it is of several pieces."""

    target: Path
    url: str
    validator: str = ""
    total: int | None = None
    resumed: bool = False

    @property
    def path(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def note(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part.json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def load(self) -> None:
        """Go on with what an earlier run left of the same address, if its file can be told from a newer one."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            url, validator, total = note["url"], note["validator"], note["total"]
        except (OSError, ValueError, KeyError, TypeError):
            self.drop()
            return
        if url != self.url or not validator or (total is not None and self.size() > total):
            self.drop()
            return
        self.validator, self.total, self.resumed = validator, total, self.size() > 0

    def begin(self, validator: str, total: int | None) -> None:
        """An empty part of this file."""
        self.drop()
        self.validator, self.total = validator, total
        write_json(self.note, {"url": self.url, "validator": validator, "total": total})
        self.path.touch()

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self.validator, self.total, self.resumed = "", None, False


def download(
    url: str,
    target: Path,
    config: DownloadConfig,
    *,
    sha256: str | None = None,
    show: Show,
    announce: Callable[[str], None],
    command: str,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Fetch `url` into the file `target`; returns url, bytes, sha256 and validator of what came.

    show: is called with the bytes there and those in all (0: unknown). command: of the next try. sleep: for tests.
    DataError where the server has no such file, fails too often, or sends what is damaged; what arrived whole stays
    in the part, what is damaged does not.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Part(target, url)
    part.load()
    headers = {"User-Agent": config.user_agent, "Accept-Encoding": "identity"}
    with httpx2.Client(timeout=config.timeout, follow_redirects=True, max_redirects=5, headers=headers) as client:
        _try_often(client, part, config, show, announce, command, sleep)
        try:
            facts = check_file(part, sha256)
        except DamagedError as error:
            if not part.resumed:
                raise _damaged(part, error) from None
            part.drop()  # its pieces may not belong together
            announce(f"{target.name}: {error}; from the start again")
            _try_often(client, part, config, show, announce, command, sleep)
            try:
                facts = check_file(part, sha256)
            except DamagedError as error_again:
                raise _damaged(part, error_again) from None
    part.path.replace(target)
    part.note.unlink(missing_ok=True)
    return facts


def _damaged(part: Part, error: DamagedError) -> DataError:
    part.drop()
    return DataError(f"{part.url}: {error}; nothing of it is kept", _by_hand(part.url, part.target))


def _try_often(
    client: httpx2.Client,
    part: Part,
    config: DownloadConfig,
    show: Show,
    announce: Callable[[str], None],
    command: str,
    sleep: Callable[[float], None],
) -> None:
    """Ask until the part is whole. Failures count in a row; one after much has come is the first again."""
    failures = 0
    while True:
        before = part.size()
        try:
            _ask(client, part, command, show)
            return
        except PassingError as error:
            failures = 1 if part.size() - before >= PROGRESS else failures + 1
            kept = f"{part.size():,} bytes are kept in {part.path.name}"
            if failures > config.retries:
                raise DataError(
                    f"{part.url}: failed {failures} times in a row, the last: {error}; {kept}", command
                ) from None
            if error.wait is not None and error.wait > config.max_wait:
                raise DataError(
                    f"{part.url}: {error}; the server asks to wait {error.wait:.0f} s, --max-wait is "
                    f"{config.max_wait:g}; {kept}",
                    f"sleep {error.wait:.0f}; {command}",
                ) from None
            backoff = min(config.backoff * 2.0 ** (failures - 1), max(LONGEST_BACKOFF, config.backoff))
            wait = max(backoff, error.wait or 0.0)
            announce(f"{part.target.name}: {error}; again in {wait:.1f} s ({kept})")
            sleep(wait)


def _ask(client: httpx2.Client, part: Part, command: str, show: Show) -> None:
    """One request for what is missing; returns when the part is whole. PassingError where it is not."""
    start = part.size() if part.validator else 0
    if start and start == part.total:
        return
    asked = {"Range": f"bytes={start}-", "If-Range": part.validator} if start else {}
    try:
        with client.stream("GET", part.url, headers=asked) as response:
            _accept(response, part, start, command)
            with part.path.open("ab") as stream:
                for block in response.iter_raw():  # as it comes: blocks of a fixed size get lost when it breaks off
                    stream.write(block)
                    show(stream.tell(), part.total or 0)
    except (httpx2.InvalidURL, httpx2.TooManyRedirects, httpx2.UnsupportedProtocol) as error:
        raise DataError(f"{part.url}: {error}", "look at the address, --base-url") from None
    except httpx2.RequestError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise DataError(f"{part.url}: {error}", "look at the address, --base-url, and at the clock") from None
        raise PassingError(str(error) or type(error).__name__) from None
    if part.total is not None and part.size() != part.total:
        whole, part_size = part.total, part.size()
        if part_size > whole:
            part.drop()
        raise PassingError(f"{part_size:,} of {whole:,} bytes came")


def _accept(response: httpx2.Response, part: Part, start: int, command: str) -> None:
    """Prepare the part for the body of an answer: to go on at `start`, or from the beginning.

    PassingError where the answer does not fit the question or asks to come again, DataError where it is final.
    """
    status = response.status_code
    if status in PASSING or status >= 500:
        raise PassingError(f"status {status}", retry_after(response.headers.get("Retry-After", ""), datetime.now(UTC)))
    if status == 416 and start:
        part.drop()
        raise PassingError("the server does not have the rest of the file (status 416); from the start")
    if status == 206 and start:
        why = _misfit(response, part, start)
        if why:
            part.drop()
            raise PassingError(f"{why}; from the start")
        part.total, part.resumed = int(response.headers["Content-Range"].rpartition("/")[2]), True
        return
    if status == 206:
        raise PassingError("the server sends a part that was not asked for")
    if status != 200:
        raise DataError(f"{part.url}: the server says {status} {response.reason_phrase}", _hint(status, command))
    _require_file(response, part)
    part.begin(_validator(response), _length(response, part))
    _require_space(part)


def _misfit(response: httpx2.Response, part: Part, start: int) -> str:
    """Why a partial answer is not the rest of the part; empty where it is."""
    given = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", given)
    if not match:
        return f"asked for the rest, the server sends an unknown part ({given or 'no Content-Range'})"
    first, last, total = map(int, match.groups())
    if first != start or last != total - 1:
        return f"asked for the bytes from {start}, the server sends {given}"
    now = _validator(response)
    if (part.total is not None and total != part.total) or (now and now != part.validator):
        return "the file has changed since its first part came"
    return ""


def _validator(response: httpx2.Response) -> str:
    """What tells this file from a later one; a weak ETag does not (RFC 9110 13.1.5)."""
    tag = str(response.headers.get("ETag", ""))
    return tag if tag.startswith('"') else str(response.headers.get("Last-Modified", ""))


def _length(response: httpx2.Response, part: Part) -> int | None:
    """Bytes of the whole file; None where only its end tells them. DataError where even that could not be told."""
    given = response.headers.get("Content-Length", "")
    if re.fullmatch(r"\d{1,18}", given):
        return int(given)
    if "chunked" not in response.headers.get("Transfer-Encoding", "") and part.target.suffix != ".gz":
        raise DataError(
            f"{part.url}: the server does not say how long the file is, so a cut could not be noticed",
            _by_hand(part.url, part.target),
        )
    return None


def _require_file(response: httpx2.Response, part: Part) -> None:
    """Refuse what is clearly no file of a release: a web page, an encoded body, plain HTTP after HTTPS."""
    kind = response.headers.get("Content-Type", "")
    if kind.startswith("text/html"):
        raise DataError(f"{part.url}: a web page came in place of the file", "look at the address, --base-url")
    if response.headers.get("Content-Encoding", "identity") != "identity" and part.target.suffix != ".gz":
        raise DataError(f"{part.url}: came encoded though it was asked for plain", _by_hand(part.url, part.target))
    if part.url.startswith("https://") and response.url.scheme != "https":
        raise DataError(
            f"{part.url}: leads to {response.url}, which is not encrypted", "look at the address, --base-url"
        )


def _require_space(part: Part) -> None:
    free = shutil.disk_usage(part.target.parent).free
    if part.total is not None and part.total > free:
        total = part.total
        part.drop()
        raise DataError(
            f"{part.target.parent}: {total:,} bytes are to come, {free:,} are free",
            shlex.join(["df", "-h", str(part.target.parent)]),
        )


def check_file(part: Part, sha256: str | None) -> dict[str, Any]:
    """Facts about a part that is whole. DamagedError where it is not what it should be."""
    digest, size, first = hashlib.sha256(), 0, b""
    with part.path.open("rb") as stream:
        while block := stream.read(BLOCK):
            first = first or block[:64]
            digest.update(block)
            size += len(block)
    if not size:
        raise DamagedError("the file is empty")
    if part.target.suffix == ".gz":
        try:
            with gzip.open(part.path) as content:
                while content.read(BLOCK):
                    pass
        except (OSError, EOFError, zlib.error) as error:
            raise DamagedError(f"damaged gzip data ({error})") from None
    elif first.lstrip().startswith(b"<"):
        raise DamagedError("a page of mark-up, not a table")
    if sha256 and digest.hexdigest() != sha256:
        raise DamagedError(f"sha256 {digest.hexdigest()}, known for this file is {sha256}")
    now = format_datetime(datetime.now(UTC), usegmt=True)
    return {"url": part.url, "bytes": size, "sha256": digest.hexdigest(), "validator": part.validator, "at": now}


def _hint(status: int, command: str) -> str:
    return "look at the name of the domain, --release and --base-url" if status in (404, 410) else command


def _by_hand(url: str, target: Path) -> str:
    return shlex.join(["curl", "-L", "-o", str(target), url])

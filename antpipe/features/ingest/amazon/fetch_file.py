"""Downloading one large file: resumed, retried, checked, and only then moved to its name.

Bytes arrive in NAME.part; NAME.part.json says which file they belong to (URL, validator, size), so that a later run can
resume. The server sends the rest only if the file is still the same (Range with If-Range, RFC 9110 13.1.5 and 14.2),
and its answer counts only if it fits; otherwise the download starts again. A file gets its name once its size is the
one the server announced, its gzip data are whole, and its checksum, if known, is right.
"""

import gzip
import hashlib
import re
import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any, TypedDict

import httpx2

from antpipe.errors import DataError, IntegrityError
from antpipe.runtime.files import naming
from antpipe.runtime.http import retry_after
from antpipe.runtime.logs import log
from antpipe.runtime.progress import Update, ignore
from antpipe.settings.ingest import DownloadConfig
from antpipe.store.documents import read_json, write_json
from antpipe.store.next_command import shell

MEBIBYTE = 1 << 20
HEADWAY = MEBIBYTE  # bytes of progress after which the count of failures restarts
LONGEST_BACKOFF = 30.0
PASSING = (408, 425, 429)  # those of the 4xx that allow another try


class PassingError(Exception):
    """A failure that another try may avoid. wait: seconds that the server asks for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class DamagedError(Exception):
    """The whole file arrived, but it is not what it should be."""


class Note(TypedDict):
    """The content of NAME.part.json, about the part beside it."""

    url: str
    validator: str
    total: int | None


@dataclass
class Part:
    """The part of a file that has arrived. validator: a strong ETag or a date, '' without either. total: size of the
    file in bytes, None if unknown. resumed: whether it came in several pieces."""

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
        """Continue with what an earlier run left of the same URL, if a validator can tell whether the file is newer.

        A part whose note is missing or damaged is removed. Raises AntpipeError, and keeps both, if the note cannot be
        read.
        """
        try:
            note = read_json(self.note, Note, shell("ls", "-l", self.note))
            url, validator, total = note["url"], note["validator"], note["total"]
        except (FileNotFoundError, IntegrityError):
            self.drop()
            return
        if url != self.url or not validator or (total is not None and self.size() > total):
            self.drop()
            return
        self.validator, self.total, self.resumed = validator, total, self.size() > 0

    def begin(self, validator: str, total: int | None) -> None:
        """Start an empty part of this file."""
        self.drop()
        self.validator, self.total = validator, total
        write_json(self.note, {"url": self.url, "validator": validator, "total": total})
        self.path.touch()

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self.validator, self.total, self.resumed = "", None, False


def fetch_file(
    url: str,
    target: Path,
    config: DownloadConfig,
    *,
    command: str,
    sha256: str | None = None,
    update: Update = ignore,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Download `url` to the file `target`; returns url, bytes, sha256 and validator of the download.

    command: the one that tries again, for errors. sha256: the checksum, if known. update: gets MiB. sleep: for tests.
    Raises DataError if the server has no such file, fails too often, or sends a damaged one. The part is then kept,
    unless it is damaged.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Part(target, url)
    part.load()
    headers = {"User-Agent": config.user_agent, "Accept-Encoding": "identity"}
    with httpx2.Client(timeout=config.timeout, follow_redirects=True, max_redirects=5, headers=headers) as client:
        for attempt in (1, 2):
            _try_often(client, part, config, update, command, sleep)
            try:
                facts = check_file(part, sha256)
                break
            except DamagedError as error:
                resumed = part.resumed
                part.drop()
                if attempt == 2 or not resumed:
                    raise DataError(f"{url}: {error}; nothing of it is kept", _by_hand(url, target)) from None
                log.warning(f"{target.name}: {error}; its pieces may not belong together, so it starts again")
    part.path.replace(target)
    part.note.unlink(missing_ok=True)
    return facts


def _try_often(
    client: httpx2.Client,
    part: Part,
    config: DownloadConfig,
    update: Update,
    command: str,
    sleep: Callable[[float], None],
) -> None:
    """Ask until the part is whole. Failures in a row are counted; the count restarts after some progress."""
    failures = 0
    while True:
        before = part.size()
        try:
            _ask(client, part, command, update)
            return
        except PassingError as error:
            failures = 1 if part.size() - before >= HEADWAY else failures + 1
            kept = f"{part.size():,} bytes are kept in {part.path.name}"
            if failures > config.retries:
                raise DataError(
                    f"{part.url}: failed {failures} times in a row, the last: {error}; {kept}", command
                ) from None
            if error.wait is not None and error.wait > config.max_wait:
                raise DataError(
                    f"{part.url}: {error}; the server asks for a wait of {error.wait:.0f} s, --max-wait is "
                    f"{config.max_wait:g}; {kept}",
                    f"sleep {error.wait:.0f}; {command}",
                ) from None
            backoff = min(config.backoff * 2.0 ** (failures - 1), max(LONGEST_BACKOFF, config.backoff))
            wait = max(backoff, error.wait or 0.0)
            log.warning(f"{part.target.name}: {error}; next try in {wait:.1f} s ({kept})")
            sleep(wait)


def _ask(client: httpx2.Client, part: Part, command: str, update: Update) -> None:
    """One request for the missing bytes. Raises PassingError if the part is not whole afterwards."""
    start = part.size() if part.validator else 0
    if start and start == part.total:
        return
    asked = {"Range": f"bytes={start}-", "If-Range": part.validator} if start else {}
    try:
        with client.stream("GET", part.url, headers=asked) as response:
            _accept(response, part, start, command)
            with naming(part.path), part.path.open("ab") as stream:
                for block in response.iter_raw():  # as it arrives: a block of fixed size is lost if cut off
                    stream.write(block)
                    update(stream.tell() / MEBIBYTE, -(-(part.total or 0) // MEBIBYTE), "MiB")
    except (httpx2.InvalidURL, httpx2.TooManyRedirects, httpx2.UnsupportedProtocol) as error:
        raise _wrong_url(part.url, str(error)) from None
    except httpx2.RequestError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise _wrong_url(part.url, f"{error}; is the clock of this machine right?") from None
        raise PassingError(str(error) or type(error).__name__) from None
    if part.total is not None and part.size() != part.total:
        whole, part_size = part.total, part.size()
        if part_size > whole:
            part.drop()
        raise PassingError(f"{part_size:,} of {whole:,} bytes came")


def _accept(response: httpx2.Response, part: Part, start: int, command: str) -> None:
    """Prepare the part for the body of an answer that continues at `start` or begins at 0.

    Raises PassingError if the answer does not fit or allows another try, DataError if it is final.
    """
    status = response.status_code
    if status in PASSING or status >= 500:
        raise PassingError(f"status {status}", retry_after(response.headers.get("Retry-After", ""), datetime.now(UTC)))
    if status == 416 and start:
        part.drop()
        raise PassingError("the server does not have the rest of the file (status 416); starting again")
    if status == 206 and start:
        why = _misfit(response, part, start)
        if why:
            part.drop()
            raise PassingError(f"{why}; starting again")
        part.total, part.resumed = int(response.headers["Content-Range"].rpartition("/")[2]), True
        _require_space(part, part.total - start)
        return
    if status == 206:
        raise PassingError("the server sends a part that was not asked for")
    if status != 200:
        says = f"the server says {status} {response.reason_phrase}"
        if status in (404, 410):
            raise _wrong_url(part.url, f"{says}; check the name of the domain and --release")
        raise DataError(f"{part.url}: {says}", command)
    _require_file(response, part)
    part.begin(_validator(response), _length(response, part))
    if part.total is not None:
        _require_space(part, part.total)


def _misfit(response: httpx2.Response, part: Part, start: int) -> str:
    """Why a partial answer is not the rest of the part; '' if it is."""
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
    """What distinguishes this file from a later one; a weak ETag does not (RFC 9110 13.1.5)."""
    tag = str(response.headers.get("ETag", ""))
    return tag if tag.startswith('"') else str(response.headers.get("Last-Modified", ""))


def _length(response: httpx2.Response, part: Part) -> int | None:
    """Bytes of the whole file; None if only its end will tell. Raises DataError if truncation would go unnoticed."""
    given = response.headers.get("Content-Length", "")
    if re.fullmatch(r"\d{1,18}", given):
        return int(given)
    if "chunked" not in response.headers.get("Transfer-Encoding", "") and part.target.suffix != ".gz":
        raise DataError(
            f"{part.url}: the server does not say how long the file is, so a truncated one would go unnoticed",
            _by_hand(part.url, part.target),
        )
    return None


def _require_file(response: httpx2.Response, part: Part) -> None:
    """Refuse what is clearly not a file of a release: a web page, an encoded body, plain HTTP after HTTPS."""
    kind = response.headers.get("Content-Type", "")
    if kind.startswith("text/html"):
        raise _wrong_url(part.url, "the server sent a web page instead of the file")
    if response.headers.get("Content-Encoding", "identity") != "identity" and part.target.suffix != ".gz":
        raise DataError(f"{part.url}: came compressed, although not asked for", _by_hand(part.url, part.target))
    if part.url.startswith("https://") and response.url.scheme != "https":
        raise _wrong_url(part.url, f"leads to {response.url}, which is not encrypted")


def _require_space(part: Part, needed: int) -> None:
    """Raise DataError if the disk lacks room for the bytes that are still to come; what came already is kept."""
    free = shutil.disk_usage(part.target.parent).free
    if needed > free:
        if needed == part.total:
            part.drop()
        raise DataError(
            f"{part.target.parent}: {needed:,} bytes are needed, {free:,} are free",
            shell("df", "-h", part.target.parent),
        )


def check_file(part: Part, sha256: str | None) -> dict[str, Any]:
    """Facts about a part that is whole. Raises DamagedError if it is not what it should be."""
    digest, size, first = hashlib.sha256(), 0, b""
    with part.path.open("rb") as stream:
        while block := stream.read(MEBIBYTE):
            first = first or block[:64]
            digest.update(block)
            size += len(block)
    if not size:
        raise DamagedError("the file is empty")
    if part.target.suffix == ".gz":
        try:
            with gzip.open(part.path) as content:
                while content.read(MEBIBYTE):
                    pass
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DamagedError(f"damaged gzip data ({error})") from None
    elif first.lstrip().startswith(b"<"):
        raise DamagedError("a page of mark-up, not a table")
    if sha256 and digest.hexdigest() != sha256:
        raise DamagedError(f"sha256 {digest.hexdigest()}, known for this file is {sha256}")
    now = format_datetime(datetime.now(UTC), usegmt=True)
    return {"url": part.url, "bytes": size, "sha256": digest.hexdigest(), "validator": part.validator, "at": now}


def _wrong_url(url: str, why: str) -> DataError:
    """The next command shows the server's answers."""
    return DataError(f"{url}: {why}; check the URL (--base-url)", shell("curl", "-IL", url))


def _by_hand(url: str, target: Path) -> str:
    return shell("curl", "-L", "-o", target, url)

"""One URL's way to a picture: redirects, size limits, what an answer means, and when to try again."""

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import httpcore2
import httpx2

from antpipe.features.fetch.addresses import CheckedNetwork, RefusedError, parse_url
from antpipe.features.fetch.encodings import EncodedError, unpacked
from antpipe.features.fetch.ledger import FAILED, GONE, INVALID, OK, REFUSED
from antpipe.features.fetch.limits import RequestLimits
from antpipe.runtime.http import retry_after
from antpipe.settings.features import FetchConfig

REDIRECTS = (301, 302, 303, 307, 308)
TEMPORARY = (408, 425, 429)  # the 4xx after which a retry makes sense
GRACE = 10.0  # seconds before a slow body is given up
SMALL = 65_536  # bytes; a smaller error page is read whole, which keeps the connection usable


class SlowError(Exception):
    """A body arrives too slowly."""


@dataclass(frozen=True)
class KeptPicture:
    """The file that a picture was written to, as in the ledger; all None if there is no picture."""

    bytes: int | None = None
    sha256: str | None = None
    file: str | None = None
    width: int | None = None
    height: int | None = None


NOTHING = KeptPicture()


@dataclass(frozen=True)
class Answer:
    """What became of a request. state and reason as in the ledger; final_url: the URL asked last.

    host: who answered. content: set if the state is OK; `kept` too, once it was written. location: where a redirect
    points to. wait: seconds that the server asks to wait.
    """

    state: str
    reason: str = ""
    status: int | None = None
    final_url: str = ""
    host: str = ""
    content: bytes = b""
    content_type: str = ""
    location: str | None = None
    wait: float | None = None
    kept: KeptPicture = NOTHING


Keep = Callable[[Answer], Awaitable[Answer]]


def delay(attempt: int, asked: float | None, config: FetchConfig, chance: float) -> float:
    """Seconds until the next try: what the server asked for, otherwise doubling, times 50 to 150%.

    attempt: 1, 2 … chance: in [0, 1), decides the percentage. At most config.max_wait.
    """
    wanted = config.backoff * 2.0 ** min(attempt - 1, 60) * (0.5 + chance) if asked is None else asked
    return min(wanted, config.max_wait)


class Downloads:
    """Fetches URLs through one pool of connections, at the pace that `limits` allows."""

    def __init__(self, pool: httpcore2.AsyncConnectionPool, limits: RequestLimits, config: FetchConfig) -> None:
        self._pool = pool
        self._limits = limits
        self._config = config

    async def fetch(self, url: str, keep: Keep) -> tuple[Answer, int]:
        """The last answer, and the number of tries.

        keep: called with an OK answer while its request still holds its slot (so that memory holds no more contents
        than requests allowed at once), and returns the answer to record.
        """
        attempt = 1
        while True:
            answer = await self._follow(url, keep)
            if answer.state != FAILED or attempt > self._config.retries:
                return answer, attempt
            wait = delay(attempt, answer.wait, self._config, random.random())  # nosec B311 # spreads requests
            if answer.wait is not None or answer.status == 429:
                self._limits.pause(answer.host, wait)  # the host asks all requests to wait
            await self._limits.rest(wait)
            attempt += 1

    async def _follow(self, url: str, keep: Keep) -> Answer:
        """One try, with its redirects; each redirect is checked like the first URL."""
        asked: list[str] = []
        target, where = url, None
        try:
            for _ in range(self._config.max_redirects + 1):
                where = parse_url(target, where)
                if str(where) in asked:
                    raise RefusedError("redirects in a circle")
                asked.append(str(where))
                answer = await self._ask(where, keep)
                if answer.location is None:
                    return answer
                target = answer.location
            raise RefusedError(f"more than {self._config.max_redirects} redirects")
        except RefusedError as error:
            return Answer(REFUSED, error.reason, final_url=asked[-1] if asked else url)

    async def _ask(self, url: httpx2.URL, keep: Keep) -> Answer:
        host = host_of(url)
        async with self._limits.request(host):
            try:
                async with asyncio.timeout(self._config.deadline), self._open(url) as response:
                    answer = await self._read(response)
            except SlowError as error:
                answer = Answer(FAILED, str(error))
            except TimeoutError:
                answer = Answer(FAILED, f"took longer than {self._config.deadline:g} s")
            except httpcore2.TimeoutException as error:
                answer = Answer(FAILED, f"{_kind(error)} after {self._config.timeout:g} s")
            except httpcore2.LocalProtocolError as error:  # our request would not be valid HTTP
                answer = Answer(REFUSED, f"{_kind(error)}: {error}")
            except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError) as error:
                answer = Answer(FAILED, f"{_kind(error)}: {error}".rstrip(": "))
            answer = replace(answer, final_url=str(url), host=host)
            return await keep(answer) if answer.state == OK else answer

    @asynccontextmanager
    async def _open(self, url: httpx2.URL) -> AsyncIterator[httpcore2.Response]:
        headers = {
            "Host": url.netloc.decode("ascii"),
            "User-Agent": self._config.user_agent,
            "Accept": "image/*",
            "Accept-Encoding": "identity",  # pictures are compressed already; more would only allow zip bombs
        }
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), self._config.timeout)
        target = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        async with self._pool.stream(
            "GET", target, headers=list(headers.items()), extensions={"timeout": timeouts}
        ) as response:
            yield response

    async def _read(self, response: httpcore2.Response) -> Answer:
        status = response.status
        headers = {name.lower().decode("latin-1"): value for name, value in response.headers}
        if status == 200:
            return await self._content(response, headers)
        await _body(response, SMALL, self._config.least_rate)
        if status in REDIRECTS and "location" in headers:
            return Answer(GONE, status=status, location=_text(headers["location"]))
        if status in TEMPORARY or status >= 500:
            wait = retry_after(_text(headers.get("retry-after", b"")), datetime.now(UTC))
            return Answer(FAILED, f"HTTP {status}", status, wait=wait)
        return Answer(GONE, f"HTTP {status}", status)

    async def _content(self, response: httpcore2.Response, headers: dict[str, bytes]) -> Answer:
        most = self._config.max_bytes
        length = headers.get("content-length", b"").decode("latin-1")
        if length.isdecimal() and int(length) > most:
            return Answer(REFUSED, f"{length} bytes, more than {most}", 200)
        packed = await _body(response, most, self._config.least_rate)
        try:
            content = packed and unpacked(packed, _text(headers.get("content-encoding", b"")), most)
        except EncodedError as error:
            return Answer(INVALID, error.reason, 200)
        if content is None:
            return Answer(REFUSED, f"more than {most} bytes", 200)
        return Answer(OK, "", 200, content=content, content_type=_text(headers.get("content-type", b"")))


async def _body(response: httpcore2.Response, most: int, least_rate: float) -> bytes | None:
    """The content; None if it is longer than `most` bytes, and then the rest is not read.

    Raises SlowError if it comes at fewer bytes per second than least_rate, after the first GRACE seconds.
    """
    content, began = bytearray(), time.monotonic()
    async for part in response.aiter_stream():
        content += part
        if len(content) > most:
            return None
        seconds = time.monotonic() - began
        if seconds > GRACE and len(content) < least_rate * seconds:
            raise SlowError(f"{len(content)} bytes in {seconds:.0f} s, --least-rate is {least_rate:g} per second")
    return bytes(content)


def host_of(url: httpx2.URL) -> str:
    """The host name by which requests share a rate limit: in lower case, without port."""
    return url.raw_host.decode("ascii").rstrip(".")


def open_pool(config: FetchConfig) -> httpcore2.AsyncConnectionPool:
    """Connections to checked addresses only; idle ones stay open for a while."""
    return httpcore2.AsyncConnectionPool(
        max_connections=config.concurrency,
        keepalive_expiry=15.0,
        network_backend=CheckedNetwork(config.allow_private),
    )


def _text(value: bytes) -> str:
    """Headers are bytes: mostly ASCII, sometimes UTF-8, anything at worst."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _kind(error: Exception) -> str:
    """ReadTimeout -> read timeout."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()

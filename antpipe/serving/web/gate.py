"""The checks before all routes: the token, and limits on size, number and time of requests."""

import asyncio
import hmac
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from antpipe.runtime.logs import log
from antpipe.serving.web.metrics import Metrics
from antpipe.settings.serving import ServeConfig

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/", "/health", "/ready")  # paths that need no token; /ready says more with one
UNBOUNDED = ("/health", "/ready", "/metrics")  # answered however many requests are in progress
LOCAL = re.compile(rb"(?i)(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?")  # the header Host
OTHER = "other"  # stands in figures for paths that are not routes


class TooLargeError(Exception):
    """The body of a request is larger than allowed."""


class ClosedError(Exception):
    """The connection closed before the request was complete."""


@dataclass(frozen=True)
class Gate:
    """An ASGI application around another one.

    token: None if none is needed. local_only: answer only requests that are addressed to this machine by a loopback
    name, so that no web page can send requests under a name of its own (DNS rebinding).
    """

    app: App
    limits: ServeConfig
    token: str | None
    metrics: Metrics
    local_only: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, sent, metrics = time.perf_counter(), Sent(send), self.metrics
        metrics.in_progress += 1
        try:
            await self._pass(scope, receive, sent)
        finally:
            metrics.in_progress -= 1
            route = scope.get("route")
            path = getattr(route, "path", OTHER)
            metrics.requests[path, sent.status] += 1
            metrics.seconds[path].add(time.perf_counter() - began)

    async def _pass(self, scope: Scope, receive: Receive, sent: "Sent") -> None:
        limits, path, headers = self.limits, scope["path"], dict(scope["headers"])
        scope["antpipe_authorised"] = authorised = self._may(headers.get(b"authorization", b""))
        if self.metrics.in_progress > limits.max_requests and path not in UNBOUNDED:
            await sent.refuse(503, f"{limits.max_requests} requests are in progress", "ask again in a second")
        elif self.local_only and not LOCAL.fullmatch(headers.get(b"host", b"")):
            await sent.refuse(
                421, "without a token, only requests to localhost are answered", "start with --token-file"
            )
        elif not authorised and path not in OPEN:
            await sent.refuse(401, "no valid token", "send the header Authorization: Bearer TOKEN")
        elif too_long(headers.get(b"content-length", b""), limits.max_body):
            await sent.refuse(413, f"more than {limits.max_body} bytes", "send a smaller request")
        else:
            await self._answer(scope, receive, sent)

    async def _answer(self, scope: Scope, receive: Receive, sent: "Sent") -> None:
        """Read the whole request, so that nothing behind the gate waits for it, and let the application answer."""
        complete = False
        try:
            async with asyncio.timeout(self.limits.timeout):
                body = await whole_body(receive, self.limits.max_body)
                complete = True
                await self.app(scope, after(body, receive), sent.send)
        except TimeoutError:
            if complete:
                await sent.refuse(504, "no answer in time", "ask again, or for less")
            else:
                await sent.refuse(408, "the request did not arrive in time", "send it faster")
        except TooLargeError:
            await sent.refuse(413, f"more than {self.limits.max_body} bytes", "send a smaller request")
        except ClosedError:
            log.debug("a connection closed before its request was complete")
        except Exception:
            log.exception(f"{scope['method']} failed")  # a bug; the request learns no more than this
            await sent.refuse(500, "unexpected error", "see the log of the service")

    def _may(self, header: bytes) -> bool:
        """Whether a header carries the token. The time it takes does not reveal how much of it was right."""
        if self.token is None:
            return True
        kind, _, given = header.partition(b" ")
        right = hmac.compare_digest(given.strip(), self.token.encode())
        return right and kind.lower() == b"bearer"


def too_long(length: bytes, most: int) -> bool:
    """Whether a Content-Length announces more than allowed. One that is not a number is left to the server."""
    return length.isdigit() and (len(length) > 18 or int(length) > most)


async def whole_body(receive: Receive, most: int) -> bytes:
    """The body of a request. Raises TooLargeError beyond `most` bytes, ClosedError if the connection closes before."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClosedError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise TooLargeError
        if not message.get("more_body", False):
            return b"".join(parts)


def after(body: bytes, receive: Receive) -> Receive:
    """An ASGI `receive` that gives a body that was already read, then what follows it."""
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return whole.pop() if whole else await receive()

    return next_message


class Sent:
    """Sends an answer and remembers its status; 499 if the connection closed before there was one."""

    def __init__(self, send: Send) -> None:
        self._send, self.status = send, 499

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    async def refuse(self, status: int, what: str, next_step: str) -> None:
        """An error, unless an answer has begun. The connection closes: the rest of the request is not read."""
        if self.status != 499:
            return
        import msgspec

        body = msgspec.json.encode({"what": what, "next": next_step})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(b"retry-after", b"1")] if status == 503 else []
        headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
        headers += [(b"connection", b"close")] if status in (408, 413) else []
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

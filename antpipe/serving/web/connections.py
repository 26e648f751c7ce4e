"""The HTTP protocol of uvicorn with limits on open connections, and on how long one may stay silent."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

BUSY = b'{"what":"too many connections are open","next":"ask again in a second"}'
ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(BUSY), BUSY)
)


def bounded_protocol(most: int, seconds: float) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn.

    most: open connections; a further one gets 503 and is closed. seconds: from the opening of a connection to the
    headers of its first request (uvicorn itself closes a connection that is idle after an answer).
    """

    class Bounded(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        first: asyncio.TimerHandle | None = None  # runs until the first request
        refused = False

        def connection_made(self, transport: Any) -> None:
            if len(self.connections) >= most:
                transport.write(ANSWER)
                transport.close()
                self.refused = True
                return
            super().connection_made(transport)
            self.first = self.loop.call_later(seconds, transport.abort)

        def data_received(self, data: bytes) -> None:
            if self.refused:
                return
            super().data_received(data)
            if self.first is not None and self.cycle is not None:  # a request has begun: the gate bounds its time
                self.first.cancel()
                self.first = None

        def eof_received(self) -> None:
            if not self.refused:
                super().eof_received()

        def connection_lost(self, exc: Exception | None) -> None:
            if self.first is not None:
                self.first.cancel()
            if not self.refused:
                super().connection_lost(exc)

    return Bounded

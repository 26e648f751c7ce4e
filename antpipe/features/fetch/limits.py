"""Request scheduling: global and per-host concurrency, and a per-host rate limit."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass
class HostLimit:
    """The requests to one host. free_at: when the next one may start."""

    slots: asyncio.Semaphore
    free_at: float = 0.0


class RequestLimits:
    """Says when a request may start.

    concurrency, per_host: requests at once, in total and to one host. rate: requests per second to one host (0: no
    limit). now, sleep: the clock, in seconds.
    """

    def __init__(
        self,
        concurrency: int,
        per_host: int,
        rate: float,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._all = asyncio.Semaphore(concurrency)
        self._per_host = per_host
        self._gap = 1 / rate if rate else 0.0
        self._now = now
        self._sleep = sleep
        self._hosts: dict[str, HostLimit] = {}

    @asynccontextmanager
    async def request(self, host: str) -> AsyncIterator[None]:
        """Wait until a request to this host may start; it lasts as long as the block.

        Waiting for one host takes no slot from the others.
        """
        limit = self._of(host)
        async with limit.slots:
            await self._wait(limit)
            async with self._all:
                yield

    def pause(self, host: str, seconds: float) -> None:
        """Start no further request to this host for so many seconds."""
        limit = self._of(host)
        limit.free_at = max(limit.free_at, self._now() + seconds)

    async def rest(self, seconds: float) -> None:
        """Wait without holding a slot."""
        await self._sleep(seconds)

    def _of(self, host: str) -> HostLimit:
        if host not in self._hosts:
            self._hosts[host] = HostLimit(asyncio.Semaphore(self._per_host))
        return self._hosts[host]

    async def _wait(self, limit: HostLimit) -> None:
        while (remaining := limit.free_at - self._now()) > 0:  # again after a sleep: another may have been quicker
            await self._sleep(remaining)
        limit.free_at = self._now() + self._gap

"""Who asks which host when: so many requests at a time in all and of a host, so many a second of a host."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass
class Lane:
    """The requests to one host. free_at: when the next may start."""

    seats: asyncio.Semaphore
    free_at: float = 0.0


class Turns:
    """Hands out turns. now, sleep: the clock, in seconds."""

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
        self._lanes: dict[str, Lane] = {}

    @asynccontextmanager
    async def turn(self, host: str) -> AsyncIterator[None]:
        """A turn lasts as long as the block. Waiting for one host takes no seat from the others."""
        lane = self._lane(host)
        async with lane.seats:
            await self._wait(lane)
            async with self._all:
                yield

    def pause(self, host: str, seconds: float) -> None:
        """No further request to this host starts before this time has passed."""
        lane = self._lane(host)
        lane.free_at = max(lane.free_at, self._now() + seconds)

    async def rest(self, seconds: float) -> None:
        """Wait without holding a turn."""
        await self._sleep(seconds)

    def _lane(self, host: str) -> Lane:
        if host not in self._lanes:
            self._lanes[host] = Lane(asyncio.Semaphore(self._per_host))
        return self._lanes[host]

    async def _wait(self, lane: Lane) -> None:
        while (remaining := lane.free_at - self._now()) > 0:  # again after a sleep: another may have been quicker
            await self._sleep(remaining)
        lane.free_at = self._now() + self._gap

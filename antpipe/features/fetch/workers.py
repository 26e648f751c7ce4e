"""Workers that fetch a list of URLs: a few per host, each taking the host's next URL when it has finished one."""

import asyncio
import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from antpipe.features.fetch.addresses import RefusedError, parse_url
from antpipe.features.fetch.downloads import Answer, Downloads, KeptPicture, host_of, open_pool
from antpipe.features.fetch.ledger import FAILED, INVALID, OK, REFUSED, Entry, keep_picture, write_ledger
from antpipe.features.fetch.limits import RequestLimits
from antpipe.features.image.decoding import UnreadableError, decode_picture
from antpipe.runtime.logs import log
from antpipe.runtime.progress import Update
from antpipe.settings.features import FetchConfig

DISK_SHARE = 0.05  # of the time may be spent on writing the ledger, however long it gets


@dataclass
class FetchRun:
    """What the workers share. entries: the ledger, which grows. folder: holds the ledger and the pictures."""

    folder: Path
    entries: dict[str, Entry]
    config: FetchConfig
    total: int
    update: Update
    started: float = field(default_factory=time.monotonic)
    states: Counter[str] = field(default_factory=Counter)
    failed_in_a_row: Counter[str] = field(default_factory=Counter)
    unsaved: bool = False

    def record(self, url: str, answer: Answer, attempts: int) -> None:
        """Enter what became of a URL, and report the progress."""
        before = self.entries.get(url)
        self.entries[url] = Entry(
            url=url,
            state=answer.state,
            status=answer.status,
            reason=answer.reason,
            attempts=attempts + (before.attempts if before else 0),
            **vars(answer.kept),
            final_url=answer.final_url,
            time=int(time.time() * 1000),
        )
        self.unsaved = True
        self.states[answer.state] += 1
        self.update(self.states.total(), self.total, self._note())

    def _note(self) -> str:
        done = self.states.total()
        rate = done / max(time.monotonic() - self.started, 1e-3)
        left = (self.total - done) / rate
        return f"{done - self.states[OK]} without picture, {rate:.1f}/s, {left / 60:.0f} min left"

    def save(self) -> None:
        if self.unsaved:
            write_ledger(self.folder, self.entries)
            self.unsaved = False


def fetch_all(
    urls: Sequence[str], folder: Path, entries: dict[str, Entry], config: FetchConfig, update: Update
) -> Mapping[str, int]:
    """Request each URL. The outcome goes to `entries` and, from time to time and at the end, to the ledger.

    Returns the number of URLs by state. On Ctrl-C (KeyboardInterrupt) and disk errors (OSError), what is complete is
    recorded before they are raised.
    """
    run = FetchRun(folder, entries, config, len(urls), update)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings about odd metadata; what is too big is refused anyway
            asyncio.run(_fetch_all(urls, run))
    finally:
        run.save()
    return run.states


async def _fetch_all(urls: Sequence[str], run: FetchRun) -> None:
    config = run.config
    queues = _by_host(urls, run)
    # Leaving waits for the decoders' threads: none may write into a folder whose lock was given back.
    with ThreadPoolExecutor(os.cpu_count()) as decoders:
        async with open_pool(config) as pool:
            downloads = Downloads(pool, RequestLimits(config.concurrency, config.per_host, config.rate), config)
            saver = asyncio.create_task(_save_often(run))
            tasks = [
                asyncio.create_task(_worker(host, queue, downloads, run, decoders))
                for host, queue in queues.items()
                for _ in range(min(config.per_host, len(queue)))
            ]
            workers = asyncio.gather(*tasks)
            try:
                ends: list[asyncio.Future[Any]] = [workers, saver]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if saver.done():
                    saver.result()  # it only ends with an error
                await workers
            finally:
                for task in (saver, *tasks):
                    task.cancel()
                await asyncio.gather(saver, *tasks, workers, return_exceptions=True)


def _by_host(urls: Sequence[str], run: FetchRun) -> dict[str, deque[str]]:
    """The URLs of each host in their order; records those that are refused without a request."""
    queues: dict[str, deque[str]] = {}
    for url in urls:
        try:
            queues.setdefault(host_of(parse_url(url)), deque()).append(url)
        except RefusedError as error:
            run.record(url, Answer(REFUSED, error.reason, final_url=url), 0)
    return queues


async def _worker(
    host: str, queue: deque[str], downloads: Downloads, run: FetchRun, decoders: ThreadPoolExecutor
) -> None:
    """One worker: take URLs from a host's queue until it is empty or the host has failed too often in a row."""

    async def keep(answer: Answer) -> Answer:
        loop = asyncio.get_running_loop()
        try:
            kept = await loop.run_in_executor(decoders, check_and_keep, answer, run.folder, run.config)
        except UnreadableError as error:
            what = f" ({answer.content_type[:80]})" if answer.content_type else ""
            return replace(answer, content=b"", state=INVALID, reason=f"{error}{what}")
        return replace(answer, content=b"", kept=kept)

    while queue:
        url = queue.popleft()
        answer, attempts = await downloads.fetch(url, keep)
        run.record(url, answer, attempts)
        run.failed_in_a_row[host] = run.failed_in_a_row[host] + 1 if answer.state == FAILED else 0
        if run.config.give_up and run.failed_in_a_row[host] == run.config.give_up and queue:
            log.warning(
                f"{host}: {run.config.give_up} failures in a row, the last: {answer.reason}; "
                f"its other {len(queue)} URLs are left for another run"
            )
            queue.clear()


def check_and_keep(answer: Answer, folder: Path, config: FetchConfig) -> KeptPicture:
    """Write the picture after decoding it completely, so that every kept picture can be read by embed-image."""
    image, form = decode_picture(answer.content, config.max_pixels)
    sha256, file = keep_picture(folder, answer.content, form)
    return KeptPicture(len(answer.content), sha256, file, image.width, image.height)


async def _save_often(run: FetchRun) -> None:
    took, awake = 0.0, False
    while True:
        await asyncio.sleep(max(run.config.save_every, took / DISK_SHARE))
        start, first = time.monotonic(), run.unsaved and not awake
        run.save()
        took, awake = 0.0 if first else time.monotonic() - start, awake or first  # the first one loads libraries

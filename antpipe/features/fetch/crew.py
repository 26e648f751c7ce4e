"""The crew that fetches a list of URLs: some workers a host, each taking the next URL when it is done with one."""

import asyncio
import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from antpipe.features.fetch.addresses import RefusedError, parse_url
from antpipe.features.fetch.downloads import Answer, Downloads, host_of, open_pool
from antpipe.features.fetch.ledger import FAILED, INVALID, OK, REFUSED, Entry, keep_picture, write_ledger
from antpipe.features.fetch.turns import Turns
from antpipe.features.image.pictures import UnreadableError, decode_picture
from antpipe.settings.features import FetchConfig

Update = Callable[[float, int, str], None]  # update(done, total, note)
DISK_SHARE = 0.05  # of the time may go into writing the ledger, however long it gets


@dataclass(frozen=True)
class Kept:
    """What an OK answer's picture was written as; nothing of other answers."""

    bytes: int | None = None
    sha256: str | None = None
    file: str | None = None
    width: int | None = None
    height: int | None = None


NOTHING = Kept()


@dataclass
class Work:
    """What the crew shares. entries: the ledger, which grows; folder: where it and the pictures are."""

    folder: Path
    entries: dict[str, Entry]
    config: FetchConfig
    total: int
    update: Update
    say: Callable[[str], None]
    started: float = field(default_factory=time.monotonic)
    states: Counter[str] = field(default_factory=Counter)
    failed_in_a_row: Counter[str] = field(default_factory=Counter)
    unsaved: bool = False

    def record(self, url: str, answer: Answer, attempts: int, kept: Kept = NOTHING) -> None:
        before = self.entries.get(url)
        self.entries[url] = Entry(
            url=url,
            state=answer.state,
            status=answer.status,
            reason=answer.reason,
            attempts=attempts + (before.attempts if before else 0),
            bytes=kept.bytes,
            sha256=kept.sha256,
            file=kept.file,
            width=kept.width,
            height=kept.height,
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
    urls: Iterable[str],
    folder: Path,
    entries: dict[str, Entry],
    config: FetchConfig,
    update: Update,
    say: Callable[[str], None],
) -> Mapping[str, int]:
    """Ask for each URL; `entries` gets what came of it, and so does the ledger, from time to time and at the end.

    Returns how many URLs came to each state. On an interruption (KeyboardInterrupt) and on errors of the disk
    (OSError) what is complete is recorded before they go on.
    """
    todo = list(urls)
    work = Work(folder, entries, config, len(todo), update, say)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata; what is too big is refused anyway
            asyncio.run(_fetch_all(todo, work))
    finally:
        work.save()
    return work.states


async def _fetch_all(urls: list[str], work: Work) -> None:
    config = work.config
    queues = _by_host(urls, work)
    # The decoders' threads are waited for at the end: none may write into a folder whose lock is given back.
    with ThreadPoolExecutor(os.cpu_count()) as decoders:
        async with open_pool(config) as pool:
            downloads = Downloads(pool, Turns(config.concurrency, config.per_host, config.rate), config)
            saver = asyncio.create_task(_save_often(work))
            workers = [
                asyncio.create_task(_serve(host, queue, downloads, work, decoders))
                for host, queue in queues.items()
                for _ in range(min(config.per_host, len(queue)))
            ]
            crew = asyncio.gather(*workers)
            try:
                ends: list[asyncio.Future[Any]] = [crew, saver]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if saver.done():
                    saver.result()  # it ends by an error only
                await crew
            finally:
                for task in (saver, *workers):
                    task.cancel()
                await asyncio.gather(saver, *workers, crew, return_exceptions=True)


def _by_host(urls: list[str], work: Work) -> dict[str, deque[str]]:
    """The URLs of each host in their order; those that are not asked at all are recorded."""
    queues: dict[str, deque[str]] = {}
    for url in urls:
        try:
            queues.setdefault(host_of(parse_url(url)), deque()).append(url)
        except RefusedError as error:
            work.record(url, Answer(REFUSED, error.reason, final_url=url), 0)
    return queues


async def _serve(host: str, queue: deque[str], downloads: Downloads, work: Work, decoders: ThreadPoolExecutor) -> None:
    while queue:
        url = queue.popleft()
        kept: list[Kept] = []

        async def keep(answer: Answer, kept: list[Kept] = kept) -> Answer:
            loop = asyncio.get_running_loop()
            try:
                kept.append(await loop.run_in_executor(decoders, check_and_keep, answer, work.folder, work.config))
            except UnreadableError as error:
                what = f" ({answer.content_type[:80]})" if answer.content_type else ""
                answer = replace(answer, state=INVALID, reason=f"{error}{what}")
            return replace(answer, content=b"")

        answer, attempts = await downloads.fetch(url, keep)
        work.record(url, answer, attempts, kept[0] if answer.state == OK else NOTHING)
        work.failed_in_a_row[host] = work.failed_in_a_row[host] + 1 if answer.state == FAILED else 0
        if work.failed_in_a_row[host] == work.config.give_up and queue:
            work.say(
                f"{host}: {work.config.give_up} failures in a row, the last: {answer.reason}; "
                f"its other {len(queue)} URLs are left to another run"
            )
            queue.clear()


def check_and_keep(answer: Answer, folder: Path, config: FetchConfig) -> Kept:
    """Decode the whole picture, so that none is kept that embed-image could not read, and write it."""
    image, form = decode_picture(answer.content, config.max_pixels)
    sha256, file = keep_picture(folder, answer.content, form)
    return Kept(len(answer.content), sha256, file, image.width, image.height)


async def _save_often(work: Work) -> None:
    took = 0.0
    while True:
        await asyncio.sleep(max(work.config.save_every, took / DISK_SHARE))
        start = time.monotonic()
        work.save()
        took = time.monotonic() - start

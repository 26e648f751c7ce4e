"""The run that serves, and its replacement when the files it came from change."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from antpipe.errors import AntpipeError
from antpipe.runtime.logs import log
from antpipe.serving.recommend import recommend_after
from antpipe.serving.web.held import HeldRun, Offers, hold
from antpipe.store.commit import MANIFEST
from antpipe.store.store import Store
from antpipe.training.folder import RunFolder

Stamp = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True)
class Loaded:
    """A run ready to serve. stamp: of the files it was loaded from."""

    held: HeldRun
    offers: Offers
    stamp: Stamp = field(repr=False)


@dataclass
class Current:
    """The run that serves now. failure: why the current files could not be loaded, or ''.

    A request takes `loaded` once, on arrival, and is answered by that run to the end.
    """

    store: Store
    run: Path
    domain: str
    cache: int  # bytes
    loaded: Loaded
    failure: str = ""
    tried: Stamp = ()

    async def follow(self, every: float, told: Callable[[str], None]) -> None:
        """Look for changed files every `every` seconds, for ever. told: called with the outcome of each load."""
        while True:
            await asyncio.sleep(every)
            try:
                outcome = await asyncio.to_thread(self.refresh)
            except Exception:  # a bug must not end the service, nor be retried silently for ever
                log.exception(f"{self.run}: changed, but cannot be loaded; the run loaded before still serves")
                outcome, self.failure = "failed", "unexpected error: see the log"
            if outcome:
                told(outcome)

    def refresh(self) -> str:
        """Load the run again if its files changed: `loaded` or `failed`, or '' if there is nothing to do.

        If loading fails, the current run stays in place, and loading is tried again only when the files change again.
        """
        stamp = stamp_of(self.store, self.run, self.domain)
        if stamp in (self.loaded.stamp, self.tried):
            if stamp == self.loaded.stamp:
                self.failure = ""  # the files are back to what they were
            return ""
        self.tried = stamp
        try:
            self.loaded = load(self.store, self.run, self.domain, self.cache)
        except (AntpipeError, OSError, ValueError, RuntimeError) as error:
            self.failure = f"{type(error).__name__}: {error}"
            log.error(f"{self.run}: changed, but cannot be loaded; the run loaded before still serves: {error}")
            return "failed"
        self.failure = ""
        log.info(f"{self.run}: loaded again, fingerprint {self.loaded.held.fingerprint[:12]}")
        return "loaded"


def load(store: Store, run: Path, domain: str, cache: int) -> Loaded:
    """Open a run and recommend once with it. Raises as `hold`, and DataError if its scores are not finite."""
    stamp = stamp_of(store, run, domain)  # before reading: a change during the load is noticed afterwards
    held = hold(store, run, domain)
    some = next(iter(held.histories.values()), None)
    recommend_after(
        held, [np.zeros(1, np.int32) if some is None else some], 1, include_seen=True, offer=held.everything
    )
    return Loaded(held, Offers(held, cache), stamp)


def stamp_of(store: Store, run: Path, domain: str) -> Stamp:
    """Time, size and inode of the files that define a run and a domain; None for one that is missing."""
    found: list[tuple[int, int, int] | None] = []
    for path in (RunFolder(run).description, store.root / domain / MANIFEST):
        try:
            facts = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((facts.st_mtime_ns, facts.st_size, facts.st_ino))
    return tuple(found)

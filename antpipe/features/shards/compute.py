"""Computing shards: the protocols of embedders and engines, the engine `local`, and the pace of the work."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from antpipe.features.shards.folder import ShardFolder, ShardVectors
from antpipe.features.shards.plan import Shard
from antpipe.runtime.logs import log
from antpipe.runtime.progress import Update

Advance = Callable[[int], None]  # called with the number of contents finished since the last call
Read = Callable[[Shard], Sequence[Any]]  # the contents of a shard, in the order of its rows


class Embedder(Protocol):
    """Made once per process. Returns the vectors of a shard's contents, in order; calls `advance` now and then."""

    def __call__(self, contents: Sequence[Any], advance: Advance) -> ShardVectors: ...


class Engine(Protocol):
    """Computes shards, writes each into the folder (`compute_shard` does both), then yields its number.

    make: makes an embedder. make and read can be pickled.
    """

    def __call__(
        self, shards: Sequence[Shard], make: Callable[[], Embedder], read: Read, folder: ShardFolder, advance: Advance
    ) -> Iterator[int]: ...


@dataclass(frozen=True)
class Packing:
    """How a content is stored in a file: packed as text, bytes or numbers, or lists and mappings of them."""

    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


def unchanged(content: Any) -> Any:
    return content


AS_IT_IS = Packing(unchanged, unchanged)


def compute_shard(shard: Shard, embedder: Embedder, read: Read, folder: ShardFolder, advance: Advance) -> int:
    """Compute one shard and write it; returns its number."""
    vectors = embedder(read(shard), advance)
    if len(vectors.values) != len(shard.rows) or len(vectors.present) != len(shard.rows):
        raise AssertionError(f"shard {shard.number}: {len(shard.rows)} contents, {len(vectors.values)} vectors")
    folder.write(shard.number, vectors, shard.rows)
    return shard.number


def compute_here(
    shards: Sequence[Shard],
    make: Callable[[], Embedder],
    read: Read,
    folder: ShardFolder,
    advance: Advance,
    *,
    threads: int = 0,
) -> Iterator[int]:
    """The engine `local`: one shard after the other, in this process. threads: see `agreed_threads`."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(agreed_threads(folder, threads))
    try:
        embedder = make()
        for shard in shards:
            yield compute_shard(shard, embedder, read, folder, advance)
    finally:
        torch.set_num_threads(before)


def agreed_threads(folder: ShardFolder, asked: int) -> int:
    """How many torch threads every process of this work uses; rounding depends on it, because sums are split by thread.

    The number noted when the work began wins; then `asked` (0: not asked); then torch's choice on this machine.
    """
    import torch

    notes = folder.notes()
    if "threads" not in notes:
        threads = asked or torch.get_num_threads()
        folder.note(notes | {"threads": threads})
        return threads
    noted = int(notes["threads"])
    if asked and asked != noted:
        log.warning(f"the work began with {counted(noted, 'thread')} per process and continues so, not with {asked}")
    return noted


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


class Pace:
    """Progress, speed and remaining time of the work, counted in contents."""

    def __init__(self, total: int, update: Update, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.update, self.unit, self.clock = total, update, unit, clock
        self.done = 0
        self.marks = [(clock(), 0)]  # the beginning, then the first step

    def skip(self, count: int) -> None:
        """Count contents that an earlier run finished; they do not enter the speed."""
        self.done += count
        self.marks = [(self.clock(), self.done)]

    def advance(self, count: int) -> None:
        self.done += count
        self.update(self.done, self.total, self.note())
        if len(self.marks) == 1:
            self.marks.append((self.clock(), self.done))

    def rate(self) -> float:
        """Contents per second in this run, not counting the first step, which waits for the encoder; 0 if none."""
        began, before = self.marks[-1] if self.done > self.marks[-1][1] else self.marks[0]
        seconds = self.clock() - began
        return (self.done - before) / seconds if seconds > 0 else 0.0

    def note(self) -> str:
        rate = self.rate()
        if not rate:
            return ""
        seconds = (self.total - self.done) / rate
        left = f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
        return f"{rate:.0f} {self.unit}/s, {left} left"


def compute(
    shards: Sequence[Shard],
    make: Callable[[], Embedder],
    read: Read,
    folder: ShardFolder,
    *,
    engine: Engine = compute_here,
    pace: Pace,
) -> None:
    """Compute the shards that are not in the folder yet."""
    there = set(folder.finished([shard.rows for shard in shards]))
    if there:
        log.info(f"{len(there)} of {len(shards)} shards were finished by an earlier run; continuing")
        pace.skip(sum(len(shard.rows) for shard in shards if shard.number in there))
    missing = [shard for shard in shards if shard.number not in there]
    if missing:
        left = {shard.number for shard in missing} - set(engine(missing, make, read, folder, pace.advance))
        if left:
            raise AssertionError(f"the engine left shards {sorted(left)} out")

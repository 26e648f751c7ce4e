"""Embedding a catalogue in shards: what is to be computed, computing it, putting it together.

Every item has a content: 16 bytes that stand for what would be embedded, all zeros where there is nothing. Equal
contents share one vector; contents the earlier artefact has are copied from it; the rest is cut into shards, in row
order. A shard is computed as a whole from its contents alone, by an embedder that knows nothing of the others, so it
does not matter which process does it, when, or how often the work was interrupted: the same bytes come out.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from antpipe.errors import AntpipeError, IntegrityError
from antpipe.features.shards.files import ShardFolder, Vectors
from antpipe.store.domain import Domain
from antpipe.store.files import Earlier, Feature, digest, earlier_feature

Rows = NDArray[np.int64]
Contents = NDArray[np.uint8]  # (N, 16)
CONTENT_BYTES = 16
ROWS_AT_ONCE = 65_536  # that are copied in one step
Advance = Callable[[int], None]  # is told of so many more contents that are done
Show = Callable[[int, int, str], None]  # done, total, note

__all__ = ["Embedder", "Engine", "Plan", "Shard", "ShardFolder", "Vectors"]


@dataclass(frozen=True)
class Shard:
    """Some of the contents to be computed. rows: (n,) the first row of each, ascending."""

    number: int
    rows: Rows


class Embedder(Protocol):
    """Made once a process. Returns the vectors of all contents of one shard, in order; calls `advance` now and then."""

    def __call__(self, contents: Sequence[Any], advance: Advance) -> Vectors: ...


class Engine(Protocol):
    """Computes shards, writes each into the folder (`compute_shard` does both) and yields its number then.

    make and read can be pickled. make: an embedder. read: the contents of a shard, in the order of its rows.
    """

    def __call__(
        self,
        shards: Sequence[Shard],
        make: Callable[[], Embedder],
        read: Callable[[Shard], Sequence[Any]],
        folder: ShardFolder,
        advance: Advance,
    ) -> Iterator[int]: ...


# -- what is to be done ---------------------------------------------------------------------------------------


def content_of(content: bytes) -> bytes:
    """16 bytes that stand for a content; never those that stand for nothing."""
    return hashlib.blake2b(content, digest_size=CONTENT_BYTES).digest()


@dataclass(frozen=True)
class Plan:
    """Where each row's vector comes from.

    first: (N,) the first row of equal content, -1 where there is nothing to embed. compute: rows whose contents are to
    be embedded. copied, source: rows whose vectors are copied, and the rows of the earlier artefact they come from.
    compute and copied are ascending, and each content is in one of them once.
    """

    content: Contents
    first: Rows
    compute: Rows
    copied: Rows
    source: Rows

    def figures(self) -> dict[str, int]:
        """Different contents; those to compute, those copied from before; rows that share another row's vector."""
        texts = len(self.compute) + len(self.copied)
        return {
            "different": texts,
            "computed": len(self.compute),
            "reused": len(self.copied),
            "shared": int((self.first >= 0).sum()) - texts,
        }

    def key(self, settings: Mapping[str, Any]) -> str:
        """sha256 of what finished shards depend on. settings: encoder, precision, id table, sizes, libraries …"""
        arrays = hashlib.sha256(self.content.tobytes())
        arrays.update(self.compute.tobytes())
        return digest([dict(settings), arrays.hexdigest()])


def plan_rows(content: Contents, earlier: Earlier | None = None) -> Plan:
    """content: (N, 16) uint8. earlier: vectors that may be copied; those that are not present are computed anew."""
    own = first_of_equal(content)
    first, reused = own, np.zeros(len(content), np.bool_)
    if earlier is not None:
        count = len(earlier.content)
        first = first_of_equal(np.concatenate([earlier.content, content]))[count:]  # a row of one or, above, the other
        there = (first >= 0) & (first < count)
        reused[there] = earlier.present[first[there]]  # equal contents are all present, or none is
    firsts = own == np.arange(len(content))
    copied = np.flatnonzero(firsts & reused)
    return Plan(content, own, np.flatnonzero(firsts & ~reused), copied, first[copied])


def first_of_equal(content: Contents) -> Rows:
    """(N,) the lowest row with the same 16 bytes; -1 for rows of zeros."""
    low, high = np.ascontiguousarray(content).view(np.uint64).reshape(len(content), 2).T
    order = np.lexsort((low, high))  # stable: equal contents keep the order of their rows
    start = np.ones(len(order), np.bool_)
    start[1:] = (low[order][1:] != low[order][:-1]) | (high[order][1:] != high[order][:-1])
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(start)][np.cumsum(start) - 1]
    first[(low == 0) & (high == 0)] = -1
    return first


def cut(rows: Rows, size: int, weights: NDArray[np.int64] | None = None, most: int = 0) -> list[Shard]:
    """Shards of `size` rows; fewer where the weights of a shard (bytes of its contents) would be more than `most`."""
    starts = list(range(0, len(rows), size))
    if weights is not None and len(rows):
        total, starts, rows_in = 0, [0], 0
        for position, weight in enumerate(weights[rows].tolist()):
            if rows_in and (rows_in == size or total + weight > most):
                starts.append(position)
                total = rows_in = 0
            total, rows_in = total + weight, rows_in + 1
    ends = [*starts[1:], len(rows)]
    return [Shard(number, rows[start:end]) for number, (start, end) in enumerate(zip(starts, ends, strict=False))]


def earlier_vectors(place: Domain, artefact: str, recipe: Mapping[str, Any]) -> Earlier | None:
    """The artefact as it was built last, if its vectors were made in the same way; its catalogue may have changed.

    recipe: all that a vector depends on besides its content; the stage keeps it in the manifest entry as `recipe`.
    """
    entry = place.manifest().get(artefact, {})
    if entry.get("recipe") != dict(recipe):
        return None
    return earlier_feature(place.path / f"{artefact}.arrow", entry)


# -- computing ------------------------------------------------------------------------------------------------


def compute_shard(
    shard: Shard,
    embedder: Embedder,
    read: Callable[[Shard], Sequence[Any]],
    folder: ShardFolder,
    advance: Advance,
) -> int:
    """Compute one shard and write it; returns its number."""
    vectors = embedder(read(shard), advance)
    if len(vectors.values) != len(shard.rows) or len(vectors.present) != len(shard.rows):
        raise AssertionError(f"shard {shard.number}: {len(shard.rows)} contents, {len(vectors.values)} vectors")
    folder.write(shard.number, vectors, shard.rows)
    return shard.number


def run_here(
    shards: Sequence[Shard],
    make: Callable[[], Embedder],
    read: Callable[[Shard], Sequence[Any]],
    folder: ShardFolder,
    advance: Advance,
) -> Iterator[int]:
    """The engine `local`: one shard after the other, in this process."""
    embedder = make()
    for shard in shards:
        yield compute_shard(shard, embedder, read, folder, advance)


class Pace:
    """How far the work is, how fast it goes and how long it will take, counted in contents."""

    def __init__(self, total: int, show: Show, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.show, self.unit, self.clock = total, show, unit, clock
        self.done = 0
        self.marks = [(clock(), 0)]  # the beginning, then the first step

    def skip(self, count: int) -> None:
        """So many are done already, by an earlier run."""
        self.done += count
        self.marks = [(self.clock(), self.done)]

    def advance(self, count: int) -> None:
        self.done += count
        self.show(self.done, self.total, self.note())
        if len(self.marks) == 1:
            self.marks.append((self.clock(), self.done))

    def rate(self) -> float:
        """Contents a second in this run, after the first step, which had to wait for the encoder; 0 where none was
        computed."""
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
    read: Callable[[Shard], Sequence[Any]],
    folder: ShardFolder,
    *,
    engine: Engine = run_here,
    pace: Pace,
    say: Callable[[str], None],
) -> None:
    """Compute the shards that are not in the folder yet."""
    there = set(folder.finished([shard.rows for shard in shards]))
    if there:
        say(f"{len(there)} of {len(shards)} shards were finished by an earlier run; going on")
        pace.skip(sum(len(shard.rows) for shard in shards if shard.number in there))
    missing = [shard for shard in shards if shard.number not in there]
    if missing:
        left = {shard.number for shard in missing} - set(engine(missing, make, read, folder, pace.advance))
        if left:
            raise AssertionError(f"the engine left shards {sorted(left)} out")


@contextmanager
def told_of_disk(place: Domain, artefact: str, command: str) -> Iterator[None]:
    """A disk that is full or fails ends the work with one line: what is finished is kept, and so is the artefact."""
    try:
        yield
    except OSError as error:
        where = error.filename or place.path
        raise AntpipeError(
            f"{where}: {error.strerror or error}; {artefact} is as before, and finished shards are kept", command
        ) from error


# -- putting it together --------------------------------------------------------------------------------------


def assemble(
    feature: Feature, plan: Plan, shards: Iterable[Shard], folder: ShardFolder, earlier: Earlier | None
) -> list[tuple[int, str]]:
    """Fill the feature from shards, the earlier artefact and shared contents. Returns (row, why) of all failures."""
    failures: list[tuple[int, str]] = []
    for shard in shards:
        vectors = folder.read(shard.number, shard.rows)
        if vectors.values.shape[1] != feature.values.shape[1]:
            raise IntegrityError(f"{folder.path}: shard {shard.number} has the shape {vectors.values.shape}")
        here = vectors.present
        feature.values[shard.rows[here]] = vectors.values[here]
        feature.present[shard.rows[here]] = True
        failures += [(int(shard.rows[position]), why) for position, why in vectors.failures]
    if earlier is not None:
        for start in range(0, len(plan.copied), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            feature.values[plan.copied[part]] = earlier.values[plan.source[part]]
        feature.present[plan.copied] = True
    others = np.flatnonzero((plan.first >= 0) & (plan.first != np.arange(len(plan.first))))
    for start in range(0, len(others), ROWS_AT_ONCE):
        rows = others[start : start + ROWS_AT_ONCE]
        feature.values[rows] = feature.values[plan.first[rows]]
        feature.present[rows] = feature.present[plan.first[rows]]
    return failures

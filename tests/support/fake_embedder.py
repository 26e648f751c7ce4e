"""Embedders without a model, which record what they are asked for."""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from antpipe.errors import DataError
from antpipe.features.shards.folder import ShardVectors
from antpipe.features.shards.plan import Shard, content_of

WIDTH = 4


def vector_of(content: str) -> list[float]:
    """A direction that only this content has."""
    return [byte / 256 for byte in content_of(content.encode())[:WIDTH]]


@dataclass
class Counting:
    """Stands for a factory of embedders and for the one it makes; `bad` contents get no vector."""

    asked: list[str] = field(default_factory=list)
    bad: str = "bad"
    stop_after: int = -1  # calls, then Stopped
    calls: int = 0

    def __call__(self, contents: Sequence[Any], advance: Callable[[int], None]) -> ShardVectors:
        if self.calls == self.stop_after:
            raise Stopped
        self.calls += 1
        self.asked += contents
        present = np.array([content != self.bad for content in contents])
        values = np.array([vector_of(content) for content in contents], np.float32) * present[:, None]
        advance(len(contents))
        return ShardVectors(values, present, [(int(n), "unreadable") for n in np.flatnonzero(~present)])

    def make(self) -> "Counting":
        return self


class Stopped(BaseException):
    """An exception that no code of the package catches by accident."""


@dataclass(frozen=True)
class Contents:
    """Reads contents from a list."""

    texts: Sequence[str]

    def array(self) -> "np.ndarray[Any, Any]":
        rows = [content_of(text.encode()) if text else bytes(16) for text in self.texts]
        return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 16)

    def __call__(self, shard: Shard) -> list[str]:
        return [self.texts[row] for row in shard.rows]


@dataclass(frozen=True)
class Remote:
    """Stands for a factory and for the embedders it makes in other processes; they record what they are asked in `log`.

    The first process that meets `deadly` is killed. `refused` is a DataError, `odd` an error that cannot be pickled.
    """

    log: str
    deadly: str = "deadly"
    refused: str = "refused"
    odd: str = "odd"

    def __call__(self) -> "Remote.Embedder":
        return Remote.Embedder(self)

    def asked(self) -> list[tuple[int, str]]:
        """(process, content) for each time a content was asked for."""
        lines = [line for path in Path(self.log).glob("*.txt") for line in path.read_text().splitlines()]
        return [(int(pid), content) for pid, content in (line.split(" ", 1) for line in lines)]

    @dataclass(frozen=True)
    class Embedder:
        made: "Remote"

        def __call__(self, contents: Sequence[str], advance: Callable[[int], None]) -> ShardVectors:
            with (Path(self.made.log) / f"{os.getpid()}.txt").open("a") as file:
                file.writelines(f"{os.getpid()} {content}\n" for content in contents)
            dead = Path(self.made.log) / "dead"
            if self.made.deadly in contents and not dead.exists():
                dead.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if self.made.refused in contents:
                raise DataError("a content is refused", "antpipe status")
            if self.made.odd in contents:
                raise OddError("one", "two")
            advance(len(contents))
            values = np.array([vector_of(content) for content in contents], np.float32)
            return ShardVectors(values, np.ones(len(contents), np.bool_))


class OddError(Exception):
    """An exception that pickle cannot restore."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


@dataclass(frozen=True)
class OnlyHere:
    """Reads contents from a list, in the process that made it."""

    texts: Sequence[str]
    pid: int = field(default_factory=os.getpid)

    def __call__(self, shard: Shard) -> list[str]:
        assert os.getpid() == self.pid
        return [self.texts[row] for row in shard.rows]

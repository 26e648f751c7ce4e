"""An embedder without a model, which counts what it is asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from antpipe.features.shards import Shard, Vectors, content_of

WIDTH = 4


def vector_of(content: str) -> list[float]:
    """Some direction that only this content has."""
    return [byte / 256 for byte in content_of(content.encode())[:WIDTH]]


@dataclass
class Counting:
    """Stands for a factory of embedders and for the one it makes; `bad` contents get no vector."""

    asked: list[str] = field(default_factory=list)
    bad: str = "bad"
    stop_after: int = -1  # calls, then Stopped
    calls: int = 0

    def __call__(self, contents: Sequence[Any], advance: Callable[[int], None]) -> Vectors:
        if self.calls == self.stop_after:
            raise Stopped
        self.calls += 1
        self.asked += contents
        present = np.array([content != self.bad for content in contents])
        values = np.array([vector_of(content) for content in contents], np.float32) * present[:, None]
        advance(len(contents))
        return Vectors(values, present, [(int(n), "unreadable") for n in np.flatnonzero(~present)])

    def make(self) -> "Counting":
        return self


class Stopped(BaseException):
    """What no code of the package can catch by accident."""


@dataclass(frozen=True)
class Contents:
    """Reads contents from a list."""

    texts: Sequence[str]

    def array(self) -> "np.ndarray[Any, Any]":
        rows = [content_of(text.encode()) if text else bytes(16) for text in self.texts]
        return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 16)

    def __call__(self, shard: Shard) -> list[str]:
        return [self.texts[row] for row in shard.rows]

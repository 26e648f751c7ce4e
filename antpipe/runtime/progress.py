"""Progress of long work: the protocol by which stages report it, and how the command line shows it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Update(Protocol):
    """update(done, total, note): called as often as the caller likes; `done` may be a fraction."""

    def __call__(self, done: float, total: int, note: str = "") -> None: ...


class Progress(Protocol):
    """progress(label) opens one piece of work and yields the Update that reports its progress."""

    def __call__(self, label: str) -> AbstractContextManager[Update]: ...


def ignore(done: float, total: int, note: str = "") -> None:
    """An Update that shows nothing."""


@contextmanager
def silent(label: str) -> Iterator[Update]:  # noqa: ARG001 -- part of the protocol
    """A Progress that shows nothing: the default of public functions."""
    yield ignore

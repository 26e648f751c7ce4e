"""Progress of long work: the protocol that every stage reports to, and how the command line shows it."""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

QUIET_SECONDS = 5.0  # between plain lines


class Update(Protocol):
    """update(done, total, note), to be called as often as one likes; done may hold a fraction."""

    def __call__(self, done: float, total: int, note: str = "") -> None: ...


class Progress(Protocol):
    """progress(label) opens one piece of work; within the block, the function it yields reports how far it is."""

    def __call__(self, label: str) -> AbstractContextManager[Update]: ...


def ignore(done: float, total: int, note: str = "") -> None:
    """An Update that shows nothing."""


@contextmanager
def silent(label: str) -> Iterator[Update]:  # noqa: ARG001 -- the protocol has it
    """Shows nothing."""
    yield ignore


@contextmanager
def on_stderr(label: str) -> Iterator[Update]:
    """A bar if stderr is a terminal, and a plain line now and then if it is not."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=None, note="")

            def move(done: float, total: int, note: str = "") -> None:
                bar.update(task, completed=done, total=total, note=note)

            yield move
        return
    last = time.monotonic()

    def line(done: float, total: int, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= QUIET_SECONDS or (done == total and note):
            last = time.monotonic()
            print(f"{label}: {int(done)}/{total} {note}".rstrip(), file=sys.stderr)

    yield line

"""Progress on stderr: a bar on a terminal, now and then a plain line elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

QUIET_SECONDS = 5.0  # between plain lines


class Update(Protocol):
    """update(done, total, note), to be called as often as one likes; done may hold a fraction."""

    def __call__(self, done: float, total: int, note: str = "") -> None: ...


@contextmanager
def progress(label: str) -> Iterator[Update]:
    """Yields the function that shows where the work stands."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                   TextColumn("{task.fields[note]}"))  # fmt: skip
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

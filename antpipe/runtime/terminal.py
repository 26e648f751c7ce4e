"""How the command line shows untrusted texts (ids, titles, file names), and messages and progress on stderr."""

import io
import logging
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from antpipe.runtime.logs import log
from antpipe.runtime.progress import Update, ignore
from antpipe.runtime.words import is_hidden

QUIET_SECONDS = 5.0  # between plain lines
MAYBE_HIDDEN = re.compile(r"[^\x20-\x7e\xa1-\xac\xae-\u02ff]")
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


def shown(text: str, keep: str = "\n\t") -> str:
    """A text with hidden characters, except those to keep, as escapes such as \\u001b, as JSON would write them."""
    return MAYBE_HIDDEN.sub(lambda one: _escaped(one[0]) if is_hidden(one[0]) and one[0] not in keep else one[0], text)


def cell(value: object) -> str:
    """A value for one line of a table: line breaks and other hidden characters are escaped."""
    return shown(str(value), keep="")


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place]:02x}{units[place + 1]:02x}" for place in range(0, len(units), 2))


class ToStderr(logging.Handler):
    """Print each message as `antpipe: MESSAGE` to the current stderr; a warning begins with `warning: `."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "warning: " if record.levelno == logging.WARNING else ""
        print(f"antpipe: {level}{shown(record.getMessage())}", file=sys.stderr)


def takes_any_text() -> None:
    """Let stdout and stderr show characters that their encoding lacks as escapes, rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def shown_on_stderr() -> Iterator[None]:
    """Show all messages on stderr within this block."""
    handler, level, propagate = ToStderr(), log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


@contextmanager
def quieter() -> Iterator[None]:
    """Show warnings only, and no progress, within this block."""
    level, token = log.level, _quiet.set(True)
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
        _quiet.reset(token)


@contextmanager
def on_stderr(label: str) -> Iterator[Update]:
    """The Progress of the command line: a bar if stderr is a terminal, else a plain line every few seconds."""
    if _quiet.get():
        yield ignore
        return
    label = cell(label)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=None, note="")

            def move(done: float, total: int, note: str = "") -> None:
                bar.update(task, completed=done, total=total, note=cell(note))

            yield move
        return
    last = time.monotonic()

    def line(done: float, total: int, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= QUIET_SECONDS or (done == total and note):
            last = time.monotonic()
            print(f"{label}: {int(done)}/{total} {cell(note)}".rstrip(), file=sys.stderr)

    yield line

"""Messages to the user: the logger `antpipe`, and the handler with which the command line shows it.

Every module of antpipe logs to `logging.getLogger("antpipe")`: `info` for what a user wants to know, `warning` for what
may surprise. A Python user attaches a handler of her own, or none.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("antpipe")


class ToStderr(logging.Handler):
    """Prints each message on stderr as `antpipe: MESSAGE`, whatever stderr is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"antpipe: {record.getMessage()}", file=sys.stderr)


@contextmanager
def shown_on_stderr() -> Iterator[None]:
    """Show messages on stderr within this block."""
    handler, before = ToStderr(), (log.level, log.propagate)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


@contextmanager
def each_message_once() -> Iterator[None]:
    """Drop messages that were already logged within this block: what holds for one run often holds for all."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in seen
        seen.add(message)
        return new

    log.addFilter(is_new)
    try:
        yield
    finally:
        log.removeFilter(is_new)


@contextmanager
def silenced() -> Iterator[None]:
    """Drop all messages within this block: it only looks."""

    def nothing(_: logging.LogRecord) -> bool:
        return False

    log.addFilter(nothing)
    try:
        yield
    finally:
        log.removeFilter(nothing)

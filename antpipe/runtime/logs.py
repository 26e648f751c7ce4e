"""Messages to the user: the logger `antpipe`, and the handler with which the command line shows it.

Every module logs here: `info` for what a user wants to know, `warning` for what may surprise. In Python, attach a
handler to `logging.getLogger("antpipe")` to see the messages.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("antpipe")


@contextmanager
def each_message_once() -> Iterator[None]:
    """Drop messages that repeat an earlier one of this block: what is true of one run is often true of all of them."""
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
    """Drop all messages within this block."""

    before, log.disabled = log.disabled, True  # not a filter: each_message_once would count the messages as shown
    try:
        yield
    finally:
        log.disabled = before

"""How the process uses memory and threads, and how it handles Ctrl-C. Results do not depend on it."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from antpipe.errors import Interrupted

# Parameters of mallopt, numbered as in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER_TRIM = 2**31 - 1  # bytes; the largest value an int holds


def tune_process() -> None:
    """Set up memory and threads; call it before torch is imported."""
    keep_freed_memory()
    # OpenMP threads that spin while they wait slow a busy machine down several times. A value set by the user stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_freed_memory() -> bool:
    """Tell glibc to serve large blocks from the heap and not to trim it, until the process ends.

    The tensors of a step are as large as those of the step before, so freed memory is reused at once; returning it to
    the system and getting it back would cost page faults. Returns whether this took effect: without glibc's mallopt,
    nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, NEVER_TRIM) == 1)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C was pressed, so that work can stop between two steps.

    A second Ctrl-C raises KeyboardInterrupt at once. Outside the main thread, which alone may handle signals, Ctrl-C is
    left to that thread.
    """
    pressed = False

    def note(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def continued_by(next_command: str) -> Iterator[None]:
    """On Ctrl-C within the block, suggest the command that continues the whole work, not a part of it."""
    try:
        yield
    except KeyboardInterrupt as stop:
        message = stop.message if isinstance(stop, Interrupted) else "interrupted"
        raise Interrupted(message, next_command) from None

"""How the process uses memory and threads, and how it takes Ctrl-C. Results do not depend on it."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Numbers of mallopt's parameters in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER_TRIM = 2**31 - 1  # bytes; the largest value an int holds
SHORT_TURN = 0.0005  # seconds


def tune_process() -> None:
    """Settle memory and threads; call it before torch is imported."""
    keep_freed_memory()
    # OpenMP threads that spin while they wait slow a busy machine down several times; what the user set stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_freed_memory() -> bool:
    """Tell glibc to serve large blocks from the heap and not to trim it, until the process ends.

    Tensors of a step are as large as those of the step before, so the memory is used again at once; giving it
    back and taking it again would cost page faults. Returns whether this took effect; on systems without glibc's
    mallopt nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, NEVER_TRIM) == 1)


@contextmanager
def short_turns() -> Iterator[None]:
    """A thread that comes out of a library waits at most SHORT_TURN for the one that runs Python, not the usual 5 ms.

    For threads that spend a few milliseconds at a time in libraries: otherwise they would mostly wait.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SHORT_TURN)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Yields whether Ctrl-C was pressed, so that training stops between two steps; a second one stops at once."""
    asked = False

    def note(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)

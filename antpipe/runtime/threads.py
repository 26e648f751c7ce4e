"""How threads of one process take turns."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

SHORT_TURN = 0.0005  # seconds


@contextmanager
def short_turns() -> Iterator[None]:
    """Within this block, a thread that returns from a library waits at most SHORT_TURN for the GIL, not the usual 5 ms.

    For threads that spend a few milliseconds at a time in libraries, which would otherwise mostly wait.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SHORT_TURN)
    try:
        yield
    finally:
        sys.setswitchinterval(before)

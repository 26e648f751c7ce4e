"""How the process uses memory and threads. Results do not depend on it."""

import ctypes
import os
import sys

# Numbers of mallopt's parameters in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER_TRIM = 2**31 - 1  # bytes; the largest value an int holds


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

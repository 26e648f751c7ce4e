"""Untrusted files, which need not be what their names say."""

import errno
import io
import os
import stat
from pathlib import Path


def open_regular(path: Path, most: int) -> io.BufferedReader:
    """Open an untrusted file for reading. Raises OSError for a pipe or device, a file of more than `most` bytes,
    and a name that no file can have."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except ValueError as error:  # a zero byte in its name
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    facts = os.fstat(handle)
    if stat.S_ISREG(facts.st_mode) and facts.st_size <= most:
        return os.fdopen(handle, "rb")
    os.close(handle)
    why = f"larger than {most:,} bytes" if stat.S_ISREG(facts.st_mode) else "not a regular file"
    raise OSError(errno.EINVAL, why, str(path))

"""Disks that are full."""

import errno
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def folder_of(error: OSError) -> Path:
    """The nearest folder that exists around the file of an error."""
    path = Path(error.filename or ".").absolute()
    return next((folder for folder in path.parents if folder.is_dir()), Path())

"""Disks that are full, and files that cannot be written: which file it was."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError of this block the name of the file, which errors of writing lack."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def folder_of(error: OSError) -> Path:
    """The nearest folder that exists around the file of an error."""
    path = Path(error.filename or ".").absolute()
    return next((folder for folder in path.parents if folder.is_dir()), Path())

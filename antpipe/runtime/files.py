"""Replacing a file in one step."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields a scratch path beside `path`, whose file replaces `path` when the block ends.

    A reader sees the old file or the new one, never a part of it. If the block raises, `path` is as before and the
    scratch file is gone. durable: the content is on the disk before it replaces the old file.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield scratch
        if durable:
            with scratch.open("rb") as stream:
                os.fsync(stream.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)

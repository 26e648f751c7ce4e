"""Replacing a file in one step."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a scratch path beside `path`; the file written there replaces `path` at the end of the block.

    A reader sees the old file or the new one, never a part; of several writers at once, the last one wins. If the block
    raises, `path` is as before and the scratch file is removed. durable: flush the content to the disk before it
    replaces the old file.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}")
    try:
        yield scratch
        if durable:
            with scratch.open("rb") as stream:
                os.fsync(stream.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)

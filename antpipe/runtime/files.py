"""Replacing a file in one step, so that neither a kill nor a power cut leaves a part of it."""

import errno
import glob
import os
import re
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OF_PROCESS = re.compile(r"\.(.+?)\.(\d+)(?:-\d+)?(?:@(.*?))?(?:\.old)?", re.DOTALL)  # scratch files and folders
ABANDONED = 7 * 86_400  # seconds after which a scratch file of another machine counts as a leftover


@contextmanager
def atomic(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a scratch path beside `path`; the file written there replaces `path` at the end of the block.

    A reader sees the old file or the new one, never a part; of several writers at once, the last one wins. If the block
    raises, `path` is as before and the scratch file is removed; after a kill, the next writer removes it. durable:
    flush the content to the disk before it replaces the old file, and the folder after that.
    """
    scratch = path.with_name(scratch_name(path.name))
    if durable:
        sweep(path.parent, path.name)
    try:
        scratch.touch()
        mode = stat.S_IMODE(scratch.stat().st_mode)
        scratch.unlink()  # so that a block which writes nothing fails
        with naming(path):
            yield scratch
        scratch.chmod(mode)  # as the umask says: safetensors replaces the file by one that only its owner may read
        if durable:
            flush(scratch)
        scratch.replace(path)
        if durable:
            flush(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError of this block the name of the file, which write errors lack."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def scratch_name(name: str) -> str:
    """A name beside `name` that tells whose scratch file it is."""
    return f".{name}.{os.getpid()}-{threading.get_native_id()}@{socket.gethostname()[:32]}"


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # file systems that flush no folders
            error.filename = str(path)
            raise
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder and its parents if they are missing, and flush their names to the disk."""
    if not path.is_dir():
        if not path.parent.exists():
            make_folder(path.parent)
        path.mkdir(exist_ok=True)
        flush(path.parent)


def flush_tree(folder: Path) -> None:
    """Flush everything in a folder, and the folder itself."""
    for place, _, names in os.walk(folder):
        for name in names:
            flush(Path(place, name))
        flush(Path(place))


def sweep(folder: Path, name: str = "") -> None:
    """Remove what killed writers left in a folder: scratch files and folders of ended processes.

    name: only those of the file with this name; without it, what an export moved aside (.old) stays.
    """
    for path in folder.glob(f".{glob.escape(name)}.*" if name else ".*"):
        if is_abandoned(path, name) and (name or path.suffix != ".old"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def is_abandoned(path: Path, name: str = "") -> bool:
    """Whether this is a scratch file, of the file with this name if one is given, whose process has ended."""
    named = OF_PROCESS.fullmatch(path.name)
    if not named or name not in ("", named[1]):
        return False
    if named[3] not in (None, socket.gethostname()[:32]):
        return time.time() - path.lstat().st_mtime > ABANDONED
    return not _is_alive(int(named[2]))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True

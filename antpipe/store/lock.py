"""One writer at a time for each artefact of a domain and for each run; a second writer learns who the first is."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from antpipe.errors import AntpipeError
from antpipe.runtime.files import make_folder, naming

if TYPE_CHECKING:
    from filelock import BaseFileLock


@contextmanager
def alone(folder: Path, artefact: str) -> Iterator[None]:
    """Hold the lock of an artefact. Raises AntpipeError, which names the holder, if another process has it.

    The kernel keeps the lock, so it is released when its process ends, however that ends. A file beside it says who
    holds it; that file may outlive its writer, so it is read only while the lock is held.
    """
    from filelock import FileLock, Timeout

    make_folder(folder)
    lock, holder = folder / f".{artefact}.lock", folder / f".{artefact}.holder"
    try:
        try:
            held = FileLock(lock, timeout=0).acquire()
        except FileNotFoundError:  # a writer that wrote nothing has just removed the folder
            make_folder(folder)
            held = FileLock(lock, timeout=0).acquire()
        with held:
            facts = {"process": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv[1:])}
            facts["since"] = datetime.now(UTC).isoformat(timespec="seconds")
            with naming(holder):
                holder.write_text(json.dumps(facts), encoding="utf-8")
            try:
                yield
            finally:
                holder.unlink(missing_ok=True)
                if not set(folder.iterdir()) - {lock}:  # a new domain without any artefact leaves no folder
                    lock.unlink(missing_ok=True)
                    with suppress(OSError):  # another writer has just begun here
                        folder.rmdir()
    except Timeout:
        raise AntpipeError(f"{folder}: {artefact} is being written by {describe(holder)}; wait until it ends") from None


def committing(folder: Path) -> "BaseFileLock":
    """The lock of a domain while files are moved into place; entering it waits for the other writers, briefly."""
    from filelock import FileLock

    return FileLock(folder / ".lock")


def describe(holder: Path) -> str:
    """The holder of the lock, in words."""
    try:
        facts = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {facts['process']} on {facts['host']} since {facts['since']} (antpipe {facts['command']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has just started or ended
        return "another process"

"""One writer at a time for each artefact of a domain, and for each run; a second one is told who is at work."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from antpipe.errors import AntpipeError

if TYPE_CHECKING:
    from filelock import BaseFileLock


@contextmanager
def alone(folder: Path, artefact: str) -> Iterator[None]:
    """Hold the lock of an artefact; AntpipeError names its holder where another process has it.

    The lock is the kernel's, so it ends with its process, however that ends. Who holds it is in a file beside it, which
    may outlive its writer: it is read only while somebody holds the lock.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = folder / f".{artefact}.lock", folder / f".{artefact}.holder"
    try:
        with FileLock(lock, timeout=0):
            facts = {
                "process": os.getpid(),
                "host": socket.gethostname(),
                "command": " ".join(sys.argv[1:]),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            holder.write_text(json.dumps(facts), encoding="utf-8")
            try:
                yield
            finally:
                holder.unlink(missing_ok=True)
                if not set(folder.iterdir()) - {lock}:  # nothing came of a new domain: it leaves nothing
                    lock.unlink(missing_ok=True)
                    folder.rmdir()
    except Timeout:
        raise AntpipeError(f"{folder}: {artefact} is being written by {told(holder)}; wait for its end") from None


def committing(folder: Path) -> "BaseFileLock":
    """The lock of a domain while files are moved into place; waits for its turn, which is short."""
    from filelock import FileLock

    return FileLock(folder / ".lock")


def told(holder: Path) -> str:
    """Who holds the lock, in words."""
    try:
        facts = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {facts['process']} on {facts['host']} since {facts['since']} (antpipe {facts['command']})"
    except (OSError, ValueError, KeyError, TypeError):  # it began or ended this moment
        return "another process"

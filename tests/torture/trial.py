"""One trial: a copy of a store or a file meets an accident in a process of its own, and what became of it."""

import ctypes
import json
import os
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

# What may come of a trial. Whole: nothing was lost, and the result is that without the accident. Refused: the command
# said what is wrong, with its exit code. The others are failures.
WHOLE, REFUSED = "whole", "refused"
LOST, SILENT, UNEXPECTED, CRASHED, HUNG = "lost", "silent", "unexpected", "crashed", "hung"
FAILURES = (LOST, SILENT, UNEXPECTED, CRASHED, HUNG)
CODES = (0, 1, 2, 3, 4, 5, 130)  # exit codes that docs/pipeline.md lists
SECONDS = 120.0  # after which a trial hangs


@dataclass(frozen=True)
class Found:
    """outcome: WHOLE, REFUSED or one of FAILURES. command: what was disturbed. inputs: files, rows, requests."""

    outcome: str
    command: str
    told: str = ""
    inputs: int = 1


@dataclass(frozen=True)
class Place:
    """whole: templates, which no trial changes. scratch: a folder of the trial's own."""

    whole: Path
    scratch: Path


@dataclass(frozen=True)
class Kind:
    """One way of treating files badly. about: for the table. weight: how often it is drawn, relative to the others."""

    about: str
    weight: float
    trial: Callable[[Place, Random], Found]


@dataclass(frozen=True)
class Ended:
    """How a process ended. value: what its work returned. wrong: the traceback, if it raised. code: as `os.waitpid`
    gives it, negative for a signal."""

    value: Any
    wrong: str
    code: int
    hung: bool = False


class Forked:
    """Work in a fork of this process, which has only imported: no thread is lost."""

    def __init__(self, work: Callable[[], Any], said: Path | None = None) -> None:
        """said: gets what the fork writes to stdout and stderr, the messages of native libraries among it."""
        self._reading, writing = os.pipe()
        self.process = os.fork()
        if not self.process:
            os.close(self._reading)
            os.setpgid(0, 0)
            end_with_parent()
            if said is not None:
                handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(handle, 1)
                os.dup2(handle, 2)
            value, wrong = None, ""
            try:
                value = work()
            except BaseException:
                wrong = traceback.format_exc()[-3000:]
            try:
                with os.fdopen(writing, "w") as stream:
                    json.dump([value, wrong], stream)
            finally:
                os._exit(0)
        os.close(writing)

    def end(self, seconds: float = SECONDS) -> Ended:
        """Wait for the end; the whole group of processes is killed after so many seconds."""
        content, until, hung = b"", time.monotonic() + seconds, False
        while True:
            ready, _, _ = select.select([self._reading], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                hung = True
                break
            part = os.read(self._reading, 1 << 16)
            if not part:
                break
            content += part
        os.close(self._reading)
        if hung:
            self.kill()
        _, status = os.waitpid(self.process, 0)
        value, wrong = json.loads(content) if content and not hung else (None, "")
        return Ended(value, wrong, os.waitstatus_to_exitcode(status), hung)

    def kill(self) -> None:
        """End it and what it started at once."""
        try:
            os.killpg(self.process, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(self.process, signal.SIGKILL)


def end_with_parent() -> None:
    """Let Linux kill this process when the one that made it has ended."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def forked(work: Callable[[], Any]) -> str:
    """Do something in a fork, which may be killed; what went wrong, if it could say so."""
    return Forked(work).end().wrong


def tried(kind: Kind, place: Place, random: Random) -> Found:
    """The outcome of one trial, in a process of its own. Its folder stays only if it failed."""
    place.scratch.mkdir(parents=True)
    said = place.scratch.with_name(f"{place.scratch.name}.said")
    ended = Forked(lambda: asdict(kind.trial(place, random)), said).end()
    text = said.read_text(errors="replace")[-2000:]
    if ended.value is not None:
        found = Found(**ended.value)
    elif ended.hung:
        found = Found(HUNG, kind.about, text)
    elif ended.wrong:
        found = Found(UNEXPECTED, kind.about, ended.wrong)
    else:
        found = Found(CRASHED, kind.about, f"ended with {ended.code}: {text}")
    if found.outcome not in FAILURES:
        remove(place.scratch)
        said.unlink()
    return found


def remove(folder: Path) -> None:
    """A folder with all that is in it, whatever its modes."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)


def copied(folder: Path, to: Path) -> Path:
    """A copy of a template."""
    return Path(shutil.copytree(folder, to))

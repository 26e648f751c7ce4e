"""What happens to a process that writes: it is killed, the power goes, the disk is full, it may not write, it is not
alone, or memory runs out."""

import ctypes
import errno
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.torture.names import Journal, Step, lose, read_steps
from tests.torture.trial import CRASHED, HUNG, LOST, UNEXPECTED, Ended, Forked, Found, Place
from tests.torture.works import Work, measured, outcome, works

EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod")
MOST = 1 << 30  # more operations than any work has
KILL, FULL, POWER = "kill", "full disk", "power cut"
# System calls that change files, for strace: each that this system knows.
CALLS = "open,openat,creat,write,pwrite64,writev,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,"
CALLS += "truncate,ftruncate,fallocate,chmod,fchmod,fchmodat,fsync,fdatasync,link,symlink"


class Counted(Exception):  # noqa: N818 -- not an error
    """The work ended before the operation that was to be disturbed."""


@contextmanager
def operations(folder: Path, at: int, meet: Callable[[object], None]) -> Iterator[None]:
    """Call `meet` with the file of the operation of this number on files in a folder, before it happens.

    Raises Counted if there are fewer.
    """
    count, inside, ended = 0, str(folder), False

    def note(what: object) -> None:
        nonlocal count
        if not ended:
            count += 1
            if count == at:
                meet(what)

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name not in EVENTS or not str(arguments[0]).startswith(inside):
            return
        if name != "open" or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            note(arguments[0])

    flush = os.fsync

    def fsync(handle: int) -> None:
        note(handle)
        flush(handle)

    os.fsync = fsync
    sys.addaudithook(hook)
    yield
    ended = True  # hooks cannot be removed
    if count < at:
        raise Counted(count)


# -- at an operation of Python ----------------------------------------------------------------------------------------


def killed_at(work: Work, folder: Path, at: int) -> str:
    def meet(_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with operations(folder, at, meet):
        return work.do(folder, 2)


def full_at(work: Work, folder: Path, at: int) -> str:
    def meet(what: object) -> None:
        named = () if isinstance(what, int) else (str(what),)  # a flush knows no name
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *named)

    with operations(folder, at, meet):
        return work.do(folder, 2)


def unpowered_at(work: Work, folder: Path, at: int) -> str:
    """Killed, or at its end; FOLDER.flushed then says which contents and names were on the disk."""
    flushed: dict[int, tuple[int, int]] = {}
    flush, journal = os.fsync, Journal(folder)

    def fsync(handle: int) -> None:
        flush(handle)
        facts = os.fstat(handle)
        flushed[facts.st_ino] = (facts.st_size, facts.st_mtime_ns)

    def note() -> None:
        facts = {"contents": list(flushed.items()), "names": journal.written()}
        folder.with_name(f"{folder.name}.flushed").write_text(json.dumps(facts))

    def meet(_: object) -> None:
        note()
        os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fsync
    with journal.noting(), operations(folder, at, meet):
        said = work.do(folder, 2)
        if at == MOST and said == "":  # the power goes after its end
            note()
    return said


@dataclass(frozen=True)
class Flushed:
    """What was on the disk when the power went. contents: sizes and times by inode. names: changes of names."""

    contents: dict[int, tuple[int, int]]
    names: list[Step]


def unpowered_facts(folder: Path) -> Flushed | None:
    """What `unpowered_at` noted before it ended its process; None if it did not."""
    path = folder.with_name(f"{folder.name}.flushed")
    if not path.exists():
        return None
    facts = json.loads(path.read_text())
    path.unlink()
    return Flushed({key: (size, at) for key, (size, at) in facts["contents"]}, read_steps(facts["names"]))


def cut_power(folder: Path, before: dict[int, tuple[int, int]], flushed: Flushed, random: Random) -> None:
    """Lose names and contents that were not flushed. before: the contents that were there, on the disk."""
    lose(flushed.names, random)
    tear(folder, before | flushed.contents, random)
    shutil.rmtree(Journal(folder).kept)


def facts_in(folder: Path) -> dict[int, tuple[int, int]]:
    """Size and time of each file, by its inode."""
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return {facts.st_ino: (facts.st_size, facts.st_mtime_ns) for facts in found}


def tear(folder: Path, safe: dict[int, tuple[int, int]], random: Random) -> int:
    """Lose contents that were not flushed, in part or all: the end is missing, or zeros. Names stay."""
    torn = 0
    for path in folder.rglob("*"):
        if not path.is_file() or path.is_symlink():
            continue
        facts = path.stat()
        if facts.st_size and safe.get(facts.st_ino) != (facts.st_size, facts.st_mtime_ns):
            kept = random.choice([0, random.randrange(facts.st_size), facts.st_size])
            os.truncate(path, kept)
            if random.random() < 0.5:
                os.truncate(path, facts.st_size)
            torn += 1
    return torn


def ended_at(how: Callable[[Work, Path, int], str], work: Work, folder: Path, at: int) -> Ended:
    return Forked(lambda: how(work, folder, at)).end()


def counted(work: Work, place: Place) -> int:
    """How many operations a work has."""
    told = ended_at(killed_at, work, work.copy(place, "counting"), MOST).wrong
    assert "Counted: " in told, told
    return int(told.rpartition("Counted: ")[2])


def at_operation(how: str) -> Callable[[Place, Random], Found]:
    """A trial in which one operation of a work is disturbed."""
    methods = {KILL: killed_at, FULL: full_at, POWER: unpowered_at}

    def trial(place: Place, random: Random) -> Found:
        work = random.choice(works(place))
        at = random.randint(1, measured(work, place, "operations", lambda: counted(work, place)))
        folder = work.copy(place)
        before = facts_in(folder)
        ended = ended_at(methods[how], work, folder, at)
        what = f"{work.name}, {how} at operation {at}"
        if how == POWER and (flushed := unpowered_facts(folder)) is not None:
            cut_power(folder, before, flushed, random)
        if how == FULL and ended.value and not names_a_file(ended.value, folder):
            return Found(UNEXPECTED, what, f"no file is named: {ended.value}")
        if "Counted: " in ended.wrong:  # the last operations depend on what is there
            ended = Ended(None, "", 0)
        return judged(what, ended, work, folder)

    return trial


def power_cut_after(place: Place, random: Random) -> Found:
    """The power goes right after a work said that it is done: its result is there, without another writer."""
    work = random.choice(works(place))
    folder, what = work.copy(place), f"{work.name}, power cut after its end"
    before = facts_in(folder)
    ended = ended_at(unpowered_at, work, folder, MOST)
    flushed = unpowered_facts(folder)
    if flushed is None:
        return Found(UNEXPECTED, what, ended.wrong)
    cut_power(folder, before, flushed, random)
    looked = Forked(lambda: work.done(folder)).end()
    if looked.wrong or looked.hung:
        return Found(LOST, what, looked.wrong)
    return judged(what, Ended(None, "", 0), work, folder)


def names_a_file(said: str, folder: Path) -> bool:
    """Whether the error among what was said names a file of the folder."""
    errors = [line for line in said.splitlines() if "error: " in line] or [said]
    return all(str(folder) in line for line in errors)


def judged(what: str, ended: Ended, work: Work, folder: Path) -> Found:
    """What became of a work that was disturbed, and of its folder. A kill is no fault."""
    if ended.hung:
        return Found(HUNG, what)
    if ended.wrong:
        return Found(UNEXPECTED, what, ended.wrong)
    after = Forked(lambda: work.check(folder)).end()
    if after.hung:
        return Found(HUNG, f"{what}, then")
    if after.wrong:
        return Found(
            LOST if "LostError" in after.wrong or "writers.py" in after.wrong else UNEXPECTED, what, after.wrong
        )
    if after.code:
        return Found(CRASHED, what, f"the next one ended with {after.code}")
    said = ended.value or ""
    return Found(outcome(said), what, said[-200:])


# -- at a system call, or at any time ---------------------------------------------------------------------------------


def has_strace() -> bool:
    """Whether system calls can be traced here."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode == 0


def watched(work: Work, folder: Path, *flags: str) -> Ended:
    """Do a work under strace, which may end it."""

    def do() -> str:
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER: any process may trace this one
        until = time.monotonic() + 20
        while "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
            assert time.monotonic() < until, "strace did not attach"
            time.sleep(0.001)
        return work.do(folder, 2)

    forked = Forked(do)
    command = ["strace", "-f", "-qq", "-e", "signal=none", *flags, "-p", str(forked.process)]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    ended = forked.end()
    tracer.wait()
    return ended


def at_system_call(place: Place, random: Random) -> Found:
    calls = ",".join(f"?{name}" for name in CALLS.split(","))

    def count() -> int:
        log = place.scratch / "calls"
        watched(work, work.copy(place, "counting"), "-e", f"trace={calls}", "-o", str(log))
        return len(log.read_text(errors="replace").splitlines())

    work = random.choice(works(place))
    at = random.randint(1, measured(work, place, "calls", count))
    folder = work.copy(place)
    inject = ("-e", f"trace={calls}", "-e", f"inject={calls}:signal=SIGKILL:when={at}", "-o", "/dev/null")
    return judged(f"{work.name}, kill at system call {at}", watched(work, folder, *inject), work, folder)


def at_any_time(place: Place, random: Random) -> Found:
    def milliseconds() -> int:
        folder, began = work.copy(place, "timing"), time.monotonic()
        Forked(lambda: work.do(folder, 2)).end()
        return 1 + int(1000 * (time.monotonic() - began))

    work = random.choice(works(place))
    last = measured(work, place, "milliseconds", milliseconds)
    folder, after = work.copy(place), random.uniform(0, 1.1 * last)
    forked = Forked(lambda: work.do(folder, 2))
    time.sleep(after / 1000)
    if random.random() < 0.8:
        forked.kill()
        return judged(f"{work.name}, kill after {after:.0f} ms", forked.end(), work, folder)
    os.kill(forked.process, signal.SIGINT)
    ended = forked.end()
    if "KeyboardInterrupt" in ended.wrong:  # between the commands of this test
        ended = Ended(None, "", 0)
    return judged(f"{work.name}, Ctrl-C after {after:.0f} ms", ended, work, folder)


# -- limits -----------------------------------------------------------------------------------------------------------


def file_limit(place: Place, random: Random) -> Found:
    """Writes end in the middle: no file may be longer than a limit, whoever writes it."""
    work, most = random.choice(works(place)), int(2 ** random.uniform(0, 16))
    folder = work.copy(place)

    def do() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        said = work.do(folder, 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return said

    ended, what = Forked(do).end(), f"{work.name}, files of at most {most} bytes"
    if ended.value and not names_a_file(ended.value, folder):
        return Found(UNEXPECTED, what, f"no file is named: {ended.value}")
    return judged(what, ended, work, folder)


def memory_limit(place: Place, random: Random) -> Found:
    """Address space ends. A library may end the process for it, as a kill would; then nothing may be lost either."""
    work, more = random.choice(works(place)), int(2 ** random.uniform(16, 28))
    folder = work.copy(place)

    def do() -> str:
        limit_memory(more)
        said = work.do(folder, 2)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return said

    return judged(f"{work.name}, {more >> 10} KiB of memory", Forked(do).end(), work, folder)


def limit_memory(more: int) -> None:
    """Let this process grow by so many bytes at most, where the system tells how large it is."""
    facts = Path("/proc/self/statm")
    if facts.exists():
        used = int(facts.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))


def forbidden(place: Place, random: Random) -> Found:
    """A folder that may not be written to, or a file or folder that may not be read."""
    work = random.choice(works(place))
    folder = work.copy(place)
    every = [folder, *(path for path in sorted(folder.rglob("*")) if not path.is_symlink())]
    chosen = random.choice([path for path in every if path.is_dir()] if random.random() < 0.5 else every)
    mode = random.choice([0o555, 0o000]) if chosen.is_dir() else random.choice([0o444, 0o000])
    before = stat.S_IMODE(chosen.stat().st_mode)
    chosen.chmod(mode)

    def do() -> str:
        obey_modes()
        return work.do(folder, 2)

    ended = Forked(do).end()
    if chosen.exists():
        chosen.chmod(before)
    where = chosen.relative_to(folder.parent)
    return judged(f"{work.name}, mode {mode:03o} of {where}", ended, work, folder)


def obey_modes() -> None:
    """Make root a user like others: without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (linux/capability.h, 1 and 2).

    The C library offers capget and capset, as version 3 has them, for the whole process.
    """
    if os.geteuid() != 0:
        return
    library = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert library.capget(header, sets) == 0
    sets[0] &= ~0b110  # effective
    sets[1] &= ~0b110  # permitted
    assert library.capset(header, sets) == 0


def two_writers(place: Place, random: Random) -> Found:
    """The same work twice at once; the second may be told that it has to wait."""
    work = random.choice(works(place))
    folder, pause = work.copy(place), random.choice([0.0, random.uniform(0, 0.2)])
    first = Forked(lambda: work.do(folder, 2))
    time.sleep(pause)
    second = Forked(lambda: work.do(folder, 2))
    both = [first.end(), second.end()]
    what = f"{work.name} twice, {pause:.2f} s apart"
    for ended in both:
        if ended.wrong or ended.hung:
            return judged(what, ended, work, folder)
    if all(ended.value for ended in both):
        return Found(LOST, what, f"both refused: {both[0].value} {both[1].value}")
    return judged(what, max(both, key=lambda ended: len(ended.value or "")), work, folder)

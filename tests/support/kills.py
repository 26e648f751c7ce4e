"""Writers of a store and a run that are killed, or meet a full disk, at each operation that changes files.

`python -m tests.support.kills FOLDER ATTEMPTS SEED` disturbs operations drawn by the seed (ATTEMPTS 0: each one) and
prints, as JSON, how many there are and what was wrong afterwards. Each attempt is a fork of a process that has only
imported, so no thread is lost.
"""

import errno
import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock  # noqa: F401 -- this and others are loaded before the forks, which would each load them again
import polars  # noqa: F401
import pyarrow.parquet  # noqa: F401
import safetensors.torch  # noqa: F401
import torch

from antpipe.core import model as core_model  # noqa: F401
from antpipe.errors import AntpipeError
from antpipe.store.commit import PENDING
from antpipe.store.documents import read_json, write_json
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.folder import RunFolder
from tests.support.shops import make_domain, picture

EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod")
MOST = 400  # operations of one writer
KILL, FULL = "kill", "full disk"


def price(folder: Path, version: int) -> None:
    """A feature, as stages write it."""
    domain = Store(folder / "s").domain("A")
    with domain.writing("price", {"version": version}) as out, out.feature("price", 3, 4) as feature:
        feature.values[:] = version
        feature.present[:] = True


def price_now(folder: Path) -> int:
    values = Store(folder / "s").domain("A").feature("price").values
    (only,) = set(values.reshape(-1).tolist())
    return int(only)


def items(folder: Path, version: int) -> None:
    """Items with pictures in a folder of their own."""
    rows = [{"item_id": name, "title": f"v{version}", "image_files": ["p.png"]} for name in "abc"]
    make_domain(Store(folder / "s"), "A", rows, pictures={"p.png": picture(version)})


def items_now(folder: Path) -> int:
    domain = Store(folder / "s").domain("A")
    rows = domain.table("items").to_pylist()
    (version,) = {int(row["title"][1:]) for row in rows}
    assert (domain.path / rows[0]["image_files"][0]).read_bytes() == picture(version)
    assert domain.verify("items").status == "fresh"
    return version


def run(folder: Path, version: int) -> None:
    """The weights and the description of a run."""
    described = Checkpoint(
        fingerprint=str(version),
        stage="scratch",
        groups={},
        model={"width": 4, "heads": 1, "experts": 1, "layers": 1},
        train={},
        modalities={"text": {"width": 3, "encoder": None}},
        max_len=5,
        items=None,
        domains={},
        source=None,
        best_epoch=1,
        epochs=1,
        metrics={},
    )
    model = described.build()
    for parameter in model.parameters():
        parameter.detach().fill_(version)
    with RunFolder(folder / "r").lock(force=True):
        checkpoint.save(folder / "r", model, described)


def run_now(folder: Path) -> int:
    model, described = checkpoint.load(folder / "r")
    assert {float(one) for part in model.parameters() for one in part.detach().reshape(-1)} == {
        float(described.fingerprint)
    }
    return int(described.fingerprint)


def document(folder: Path, version: int) -> None:
    write_json(folder / "r" / "x.json", {"version": version})


def document_now(folder: Path) -> int:
    return read_json(folder / "r" / "x.json", dict[str, int], None)["version"]


WRITERS: dict[str, tuple[Callable[[Path, int], None], Callable[[Path], int]]] = {
    "price": (price, price_now),
    "items": (items, items_now),
    "run": (run, run_now),
    "document": (document, document_now),
}


def forked(work: Callable[[], Any]) -> str:
    """Do something in a fork, which may be killed; what went wrong, if it could say so."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        wrong = ""
        try:
            work()
        except BaseException:
            wrong = traceback.format_exc()
        os.write(writing, wrong.encode()[-3000:])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        wrong = stream.read()
    os.waitpid(child, 0)
    return wrong


def disturbed(write: Callable[[Path, int], None], folder: Path, at: int, how: str) -> None:
    """Write version 2; the operation number `at` does not happen. Raises StopIteration if there are fewer."""
    count, inside = 0, str(folder)

    def meet(what: object) -> None:
        nonlocal count
        count += 1
        if count == at:
            if how == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(what))

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name not in EVENTS or not str(arguments[0]).startswith(inside):
            return
        if name != "open" or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            meet(arguments[0])

    flush = os.fsync

    def fsync(handle: int) -> None:
        meet(handle)
        flush(handle)

    os.fsync = fsync
    sys.addaudithook(hook)
    try:
        write(folder, 2)
    except (OSError, AntpipeError):
        if how == KILL:
            raise
    if count < at:
        raise StopIteration(count)


def look(folder: Path, now: Callable[[Path], int], write: Callable[[Path, int], None]) -> None:
    """What must hold after any disturbance: version 1 or 2 is there, and the next writer leaves 3 and no scratch."""
    assert now(folder) in (1, 2)
    write(folder, 3)
    assert now(folder) == 3
    left = [path.name for path in folder.rglob(".*") if not path.name.endswith((".lock", ".holder"))]
    assert left == [], left
    assert not (folder / "s" / "A" / PENDING).exists()
    modes = {oct(path.stat().st_mode & 0o777) for path in folder.rglob("*.*") if path.is_file() and path.name[0] != "."}
    assert modes <= {"0o644"}, modes


def begin(folder: Path) -> None:
    (folder / "r").mkdir(parents=True)
    items(folder, 1)
    price(folder, 1)
    run(folder, 1)
    document(folder, 1)


def operations(name: str, whole: Path, copy: Path) -> int:
    """How many operations that change files a writer has."""
    shutil.copytree(whole, copy)
    told = forked(lambda: disturbed(WRITERS[name][0], copy, MOST, KILL))
    shutil.rmtree(copy)
    return int(told.rpartition("StopIteration: ")[2])


def attempt(name: str, how: str, at: int, whole: Path, copy: Path) -> str:
    """What was wrong after one operation of a writer was disturbed; '' if nothing."""
    write, now = WRITERS[name]
    shutil.copytree(whole, copy)
    why = forked(lambda: disturbed(write, copy, at, how)) or forked(lambda: look(copy, now, write))
    shutil.rmtree(copy)
    return f"{name}, {how} at {at}: {why}" if why else ""


def main(folder: Path, attempts: int, seed: int) -> None:
    folder = folder.resolve()
    whole, copy = folder / "whole", folder / "copy"
    torch.set_num_threads(1)
    os.umask(0o022)
    why = forked(lambda: begin(whole))
    assert not why, why
    counts = {name: operations(name, whole, copy) for name in WRITERS}
    every = [(name, how, at + 1) for name, count in counts.items() for how in (KILL, FULL) for at in range(count)]
    chosen = random.Random(seed).sample(every, attempts) if attempts else every
    wrong = [why for one in chosen if (why := attempt(*one, whole, copy))]
    print(json.dumps({"operations": counts, "tried": len(chosen), "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))

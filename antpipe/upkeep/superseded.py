"""Files of runs that their description does not name: weights and items of a training that was replaced."""

import re
from collections.abc import Iterator
from pathlib import Path

from antpipe.errors import AntpipeError
from antpipe.runtime.files import is_abandoned
from antpipe.runtime.logs import log
from antpipe.store.files import file_sha256
from antpipe.store.lock import alone
from antpipe.store.store import Store
from antpipe.store.tables import HASH
from antpipe.training import checkpoint
from antpipe.training.folder import RunFolder
from antpipe.training.listing import run_folders
from antpipe.upkeep.unused import KILLED, SCRATCH, UNKNOWN, Busy, Leftover, delete, held_in, unknown, unused

WEIGHTS = re.compile(r"model-([0-9a-f]{12})\.safetensors")
ITEMS = re.compile(r"items-[0-9a-f]{12}\.parquet")
OF_SAFETENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}|\.weights")


def collect_in_runs(store: Store, folder: Path, *, remove: bool) -> list[Leftover]:
    """Find what is superseded in the runs below a folder; with `remove`, also remove it.

    A run that is being trained, damaged or of a newer format is reported and skipped.
    """
    found: list[Leftover] = []
    for path in sorted(run_folders(folder, store.root)):
        try:
            if not remove:
                found += survey_run(RunFolder(path), held_in(path))
                continue
            with alone(path, "run"):
                here = list(survey_run(RunFolder(path), lambda _: False))
                for one in here:
                    if not one.unknown:
                        delete(Path(one.path), path)
                found += here
        except AntpipeError as error:
            log.warning(f"{error.message}; {path} is left as it is")
    return found


def survey_run(run: RunFolder, busy: Busy) -> Iterator[Leftover]:
    """What is unused in the folder of a finished run. Raises AntpipeError if its description cannot be read."""
    described = checkpoint.describe(run.path)
    if busy("run"):
        return
    for path in sorted(run.leftovers(described.weights_sha256, described.id_tables)):
        if path.is_symlink() or not is_own(path):
            yield unknown(path, UNKNOWN)
        else:
            yield unused(path, f"{run.description.name} names another file")
    for path in sorted(run.path.glob(".*")):
        if path.is_file() and not path.is_symlink() and is_scratch(path):
            yield unused(path, KILLED)


def is_scratch(path: Path) -> bool:
    return bool(OF_SAFETENSORS.fullmatch(path.name)) or (bool(SCRATCH.fullmatch(path.name)) and is_abandoned(path))


def is_own(path: Path) -> bool:
    """Whether antpipe wrote this file: weights have their hash in their name, items have it inside."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if weights := WEIGHTS.fullmatch(path.name):
            return file_sha256(path).startswith(weights[1])
        return bool(ITEMS.fullmatch(path.name)) and HASH in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False

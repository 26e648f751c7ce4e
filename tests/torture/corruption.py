"""Files of a store and a run that are damaged, and the commands that read them: refused by name, or the same result."""

import copy
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from antpipe.errors import AntpipeError
from antpipe.evaluation.ranks import read_ranks
from antpipe.evaluation.vectors import open_for
from antpipe.features.status import status
from antpipe.store.documents import CHECKSUM
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.folder import RunFolder
from antpipe.training.listing import next_step, runs_of
from antpipe.training.opening import train_again
from antpipe.upkeep.findings import DAMAGED, Finding
from antpipe.upkeep.runs import examine_runs
from antpipe.upkeep.stores import examine_store
from tests.torture.commands import COMMANDS, Ending, ending_of, files_of, right_ending
from tests.torture.trial import REFUSED, SILENT, UNEXPECTED, WHOLE, Found, Place, copied

READING = tuple(name for name in COMMANDS if name != "ingest")
READING += ("resume", "embed-text", "continue", "compare") * 2  # who reads most kinds of files
# What an edited value becomes.
VALUES = (None, True, False, 0, -3, 4, 10**12, 0.5, -1.5, "", "x", "../x", [], {}, [{}], {"a": 1})
EDITS = 15  # per trial
LEFT_OUT = "neither map nor example users"


# -- bytes ------------------------------------------------------------------------------------------------------------


def flipped(content: bytes, random: Random) -> tuple[bytes, str]:
    """One bit is another."""
    place, bit = random.randrange(len(content)), random.randrange(8)
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :], f"byte {place}, bit {bit}"


def cut(content: bytes, random: Random) -> tuple[bytes, str]:
    place = random.randrange(len(content))
    return content[:place], f"cut at {place}"


def zeroed(content: bytes, random: Random) -> tuple[bytes, str]:
    place, many = random.randrange(len(content)), random.choice([1, 8, 512, 4096])
    return content[:place] + bytes(len(content[place : place + many])) + content[place + many :], f"zeros at {place}"


def lengthened(content: bytes, random: Random) -> tuple[bytes, str]:
    many = random.randint(1, 64)
    return content + random.choice([bytes(many), random.randbytes(many)]), f"{many} bytes more"


def doubled(content: bytes, random: Random) -> tuple[bytes, str]:
    place, many = random.randrange(len(content)), random.randint(1, 64)
    return content[: place + many] + content[place:], f"bytes {place} to {place + many} twice"


DAMAGES = (flipped, flipped, flipped, cut, zeroed, lengthened, doubled)


def damage(folder: Path, name: Path, random: Random) -> str:
    """Damage a file, so that it is another one; says how."""
    path, before = folder / name, (folder / name).read_bytes()
    while True:
        content, how = random.choice(DAMAGES)(before, random)
        if content != before:
            path.write_bytes(content)
            return f"{name}, {how}"


def silently_wrong(found: Ending, right: Ending, name: Path) -> str:
    """What is wrong with how a command ended on a damaged file; '' if it refused it by name or gave the same. A report
    may leave out what a warning names."""
    if fault := found.fault():
        return fault
    if found.code == 5:
        return "" if name.name in found.said else f"the file is not named: {found.said}"
    if (found.code, found.result) == (right.code, right.result) or leaves_out(found, name):
        return ""
    return f"exit {found.code}: {found.said or 'another result'}"


def leaves_out(found: Ending, name: Path) -> bool:
    return found.code == 0 and f"antpipe: warning: A: {LEFT_OUT}" in found.said and name.name in found.said


def damaged_file(place: Place, random: Random) -> Found:
    """A trial: one file is damaged, and one command meets it."""
    command = random.choice(READING)
    right = right_ending(command, place.whole)
    folder = copied(place.whole / COMMANDS[command].template, place.scratch / "copy")
    name = random.choice(files_of(folder))
    what = f"{command}: {damage(folder, name, random)}"
    found = ending_of(command, folder)
    if wrong := silently_wrong(found, right, name):
        return Found(UNEXPECTED if found.fault() else SILENT, what, wrong)
    return Found(REFUSED if found.code else WHOLE, what, found.said[-200:])


def missing_file(place: Place, random: Random) -> Found:
    """A trial: one file is not there, or is that of another place; whatever reads it says so."""
    command = random.choice(READING)
    right = right_ending(command, place.whole)
    folder = copied(place.whole / COMMANDS[command].template, place.scratch / "copy")
    files = files_of(folder)
    name, other = random.choice(files), random.choice(files)
    if other == name:
        (folder / name).unlink()
    else:
        shutil.copyfile(folder / other, folder / name)
    what = f"{command}: {name} is {'missing' if other == name else f'a copy of {other}'}"
    found = ending_of(command, folder)
    if fault := found.fault():
        return Found(UNEXPECTED, what, fault)
    if found.code == 0 and found.result != right.result and not leaves_out(found, name):
        return Found(SILENT, what, f"another result: {found.said}")
    return Found(REFUSED if found.code else WHOLE, what, found.said[-200:])


# -- everything that looks for damage ---------------------------------------------------------------------------------

EXAMINED = ("shop", "unfinished", "embedding", "compared")
REPEATED = ("metrics.jsonl", "comparison.md", "comparison.json")  # written again, or figures of a comparison
LOOKS = 3  # per trial


def doctor(place: Place, random: Random) -> Found:
    """A trial: `doctor --deep` finds each damage to the artefacts of stores and to runs, and names the file."""
    template = random.choice(EXAMINED)
    folder, missed = copied(place.whole / template, place.scratch / "copy"), []
    files = [name for name in files_of(folder) if is_examined(name)]
    for _ in range(LOOKS):
        name = random.choice(files)
        before = (folder / name).read_bytes()
        how = damage(folder, name, random)
        found = [one.message for one in examined(folder) if one.severity == DAMAGED]
        if not any(name.name in message for message in found) and is_another(folder / name, before):
            missed.append(f"{how}: {found}")
        if any("unexpected" in message or "Traceback" in message for message in found):
            return Found(UNEXPECTED, f"doctor, {template}", f"{how}: {found}", LOOKS)
        (folder / name).write_bytes(before)
    return Found(SILENT if missed else REFUSED, f"doctor, {template}", " ".join(missed), LOOKS)


def is_examined(name: Path) -> bool:
    """Whether damage to a file is a finding: it is part of an artefact or a run.

    Unfinished work, and what compare keeps of baselines, is checked by whoever reads it.
    """
    others = {"results", "markov"} & set(name.parts)
    return name.name not in REPEATED and not others and ".shards" not in str(name)


def examined(folder: Path) -> list[Finding]:
    found = [one for name in "se" for one in examine_store(Store(folder / name), deep=True)]
    return [*found, *examine_runs(Store(folder / "s"), folder, deep=True)]


def is_another(path: Path, before: bytes) -> bool:
    """Whether what a file says is not what it said: bytes between the values of a table or a document count nothing."""
    now, old = path.read_bytes(), io.BytesIO(before)
    try:
        if path.suffix == ".json":
            return bool(json.loads(now) != json.loads(before))
        if path.suffix == ".parquet":
            return not pq.read_table(path).equals(pq.read_table(old))
    except (ValueError, OSError, pa.ArrowException):
        return True
    return True


# -- values of documents ----------------------------------------------------------------------------------------------


def without_checksums(value: Any) -> Any:
    """A document as an earlier version wrote it: then only its shape speaks for it."""
    if isinstance(value, dict):
        return {key: without_checksums(part) for key, part in value.items() if key != CHECKSUM}
    return [without_checksums(part) for part in value] if isinstance(value, list) else value


def places_of(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a document."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [above, *(place for key, part in parts for place in places_of(part, (*above, key)))]


def edited(document: Any, random: Random) -> tuple[Any, str]:
    """The document with one value replaced, removed, or under another name; and which."""
    found = copy.deepcopy(document)
    place = random.choice([one for one in places_of(found) if one])
    how = random.choice(["replace", "remove", "rename"])
    inside = found
    for key in place[:-1]:
        inside = inside[key]
    if how == "replace":
        inside[place[-1]] = random.choice(VALUES)
    else:
        taken = inside.pop(place[-1])
        if how == "rename" and isinstance(inside, dict):
            inside[f"{place[-1]}x"] = taken
    return found, f"{how} {place}"


def look_at_the_store(folder: Path) -> bool:
    """What commands ask a store; each question may be refused. Returns whether one was."""
    store = Store(folder / "s")
    states = status(store, verify=True)
    next_step(store, states, runs_of(store, folder))
    domain = store.domain("A")
    return any_refused(
        lambda: domain.feature("text"),
        lambda: domain.feature("price"),
        lambda: domain.feature("text-white"),
        domain.sequences,
        domain.item_ids,
        domain.core_rows,
        lambda: open_for(store, folder / "r", "A"),
        lambda: domain.is_fresh("price", {}),
    )


def look_at_the_run(folder: Path) -> bool:
    store = Store(folder / "s")
    runs_of(store, folder)
    return any_refused(
        lambda: checkpoint.load(folder / "r"),
        lambda: train_again(store, folder / "r", checkpoint.describe(folder / "r")),
        lambda: open_for(store, folder / "r", "A"),
        lambda: read_ranks(store, folder / "r", "A"),
        RunFolder(folder / "r").read_cost,
        RunFolder(folder / "r").read_rows,
    )


def any_refused(*questions: Callable[[], object]) -> bool:
    """Ask them all; an AntpipeError is an answer, other errors are raised."""
    refused = False
    for ask in questions:
        try:
            ask()
        except AntpipeError as error:
            assert error.message
            refused = True
    return refused


DOCUMENTS = {
    "s/A/manifest.json": look_at_the_store,
    "r/checkpoint.json": look_at_the_run,
    "r/evaluation-A-test.json": look_at_the_run,
    "r/cost.json": look_at_the_run,
}


def edit_often(folder: Path, name: str, times: int, random: Random) -> tuple[int, str]:
    """Edit a document so many times, each time from the original: how often a question was refused, and what was
    unexpected ('' if nothing)."""
    path = folder / name
    before, refused = path.read_bytes(), 0
    document = without_checksums(json.loads(before))
    try:
        for _ in range(times):
            content, how = edited(document, random)
            path.write_text(json.dumps(content))
            try:
                refused += DOCUMENTS[name](folder)
            except Exception as error:
                return refused, f"{name}, {how}: {type(error).__name__}: {error}"
    finally:
        path.write_bytes(before)
    return refused, ""


def edited_documents(place: Place, random: Random) -> Found:
    """A trial: values of a document are edited, and everything that reads it is asked."""
    folder, name = copied(place.whole / "shop", place.scratch / "copy"), random.choice(list(DOCUMENTS))
    refused, wrong = edit_often(folder, name, EDITS, random)
    if wrong:
        return Found(UNEXPECTED, name, wrong, EDITS)
    return Found(REFUSED if refused else WHOLE, name, f"{refused} of {EDITS} refused", EDITS)

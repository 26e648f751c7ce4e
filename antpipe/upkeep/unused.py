"""`antpipe store gc`: what nothing in a store refers to any more, and its removal.

A name is not enough: a file is removed only if antpipe would have written it there, nothing refers to it, and no writer
is working on it. Links, and what antpipe does not know, are kept and reported.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from antpipe.errors import AntpipeError
from antpipe.features.fetch.ledger import FOLDER as FETCHED
from antpipe.features.fetch.ledger import LEDGER, PART, PICTURE, read_ledger
from antpipe.features.image.pictures import UNREADABLE
from antpipe.runtime.files import is_abandoned
from antpipe.runtime.logs import log
from antpipe.settings.model import EMBEDDED
from antpipe.store.artefacts import ARTEFACTS
from antpipe.store.commit import MANIFEST, PENDING
from antpipe.store.domain import Domain
from antpipe.store.entries import why_damaged
from antpipe.store.files import read_stamp
from antpipe.store.lock import alone
from antpipe.store.manifest import Manifest
from antpipe.store.store import Store

# Of runtime/files.py; older ones stay, and so does an export that was moved aside, which the next export restores.
SCRATCH = re.compile(r"\..+\.\d+-\d+@[^@]*(?<!\.old)", re.DOTALL)
NEW = re.compile(r"\.new\.([a-z-]+)\.[A-Za-z0-9_]+")
SHARDS = re.compile(rf"\.shards-(?:{'|'.join(EMBEDDED)})-[0-9a-f]{{12}}")
PICTURES = re.compile(r"images-[0-9a-f]{12}")
LOCKS = {".lock", *(f".{name}.{end}" for name in ARTEFACTS for end in ("lock", "holder"))}
# The files that stages write into a domain, and the artefact of each.
FILES = {file: name for name, kind in ARTEFACTS.items() for file in kind.files}
FILES |= {UNREADABLE: "image", **{f"{modality}_unmatched.parquet": modality for modality in EMBEDDED}}
KILLED, UNKNOWN, LINK = "left by a writer that was killed", "not made by antpipe", "a link"


@dataclass(frozen=True)
class Leftover:
    """A file or folder to which nothing refers. unknown: antpipe does not recognise it as its own, and keeps it."""

    path: str
    bytes: int
    why: str
    unknown: bool = False


@dataclass(frozen=True)
class Collected:
    """What `store gc` found. removed: whether `unused` is gone. unknown: what is kept."""

    unused: list[Leftover]
    unknown: list[Leftover]
    removed: bool


Busy = Callable[[str], bool]  # whether a writer of an artefact (or `fetched`, `run`) is at work


def collect(store: Store, domains: list[str] | None, *, remove: bool) -> Collected:
    """Find what is unused in these domains (None: in the whole store); with `remove`, also remove it.

    A domain that is being written, damaged or of a newer format is reported and skipped. Raises DataError for an
    unknown domain.
    """
    names = [store.domain(name).name for name in domains] if domains is not None else None
    found: list[Leftover] = []
    for path in sorted(store.root.iterdir()) if store.root.is_dir() else ():
        if names is not None and path.name not in names:
            continue
        if path.is_symlink() or not is_domain(path):
            found.append(unknown(path, LINK if path.is_symlink() else UNKNOWN))
            continue
        domain = Domain(store.root, path.name)
        try:
            found += remove_from(store, domain) if remove else survey(store, domain, held_in(path))
        except AntpipeError as error:
            log.warning(f"{error.message}; {path.name} is left as it is")
    return collected(found, removed=remove)


def collected(found: Iterable[Leftover], *, removed: bool) -> Collected:
    every = list(found)
    return Collected([one for one in every if not one.unknown], [one for one in every if one.unknown], removed)


def is_domain(folder: Path) -> bool:
    """Whether a folder of the store is a domain, or the beginning of one."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return bool(names & {MANIFEST, PENDING, *LOCKS}) or any(NEW.fullmatch(name) for name in names)


def held_in(folder: Path) -> Busy:
    """A function that says whether a writer holds a lock of this folder; it creates no lock to find out."""
    from filelock import FileLock, Timeout

    def busy(name: str) -> bool:
        lock = folder / name / ".lock" if name == FETCHED else folder / f".{name}.lock"
        if not lock.exists():
            return False
        try:
            with FileLock(lock, timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # a store that can only be read
            return False

    return busy


def remove_from(store: Store, domain: Domain) -> list[Leftover]:
    """Remove what is unused in a domain while its locks are held. Raises AntpipeError if a writer is at work."""
    whole = (domain.path / MANIFEST).exists()
    begun = [match[1] for path in domain.path.iterdir() if (match := NEW.fullmatch(path.name))]
    locks = [name for name in ARTEFACTS if whole or name in begun]
    with ExitStack() as stack:
        for name in locks:
            stack.enter_context(alone(domain.path, name))
        free = {*locks, *stack.enter_context(alone_in_cache(domain.path / FETCHED))}
        found = list(survey(store, domain, lambda name: name not in free))
        for one in found:
            if not one.unknown:
                delete(Path(one.path), store.root)
    return found


@contextmanager
def alone_in_cache(folder: Path) -> Iterator[set[str]]:
    """Hold the lock of the fetched pictures; yields nothing if there are none, or a fetch-images is at work."""
    from filelock import FileLock, Timeout

    if folder.is_symlink() or not folder.is_dir():
        yield set()
        return
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        log.warning(f"{folder}: fetch-images is at work here; its pictures are left as they are")
        yield set()
        return
    try:
        yield {FETCHED}
    finally:
        lock.release()


def delete(path: Path, root: Path) -> None:
    """Remove a file or folder inside `root`, never through a link."""
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise AssertionError(f"{path} is outside of {root}")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# -- a domain ---------------------------------------------------------------------------------------------------------


def survey(store: Store, domain: Domain, busy: Busy) -> Iterator[Leftover]:
    """What is unused or unknown in a domain. Raises IntegrityError if its manifest as a whole is damaged."""
    manifest = domain.manifest()
    used = {name for entry in manifest.values() for name in entry["files"]}
    used |= {MANIFEST, PENDING, *LOCKS, str(manifest.get("items", {}).get("images", MANIFEST))}
    for path in sorted(domain.path.iterdir()):
        if path.name in used:
            continue
        if path.is_symlink():
            yield unknown(path, LINK)
        elif path.name == FETCHED and path.is_dir():
            yield from () if busy(FETCHED) else fetched(store, domain)
        else:
            yield from judged(store, path, manifest, busy)


def judged(store: Store, path: Path, manifest: Manifest, busy: Busy) -> Iterator[Leftover]:
    """The verdict on one entry of a domain's folder that its manifest does not name; nothing if it is in use."""
    begun = NEW.fullmatch(path.name)
    artefact = begun[1] if begun else FILES.get(path.name, "")
    if artefact in ARTEFACTS and (busy(artefact) or why_damaged(manifest.get(artefact, {}))):
        return
    if begun and artefact in ARTEFACTS and path.is_dir():
        yield unused(path, KILLED)
    elif SCRATCH.fullmatch(path.name):
        if is_abandoned(path):
            yield unused(path, KILLED)
    elif SHARDS.fullmatch(path.name) and path.is_dir():
        return  # the embedding will continue from there
    elif PICTURES.fullmatch(path.name) and path.is_dir() and "items" in manifest:
        if not why_damaged(manifest["items"]) and not is_named(path, store):
            yield unused(path, "pictures of an earlier catalogue")
    elif path.name in FILES and manifest and path.is_file() and read_stamp(path) is not None:
        yield unused(path, f"{MANIFEST} does not name it")
    else:
        yield unknown(path, UNKNOWN)


def fetched(store: Store, domain: Domain) -> Iterator[Leftover]:
    """Pictures that neither a ledger nor a catalogue names, and what killed writers left beside them."""
    folder = domain.path / FETCHED
    try:
        named = {os.path.normpath(domain.path / one.file) for one in read_ledger(folder).values() if one.file}
        named |= named_pictures(store)
    except AntpipeError as error:
        log.warning(f"{error.message}; the pictures of {domain.name} are left as they are")
        return
    for path in sorted(folder.iterdir()):
        if path.name in (LEDGER, ".lock") and not path.is_symlink():
            continue
        if path.is_symlink() or not (path.is_dir() and re.fullmatch(PART, path.name)):
            yield from scratch_or_unknown(path)
            continue
        for picture in sorted(path.iterdir()):
            if picture.is_symlink() or not (picture.is_file() and re.fullmatch(PICTURE, picture.name)):
                yield from scratch_or_unknown(picture)
            elif os.path.normpath(picture) not in named:
                yield unused(picture, "no ledger or catalogue names it")


def scratch_or_unknown(path: Path) -> Iterator[Leftover]:
    if path.is_symlink():
        yield unknown(path, LINK)
    elif not SCRATCH.fullmatch(path.name):
        yield unknown(path, UNKNOWN)
    elif is_abandoned(path):
        yield unused(path, KILLED)


def named_pictures(store: Store) -> set[str]:
    """The files of pictures that catalogues name, and of those that were fetched for one, in all domains."""
    found: set[str] = set()
    for name in store.domains():
        domain = store.domain(name)
        manifest = domain.manifest()
        columns = {"items": "image_files"} if "items" in manifest else {}
        columns |= {"pictures": "file"} if "pictures" in manifest else {}
        for table, column in columns.items():
            values = domain.table(table, [column])[column]
            flat = values.combine_chunks().flatten() if table == "items" else values
            found |= {os.path.normpath(domain.path / file) for file in flat.to_pylist() if file}
    return found


def is_named(folder: Path, store: Store) -> bool:
    """Whether a catalogue names a picture in this folder: a subset's catalogue names those of the whole domain."""
    try:
        return any(Path(file).parent == Path(os.path.normpath(folder)) for file in named_pictures(store))
    except AntpipeError as error:
        log.warning(f"{error.message}; {folder} is left as it is")
        return True


def unused(path: Path, why: str) -> Leftover:
    return Leftover(str(path), size_of(path), why)


def unknown(path: Path, why: str) -> Leftover:
    return replace(unused(path, why), unknown=True)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links count as themselves."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum((Path(place) / name).lstat().st_size for place, _, names in os.walk(path) for name in names)

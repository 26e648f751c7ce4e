"""The files of a store: whether each is what its manifest says."""

import hashlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from antpipe.features.fetch.ledger import FOLDER, OK, Entry, is_there, read_ledger
from antpipe.features.ingest.text import MISSING_WORDS, SEPARATOR
from antpipe.features.status import status
from antpipe.store.artefacts import ARTEFACTS
from antpipe.store.domain import Domain
from antpipe.store.next_command import build_command, spell
from antpipe.store.store import Store
from antpipe.upkeep.findings import DAMAGED, FINE, REMARK, Finding, guarded


def examine_store(store: Store, deep: bool) -> Iterator[Finding]:
    """One finding per artefact that is damaged or stale, and one per domain in which all is well.

    deep: read every file and compare its content. Raises UsageError if the store is a file.
    """
    domains = store.domains()
    if not domains:
        yield Finding("store", REMARK, f"{store.root}: no domain yet", spell("ingest sample", store=store.root))
    for name in domains:
        domain = store.domain(name)
        found = list(guarded(name, partial(artefacts, domain, deep)))
        if not any(one.about == name for one in found):  # its manifest can be read
            found += guarded(f"{name} pictures", partial(pictures, domain, deep))
        if not found:
            found += guarded(name, partial(stale, store, name))
            found += guarded(name, partial(words_for_nothing, domain)) if deep else ()
        if not found:
            read = "every file read, all are" if deep else "sizes and stamps are"
            found = [Finding(name, FINE, f"{read} as they were written")]
        yield from found


def artefacts(domain: Domain, deep: bool) -> Iterator[Finding]:
    """The artefacts whose files or entries are damaged."""
    manifest = domain.manifest()
    told: set[str] = set()
    for artefact in (name for name in ARTEFACTS if name in manifest):
        why = domain.damage(artefact, manifest, deep)
        if why and why not in told:  # a damaged entry of the items affects all artefacts
            told.add(why)
            yield Finding(f"{domain.name} {artefact}", DAMAGED, why, build_command(domain, artefact, force=True))


def pictures(domain: Domain, deep: bool) -> Iterator[Finding]:
    """Pictures that the store keeps: those of the catalogue, and fetched ones. They are read only if `deep`."""
    manifest = domain.manifest()
    items = manifest.get("items", {})
    folder = domain.path / str(items.get("images", ""))
    came = items.get("pictures", {}) if "images" in items else {}
    wrong = [name for name, sha256 in came.items() if not _is(folder / Path(name).name, sha256, deep)]
    if wrong:
        why = f"{folder}: {len(wrong)} of {len(came)} pictures are missing or damaged, {wrong[0]} first"
        yield Finding(f"{domain.name} pictures", DAMAGED, why, build_command(domain, "items", force=True))
    fetched = [one for one in read_ledger(domain.path / FOLDER).values() if one.state == OK]
    lost = [one for one in fetched if not _is_kept(domain, one, deep)]
    if lost:
        why = f"{domain.path / FOLDER}: {len(lost)} of {len(fetched)} pictures are missing or damaged: {lost[0].file}"
        yield Finding(f"{domain.name} pictures", DAMAGED, why, build_command(domain, "pictures"))


def _is_kept(domain: Domain, entry: Entry, deep: bool) -> bool:
    """Whether a fetched picture is there, and if `deep` unchanged."""
    return is_there(domain.path, entry) if deep else (domain.path / str(entry.file)).is_file()


def _is(path: Path, sha256: str, deep: bool) -> bool:
    """Whether a file is there, and if `deep` has this content."""
    if not deep or not path.is_file():
        return path.is_file()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == sha256


def words_for_nothing(domain: Domain) -> Iterator[Finding]:
    """A remark if texts hold words for missing values, which antpipe 0.1.0 took for text."""
    import pyarrow.compute as pc

    if "items" not in domain.manifest():
        return
    words = "|".join(map(re.escape, sorted(MISSING_WORDS)))
    part = rf"(^|{re.escape(SEPARATOR)})({words})({re.escape(SEPARATOR)}|$)"
    table = domain.table("items", ["title", "text"])
    found = pc.or_kleene(*(pc.match_substring_regex(table[name], part).fill_null(False) for name in ("title", "text")))
    if count := pc.sum(found).as_py() or 0:
        yield Finding(
            f"{domain.name} items",
            REMARK,
            f"{count} titles or texts hold a word such as nan or NULL, which ingest reads as missing now",
            build_command(domain, "items", force=True),
        )


def stale(store: Store, name: str) -> Iterator[Finding]:
    """Remarks on artefacts that would be built differently today."""
    for state in status(store, [name])[name]:
        if state.status == "stale":
            yield Finding(f"{name} {state.artefact}", REMARK, f"stale: {state.why}", state.next_command)

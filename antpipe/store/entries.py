"""The entries of a manifest, checked one by one when it is read: a damaged one affects only its own artefact."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired, Required, TypedDict

import msgspec

from antpipe.errors import IntegrityError
from antpipe.store.artefacts import ARTEFACTS
from antpipe.store.documents import CHECKSUM, UPGRADE, Count, NewerFormatError, Sha256, converted, seal, unsealed
from antpipe.store.manifest import Entry

FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # no folder, no hidden file
Positive = Annotated[int, msgspec.Meta(ge=1)]
Texts = list[str]


class FileFacts(TypedDict):
    bytes: Count
    sha256: NotRequired[Sha256]


class Encoder(TypedDict):
    name: str
    revision: str | None
    variant: NotRequired[str]
    whitening: NotRequired[str]


class AnyEntry(TypedDict, total=False):
    """The keys that every entry has, and the types of optional ones that several entries have."""

    fingerprint: Required[str]
    stage: Required[str]
    stage_version: Required[int]
    parameters: Required[dict[str, Any]]
    inputs: Required[dict[str, str | None]]
    input_files: Required[dict[str, str]]
    id_table: Required[str]
    files: Required[dict[str, FileFacts]]
    flags: Texts
    domains: Texts
    figures: dict[str, Any]
    incomplete: str


class Vectors(AnyEntry, total=False):
    width: Required[Positive]
    present: Required[Count]
    encoder: Encoder
    recipe: dict[str, Any]
    came_from: dict[str, Any]


class Items(AnyEntry, total=False):
    rows: Required[Positive]
    core_rows: Positive
    statistics: Required[dict[str, int | float]]
    report: dict[str, Any]
    images: Annotated[str, msgspec.Meta(pattern=r"^images-[0-9a-f]{12}$")]
    pictures: dict[str, Sha256]


class PriceBins(TypedDict, total=False):
    bins: Positive
    scope: str
    encoding: str


class Prices(Vectors, total=False):
    edges: list[float]
    category_edges: dict[str, list[float]]


class Lengths(TypedDict):
    max_len: Positive
    split: str


SHAPES: dict[str, Any] = {"items": Items, "pictures": AnyEntry, "sequences": AnyEntry, "price": Prices}
PARAMETERS: dict[str, Any] = {"sequences": Lengths}


class DamagedEntry(dict[str, Any]):
    """Placeholder for an entry that cannot be used: it has the required keys, and raises for all others."""

    def __init__(self, artefact: str, why: str, raw: Any) -> None:
        super().__init__(
            fingerprint="",
            stage=ARTEFACTS[artefact].command,
            stage_version=0,
            parameters={},
            inputs={},
            input_files={},
            id_table="",
            files={},
        )
        self.why, self.raw = why, raw

    def __missing__(self, key: str) -> Any:
        raise IntegrityError(self.why, "antpipe status")


def why_damaged(entry: Mapping[str, Any]) -> str:
    return entry.why if isinstance(entry, DamagedEntry) else ""


def sealed_entry(artefact: str, entry: Entry) -> Entry:
    """An entry with its checksum, as it is written; a damaged one as it was found."""
    return entry.raw if isinstance(entry, DamagedEntry) else seal(entry, artefact)


def refuse_unknown(entries: Mapping[str, Any], manifest: Path, next_command: str) -> None:
    """Raise NewerFormatError for an artefact that only a newer antpipe knows, IntegrityError for a damaged name."""
    for name in sorted(entries.keys() - ARTEFACTS.keys()):
        try:
            unsealed(entries[name], name)
            whole = CHECKSUM in entries[name]
        except (AttributeError, TypeError, ValueError):
            whole = False
        if whole:
            raise NewerFormatError(f"{manifest}: {name!r} is an artefact of a newer antpipe", UPGRADE)
        why = f"{manifest}: unknown artefact {name!r}; without it, every stage runs again"
        raise IntegrityError(why, next_command)


def read_entry(artefact: str, value: Any, manifest: Path) -> Entry:
    """The entry of an artefact, or a DamagedEntry in its place."""
    try:
        if not isinstance(value, dict):
            raise TypeError("not an object")
        entry = unsealed(value, artefact)
        converted(entry, SHAPES.get(artefact, Vectors))
        if artefact in PARAMETERS and "copied" not in entry["parameters"]:
            converted(entry["parameters"], PARAMETERS[artefact])
        if artefact == "price" and not isinstance(entry.get("encoder"), dict):
            converted(entry["parameters"], PriceBins)
        for name in entry["files"]:
            if not FILE.fullmatch(name):
                raise ValueError(f"the file name {name!r} leads outside the folder")
        if entry.get("core_rows", 1) > entry.get("rows", 1):
            raise ValueError("more items in the core than in all")
    except (TypeError, ValueError) as error:
        return DamagedEntry(artefact, f"{manifest}: the entry of {artefact} is damaged: {error}", value)
    return entry

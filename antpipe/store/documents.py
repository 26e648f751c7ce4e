"""JSON documents of stores and runs: written with a checksum, and read with a check of it and of every type."""

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from antpipe.errors import AntpipeError, IntegrityError
from antpipe.runtime.files import atomic
from antpipe.store.manifest import digest

T = TypeVar("T")

CHECKSUM = "checksum"
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, msgspec.Meta(ge=0)]
UPGRADE = "pip install --upgrade antpipe"


class NewerFormatError(IntegrityError):
    """A file is whole, but a newer antpipe wrote it in a format that this one does not know."""


def refuse_newer(where: str | Path, found: object, known: int, *, sure: bool = True) -> None:
    """Raise NewerFormatError if `found`, the format that a file names, is newer than `known`, the newest we read.

    sure: a checksum covers the format. The checksum of a document is the same in all formats: check it first.
    """
    if isinstance(found, int) and found > known:
        why = f"{where}: written by a newer antpipe{'' if sure else ', or damaged'}, as it names format {found}"
        raise NewerFormatError(f"{why}; this version reads format {known}", UPGRADE)


def sealed_format(form: int) -> dict[str, Any]:
    """The format of a document whose parts have their own checksums, with a checksum that holds in every format."""
    return {"format": form, "format_sha256": digest(form)}


def require_format(document: dict[str, Any], known: int, where: Path, next_command: str) -> None:
    """Raise NewerFormatError for a newer `sealed_format`, IntegrityError for a damaged one; 0.1.0 wrote no hash."""
    found, check = document.get("format"), document.get("format_sha256")
    if found != known and check not in (None, digest(found)):
        raise IntegrityError(f"{where}: its format is damaged; without it, every stage runs again", next_command)
    refuse_newer(where, found, known, sure=check is not None)


def write_json(path: Path, value: Any, *, sealed: bool = True) -> None:
    """Replace `path` by the JSON of `value` in one step; a reader sees the old file or the new one, never a part.

    sealed: add a checksum to an object, by which `read_json` recognises damage.
    """
    with atomic(path) as scratch:
        scratch.write_text(as_text(seal(value) if sealed and isinstance(value, dict) else value), encoding="utf-8")


def as_text(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def seal(value: dict[str, Any], name: str = "") -> dict[str, Any]:
    """A JSON object with its checksum. name: its key, if it is an entry of a larger document."""
    plain = json.loads(json.dumps(value, allow_nan=False))  # as it will be read back: tuples as lists, keys as text
    return {**value, CHECKSUM: digest([name, plain] if name else plain)}


def unsealed(value: dict[str, Any], name: str = "") -> dict[str, Any]:
    """The object without its checksum. Raises ValueError if the checksum is wrong; a missing one passes."""
    plain = {key: part for key, part in value.items() if key != CHECKSUM}
    if CHECKSUM in value and value[CHECKSUM] != digest([name, plain] if name else plain):
        raise ValueError("its content differs from what was written")
    return plain


def read_json(path: Path, kind: type[T], next_command: str | None) -> T:
    """The content of a JSON file that `write_json` wrote, as `kind`: a TypedDict, dataclass, or type of plain data.

    Raises FileNotFoundError if it is missing, IntegrityError with the next command if it is damaged: not JSON, a wrong
    checksum, or a key that is missing or has another type than in `kind`.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except OSError as error:
        raise AntpipeError(f"{path} cannot be read: {error.strerror}", next_command) from None
    return parse_json(content, kind, str(path), next_command)


def parse_json(content: bytes | str, kind: type[T], where: str, next_command: str | None) -> T:
    """The same for JSON in memory. where: names it in the error."""
    try:
        document = msgspec.json.decode(content)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{where}: not JSON: {error}", next_command) from None
    try:
        return converted(unsealed(document) if isinstance(document, dict) else document, kind)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{where}: damaged: {error}", next_command) from None


def converted(value: Any, kind: type[T]) -> T:
    """Plain data as `kind`. Raises ValueError, which says where, for a missing key or a wrong type."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None

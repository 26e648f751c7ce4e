"""The ledger of a domain's downloads, and the downloaded files: DOMAIN/fetched/.

    fetched/ledger.parquet        one row per URL that was asked for (SCHEMA)
    fetched/ab/abcdef….jpg        a picture, named by the sha256 of its bytes

Names come from contents, never from ids or URLs. So no id can lead out of the folder or collide with another, a picture
that several URLs show is kept once, and pictures of different catalogues cannot be mixed up. Files of both kinds are
written elsewhere and moved into place, so that none is ever half written. If the ledger lags behind the pictures (after
a kill), the only consequence is that they are fetched again.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.compute
import pyarrow.parquet  # noqa: F401

from antpipe.errors import IntegrityError
from antpipe.runtime.files import atomic, naming
from antpipe.store.next_command import shell
from antpipe.store.tables import read_table, write_table

FOLDER = "fetched"
LEDGER = "ledger.parquet"
PART, PICTURE = r"[0-9a-f]{2}", r"[0-9a-f]{64}\.[a-z]+"  # names of folders and of files in them
SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif", "AVIF": ".avif"}
# What became of a URL. Without a picture, only `failed` may end differently next time.
OK, FAILED, GONE, REFUSED, INVALID = "ok", "failed", "gone", "refused", "invalid"
PERMANENT = (GONE, REFUSED, INVALID)
TEXT, COUNT = pl.String(), pl.Int32()
SCHEMA = pl.Schema(
    [
        ("url", TEXT),
        ("state", TEXT),
        ("status", COUNT),
        ("reason", TEXT),
        ("attempts", COUNT),
        ("bytes", pl.Int64()),
        ("sha256", TEXT),
        ("file", TEXT),
        ("width", COUNT),
        ("height", COUNT),
        ("final_url", TEXT),
        ("time", pl.Datetime("ms", "UTC")),
    ]
)


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of a URL.

    state: OK, FAILED (temporarily: a timeout, a lost connection, HTTP 408, 425, 429, 5xx), GONE (other answers of the
    server), REFUSED (by us: address, redirects, size) or INVALID (not a readable picture). status: of the last answer,
    None without one. attempts: over all runs; a redirect does not count. file: relative to the domain's folder. width,
    height: of the upright picture. final_url: after redirects. time: of the last attempt, in ms since 1970.
    """

    url: str
    state: str
    status: int | None
    reason: str
    attempts: int
    bytes: int | None
    sha256: str | None
    file: str | None
    width: int | None
    height: int | None
    final_url: str
    time: int


def read_ledger(folder: Path) -> dict[str, Entry]:
    """The entries by URL; empty if nothing was fetched. Raises IntegrityError if the file is not a ledger."""
    path = folder / LEDGER
    if not path.exists():
        return {}
    try:
        table = pl.DataFrame(read_table(path, None, None))
    except (IntegrityError, pl.exceptions.PolarsError) as error:
        raise _no_ledger(path, str(error).splitlines()[0].removeprefix(f"{path}: ")) from None
    if table.schema != SCHEMA:
        raise _no_ledger(path, "its columns are not those of this version")
    rows = table.with_columns(pl.col("time").dt.epoch("ms")).iter_rows()
    return {row[0]: Entry(*row) for row in rows}


def _no_ledger(path: Path, why: str) -> IntegrityError:
    return IntegrityError(f"{path}: not a ledger: {why}; without it, the pictures are fetched again", shell("rm", path))


def write_ledger(folder: Path, entries: Mapping[str, Entry]) -> None:
    """Replace the ledger in one step."""
    columns: dict[str, list[Any]] = {
        field.name: [getattr(entry, field.name) for entry in entries.values()] for field in dataclasses.fields(Entry)
    }
    table = pl.DataFrame(columns, schema={**SCHEMA, "time": pl.Int64()}).cast(SCHEMA)
    with naming(folder / LEDGER):
        write_table(folder / LEDGER, table.to_arrow(compat_level=pl.CompatLevel.oldest()))


def keep_picture(folder: Path, content: bytes, form: str) -> tuple[str, str]:
    """Write a picture; returns its sha256 and its path relative to the domain's folder. form: a key of SUFFIX."""
    sha256 = hashlib.sha256(content).hexdigest()
    path = folder / sha256[:2] / f"{sha256}{SUFFIX[form]}"
    path.parent.mkdir(exist_ok=True)
    with naming(path), atomic(path, durable=False) as scratch:  # `is_there` notices if the file is lost later
        scratch.write_bytes(content)
    return sha256, f"{FOLDER}/{path.parent.name}/{path.name}"


def is_there(root: Path, entry: Entry) -> bool:
    """Whether the picture of an OK entry is on disk, unchanged. root: the domain's folder."""
    if not entry.file or not re.fullmatch(f"{FOLDER}/{PART}/{PICTURE}", entry.file):
        return False
    path = root / entry.file
    try:
        if path.stat().st_size != entry.bytes:
            return False
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == entry.sha256
    except OSError:
        return False


def sweep(folder: Path) -> None:
    """Remove half-written files of a killed run. The caller must hold the folder's lock."""
    for pattern in ("??/.*", f".{LEDGER}.*"):
        for path in folder.glob(pattern):
            path.unlink()

"""Parquet tables outside the manifest (ranks, ledgers, parts of long work), which carry the hash of their own rows."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from antpipe.errors import IntegrityError
from antpipe.runtime.files import atomic
from antpipe.store.files import read_parquet

if TYPE_CHECKING:
    import pyarrow as pa

HASH = b"antpipe.sha256"


def write_table(path: Path, table: "pa.Table") -> None:
    """Replace `path` by a table with the hash of its rows, in one step. Columns: texts, numbers, times, booleans."""
    import pyarrow.parquet as pq

    table = table.replace_schema_metadata({**(table.schema.metadata or {}), HASH: rows_sha256(table)})
    with atomic(path) as scratch:
        pq.write_table(table, scratch, compression="zstd")


def read_table(path: Path, kinds: Mapping[str, str] | None, next_command: str | None) -> "pa.Table":
    """Columns of a table that `write_table` wrote.

    kinds: by column, what the name of its Arrow type must contain (`int`, `bool` …); None for all columns.

    Raises IntegrityError if the file is damaged, its rows do not match its hash, or a column is missing or of another
    type. A file without a hash, of an earlier version, passes.
    """
    import pyarrow as pa

    try:
        table = read_parquet(path, None)
        notes = {key.decode(): note.decode() for key, note in (table.schema.metadata or {}).items()}
        if HASH.decode() in notes and notes[HASH.decode()] != rows_sha256(table):
            raise ValueError("its content differs from what was written")
        for name, kind in (kinds or {}).items():
            if name not in table.column_names or kind not in str(table.schema.field(name).type):
                raise ValueError(f"no column {name!r} of {kind}")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise IntegrityError(f"{path}: damaged: {str(error).partition(chr(10))[0]}", next_command) from None
    return table if kinds is None else table.select(list(kinds))


def rows_sha256(table: "pa.Table") -> str:
    """A hash of the names and values of the columns, which does not depend on how Arrow or Parquet lay them out."""
    import numpy as np
    import pyarrow as pa

    found = hashlib.sha256()
    for name, chunked in zip(table.column_names, table.columns, strict=True):
        column = pa.concat_arrays(chunked.chunks) if chunked.num_chunks else pa.array([], chunked.type)
        found.update(f"{name}\0{len(column)}\0".encode())
        found.update(np.packbits(column.is_null().to_numpy(zero_copy_only=False)).data)
        kind = column.type
        if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            wide = column.fill_null(False if pa.types.is_boolean(kind) else 0).to_numpy(zero_copy_only=False)
            found.update(np.ascontiguousarray(wide, "<f8" if pa.types.is_floating(kind) else "<i8").data)
        elif pa.types.is_temporal(kind):
            found.update(np.ascontiguousarray(column.cast(pa.int64()).fill_null(0).to_numpy(), "<i8").data)
        else:
            texts = column.cast(pa.large_binary()).fill_null(b"")
            if len(texts):
                _, places, content = texts.buffers()
                starts = np.frombuffer(places, "<i8")[texts.offset : texts.offset + len(texts) + 1]
                found.update(np.diff(starts).data)
                found.update(memoryview(content or b"")[starts[0] : starts[-1]])
    return found.hexdigest()

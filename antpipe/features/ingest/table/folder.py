"""Folders of Parquet files, as Spark and other programs write one table."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from antpipe.errors import DataError
from antpipe.features.ingest.table.binary import PARQUET, batches, fine_of, is_date, types_of
from antpipe.features.ingest.table.partitions import in_order, partitions_of, values_of, with_columns
from antpipe.features.ingest.table.table import Table
from antpipe.store.files import file_sha256
from antpipe.store.manifest import digest
from antpipe.store.next_command import shell


def open_folder(path: Path) -> Table:
    """The columns of the Parquet files in a folder, read in the order of their names; other files are ignored. Folder
    names such as date=2024-01-01 hold further columns (partitions.py).

    Raises DataError if there are none, or if they have different columns.
    """
    files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in PARQUET and file.is_file()]
    parts = [file for file in files if not _is_hidden(file.relative_to(path))]
    if not parts:
        raise DataError(f"{path}: a folder without Parquet files; name the file to read", shell("ls", path))
    first = next(batches(parts[0]))
    for part in parts[1:]:
        names = next(batches(part)).schema.names
        if names != first.schema.names:
            there = f"{parts[0].name} has {', '.join(first.schema.names)}"
            raise DataError(f"{part}: it has the columns {', '.join(names)}, but {there}")
    keyed = partitions_of(parts, path, first.schema.names)
    parts = in_order(parts, path, keyed)
    first = with_columns(next(batches(parts[0])), dict.fromkeys(keyed), keyed)
    dates = frozenset(column.name for column in first.schema if is_date(column.type))
    form = f"Parquet in {len(parts)} {'part' if len(parts) == 1 else 'parts'}"
    form += f", {', '.join(keyed)} from the names of folders" if keyed else ""
    return Table(
        path, form, first.schema.names, dates, types=types_of(first), parts=tuple(parts), keyed=keyed,
        fine=fine_of(first),
    )  # fmt: skip


def batches_of(table: Table) -> Iterator[pa.RecordBatch]:
    """All rows of a Parquet or Arrow table, batch by batch. Raises DataError if a part has columns of other types."""
    if not table.parts:
        yield from batches(table.path)
        return
    schema = next(batches(table.parts[0])).schema
    for part in table.parts:
        keys = values_of(part, table.path, table.keyed)
        for batch in batches(part):
            try:
                same = batch.schema.equals(schema)
                alike = [batch] if same else pa.Table.from_batches([batch]).cast(schema).to_batches()
                yield from (with_columns(one, keys, table.keyed) for one in alike)
            except (pa.ArrowException, ValueError) as error:
                raise DataError(f"{part}: columns of other types than in {table.parts[0].name}: {error}") from None


def sha256_of(table: Table) -> str:
    """The hash of the content of a file, or of the files of a folder, their order and their folders' columns."""
    if not table.parts:
        return file_sha256(table.path)
    keys = [values_of(part, table.path, table.keyed) for part in table.parts] if table.keyed else []
    return digest([file_sha256(part) for part in table.parts] + keys)


def _is_hidden(path: Path) -> bool:
    """Whether a name begins like files that are not data; _c0=1, however, is a column that Spark named."""
    return any(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in path.parts)

"""Folders of Parquet files, as Spark and other programs write one table."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from antpipe.errors import DataError
from antpipe.features.ingest.table.binary import PARQUET, batches, fine_of, is_date, types_of
from antpipe.features.ingest.table.table import Table
from antpipe.store.files import file_sha256
from antpipe.store.manifest import digest
from antpipe.store.next_command import shell


def open_folder(path: Path) -> Table:
    """The columns of the Parquet files in a folder, which are read in the order of their names; others are not.

    Raises DataError if there are none, if they have different columns, or if folders such as date=2024-01-01 hold a
    column that is not in the files.
    """
    files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in PARQUET and file.is_file()]
    parts = tuple(file for file in files if not _is_hidden(file.relative_to(path)))
    if not parts:
        raise DataError(f"{path}: a folder without Parquet files; name the file to read", shell("ls", path))
    keyed = next((folder.name for file in parts for folder in file.relative_to(path).parents if "=" in folder.name), "")
    if keyed:
        raise DataError(
            f"{path}: the folder {keyed} holds a column that is not in its files; write the table as one folder of "
            "files with all columns",
            shell("ls", path),
        )
    first = next(batches(parts[0]))
    for part in parts[1:]:
        names = next(batches(part)).schema.names
        if names != first.schema.names:
            there = f"{parts[0].name} has {', '.join(first.schema.names)}"
            raise DataError(f"{part}: it has the columns {', '.join(names)}, but {there}")
    dates = frozenset(column.name for column in first.schema if is_date(column.type))
    form = f"Parquet in {len(parts)} {'part' if len(parts) == 1 else 'parts'}"
    return Table(path, form, first.schema.names, dates, types=types_of(first), parts=parts, fine=fine_of(first))


def batches_of(table: Table) -> Iterator[pa.RecordBatch]:
    """All rows of a Parquet or Arrow table, batch by batch. Raises DataError if a part has columns of other types."""
    if not table.parts:
        yield from batches(table.path)
        return
    schema = next(batches(table.parts[0])).schema
    for part in table.parts:
        for batch in batches(part):
            try:
                same = batch.schema.equals(schema)
                yield from [batch] if same else pa.Table.from_batches([batch]).cast(schema).to_batches()
            except (pa.ArrowException, ValueError) as error:
                raise DataError(f"{part}: columns of other types than in {table.parts[0].name}: {error}") from None


def sha256_of(table: Table) -> str:
    """The hash of the content of a file, or of the files of a folder and their order."""
    return digest([file_sha256(part) for part in table.parts]) if table.parts else file_sha256(table.path)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(("_", ".")) for part in path.parts)

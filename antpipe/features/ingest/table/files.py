"""Rows of a table file with their line numbers: text tables (delimited.py), JSON lines (records.py), all also packed,
and Parquet (also a folder of parts) and Arrow IPC, in which the line is the number of the row, from 1."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from antpipe.errors import DataError
from antpipe.features.ingest.ids import require_exact
from antpipe.features.ingest.packed import NAMES, SUFFIXES, name_inside, packing_of
from antpipe.features.ingest.rejects import EXCERPT, Rejects
from antpipe.features.ingest.table import delimited, records
from antpipe.features.ingest.table.binary import ARROW, PARQUET, batches, fine_of, is_date, plain, types_of
from antpipe.features.ingest.table.delimited import delimited_rows, is_utf8, open_delimited
from antpipe.features.ingest.table.encoding import require_encoding
from antpipe.features.ingest.table.folder import batches_of, open_folder
from antpipe.features.ingest.table.records import open_records, record_rows
from antpipe.features.ingest.table.table import Table, TableRow
from antpipe.store.looking import unpacking_as
from antpipe.store.next_command import shell


def open_table(path: Path, quotes: bool | None, encoding: str = "auto") -> Table:
    """The columns of a file, whose name tells its format (for a packed file, the name without .gz and the like).

    quotes: whether they enclose values of text files; None: yes, but those that swallow what looks like rows are
    refused when the rows are read. encoding: of text files; auto: detected, for which the whole file is read. Raises
    DataError if the file cannot be read or has no columns, UsageError for an unknown encoding.
    """
    asked = None if encoding == "auto" else require_encoding(encoding)
    if path.is_dir():
        return open_folder(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file" if not path.exists() else f"{path}: is not a file")
    inside = Path(name_inside(path))
    suffix = inside.suffix.lower()
    if suffix in delimited.SUFFIXES:
        return open_delimited(path, suffix, quotes, asked)
    if suffix in records.SUFFIXES:
        return open_records(path, asked)
    if suffix not in PARQUET + ARROW:
        packed = f"[{'|'.join(SUFFIXES)}]"
        known = ", ".join((*(f"{name}{packed}" for name in (*delimited.SUFFIXES, *records.SUFFIXES)), *PARQUET, *ARROW))
        raise DataError(f"{path}: unknown format; its name must end in one of {known}")
    if packing := packing_of(path):
        own = next(name for name, mark in SUFFIXES.items() if mark == packing)
        command = f"{unpacking_as(path, own)} > {shell(f'unpacked-{inside.name}')}"
        raise DataError(f"{path}: these are {NAMES[packing]} data; unpack the file first", command)
    schema = next(batches(path), None)
    if schema is None:
        raise DataError(f"{path}: empty")
    dates = frozenset(column.name for column in schema.schema if is_date(column.type))
    form = "Parquet" if suffix in PARQUET else "Arrow IPC"
    return Table(path, form, schema.schema.names, dates, types=types_of(schema), fine=fine_of(schema))


def read_rows(
    table: Table,
    columns: list[str],
    rejects: Rejects,
    limit: int = 0,
    ids: Sequence[str] = (),
    exact: str | None = None,
) -> Iterator[TableRow]:
    """The good rows of a file, in its order; the others go to `rejects`.

    columns: in any order, repeats allowed; the table must have each once. limit: rows to read, good or not (0: all).
    ids: the columns of ids. exact: a column of times whose first occurrence is in its own unit if it is one of
    `table.fine`. Raises DataError if the file is damaged, or if an id is a float that may stand for several.
    """
    wanted, keys = ([table.columns.index(name) for name in names] for names in (columns, ids))
    if table.delimiter or table.records:
        return (delimited_rows if table.delimiter else record_rows)(table, wanted, keys, rejects, limit)
    return _batch_rows(table, wanted, keys, rejects, limit, exact if exact in table.fine else None)


def _batch_rows(
    table: Table, wanted: list[int], ids: list[int], rejects: Rejects, limit: int, exact: str | None
) -> Iterator[TableRow]:
    line = 0
    if exact is not None:  # beside the others, which are milliseconds
        place = table.columns.index(exact)
        wanted = list(wanted)
        wanted[wanted.index(place)] = len(table.columns)
    for batch in batches_of(table):
        for at in ids:
            column = batch.column(at)[: limit - line] if limit else batch.column(at)
            require_exact(column, f"{table.path}:", table.columns[at], line + 1)
        columns = [plain(table.path, name, column) for name, column in zip(table.columns, batch.columns, strict=True)]
        if exact is not None:
            columns.append(batch.column(place).cast(pa.int64()).to_pylist())
        for row in zip(*columns, strict=True):
            if limit and line == limit:
                return
            line += 1
            values = [row[column] for column in wanted]
            if all(not isinstance(value, str) or value.isascii() or is_utf8(value) for value in values):
                yield TableRow(line, values, hash(repr(row)), line)
            else:
                excerpt = repr(values)[:EXCERPT].encode("utf-8", "surrogateescape")
                rejects.add(table.path, line, "not UTF-8", excerpt)

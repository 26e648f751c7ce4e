"""Rows of a table file with their line numbers: CSV, TSV, RecBole's atomic files (all also .gz), Parquet, Arrow IPC.

A row is malformed if it has more or fewer values than there are columns, if it is not UTF-8, or if a quoted value
continues after its closing quote. A quoted value may hold line breaks; the line of a row is the one where it begins.
Empty lines are not rows. In Parquet and Arrow files the line is the number of the row, from 1.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from antpipe.errors import DataError
from antpipe.features.ingest.advice import SettingsError
from antpipe.features.ingest.ids import inexact_id, is_inexact_text, require_exact
from antpipe.features.ingest.lines import LONGEST_LINE
from antpipe.features.ingest.rejects import EXCERPT, Rejects
from antpipe.features.ingest.table.quotes import QuoteCheck
from antpipe.store.next_command import first_lines, shell

DELIMITED, PARQUET, ARROW = (
    (".csv", ".tsv", ".tab", ".inter", ".item"),
    (".parquet", ".pq"),
    (".arrow", ".ipc", ".feather"),
)
NAMES = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
# RecBole: the header of an atomic file names columns as NAME:TYPE, values are never quoted
# (recbole.io/docs/user_guide/data/atomic_files.html).
ATOMIC, ATOMIC_TYPES = (".inter", ".item"), ("token", "token_seq", "float", "float_seq")
BATCH = 16_384


@dataclass(frozen=True)
class Table:
    """A table file before its rows are read.

    form: the format in words. dates: columns whose type says that they are times; they come as milliseconds since 1970.
    delimiter: of text files. quotes: whether they enclose values. check_quotes: refuse quotes that swallow rows.
    """

    path: Path
    form: str
    columns: list[str]
    dates: frozenset[str] = frozenset()
    delimiter: str = ""
    quotes: bool = False
    check_quotes: bool = False


@dataclass(frozen=True)
class TableRow:
    """A row from line `line` to line `last`. values: of the columns asked for. whole: a hash of all values of the row,
    with a salt that differs between runs."""

    line: int
    values: list[Any]
    whole: int
    last: int


@dataclass
class LineBreaks:
    """Rows of more than one line: how many, and where the longest begins and ends."""

    rows: int = 0
    first: int = 0
    last: int = 0

    def see(self, row: TableRow) -> None:
        """Count a row if it has more than one line."""
        self.rows += row.last > row.line
        if row.last - row.line > self.last - self.first:
            self.first, self.last = row.line, row.last


def open_table(path: Path, quotes: bool | None) -> Table:
    """The columns of a file, whose name tells its format.

    quotes: whether they enclose values of text files; None: yes, but those that swallow what looks like rows are
    refused when the rows are read. Raises DataError if the file cannot be read or has no columns.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file" if not path.exists() else f"{path}: is not a file")
    suffix = _suffix(path)
    if suffix in DELIMITED:
        return _open_text(path, suffix, quotes)
    if path.suffix.lower() not in PARQUET + ARROW:
        known = ", ".join((*(f"{name}[.gz]" for name in DELIMITED), *PARQUET, *ARROW))
        raise DataError(f"{path}: unknown format; its name must end in one of {known}")
    schema = next(_batches(path), None)
    if schema is None:
        raise DataError(f"{path}: empty")
    dates = frozenset(field.name for field in schema.schema if _is_date(field.type))
    return Table(path, "Parquet" if path.suffix.lower() in PARQUET else "Arrow IPC", schema.schema.names, dates)


def read_rows(
    table: Table, columns: list[str], rejects: Rejects, limit: int = 0, ids: Sequence[str] = ()
) -> Iterator[TableRow]:
    """The good rows of a file, in its order; the others go to `rejects`.

    columns: in any order, also several times; the table must have each once. limit: rows to read, good or not (0: all).
    ids: the columns of ids. Raises DataError if the file is damaged, or if an id is a float that may stand for several.
    """
    wanted, keys = ([table.columns.index(name) for name in names] for names in (columns, ids))
    return (_text_rows if table.delimiter else _batch_rows)(table, wanted, keys, rejects, limit)


def _damaged(path: Path, why: str) -> DataError:
    """The next command shows the damage, as far as it can be shown."""
    look = ("gzip", "-t") if path.suffix.lower() == ".gz" else ("ls", "-l")
    return DataError(f"{path}: {why}; make or download it again", shell(*look, path))


# -- text -----------------------------------------------------------------------------------------------------


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _open_text(path: Path, suffix: str, asked: bool | None) -> Table:
    quotes = asked is not False and suffix not in ATOMIC
    try:
        with _stream(path) as stream:
            first = stream.readline()
        delimiter = "\t"
        if suffix == ".csv":  # the most frequent separator: European programs write semicolons
            delimiter = max(NAMES, key=first.count)
        with _stream(path) as stream:
            columns: list[str] = next(_reader(stream, delimiter, quotes), [])
    except csv.Error as error:
        raise _no_header(path, f"is not a header: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, f"cannot be read: {error}") from None
    if not any(column.strip() for column in columns):
        raise _no_header(path, "is not a header: it is empty")
    if any("\ud800" <= letter <= "\udfff" for column in columns for letter in column):
        raise _no_header(path, "is not a header: it is not UTF-8")
    columns = [column.strip() for column in columns]
    if suffix in ATOMIC:
        for column in columns:
            if column.rpartition(":")[2] not in ATOMIC_TYPES:
                why = f"is not a header: {column!r} is not NAME:TYPE with a type of {', '.join(ATOMIC_TYPES)}"
                raise _no_header(path, why)
        columns = [column.rpartition(":")[0] for column in columns]
    form = "atomic file" if suffix in ATOMIC else f"{NAMES[delimiter]}-separated"
    return Table(path, form, columns, delimiter=delimiter, quotes=quotes, check_quotes=quotes and asked is None)


def _no_header(path: Path, why: str) -> DataError:
    return DataError(f"{path}: line 1 {why}", first_lines(path))


def _stream(path: Path) -> io.TextIOWrapper:
    """The text of a file, perhaps with a byte order mark. Bytes that are not UTF-8 become surrogates."""
    raw: Any = gzip.GzipFile(path) if path.suffix.lower() == ".gz" else path.open("rb")
    return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _reader(stream: io.TextIOWrapper, delimiter: str, quotes: bool) -> Any:
    csv.field_size_limit(LONGEST_LINE)  # for the whole process; the default of 128 KiB would reject long texts
    if quotes:
        return csv.reader(stream, delimiter=delimiter, strict=True)
    return csv.reader(stream, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)


def _text_rows(table: Table, wanted: list[int], ids: list[int], rejects: Rejects, limit: int) -> Iterator[TableRow]:
    width, line, rows = len(table.columns), 1, 0
    check = QuoteCheck(table.path, table.columns, table.delimiter) if table.check_quotes else None
    try:
        with _stream(table.path) as stream:
            reader = _reader(stream, table.delimiter, table.quotes)
            next(reader)
            while not limit or rows < limit:
                line = reader.line_num + 1
                try:
                    row = next(reader, None)
                except csv.Error as error:
                    _require_one_line(table.path, line, reader.line_num, error)
                    rejects.add(table.path, line, f"not a row: {error}", b"")
                    rows += 1
                    continue
                if row is None:
                    break
                if not row:
                    continue
                rows += 1
                if check is not None and (check.learning or reader.line_num > line):
                    check.see(row, line, reader.line_num)
                joined = table.delimiter.join(row)
                reason = _defect(joined, len(row), width, reader.line_num - line)
                if reason:
                    rejects.add(table.path, line, reason, joined[:EXCERPT].encode("utf-8", "surrogateescape"))
                    continue
                for column in ids:
                    if is_inexact_text(row[column]):
                        raise inexact_id(f"{table.path}:{line}", table.columns[column], row[column].strip())
                # Not the hash of `joined`: a,b|c would be a|b,c.
                yield TableRow(line, [row[column] for column in wanted], hash(tuple(row)), reader.line_num)
            if check is not None:
                check.settle()
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(table.path, f"breaks off or is corrupt after line {line - 1}: {error}") from None


def _defect(joined: str, values: int, width: int, more_lines: int) -> str:
    if not joined.isascii() and not _is_utf8(joined):
        return "not UTF-8"
    if values != width:
        hint = f" (with {more_lines} more line(s) inside quotes)" if more_lines else ""
        return f"{values} value(s), the header has {width}{hint}"
    return ""


def _require_one_line(path: Path, first: int, last: int, error: csv.Error) -> None:
    """A quote that is not closed swallows good lines, so it is not a matter of one malformed row."""
    if last > first:
        raise SettingsError(
            f"{path}:{first}: a quoted value that begins here goes wrong in line {last}: {error}; if quotes mean "
            "nothing in this file, add --no-quotes",
            {"quotes": False},
        )


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# -- Parquet and Arrow ----------------------------------------------------------------------------------------


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """All rows, batch by batch. The first batch has no rows and only shows the columns."""
    try:
        if path.suffix.lower() in PARQUET:
            file = pq.ParquetFile(path)
            yield _no_rows(file.schema_arrow)
            yield from file.iter_batches(BATCH)
            return
        with pa.memory_map(str(path)) as source:
            whole = source.read(6) == b"ARROW1"
            source.seek(0)
            reader = pa.ipc.open_file(source) if whole else pa.ipc.open_stream(source)
            yield _no_rows(reader.schema)
            if whole:
                yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                yield from reader
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, f"cannot be read: {str(error).splitlines()[0]}") from None


def _no_rows(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def _batch_rows(table: Table, wanted: list[int], ids: list[int], rejects: Rejects, limit: int) -> Iterator[TableRow]:
    line = 0
    for batch in _batches(table.path):
        for at in ids:
            column = batch.column(at)[: limit - line] if limit else batch.column(at)
            require_exact(column, f"{table.path}:", table.columns[at], line + 1)
        columns = [_plain(table.path, name, column) for name, column in zip(table.columns, batch.columns, strict=True)]
        for row in zip(*columns, strict=True):
            if limit and line == limit:
                return
            line += 1
            values = [row[column] for column in wanted]
            if all(not isinstance(value, str) or value.isascii() or _is_utf8(value) for value in values):
                yield TableRow(line, values, hash(repr(row)), line)
            else:
                excerpt = repr(values)[:EXCERPT].encode("utf-8", "surrogateescape")
                rejects.add(table.path, line, "not UTF-8", excerpt)


def _is_date(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _plain(path: Path, name: str, column: pa.Array) -> list[Any]:
    """Python values: times as milliseconds, bytes as text."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    try:
        if _is_date(kind):
            zone = kind.tz if pa.types.is_timestamp(kind) else None
            return column.cast(pa.timestamp("ms", zone), safe=False).cast(pa.int64()).to_pylist()  # type: ignore[no-any-return]
        if pa.types.is_duration(kind):
            return column.cast(pa.int64()).to_pylist()  # type: ignore[no-any-return]
        if any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
            column = column.cast(pa.large_binary())
            kind = column.type
        values: list[Any] = column.to_pylist()
    except (ValueError, pa.ArrowException) as error:
        raise _damaged(path, f"column {name!r} of type {kind} cannot be read: {error}") from None
    return [value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value for value in values]

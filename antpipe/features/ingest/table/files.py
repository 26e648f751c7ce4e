"""Rows of a table file with their line numbers: CSV, TSV, RecBole's atomic files (all also .gz), Parquet, Arrow IPC.

A row is malformed if it has more or fewer values than there are columns, if it is not in the encoding of the file, or
if a quoted value continues after its closing quote. A quoted value may hold line breaks; the line of a row is the one
where it begins. Empty lines are not rows, nor are those without any value, as spreadsheets write them. In Parquet and
Arrow files the line is the number of the row, from 1.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import polars as pl

from antpipe.errors import DataError
from antpipe.features.ingest.advice import SettingsError
from antpipe.features.ingest.ids import inexact_id, is_inexact_text, require_exact
from antpipe.features.ingest.lines import GZIP, LONGEST_LINE
from antpipe.features.ingest.rejects import EXCERPT, Rejects
from antpipe.features.ingest.table.binary import ARROW, PARQUET, batches, damaged, is_date, plain, types_of
from antpipe.features.ingest.table.encoding import NAMES as ENCODINGS
from antpipe.features.ingest.table.encoding import UTF_8, encoding_of, require_encoding
from antpipe.features.ingest.table.quotes import QuoteCheck
from antpipe.store.next_command import first_lines, spell

DELIMITED = (".csv", ".tsv", ".tab", ".inter", ".item")
NAMES = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
BETWEEN_FIELDS = {"\t": "", ",": ", commas between fields", " ": ", blanks between fields"}  # of atomic files
# RecBole: the header of an atomic file names columns as NAME:TYPE, values are never quoted
# (recbole.io/docs/user_guide/data/atomic_files.html).
ATOMIC, ATOMIC_TYPES = (".inter", ".item"), ("token", "token_seq", "float", "float_seq")


@dataclass(frozen=True)
class Table:
    """A table file before its rows are read.

    form: the format in words. dates: columns whose type says that they are times; they come as milliseconds since 1970.
    delimiter: of text files. quotes: whether they enclose values. check_quotes: refuse quotes that swallow rows.
    encoding: of text files, as Python knows it. types: of the columns of other files, as polars knows them.
    """

    path: Path
    form: str
    columns: list[str]
    dates: frozenset[str] = frozenset()
    delimiter: str = ""
    quotes: bool = False
    check_quotes: bool = False
    encoding: str = UTF_8
    types: Mapping[str, pl.DataType] = field(default_factory=dict)


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


def open_table(path: Path, quotes: bool | None, encoding: str = "auto") -> Table:
    """The columns of a file, whose name tells its format.

    quotes: whether they enclose values of text files; None: yes, but those that swallow what looks like rows are
    refused when the rows are read. encoding: of text files; auto: detected, for which the whole file is read. Raises
    DataError if the file cannot be read or has no columns, UsageError for an unknown encoding.
    """
    asked = None if encoding == "auto" else require_encoding(encoding)
    if not path.is_file():
        raise DataError(f"{path}: no such file" if not path.exists() else f"{path}: is not a file")
    suffix = _suffix(path)
    if suffix in DELIMITED:
        return _open_text(path, suffix, quotes, asked)
    if path.suffix.lower() not in PARQUET + ARROW:
        known = ", ".join((*(f"{name}[.gz]" for name in DELIMITED), *PARQUET, *ARROW))
        raise DataError(f"{path}: unknown format; its name must end in one of {known}")
    schema = next(batches(path), None)
    if schema is None:
        raise DataError(f"{path}: empty")
    dates = frozenset(column.name for column in schema.schema if is_date(column.type))
    form = "Parquet" if path.suffix.lower() in PARQUET else "Arrow IPC"
    return Table(path, form, schema.schema.names, dates, types=types_of(schema))


def read_rows(
    table: Table, columns: list[str], rejects: Rejects, limit: int = 0, ids: Sequence[str] = ()
) -> Iterator[TableRow]:
    """The good rows of a file, in its order; the others go to `rejects`.

    columns: in any order, also several times; the table must have each once. limit: rows to read, good or not (0: all).
    ids: the columns of ids. Raises DataError if the file is damaged, or if an id is a float that may stand for several.
    """
    wanted, keys = ([table.columns.index(name) for name in names] for names in (columns, ids))
    return (_text_rows if table.delimiter else _batch_rows)(table, wanted, keys, rejects, limit)


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _open_text(path: Path, suffix: str, asked: bool | None, asked_encoding: str | None) -> Table:
    quotes = asked is not False and suffix not in ATOMIC
    encoding = asked_encoding or UTF_8
    try:
        if asked_encoding is None:
            with _raw(path) as raw, suppress(EOFError, gzip.BadGzipFile, zlib.error):  # told when the rows are read
                encoding = encoding_of(raw)
        with _stream(path, encoding) as stream:
            first = stream.readline()
        delimiter = "\t"
        if suffix == ".csv":  # the most frequent separator: European programs write semicolons
            delimiter = max(NAMES, key=first.count)
        if suffix in ATOMIC:
            delimiter = next((sign for sign in BETWEEN_FIELDS if _is_atomic(first.split(sign))), "\t")
        with _stream(path, encoding) as stream:
            columns: list[str] = next(_reader(stream, delimiter, quotes), [])
    except csv.Error as error:
        raise _no_header(path, f"is not a header: {error}") from None
    except UnicodeError:
        raise _other_encoding(path, encoding, asked_encoding) from None
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, f"cannot be read: {error}") from None
    if not any(column.strip() for column in columns):
        raise _no_header(path, "is not a header: it is empty")
    if any("\ud800" <= letter <= "\udfff" for column in columns for letter in column):
        raise _other_encoding(path, encoding, asked_encoding)
    columns = [column.strip() for column in columns]
    if suffix in ATOMIC:
        columns = _atomic_columns(path, suffix, columns)
    form = f"atomic file{BETWEEN_FIELDS[delimiter]}" if suffix in ATOMIC else f"{NAMES[delimiter]}-separated"
    if encoding != UTF_8:
        form += f", {ENCODINGS.get(encoding, encoding)}" + (" (detected)" if asked_encoding is None else "")
    check = quotes and asked is None
    return Table(path, form, columns, delimiter=delimiter, quotes=quotes, check_quotes=check, encoding=encoding)


def _atomic_columns(path: Path, suffix: str, header: Sequence[str]) -> list[str]:
    """The names in the header of an atomic file. Raises DataError if they have no types, or for rows of histories."""
    for column in header:
        if not _is_atomic([column]):
            why = f"is not a header: {column!r} is not NAME:TYPE with a type of {', '.join(ATOMIC_TYPES)}"
            raise _no_header(path, why)
    columns = [column.rpartition(":")[0] for column in header]
    if suffix == ".inter" and (histories := [name for name in columns if name.endswith("_list")]):
        raise DataError(
            f"{path}: its rows are histories with a target ({histories[0]}), not interactions; `antpipe import "
            "unisrec` reads such files, split into .train.inter, .valid.inter and .test.inter",
            spell("import unisrec", flags=["--help"]),
        )
    return columns


def _is_atomic(columns: Sequence[str]) -> bool:
    """Whether all of these are NAME:TYPE."""
    return all(
        name and kind in ATOMIC_TYPES and not {" ", ",", "\t"} & set(name)
        for name, _, kind in (column.strip().rpartition(":") for column in columns)
    )


def _no_header(path: Path, why: str) -> DataError:
    return DataError(f"{path}: line 1 {why}", first_lines(path))


def _other_encoding(path: Path, encoding: str, asked: str | None) -> DataError:
    why = f"is not a header: it is not {ENCODINGS.get(encoding, encoding)}"
    if asked is None:
        return _no_header(path, f"{why}; name its encoding with --encoding, such as cp1251, cp850 or gbk")
    return SettingsError(f"{path}: line 1 {why}", {"encoding": "auto"})


def _raw(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked if its name or its content says that they are gzip data."""
    with path.open("rb") as file:
        packed = path.suffix.lower() == ".gz" or file.read(len(GZIP)) == GZIP
    return cast(BinaryIO, gzip.GzipFile(path) if packed else path.open("rb"))


def _stream(path: Path, encoding: str) -> io.TextIOWrapper:
    """The text of a file. Bytes that are not in its encoding become surrogates; in UTF-16 they are an error."""
    return io.TextIOWrapper(_raw(path), encoding=encoding, errors="surrogateescape", newline="")


def _reader(stream: io.TextIOWrapper, delimiter: str, quotes: bool) -> Any:
    csv.field_size_limit(LONGEST_LINE)  # for the whole process; the default of 128 KiB would reject long texts
    if quotes:
        return csv.reader(stream, delimiter=delimiter, strict=True)
    return csv.reader(stream, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)


def _text_rows(table: Table, wanted: list[int], ids: list[int], rejects: Rejects, limit: int) -> Iterator[TableRow]:
    line, rows = 1, 0
    check = QuoteCheck(table.path, table.columns, table.delimiter) if table.check_quotes else None
    try:
        with _stream(table.path, table.encoding) as stream:
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
                if not row or not any(value.strip() for value in row):
                    continue
                rows += 1
                if check is not None and (check.learning or reader.line_num > line):
                    check.see(row, line, reader.line_num)
                joined = table.delimiter.join(row)
                reason = _defect(joined, len(row), table, reader.line_num - line)
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
    except UnicodeError as error:
        name = ENCODINGS.get(table.encoding, table.encoding)
        raise SettingsError(
            f"{table.path}: it is not {name} after line {line - 1} ({error}); name its encoding with --encoding",
            {"encoding": "auto"},
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(table.path, f"breaks off or is corrupt after line {line - 1}: {error}") from None


def _defect(joined: str, values: int, table: Table, more_lines: int) -> str:
    if not joined.isascii() and not _is_utf8(joined):
        return f"not {ENCODINGS.get(table.encoding, table.encoding)}"
    if values != len(table.columns):
        hint = f" (with {more_lines} more line(s) inside quotes)" if more_lines else ""
        return f"{values} value(s), the header has {len(table.columns)}{hint}"
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


def _batch_rows(table: Table, wanted: list[int], ids: list[int], rejects: Rejects, limit: int) -> Iterator[TableRow]:
    line = 0
    for batch in batches(table.path):
        for at in ids:
            column = batch.column(at)[: limit - line] if limit else batch.column(at)
            require_exact(column, f"{table.path}:", table.columns[at], line + 1)
        columns = [plain(table.path, name, column) for name, column in zip(table.columns, batch.columns, strict=True)]
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

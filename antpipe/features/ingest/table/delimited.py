"""Rows of text tables: CSV, TSV, other separators, RecBole's atomic files.

A row is malformed if it has more or fewer values than there are columns, if it is not in the encoding of the file, or
if a quoted value continues after its closing quote. A quoted value may hold line breaks; the line of a row is the one
where it begins. Empty lines are not rows, nor are those without any value, as spreadsheets write them, nor those that
repeat the header, as files that were joined have them.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from antpipe.errors import DataError
from antpipe.features.ingest.advice import SettingsError
from antpipe.features.ingest.ids import inexact_id, is_inexact_text
from antpipe.features.ingest.lines import LONGEST_LINE
from antpipe.features.ingest.packed import DAMAGED, in_words, open_unpacked, packing_of
from antpipe.features.ingest.rejects import EXCERPT, Rejects
from antpipe.features.ingest.table.binary import damaged
from antpipe.features.ingest.table.encoding import NAMES as ENCODINGS
from antpipe.features.ingest.table.encoding import UTF_8, encoding_of
from antpipe.features.ingest.table.quotes import BACKSLASHED, ESCAPED, QuoteCheck, doubling
from antpipe.features.ingest.table.table import Table, TableRow
from antpipe.runtime.logs import log
from antpipe.store.looking import first_lines
from antpipe.store.next_command import spell

TABS = (".tsv", ".tab")
NOT_A_ROW = "not a row"  # a reason
SUFFIXES = (".csv", *TABS, ".psv", ".txt", ".dat", ".data", ".inter", ".item")
NAMES = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar", "::": "double-colon"}
MARKS = ("\ufeff", " ")  # what may stand before a header that is repeated
COLONS, UNIT = "::", "\x1f"  # MovieLens; the csv module knows separators of one character only
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # Excel's
QUOTED = re.compile(r'"[^"]*"')
AS_TEXT = re.compile(r'\A="([^"]*)"\Z')  # how texts such as ="007" are kept from Excel, which would read a number
BETWEEN_FIELDS = {"\t": "", ",": ", commas between fields", " ": ", blanks between fields"}  # of atomic files
# RecBole: the header of an atomic file names columns as NAME:TYPE, values are never quoted
# (recbole.io/docs/user_guide/data/atomic_files.html).
ATOMIC, ATOMIC_TYPES = (".inter", ".item"), ("token", "token_seq", "float", "float_seq")


def open_delimited(path: Path, suffix: str, asked: bool | None, asked_encoding: str | None) -> Table:
    """The columns of a text file. suffix: of its name when it is unpacked. asked: as --quotes says, asked_encoding: as
    --encoding does."""
    quotes = asked is not False and suffix not in ATOMIC
    encoding = asked_encoding or UTF_8
    try:
        if asked_encoding is None:
            with open_unpacked(path) as raw, suppress(*DAMAGED):  # reported when the rows are read
                encoding = encoding_of(raw)
        with text_of(path, encoding) as stream:
            skip, first, delimiter = _begin(stream)
        if suffix in ATOMIC:
            delimiter = next((sign for sign in BETWEEN_FIELDS if _is_atomic(first.split(sign))), "\t")
        elif suffix in TABS:
            delimiter = "\t"
        elif not delimiter:  # the most frequent separator: European programs write semicolons
            bare = QUOTED.sub("", first) if quotes else first
            delimiter = max(reversed(NAMES), key=bare.count) if any(map(bare.count, NAMES)) else ","
        quotes = quotes and delimiter != COLONS
        with text_of(path, encoding) as stream:
            columns: list[str] = next(_reader(stream, delimiter, quotes, skip), [])
    except csv.Error as error:
        raise _no_header(path, f"is not a header: {error}") from None
    except UnicodeError:
        raise _other_encoding(path, encoding, asked_encoding) from None
    except DAMAGED as error:
        raise damaged(path, f"cannot be read: {error}") from None
    if not any(column.strip() for column in columns):
        raise _no_header(path, "is not a header: it is empty")
    if any("\ud800" <= letter <= "\udfff" for column in columns for letter in column):
        raise _other_encoding(path, encoding, asked_encoding)
    columns = [column.strip().strip("\ufeff").strip() for column in columns]
    if len(columns) > 1:
        columns[0] = columns[0].removeprefix("#").strip() or columns[0]
    typed = suffix in ATOMIC or _is_atomic(columns)
    form = f"atomic file{BETWEEN_FIELDS[delimiter]}" if suffix in ATOMIC else f"{NAMES[delimiter]}-separated"
    if typed:
        columns = _atomic_columns(path, suffix, columns)
    form += in_words(packing_of(path))
    if encoding != UTF_8:
        form += f", {ENCODINGS.get(encoding, encoding)}" + (" (detected)" if asked_encoding is None else "")
    check = quotes and asked is None
    return Table(
        path, form, columns, delimiter=delimiter, quotes=quotes, check_quotes=check, encoding=encoding, skip=skip
    )


def _begin(stream: io.TextIOWrapper) -> tuple[int, str, str]:
    """The number of lines before the header, the header, and the separator that such a line names, or ''."""
    skip, delimiter = 0, ""
    while line := stream.readline(LONGEST_LINE):
        if (match := SEPARATOR_LINE.fullmatch(line)) is not None and not skip:
            delimiter = match[1]
        elif line.strip():
            return skip, line, delimiter
        skip += 1
    return 0, "", delimiter


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


def text_of(path: Path, encoding: str) -> io.TextIOWrapper:
    """The text of a file. Bytes that are not in its encoding become surrogates; in UTF-16 they are an error."""
    return io.TextIOWrapper(open_unpacked(path), encoding=encoding, errors="surrogateescape", newline="")


def _reader(stream: io.TextIOWrapper, delimiter: str, quotes: bool, skip: int) -> Any:
    """The rows, from the header on."""
    csv.field_size_limit(LONGEST_LINE)  # for the whole process; the default of 128 KiB would reject long texts
    for _ in range(skip):
        stream.readline()
    lines: Iterable[str] = stream
    if delimiter == COLONS:
        lines, delimiter = (line.replace(COLONS, UNIT) for line in stream), UNIT
    if quotes:
        return csv.reader(lines, delimiter=delimiter, strict=True)
    return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)


def delimited_rows(table: Table, wanted: list[int], ids: list[int], rejects: Rejects, limit: int) -> Iterator[TableRow]:
    """The good rows of a text file; see read_rows."""
    line, rows, repeats = 1, 0, 0
    escaped: bool | None = None  # whether the first row that csv refuses has quotes after backslashes
    check = QuoteCheck(table.path, table.columns, table.delimiter) if table.check_quotes else None
    try:
        with text_of(table.path, table.encoding) as stream:
            reader = _reader(stream, table.delimiter, table.quotes, table.skip)
            header = _stripped(next(reader))
            names, skip = set(header), table.skip
            while not limit or rows < limit:
                line = reader.line_num + 1 + skip
                try:
                    row = next(reader, None)
                except csv.Error as error:
                    _require_one_line(table, line, reader.line_num + skip, error)
                    escaped = _is_escaped(table, line, line) if escaped is None else escaped
                    rejects.add(table.path, line, f"{NOT_A_ROW}: {error}" + (f"; {ESCAPED}" if escaped else ""), b"")
                    rows += 1
                    continue
                if row is None:
                    break
                if not row or (not row[0].strip() and not any(value.strip() for value in row)):
                    continue
                if (row[0] in names or row[0][:1] in MARKS) and _is_header(table, _stripped(row), header, line):
                    repeats += 1
                    continue
                rows += 1
                last = reader.line_num + skip
                if check is not None and (check.learning or last > line):
                    check.see(row, line, last)
                joined = table.delimiter.join(row)
                if '="' in joined:
                    row = [AS_TEXT.sub(r"\1", value) for value in row]
                reason = _defect(joined, len(row), table, last - line)
                if reason:
                    rejects.add(table.path, line, reason, joined[:EXCERPT].encode("utf-8", "surrogateescape"))
                    continue
                _require_exact(table, line, row, ids)
                # Not the hash of `joined`: a,b|c would be a|b,c.
                yield TableRow(line, [row[column] for column in wanted], hash(tuple(row)), last)
            if check is not None:
                check.settle()
    except UnicodeError as error:
        name = ENCODINGS.get(table.encoding, table.encoding)
        raise SettingsError(
            f"{table.path}: it is not {name} after line {line - 1} ({error}); name its encoding with --encoding",
            {"encoding": "auto"},
        ) from None
    except DAMAGED as error:
        raise damaged(table.path, f"breaks off or is corrupt after line {line - 1}: {error}") from None
    if repeats and ids:
        log.warning(
            f"{table.path.name}: {repeats} {'line repeats' if repeats == 1 else 'lines repeat'} the header, as in "
            "files that were joined; they are skipped"
        )


def _require_exact(table: Table, line: int, row: Sequence[str], ids: Sequence[int]) -> None:
    for column in ids:
        if is_inexact_text(row[column]):
            raise inexact_id(f"{table.path}:{line}", table.columns[column], row[column].strip())


def _stripped(row: Sequence[str]) -> list[str]:
    return [value.strip("\ufeff \t") for value in row]


def _is_header(table: Table, row: list[str], header: list[str], line: int) -> bool:
    """Whether a row repeats the header. Raises DataError if it is one with the columns in another order."""
    if len(row) > 1 and row != header and sorted(row) == sorted(header):
        raise DataError(
            f"{table.path}:{line}: another header, {', '.join(row)}, with the columns in another order than in line "
            f"{1 + table.skip}: files were joined that do not belong together; split the file before this line"
        )
    return row == header


def _defect(joined: str, values: int, table: Table, more_lines: int) -> str:
    if not joined.isascii() and not is_utf8(joined):
        return f"not {ENCODINGS.get(table.encoding, table.encoding)}"
    if values != len(table.columns):
        hint = f" (with {more_lines} more line(s) inside quotes)" if more_lines else ""
        hint += f"; {ESCAPED}" if more_lines and BACKSLASHED in joined else ""
        return f"{values} value(s), the header has {len(table.columns)}{hint}"
    return ""


def _require_one_line(table: Table, first: int, last: int, error: csv.Error) -> None:
    """Refuse the file: a quote that is not closed swallows good lines, so more than one row is malformed."""
    if last > first:
        what = f"{table.path}:{first}: a quoted value that begins here is malformed in line {last}: {error}"
        if _is_escaped(table, first, last):
            raise DataError(f"{what}; {ESCAPED}", doubling(table.path))
        raise SettingsError(f"{what}; if quotes mean nothing in this file, add --no-quotes", {"quotes": False})


def _is_escaped(table: Table, first: int, last: int) -> bool:
    """Whether one of these lines of the file has a quote after a backslash."""
    with text_of(table.path, table.encoding) as stream:
        return any(BACKSLASHED in line for line in islice(stream, first - 1, last))


def is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

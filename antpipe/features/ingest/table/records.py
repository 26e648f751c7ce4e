"""Tables of JSON lines: one object per line, whose keys are the columns.

A row is malformed if it is not UTF-8 or not a JSON object. Empty lines are not rows. NaN and
Infinity are missing values.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from antpipe.errors import DataError
from antpipe.features.ingest import json_text
from antpipe.features.ingest.ids import EXACT_BITS, inexact_id, is_inexact_text
from antpipe.features.ingest.lines import LONGEST_LINE
from antpipe.features.ingest.packed import DAMAGED, in_words, open_unpacked, packing_of
from antpipe.features.ingest.rejects import EXCERPT, Rejects
from antpipe.features.ingest.table.binary import damaged
from antpipe.features.ingest.table.delimited import text_of
from antpipe.features.ingest.table.encoding import NAMES, UTF_8, encoding_of
from antpipe.features.ingest.table.table import Table, TableRow
from antpipe.store.looking import first_lines, unpacking
from antpipe.store.next_command import shell

SUFFIXES = (".jsonl", ".ndjson", ".json")
NOT_JSON, NOT_AN_OBJECT = "not JSON", "not a JSON object"  # reasons
HEAD = 1 << 20  # characters that are looked at if the first line is not an object
KEY = re.compile(r'\s*,?\s*("(?:[^"\\]|\\.)*")\s*:\s*')
OBJECTS = re.compile(r"\[\s*\{")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
NUMBERS: Mapping[frozenset[type], pl.DataType] = {
    frozenset({bool}): pl.Boolean(),
    frozenset({int}): pl.Int64(),
    frozenset({float}): pl.Float64(),
    frozenset({int, float}): pl.Float64(),
}


def open_records(path: Path, asked_encoding: str | None) -> Table:
    """The keys of all objects of a file, in the order in which they appear; the whole file is read."""
    encoding = asked_encoding or UTF_8
    types: dict[str, set[type]] = {}
    try:
        if asked_encoding is None:
            with open_unpacked(path) as raw:
                encoding = encoding_of(raw)
        for _, line in _lines(path, encoding):
            record = _record(line)
            if isinstance(record, str) and not types and line.startswith("{"):
                _require_lines(path, encoding)
            if isinstance(record, dict):
                for key, value in record.items():
                    if value is not None:
                        types.setdefault(key, set()).add(type(value))
                    elif key not in types:
                        types[key] = set()
    except UnicodeError as error:
        raise _other_encoding(path, encoding, error) from None
    except DAMAGED as error:
        raise damaged(path, f"cannot be read: {error}") from None
    if not types:
        raise DataError(f"{path}: no line is a JSON object", first_lines(path))
    form = "JSON lines" + in_words(packing_of(path))
    form += f", {NAMES.get(encoding, encoding)}" if encoding != UTF_8 else ""
    known = {name: NUMBERS.get(frozenset(kinds), pl.String()) for name, kinds in types.items()}
    return Table(path, form, list(types), encoding=encoding, types=known, records=True)


def record_rows(table: Table, wanted: list[int], ids: list[int], rejects: Rejects, limit: int) -> Iterator[TableRow]:
    """The good rows of a file of JSON lines; see read_rows."""
    names, keys = ([table.columns[at] for at in places] for places in (wanted, ids))
    line = rows = 0
    try:
        for line, text in _lines(table.path, table.encoding):
            if limit and rows == limit:
                break
            rows += 1
            record = _record(text)
            if not isinstance(record, dict):
                rejects.add(table.path, line, record, text[:EXCERPT].encode("utf-8", "surrogateescape"))
                continue
            for key in keys:
                value = record.get(key)
                too_large = isinstance(value, float) and abs(value) >= 2.0 ** EXACT_BITS[64]
                if too_large or (isinstance(value, str) and is_inexact_text(value)):
                    raise inexact_id(f"{table.path}:{line}", key, str(value))
            yield TableRow(line, [record.get(name) for name in names], hash(text), line)
    except UnicodeError as error:
        raise _other_encoding(table.path, table.encoding, error) from None
    except DAMAGED as error:
        raise damaged(table.path, f"breaks off or is corrupt after line {line}: {error}") from None


def _other_encoding(path: Path, encoding: str, error: UnicodeError) -> DataError:
    """The error for UTF-16 that cannot be decoded; in other encodings, bad bytes only make their line malformed."""
    return DataError(
        f"{path}: it is not {NAMES.get(encoding, encoding)} to its end ({error}); name its encoding with "
        "--encoding, or make or download it again",
        first_lines(path),
    )


def _require_lines(path: Path, encoding: str) -> None:
    """Raises DataError, with the command of jq, if a file begins with an object written over several lines."""
    with text_of(path, encoding) as stream:
        head = stream.read(HEAD).strip()
    keys, inside = _list_inside(head)
    if keys and "\n" in head[:inside]:
        raise _not_lines(path, f"is one JSON object, with a list in {'.'.join(keys)!r}", _jq(keys))
    with suppress(ValueError, RecursionError):
        _, end = json.JSONDecoder().raw_decode(head)
        if "\n" in head[:end]:
            raise _not_lines(path, "has JSON objects that are written over several lines", ".")


def _list_inside(text: str) -> tuple[list[str], int]:
    """The keys that lead to the first list of objects in a JSON object, whose text may be cut, and where its first
    object begins. No keys if there is none."""
    decoder, at = json.JSONDecoder(), 1
    while (match := KEY.match(text, at)) is not None:
        try:
            key, value = json.loads(match[1]), match.end()
            if OBJECTS.match(text, value):
                return [key], text.index("{", value)
            if text.startswith("{", value):
                keys, inside = _list_inside(text[value:])
                if keys:
                    return [key, *keys], value + inside
            _, at = decoder.raw_decode(text, value)
        except (ValueError, RecursionError):
            break
    return [], 0


def _jq(keys: list[str]) -> str:
    """The path of jq to the elements of a list."""
    plain = all(NAME.fullmatch(key) for key in keys)
    return (
        "".join(f".{key}" for key in keys) + "[]" if plain else f".{''.join(f'[{json.dumps(key)}]' for key in keys)}[]"
    )


def _not_lines(path: Path, why: str, objects: str) -> DataError:
    """objects: what jq makes one object per line of."""
    return DataError(
        f"{path}: {why}; expected one JSON object per line, such as jq writes",
        f"{unpacking(path)} | {shell('jq', '-c', objects)} > {shell(path.name.partition('.')[0] + '-lines.jsonl')}",
    )


def _record(text: str) -> dict[str, Any] | str:
    """The object in a line, or why it is not one."""
    try:
        record = msgspec.json.decode(text)
    except UnicodeError:
        return "not UTF-8"
    except RecursionError as error:
        return f"{NOT_JSON}: {error}"
    except msgspec.DecodeError as error:
        try:
            record = msgspec.json.decode(json_text.strict(json_text.loads(text)))
        except (ValueError, RecursionError):
            return f"{NOT_JSON}: {error}"
    return record if isinstance(record, dict) else NOT_AN_OBJECT


def _lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers. Raises DataError for an array, or for lines that never end."""
    with text_of(path, encoding) as stream:
        number, first = 0, True
        while line := stream.readline(LONGEST_LINE):
            number += 1
            text = line.strip()
            if first and text.startswith("["):
                raise _not_lines(path, "is a JSON array", ".[]")
            if len(line) == LONGEST_LINE and not line.endswith("\n"):
                raise _not_lines(path, f"has a line longer than {LONGEST_LINE >> 20} MiB", ".[]")
            first = first and not text
            if text:
                yield number, text

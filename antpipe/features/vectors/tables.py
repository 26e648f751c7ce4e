"""Vectors in Parquet files: a column of ids beside a column of lists, or beside many columns of numbers."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from antpipe.errors import DataError, UsageError
from antpipe.features.ingest.advice import SettingsError
from antpipe.features.ingest.ids import require_exact
from antpipe.features.ingest.table.columns import INTERACTION_ROLES, ITEM_ROLES, usual_columns
from antpipe.features.vectors.vectors import CHUNK, Blocks, GivenVectors
from antpipe.runtime.logs import log

ROLES = ("id", "vector")
NUMBERED = re.compile(r"(.*?)\d+", re.DOTALL)
# Numbers that tables of items hold besides vectors.
OTHER_ROLES = (*(INTERACTION_ROLES[role] for role in ("time", "rating", "quantity")), ITEM_ROLES["price"])
DAMAGED = (OSError, ValueError, pa.ArrowException)  # what reading a damaged file can raise
SHOWN = 10  # names of columns in a message


@dataclass(frozen=True)
class Chosen:
    """The columns to read. vector: one of lists, or several of numbers."""

    id: str
    vector: tuple[str, ...]
    lists: bool


def open_tables(parts: Sequence[Path], columns: Sequence[str]) -> GivenVectors:
    """Parquet files of equal columns, one after the other. A vector that is null counts as one of zeros.

    columns: `id=COLUMN`, `vector=COLUMN`, `vector=A+B+C` or `vector=PREFIX*`. By default the id is found by its usual
    names, and the vector is the only column of lists, or else the columns of numbers with numbered names (d0, d1, …; 0,
    1, …). Logs which columns these are, and which numbers are not read.
    """
    wanted = parse_roles(columns)
    schema = read_schema(parts[0])
    chosen = choose(parts[0], schema, wanted)
    announce(parts[0], schema, chosen)
    files: list[tuple[int, Path]] = []
    ids: list[str] = []
    for path in parts:
        there = read_schema(path).names
        missing = [name for name in (chosen.id, *chosen.vector) if name not in there]
        if missing:
            raise DataError(f"{path}: no column {missing[0]!r}, which {parts[0].name} has; there: {', '.join(there)}")
        files.append((len(ids), path))
        ids += read_strings(path, chosen.id)
    width = next((len(rows[0]) for path in parts for rows in _filled(path, chosen)), 0)
    if not width:
        raise DataError(f"{parts[0]}: no row has a vector in {' '.join(chosen.vector)!r}")

    def blocks() -> Blocks:
        for first, path in files:
            yield from ((first + start, values) for start, values in _blocks(path, chosen, width))

    vector = chosen.vector[0] + (f" and {len(chosen.vector) - 1} more" if len(chosen.vector) > 1 else "")
    return GivenVectors(f"parquet, id={chosen.id} vector={vector}", ids, width, files, blocks, columns=chosen.vector)


def parse_roles(columns: Sequence[str]) -> dict[str, str]:
    """--map as columns by role."""
    roles: dict[str, str] = {}
    for part in columns:
        role, _, column = (word.strip() for word in part.partition("="))
        if role not in ROLES or not column or role in roles:
            raise UsageError(f"--map {part}: name each of {' and '.join(ROLES)} once, as ROLE=COLUMN")
        roles[role] = column
    return roles


def read_schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except DAMAGED as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from None


def choose(path: Path, schema: pa.Schema, wanted: dict[str, str]) -> Chosen:
    """The columns of a file. Raises DataError, which names the existing ones, if they are missing or ambiguous."""
    name = find_id(path, schema, wanted.get("id"))
    lists = [field.name for field in schema if _is_vector(field.type)]
    asked = wanted.get("vector")
    if asked is None:
        if len(lists) > 1:
            raise _ambiguous(path, lists, schema, "vector")
        found = lists or number_columns(path, schema, name)
    elif asked.endswith("*"):
        found = [one for one in schema.names if one.startswith(asked[:-1]) and one != name]
        found = [one for one in found if one.removeprefix(asked[:-1]).isdecimal()] or found
    else:
        found = [asked] if asked in schema.names else asked.split("+")
    wrong = [one for one in found if one not in schema.names]
    if wrong or not found:
        why = f"no column {wrong[0]!r}" if wrong else "no column of lists or of floating point numbers"
        raise _unclear(path, why, schema, "vector")
    if len(found) == 1 and found[0] in lists:
        return Chosen(name, tuple(found), lists=True)
    odd = [one for one in found if not _is_number(schema.field(one).type)]
    if odd:
        raise _unclear(path, f"column {odd[0]!r} holds {schema.field(odd[0]).type}, not numbers", schema, "vector")
    return Chosen(name, tuple(found), lists=False)


def number_columns(path: Path, schema: pa.Schema, name: str) -> list[str]:
    """The columns of a vector with one column per number: those with numbered names (d0, d1, …), or without any, the
    floating point numbers that are not the price, the rating or the like. name: the column of ids.

    Raises SettingsError if two such groups could be the vector.
    """
    numbers = [field.name for field in schema if _is_number(field.type) and field.name != name]
    groups: dict[str, list[str]] = {}
    for one in numbers:
        if (match := NUMBERED.fullmatch(one)) is not None:
            groups.setdefault(match[1], []).append(one)
    prefixes = sorted(groups, key=lambda prefix: -len(groups[prefix]))
    if len(prefixes) > 1 and len(groups[prefixes[1]]) * 2 >= len(groups[prefixes[0]]) > 1:
        first, second = (f"{groups[prefix][0]} to {groups[prefix][-1]}" for prefix in prefixes[:2])
        message = _unclear(path, f"the vector could be {first} or {second}", schema, "vector").message
        better = f"{prefixes[0]}*" if prefixes[0] else "+".join(groups[""])
        raise SettingsError(message, {"map": (f"vector={better}",)})
    if prefixes and len(groups[prefixes[0]]) > 1:
        return groups[prefixes[0]]
    others = {one for usual in OTHER_ROLES for one in usual_columns(numbers, usual)}
    return [one for one in numbers if pa.types.is_floating(schema.field(one).type) and one not in others]


def announce(path: Path, schema: pa.Schema, chosen: Chosen) -> None:
    """Log which columns are the vector, and which other numbers are not part of it."""
    first, last, count = chosen.vector[0], chosen.vector[-1], len(chosen.vector)
    vector = first if count == 1 else f"{first}, {last}" if count == 2 else f"{first} to {last}"
    rest = [field.name for field in schema if field.name not in (*chosen.vector, chosen.id) and _is_number(field.type)]
    shown = ", ".join(rest[:SHOWN]) + (" …" if len(rest) > SHOWN else "")
    log.info(
        f"{path.name}: id={chosen.id}, vector={vector}{f' ({count} columns)' if count > 1 else ''}"
        + (f"; not part of it: {shown}" if rest else "")
    )


def find_id(path: Path, schema: pa.Schema, asked: str | None) -> str:
    """The column of ids: as asked for, or by the usual names of an item's."""
    if asked is not None:
        if asked not in schema.names:
            raise _unclear(path, f"no column {asked!r}", schema, "id")
        return asked
    found = usual_columns(schema.names, ITEM_ROLES["item"])
    if len(found) > 1:
        raise _ambiguous(path, found, schema, "id")
    if not found:
        raise _unclear(path, "no column looks like the id of an item", schema, "id")
    return found[0]


def read_strings(path: Path, column: str) -> list[str]:
    """A column of strings or integers (also as floats). Raises DataError if one is missing or not exact."""
    try:
        table = pq.read_table(path, columns=[column])
        table.validate(full=True)
        values = table[column].combine_chunks()
        strings = values.cast(pa.string())
    except DAMAGED as error:
        raise DataError(f"{path}: column {column!r} cannot be read as ids: {error}") from error
    require_exact(values, f"{path}: row ", column, 0)
    if values.null_count:
        raise DataError(f"{path}: row {values.is_null().to_pylist().index(True)} has no id in column {column!r}")
    if pa.types.is_floating(values.type):  # pyarrow would write 1e+15
        return [str(int(value) if value.is_integer() else value) for value in values.to_pylist()]
    return list(strings.to_pylist())


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _is_vector(kind: pa.DataType) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(listed and _is_number(kind.value_type))


def _unclear(path: Path, why: str, schema: pa.Schema, role: str) -> DataError:
    columns = ", ".join(schema.names[:20]) + (" …" if len(schema.names) > 20 else "")
    return DataError(f"{path}: {why}; columns there: {columns}; name it with --map {role}=COLUMN")


def _ambiguous(path: Path, found: Sequence[str], schema: pa.Schema, role: str) -> DataError:
    message = _unclear(path, f"the {role} could be {' or '.join(found)}", schema, role).message
    return SettingsError(message, {"map": (f"{role}={found[0]}",)})


def _batches(path: Path, chosen: Chosen) -> Iterator[tuple[int, pa.RecordBatch]]:
    start = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(CHUNK, columns=list(chosen.vector)):
                batch.validate(full=True)
                yield start, batch
                start += len(batch)
    except DAMAGED as error:
        raise DataError(f"{path}: damaged: {error}") from None


def _filled(path: Path, chosen: Chosen) -> Iterator[list[Any]]:
    """The first vector of each batch that has one."""
    for _, batch in _batches(path, chosen):
        if not chosen.lists:
            yield [chosen.vector]
        elif len(filled := batch.column(0).drop_null()):
            yield [filled[0]]


def _blocks(path: Path, chosen: Chosen, width: int) -> Blocks:
    for start, batch in _batches(path, chosen):
        values = np.zeros((len(batch), width))
        if not chosen.lists:
            for at, name in enumerate(chosen.vector):
                values[:, at] = _numbers(batch.column(name))
        else:
            column = batch.column(0)
            filled = column.is_valid().to_numpy(zero_copy_only=False)
            lengths = pc.list_value_length(column).fill_null(width).to_numpy(zero_copy_only=False)
            if (lengths != width).any():
                row = int(np.argmax(lengths != width))
                raise DataError(
                    f"{path}: row {start + row} has a vector of {lengths[row]} numbers, the first one has {width}"
                )
            values[filled] = _numbers(column.drop_null().flatten()).reshape(-1, width)
        yield start, values


def _numbers(column: pa.Array) -> NDArray[Any]:
    """Numbers as they are, NaN for null."""
    numbers: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return numbers

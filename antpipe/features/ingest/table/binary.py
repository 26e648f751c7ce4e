"""Parquet and Arrow files: their batches, and the values of their columns as Python has them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from antpipe.errors import DataError
from antpipe.store.next_command import shell

PARQUET, ARROW = (".parquet", ".pq"), (".arrow", ".ipc", ".feather")
BATCH = 16_384
TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
SIMPLE = (*TEXTS, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_time, pa.types.is_null)
LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def damaged(path: Path, why: str) -> DataError:
    """The next command shows the damage, as far as it can be shown."""
    look = ("gzip", "-t") if path.suffix.lower() == ".gz" else ("ls", "-l")
    return DataError(f"{path}: {why}; make or download it again", shell(*look, path))


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """All rows, batch by batch. The first batch has no rows and only shows the columns."""
    try:
        if path.suffix.lower() in PARQUET:
            file = pq.ParquetFile(path)
            yield _no_rows(file.schema_arrow)
            yield from map(sound, file.iter_batches(BATCH))
            return
        with pa.memory_map(str(path)) as source:
            whole = source.read(6) == b"ARROW1"
            source.seek(0)
            reader = pa.ipc.open_file(source) if whole else pa.ipc.open_stream(source)
            yield _no_rows(reader.schema)
            if whole:
                yield from (sound(reader.get_batch(number)) for number in range(reader.num_record_batches))
            else:
                yield from map(sound, reader)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise damaged(path, f"cannot be read: {str(error).splitlines()[0]}") from None


def sound(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch, after checking that none of its offsets or indices points outside its buffers. Raises ArrowInvalid.

    Bytes that are not UTF-8 pass here: they make a row malformed, not the file.
    """
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            column.indices.validate(full=True)
            _as_bytes(column.dictionary).validate(full=True)
        column.validate()
        _as_bytes(column).validate(full=True)
    return batch


def _as_bytes(column: pa.Array) -> pa.Array:
    """Texts as bytes, as views; other columns as they are."""
    views = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
    return column.view(views[column.type]) if column.type in views else column


def _no_rows(schema: pa.Schema) -> pa.RecordBatch:
    _ = schema.names  # raises a ValueError if one is not UTF-8
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def types_of(no_rows: pa.RecordBatch) -> dict[str, pl.DataType]:
    """The types of the columns, as `read_rows` gives their values; times are milliseconds."""
    types: dict[str, pl.DataType] = {}
    for column in no_rows.schema:
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if is_date(kind):
            types[column.name] = pl.Datetime("ms")
        elif pa.types.is_decimal(kind):
            types[column.name] = pl.Float64()
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            types[column.name] = pl.String()
        elif any(test(kind) for test in SIMPLE):
            types[column.name] = pl.Series(pa.array([], kind)).dtype
        elif any(test(kind) for test in LISTS) and any(test(kind.value_type) for test in TEXTS):
            types[column.name] = pl.List(pl.String())
        else:  # polars panics on some of these, and conditions cannot compare any of them
            types[column.name] = pl.Object()
    return types


def is_date(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def fine_of(no_rows: pa.RecordBatch) -> dict[str, int]:
    """The columns of times that are finer than milliseconds, with how many of their units make a millisecond."""
    units = {"us": 1000, "ns": 1_000_000}
    times = [column for column in no_rows.schema if pa.types.is_timestamp(column.type) and column.type.unit in units]
    return {column.name: units[column.type.unit] for column in times}


def plain(path: Path, name: str, column: pa.Array) -> list[Any]:
    """Python values: times as milliseconds, bytes as text."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    try:
        if is_date(kind):
            zone = kind.tz if pa.types.is_timestamp(kind) else None
            return column.cast(pa.timestamp("ms", zone), safe=False).cast(pa.int64()).to_pylist()  # type: ignore[no-any-return]
        if pa.types.is_duration(kind):
            return column.cast(pa.int64()).to_pylist()  # type: ignore[no-any-return]
        if any(test(kind) for test in TEXTS):
            column = column.cast(pa.large_binary())
            kind = column.type
        values: list[Any] = column.to_pylist()
    except (ValueError, pa.ArrowException) as error:
        raise damaged(path, f"column {name!r} of type {kind} cannot be read: {error}") from None
    return [value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value for value in values]

"""Columns that are names of folders, `year=2020/month=3/part-0.parquet`, as Hive, Spark and others write them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from antpipe.errors import DataError
from antpipe.store.next_command import shell

MISSING = "__HIVE_DEFAULT_PARTITION__"  # the name of a null
LARGEST = 2**63
Keys = dict[str, str | None]  # of a part, by column


def keys_of(part: Path, root: Path) -> Keys:
    """The columns in the folder names of a part. Raises DataError if one is there twice or has no name."""
    keys: Keys = {}
    for folder in part.relative_to(root).parts[:-1]:
        name, equals, value = folder.partition("=")
        if not equals:
            continue
        try:
            name, value = unquote(name, errors="strict"), unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise _refused(root, f"the folder {folder} has a name that is not UTF-8") from None
        if not name or name in keys:
            why = f"holds the column {name!r} again" if name else "holds a column without a name"
            raise _refused(root, f"the folder {folder} {why}")
        keys[name] = None if value == MISSING else value
    return keys


def partitions_of(parts: Sequence[Path], root: Path, columns: Sequence[str]) -> dict[str, pa.DataType]:
    """The columns that folders hold, with their types: int64 if all values are whole numbers as they are usually
    written, or else string. columns: those of the files.

    Raises DataError if one of them is in the files too, or if not all parts have the same.
    """
    found = {part: keys_of(part, root) for part in parts}
    names = list(found[parts[0]])
    for part, keys in found.items():
        if list(keys) != names:
            there = f"{parts[0].relative_to(root)} has {_in_words(names)}"
            raise _refused(root, f"{part.relative_to(root)} has {_in_words(list(keys))} from its folders, but {there}")
    if twice := [name for name in names if name in columns]:
        raise _refused(
            root,
            f"the column {twice[0]!r} is in the names of folders ({twice[0]}=…) and in the files; rename one of them",
        )
    return {name: _type_of([keys[name] for keys in found.values()]) for name in names}


def in_order(parts: Sequence[Path], root: Path, types: Mapping[str, pa.DataType]) -> list[Path]:
    """The parts in the order of the values in their folder names: month=2 comes before month=10."""

    def place(part: Path) -> tuple[Any, ...]:
        values = values_of(part, root, types).values()
        return *((False, value) if value is not None else (True, 0) for value in values), str(part)

    return sorted(parts, key=place) if types else list(parts)


def values_of(part: Path, root: Path, types: Mapping[str, pa.DataType]) -> dict[str, Any]:
    """The values in the folder names of a part, by column."""
    keys = keys_of(part, root)
    return {
        name: int(text) if (text := keys[name]) is not None and pa.types.is_integer(kind) else text
        for name, kind in types.items()
    }


def with_columns(batch: pa.RecordBatch, values: Mapping[str, Any], types: Mapping[str, pa.DataType]) -> pa.RecordBatch:
    """A batch with further columns, each of one value."""
    for name, kind in types.items():
        batch = batch.append_column(pa.field(name, kind), pa.array([values[name]] * len(batch), kind))
    return batch


def _type_of(values: Sequence[str | None]) -> pa.DataType:
    texts = [value for value in values if value is not None]
    return pa.int64() if texts and all(_is_number(text) for text in texts) else pa.string()


def _is_number(text: str) -> bool:
    """Not 007, which may be an id."""
    digits = text.removeprefix("-")
    plain = digits.isascii() and digits.isdecimal() and str(int(digits)) == digits and text != "-0"
    return plain and int(digits) < LARGEST


def _in_words(names: Sequence[str]) -> str:
    return f"the {'column' if len(names) == 1 else 'columns'} {', '.join(names)}" if names else "no column"


def _refused(root: Path, why: str) -> DataError:
    return DataError(f"{root}: {why}", shell("ls", "-R", root))

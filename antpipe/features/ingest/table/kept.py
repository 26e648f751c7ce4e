"""Extra columns of the items that the catalogue keeps as they are, for conditions in `recommend --where`."""

import re
from collections.abc import Sequence
from typing import Any

import polars as pl

from antpipe.errors import DataError, UsageError
from antpipe.features.ingest.domain import ITEMS
from antpipe.features.ingest.table.table import Table

KEPT = "keep"  # the role of these columns
TRUTH = {"true": True, "yes": True, "false": False, "no": False}
WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
DECIMAL = re.compile(r"-?(0|[1-9]\d*)?(\.\d+)?([eE][+-]?\d{1,3})?")


def require_kept(table: Table, names: Sequence[str]) -> None:
    """Raise DataError for a name that is not one column of the file, UsageError for one that every catalogue has."""
    for name in names:
        if name in ITEMS or name == "item":
            raise UsageError(f"--keep-column {name}: every catalogue has a column of that name; rename it in the file")
        if table.columns.count(name) != 1:
            raise DataError(
                f"{table.path}: --keep-column {name}: there are {table.columns.count(name)} columns of that name; "
                f"columns there: {', '.join(table.columns)}"
            )


def kept_columns(table: Table, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> pl.DataFrame:
    """The columns of these names, one value per row of the catalogue each."""
    return pl.DataFrame(
        [
            dated([row[place] for row in rows], name)
            if name in table.dates
            else typed([row[place] for row in rows], name)
            for place, name in enumerate(names)
        ]
    )


def dated(values: Sequence[Any], name: str) -> pl.Series:
    """Milliseconds since 1970 as times."""
    return pl.Series(name, values, pl.Int64).cast(pl.Datetime("ms"))


def typed(values: Sequence[Any], name: str) -> pl.Series:
    """Values as truth values (true, false, yes, no), whole numbers or numbers if all of them are, else as text.

    Blank values are null. Numbers with leading zeros are text, as codes have them. Lists stay lists of text.
    """
    plain = [value.strip() if isinstance(value, str) else value for value in values]
    plain = [None if value == "" else value for value in plain]
    there = [value for value in plain if value is not None]
    if there and all(isinstance(value, list) for value in there):
        texts = [None if value is None else [str(part) for part in value if part is not None] for value in plain]
        return pl.Series(name, texts, pl.List(pl.String))
    read = [_read(value) for value in there]
    for kind, dtype in ((bool, pl.Boolean()), (int, pl.Int64()), (float, pl.Float64())):
        if there and all(type(value) is kind or (kind is float and type(value) is int) for value in read):
            return pl.Series(name, [None if value is None else _read(value) for value in plain], strict=False).cast(
                dtype
            )
    return pl.Series(name, [None if value is None else str(value) for value in plain], pl.String)


def _read(value: Any) -> Any:
    """A text as the truth value or number that it spells, otherwise unchanged."""
    if not isinstance(value, str):
        return value
    if value.lower() in TRUTH:
        return TRUTH[value.lower()]
    if WHOLE.fullmatch(value):
        return int(value)
    if DECIMAL.fullmatch(value) and any(letter.isdigit() for letter in value):
        return float(value)
    return value

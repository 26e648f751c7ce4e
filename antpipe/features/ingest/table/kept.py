"""Extra columns of the items that the catalogue keeps as they are, for conditions in `recommend --where`."""

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import polars as pl

from antpipe.errors import DataError, UsageError
from antpipe.features.ingest.domain import ITEMS
from antpipe.features.ingest.table.table import Table

KEPT = "keep"  # the role of these columns
TRUTH = {"true": True, "yes": True, "false": False, "no": False}
WHOLE = re.compile(r"-?(0|[1-9]\d*)")
INT64 = range(-(2**63), 2**63)
LONGEST = 20  # characters of an int64
EXACT = 2**53  # whole numbers up to here are exact as floats
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

    Blank values are null. Numbers with leading zeros are text, as codes have them, and so are numbers that would lose
    digits: whole ones beyond int64, or beyond 2^53 among fractions. Lists stay lists of text.
    """
    plain = [value.strip() if isinstance(value, str) else value for value in values]
    plain = [None if value == "" else value for value in plain]
    there = [value for value in plain if value is not None]
    if there and all(isinstance(value, list) for value in there):
        texts = [None if value is None else [str(part) for part in value if part is not None] for value in plain]
        return pl.Series(name, texts, pl.List(pl.String))
    read = [None if value is None else _read(value) for value in plain]
    kinds = {type(value) for value in read if value is not None}
    if kinds == {bool}:
        return pl.Series(name, read, pl.Boolean())
    if kinds == {int}:
        return pl.Series(name, read, pl.Int64())
    if kinds == {float} or (kinds == {int, float} and all(abs(one) <= EXACT for one in read if type(one) is int)):
        return pl.Series(name, [None if value is None else float(value) for value in read], pl.Float64())
    return pl.Series(name, [None if value is None else str(value) for value in plain], pl.String)


def _read(value: Any) -> Any:
    """A text or Decimal as the truth value or number that it spells, otherwise unchanged; what a number cannot hold is
    the text."""
    if isinstance(value, str) and value.lower() in TRUTH:
        return TRUTH[value.lower()]
    if type(value) is int:
        return value if value in INT64 else str(value)
    if not isinstance(value, (str, Decimal)):
        return value
    text = str(value)
    if WHOLE.fullmatch(text):
        return int(text) if len(text) <= LONGEST and int(text) in INT64 else text
    if isinstance(value, Decimal) or (DECIMAL.fullmatch(text) and any(letter.isdigit() for letter in text)):
        number = float(value)
        return number if math.isfinite(number) else text
    return text

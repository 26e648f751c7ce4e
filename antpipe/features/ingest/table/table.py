"""A table file before its rows are read, and a row."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from antpipe.features.ingest.table.encoding import UTF_8


@dataclass(frozen=True)
class Table:
    """A table file before its rows are read.

    form: the format in words. dates: columns whose type says that they are times; they come as milliseconds since 1970.
    delimiter: of text files. quotes: whether they enclose values. check_quotes: refuse quotes that swallow rows.
    encoding: of text files, as Python knows it. types: of the columns of other files, as polars knows them. skip: lines
    before the header. records: whether lines are JSON objects. parts: the files of a folder. keyed: columns
    that the names of its folders hold. fine: how many units of a column of dates are a millisecond, if that is more
    than one.
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
    skip: int = 0
    records: bool = False
    parts: tuple[Path, ...] = ()
    keyed: Mapping[str, pa.DataType] = field(default_factory=dict)
    fine: Mapping[str, int] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """Where relative paths in the table start."""
        return self.path if self.parts else self.path.parent


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
    """Rows of more than one line: how many, with how many further lines, and where the longest begins and ends."""

    rows: int = 0
    inside: int = 0
    first: int = 0
    last: int = 0

    def see(self, row: TableRow) -> None:
        """Count a row if it has more than one line."""
        self.rows += row.last > row.line
        self.inside += row.last - row.line
        if row.last - row.line > self.last - self.first:
            self.first, self.last = row.line, row.last

"""Which rows of a table count: those for which the condition of --where is true."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.table.dates import DateFormat
from antpipe.features.ingest.table.files import read_rows
from antpipe.features.ingest.table.table import Table, TableRow
from antpipe.features.ingest.table.times import parse_time
from antpipe.runtime.conditions import columns_named, row_filter
from antpipe.runtime.logs import log
from antpipe.settings.ingest import TableConfig

ROWS_AT_ONCE = 4096


class Selection:
    """A condition on the rows of a table. columns: those it reads. dropped: rows it leaves out.

    unknown: rows among `dropped` whose condition is unknown, such as a cell that is empty or not a number. Cells of
    text files are compared as numbers if the condition does; those of `dates` are times. A row whose time cannot be
    read stays, so that it is rejected as malformed.
    """

    def __init__(
        self, expression: str | None, table: Table, dates: Sequence[str] = (), form: DateFormat | None = None
    ) -> None:
        self.columns = columns_named(expression, table.columns) if expression else []
        self.text = bool(table.delimiter)
        self.dates = [name for name in self.columns if name in dates and name not in table.dates]
        self.form = form
        types = {name: table.types.get(name, pl.String()) for name in table.columns}
        self.schema = pl.Schema(types | dict.fromkeys(self.dates, pl.Datetime("ms")))
        self.keep = row_filter(expression, self.schema, parse_text=True) if expression else None
        self.dropped = self.unknown = 0

    def rows(self, rows: Iterator[TableRow], first: int) -> Iterator[TableRow]:
        """The rows that stay, in their order. first: where the values of `columns` begin in each row."""
        if self.keep is None:
            yield from rows
            return
        while block := list(islice(rows, ROWS_AT_ONCE)):
            values = zip(*(row.values[first : first + len(self.columns)] for row in block), strict=True)
            frame = pl.DataFrame(
                [
                    pl.Series(name, self._cells(name, column), self.schema[name], strict=False)
                    for name, column in zip(self.columns, values, strict=True)
                ]
            )
            unread = [pl.col(name).is_null() for name in self.dates]
            found = frame.select(
                keep=self.keep, malformed=pl.any_horizontal(unread) if unread else pl.lit(False)
            ).with_columns(pl.col("keep").fill_null(pl.col("malformed")).or_(pl.col("malformed")).alias("stays"))
            self.unknown += found.filter(pl.col("keep").is_null() & ~pl.col("malformed")).height
            stays = found["stays"].to_list()
            self.dropped += len(stays) - sum(stays)
            yield from (row for row, stay in zip(block, stays, strict=True) if stay)

    def _cells(self, name: str, column: Sequence[Any]) -> list[Any]:
        """The cells of a column as the condition sees them: an empty text is unknown."""
        if name in self.dates:
            return [self._moment(cell) for cell in column]
        if not self.text:
            texts = self.schema[name] == pl.String  # of JSON lines, where a column may hold anything
            return [str(cell) if texts and cell is not None else cell for cell in column]
        return [cell.strip() or None for cell in column]

    def _moment(self, cell: Any) -> int | None:
        try:
            return parse_time(cell, self.form)[0]
        except ValueError:
            return None


def selection_of(table: Table, time: str | None, config: TableConfig, form: DateFormat | None) -> Selection:
    """The condition of --where. time: the column of times. form: how its dates are written (None: ISO, or numbers).

    Raises UsageError for a condition that cannot be read or does not fit the columns.
    """
    selection = Selection(config.where, table)
    if time is None or time not in selection.columns:
        return selection
    dates = form is not None
    rows = read_rows(table, [time], Rejects(0), config.limit)
    first = next((row.values[0] for row in rows if row.values[0] not in (None, "")), None)
    with suppress(ValueError):  # what cannot be read is rejected later
        dates = parse_time(first, form)[2]
    return Selection(config.where, table, [time] if dates else [], form)


def is_return(quantity: Any) -> bool:
    """Whether a quantity is zero or negative. Empty or unreadable ones are not."""
    try:
        return float(str(quantity).strip().replace(",", ".")) <= 0
    except ValueError:
        return False


def tell_left_out(
    path: Path, config: TableConfig, selection: Selection, users: Mapping[str, int], returns: tuple[str, int]
) -> None:
    """Log what --where and --drop-users left out of a file.

    users: rows of each user that is left out. returns: the column of quantities, and how many kept rows have 0 or less.
    """
    if config.where:
        of_which = f", {selection.unknown} of them because the condition is unknown" if selection.unknown else ""
        log.info(f"{path.name}: --where leaves out {selection.dropped} rows{of_which}")
    for user, count in users.items():
        if count:
            log.info(f"{path.name}: {count} rows of user {user} are left out")
        else:
            log.warning(f"{path.name}: --drop-users {user}: no row has this user")
    column, count = returns
    if count:
        name = column if column.isidentifier() else f'"{column}"'
        log.warning(
            f"{path.name}: {count} rows have {column} of 0 or less, such as returns; leave them out with --where "
            f"'{name} > 0'"
        )

"""Dates as shops write them: 31.12.2025, 12/31/2025 10:30 AM, 31-Dec-2025. One order of day and month per column."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from antpipe.errors import UsageError
from antpipe.features.ingest.advice import SettingsError
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.table.files import read_rows
from antpipe.features.ingest.table.table import Table
from antpipe.settings.ingest import TableConfig

DAY_FIRST, MONTH_FIRST, YEAR_FIRST, NAMED = "day-first", "month-first", "year-first", "named-month"
IN_WORDS = {DAY_FIRST: "day.month.year", MONTH_FIRST: "month/day/year", YEAR_FIRST: "year/month/day", NAMED: "dates"}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PIVOT = 69  # two-digit years from here on are of the last century, as strptime has it
LOOKED_AT = 100  # values that tell whether a column has such dates at all
CLOCK = (
    r"(?:[ T,]+(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,6})\d*)?)?(?:\s*([AaPp])\.?[Mm]\.?)?"
    r"(?:\s*(?:UTC|GMT)?([+-]\d{2}(?::?\d{2})?))?)?"  # the offset from UTC
    r"(?:\s*(?:UTC|GMT|Z))?(?:\s*\([^()]*\))?"
)
WEEKDAY = r"(?:(?i:mo|tu|we|th|fr|sa|su|di|mi|do|so)[a-z]*\.?,?\s+)?"
DATE = re.compile(rf"(\d{{1,4}})([./-])\s?(\d{{1,2}})\2\s?(\d{{1,4}}){CLOCK}")
MONTHS = {"jan": 1, "feb": 2, "mar": 3, "apr": 4, "may": 5, "jun": 6, "jul": 7, "aug": 8, "sep": 9, "oct": 10}
MONTHS |= {"nov": 11, "dec": 12, "mär": 3, "mai": 5, "okt": 10, "dez": 12}
WITH_NAME = re.compile(
    rf"{WEEKDAY}(?:(\d{{1,2}})\.?[ -])?([^\W\d_]{{3,9}})\.?[ -](?:(\d{{1,2}}),?[ -])?(\d{{4}}){CLOCK}"
)


@dataclass
class Orders:
    """Which orders of day, month and year the dates of a column allow, updated as dates are read.

    only: for each order, how many dates can be read in this order alone, and the line and text of the first of them.
    seen: dates. first: line and text of the first one. dots: whether all dates are written with dots, which no country
    does with the month first. iso: whether all are dates by ISO 8601.
    """

    only: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    seen: int = 0
    first: tuple[int, str] = (0, "")
    dots: bool = True
    iso: bool = True

    def see(self, line: int, text: str) -> None:
        """Count a date; anything else is ignored."""
        match = DATE.fullmatch(text)
        fits = [order for order in (DAY_FIRST, MONTH_FIRST, YEAR_FIRST, NAMED) if _moment(text, order) is not None]
        if not fits:
            return
        self.seen += 1
        self.first = self.first if self.first[0] else (line, text)
        self.dots &= match is not None and match[2] == "."
        self.iso &= _iso(text)
        if len(fits) == 1:
            count, first, example = self.only.get(fits[0], (0, line, text))
            self.only[fits[0]] = (count + 1, first, example)

    def decide(self, path: Path) -> str:
        """The order of the column. Raises SettingsError if it is ambiguous, or if two orders occur."""
        if len(self.only) > 1:
            often, rare = sorted(self.only, key=lambda order: -self.only[order][0])[:2]
            (_, line, text), (count, second, other) = self.only[often], self.only[rare]
            raise SettingsError(
                f"{path}: dates in two orders: {text} in line {line} is {often}, {other} in line {second} is {rare} "
                f"({count} such); if the order is {often}, add --date-format {often}; the others are malformed",
                {"date_format": often, "max_rejects": count},
            )
        if self.only:
            return next(iter(self.only))
        if self.dots:
            return DAY_FIRST
        raise SettingsError(
            f"{path}:{self.first[0]}: {self.first[1]} can be day/month or month/day, as can every date of the "
            "column; say which with --date-format day-first or --date-format month-first",
            {"date_format": DAY_FIRST},
        )


@dataclass(frozen=True)
class DateFormat:
    """How the dates of a column are written. pattern: an order (DAY_FIRST, …) or a pattern of strptime."""

    pattern: str

    def microseconds(self, value: object) -> int:
        """Since 1970, in UTC unless the pattern has a zone. Raises ValueError if it is not such a date."""
        text = str(value).strip()
        if self.pattern in IN_WORDS:
            moment = _moment(text, self.pattern)
            if moment is None:
                raise ValueError(f"time {text[:40]!r} is not a date written {self.in_words}")
        else:
            try:
                moment = datetime.strptime(text, self.pattern)
            except ValueError:
                raise ValueError(f"time {text[:40]!r} is not a date of --date-format {self.pattern}") from None
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        return (moment - EPOCH) // timedelta(microseconds=1)

    @property
    def in_words(self) -> str:
        return {NAMED: "with the name of the month"}.get(self.pattern, IN_WORDS.get(self.pattern, self.pattern))


def date_format_of(table: Table, column: str | None, config: TableConfig) -> DateFormat | None:
    """How the dates of a column are written: as --date-format says, or detected by reading the column.

    None: by ISO 8601, or they are numbers. Raises as require_date_format and find_date_format do.
    """
    if config.date_format != "auto":
        form = require_date_format(config.date_format)
        if column is not None and column in table.dates:
            raise SettingsError(
                f"{table.path}: {column} holds times, so --date-format does not apply", {"date_format": "auto"}
            )
        return form
    if column is None or column in table.dates:
        return None
    rows = read_rows(table, [column], Rejects(0), config.limit)
    return find_date_format(((row.line, row.values[0]) for row in rows), table.path)


def require_date_format(pattern: str) -> DateFormat:
    """--date-format. Raises UsageError if it is neither an order nor a pattern with day, month and year."""
    if pattern in (DAY_FIRST, MONTH_FIRST, YEAR_FIRST):
        return DateFormat(pattern)
    moment = datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)
    try:
        back = datetime.strptime(moment.strftime(pattern), pattern)
    except (ValueError, re.error):
        back = None
    if back is None or (back.year, back.month, back.day) != (2001, 2, 3):
        raise UsageError(
            f"--date-format {pattern}: not a date with year, month and day; examples: {DAY_FIRST}, {MONTH_FIRST}, "
            "'%d.%m.%Y', '%m/%d/%y %H:%M'"
        )
    return DateFormat(pattern)


def find_date_format(values: Iterable[tuple[int, object]], path: Path) -> DateFormat | None:
    """How the dates of a column are written; None if they are not such dates (but numbers, or dates by ISO 8601).

    values: with their lines. If none of the first LOOKED_AT filled ones is such a date, no more are read; else all are.
    Raises SettingsError if the order of day and month cannot be told.
    """
    orders, filled = Orders(), 0
    for line, value in values:
        text = value.strip() if isinstance(value, str) else ""
        if not text:
            continue
        filled += 1
        if not text.isascii() or not text.replace("-", "").isdecimal() or text.count("-") == 2:
            orders.see(line, text)
        if filled == LOOKED_AT and not orders.seen:
            return None
    if orders.iso:
        return None
    return DateFormat(orders.decide(path))


def _iso(text: str) -> bool:
    try:
        datetime.fromisoformat(text.removesuffix(" UTC"))
    except ValueError:
        return False
    return True


def _moment(text: str, order: str) -> datetime | None:
    """A date in one order, in UTC unless it has an offset; None if it is not one."""
    return _named(text) if order == NAMED else _numeric(text, order)


def _named(text: str) -> datetime | None:
    match = WITH_NAME.fullmatch(text)
    if match is None or (match[1] is None) == (match[3] is None):
        return None
    month = MONTHS.get(match[2][:3].lower(), 0)
    return _checked(int(match[4]), month, int(match[1] or match[3]), match.groups()[4:])


def _numeric(text: str, order: str) -> datetime | None:
    match = DATE.fullmatch(text)
    if match is None:
        return None
    first, second, third = match[1], match[3], match[4]
    if order == YEAR_FIRST:
        whole = len(first) == 4 and len(third) <= 2
        return _checked(int(first), int(second), int(third), match.groups()[4:]) if whole else None
    if len(first) > 2 or len(third) not in (2, 4):
        return None
    year = int(third) if len(third) == 4 else int(third) + (1900 if int(third) >= PIVOT else 2000)
    day, month = (first, second) if order == DAY_FIRST else (second, first)
    return _checked(year, int(month), int(day), match.groups()[4:])


def _checked(year: int, month: int, day: int, clock: tuple[str | None, ...]) -> datetime | None:
    """clock: hour, minute, second, fraction, a or p of am and pm, and the offset from UTC."""
    hour, minute, second = (int(part or 0) for part in clock[:3])
    if clock[4]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if clock[4].lower() == "p" else 0)
    try:
        return datetime(year, month, day, hour, minute, second, int((clock[3] or "0").ljust(6, "0")), _zone(clock[5]))
    except ValueError:
        return None


def _zone(offset: str | None) -> timezone:
    """The zone of an offset such as +02, +0200 or -05:30. Raises ValueError if there is no such zone."""
    if offset is None:
        return UTC
    hours, minutes = int(offset[1:3]), int(offset[3:].lstrip(":") or 0)
    if minutes >= 60:
        raise ValueError(f"{offset} is not an offset from UTC")
    ahead = timedelta(hours=hours, minutes=minutes)
    return timezone(-ahead if offset[0] == "-" else ahead)

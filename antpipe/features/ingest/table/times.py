"""Times of a table: dates, or numbers of any unit, become milliseconds since 1970."""

import re
from array import array
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from antpipe.errors import DataError
from antpipe.features.ingest.advice import SettingsError
from antpipe.features.ingest.ids import EXACT_BITS
from antpipe.features.ingest.table.dates import DateFormat
from antpipe.features.ingest.table.table import Table
from antpipe.runtime.logs import log

# The size of a time between 1973 and 5138 tells its unit. Smaller numbers are not such times, but positions or days.
UNITS = {"s": (1e8, 1e11), "ms": (1e11, 1e14), "us": (1e14, 1e17), "ns": (1e17, 1e20)}
PER_MILLISECOND = {"ms": 1, "us": 1_000, "ns": 1_000_000}
LARGEST = 10**19
DECIMAL_COMMA = re.compile(r"\d{4,},\d+|\d+,(?!\d{3}\Z)\d+")  # not 1,600, which may be thousands
FLOATS = {"Float32": 32, "Float16": 16}  # types of a column
LATEST = 10**14  # milliseconds, the year 5138
# Numbers that are dates written without signs, by their digits: 20251231, 202512311030, 20251231103000.
COMPACT = {8: "%Y%m%d", 10: "%Y%m%d%H%M", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S", 17: "%Y%m%d%H%M%S%.3f"}
FIRST_YEAR, LAST_YEAR = 1970, 2100
MOST = 0.5  # if this share of numbers or more are such dates, the others count as damaged


@dataclass
class Times:
    """The times of the good rows of a file, as they are read. dates: whether they are dates; None before the first.

    form: how dates are written; None: by ISO 8601. whole, part: numbers, or milliseconds of dates. step: the coarsest
    resolution of the numbers, given the digits they are written with, such as 1.6e+09.
    """

    typed: int = 0  # the type of the column says that they are times, so many of which are a millisecond
    form: DateFormat | None = None
    dates: bool | None = None
    whole: "array[int]" = field(default_factory=lambda: array("q"))
    part: "array[float]" = field(default_factory=lambda: array("d"))
    line: "array[int]" = field(default_factory=lambda: array("q"))
    step: float = 0.0

    def add(self, line: int, value: Any) -> None:
        """Raises ValueError if the value is not a time, or not of the same kind as those before."""
        if value is None:
            raise ValueError("no time")
        if self.typed:
            whole, part, is_date = value // self.typed, value % self.typed / self.typed, True
        else:
            whole, part, is_date = parse_time(value, self.form)
            if not is_date and isinstance(value, str) and ("e" in value or "E" in value):
                self.step = max(self.step, _step(value.strip()))
        if whole < 0 or part < 0:
            raise ValueError(f"time {value!r} is before 1970")
        if whole >= 2**63:
            raise ValueError(f"time {value!r} is too large")
        if self.dates is None:
            self.dates = is_date
        if self.dates != is_date:
            raise ValueError(f"time {value!r} is a {'date' if is_date else 'number'}, those before are not")
        self.whole.append(whole)
        self.part.append(part)
        self.line.append(line)


def parse_time(value: Any, form: DateFormat | None = None) -> tuple[int, float, bool]:
    """(whole, fraction, False) for a number, (milliseconds, their fraction, True) for a date by ISO 8601 (UTC if it
    names no zone).

    form: how dates are written instead; then there are no numbers. Raises ValueError if it is neither.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError("no time")
    if form is not None:
        return _split(form.microseconds(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return value, 0.0, False
    text = str(value).strip()
    if "_" in text or not text.isascii():  # int and float would read 1_000
        raise ValueError(f"time {text[:40]!r} is neither a number nor a date by ISO 8601")
    try:
        return int(text), 0.0, False
    except ValueError:
        pass
    if DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    try:
        number = float(text)
    except ValueError:
        return _split(_microseconds(text))
    if not np.isfinite(number) or abs(number) > LARGEST:
        raise ValueError(f"time {text!r} is not a finite number")
    return int(number), number - int(number), False


def _step(text: str) -> float:
    """The size of the last digit of a number. Raises ValueError if it is beyond all floats, as in 0e999."""
    try:
        return 10.0 ** int(Decimal(text).as_tuple().exponent)
    except ArithmeticError:
        raise ValueError(f"time {text[:40]!r} is not a number with a usable exponent") from None


def _split(microseconds: int) -> tuple[int, float, bool]:
    return microseconds // 1000, microseconds % 1000 / 1000, True


def _microseconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text.removesuffix(" UTC"))
    except ValueError:
        raise ValueError(f"time {text[:40]!r} is neither a number nor a date by ISO 8601") from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def to_milliseconds(times: Times, unit: str, path: Path) -> tuple[NDArray[np.int64], str]:
    """(rows,) timestamps in ms, and the unit found: `date`, s, ms, us, ns or order (then they stay as they are, or
    become ranks if they have fractions finer than thousandths). Warns of times in the future.

    unit: auto, or one of those except `date`. Raises DataError if the sizes show two units, if a time lies beyond the
    year 5138 in this unit, or if a unit is given for dates.
    """
    milliseconds, found = _to_milliseconds(times, unit, path)
    if found != "order":
        _tell_future(milliseconds, times, found, path)
    return milliseconds, found


def _tell_future(milliseconds: NDArray[np.int64], times: Times, unit: str, path: Path) -> None:
    """Warn of times more than a day from now. Those beyond LAST_YEAR are reported with the span of all times."""
    future = milliseconds > (datetime.now(UTC) + timedelta(days=1)).timestamp() * 1000
    if future.any() and (last := int(milliseconds.max())) < datetime(LAST_YEAR, 1, 1, tzinfo=UTC).timestamp() * 1000:
        count, row = int(future.sum()), int(milliseconds.argmax())
        log.warning(
            f"{path.name}: {count} {'time lies' if count == 1 else 'times lie'} in the future, the last of them "
            f"{in_words(last, unit)} in line {times.line[row]}; if that is wrong, correct the file, or say how its "
            f"times are written with {'--date-format' if unit == 'date' else '--time-unit'}"
        )


def _to_milliseconds(times: Times, unit: str, path: Path) -> tuple[NDArray[np.int64], str]:
    whole = np.asarray(times.whole, np.int64)
    part = np.asarray(times.part, np.float64)
    if times.dates:
        if unit not in ("auto", "order"):
            raise SettingsError(
                f"{path}: its times are dates, so --time-unit {unit} does not apply", {"time_unit": "auto"}
            )
        return whole, "order" if unit == "order" else "date"
    if unit == "auto" and not part.any() and (dates := _compact_dates(whole, times, path)) is not None:
        return dates, "date"
    if unit == "auto":
        unit = _unit_of(whole, times, path)
        _require_year_first(whole, times, path)
    if unit == "order" and not part.any():
        return whole, unit
    per_millisecond = PER_MILLISECOND.get(unit, 1)
    if int(whole.max(initial=0)) // per_millisecond > (LATEST // 1000 if unit == "s" else LATEST):
        row = int(np.argmax(whole))
        raise SettingsError(
            f"{path}:{times.line[row]}: time {whole[row]} lies beyond the year 5138 with --time-unit {unit}",
            {"time_unit": "auto"},
        )
    if unit in ("s", "order"):  # fractions count
        fine = whole * 1000 + np.rint(part * 1000).astype(np.int64)
        if unit == "order" and len(np.unique(fine)) < len(np.unique(exact := np.stack([whole, part], 1), axis=0)):
            return np.unique(exact, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64), unit
        return fine, unit
    return whole // per_millisecond, unit


def _unit_of(whole: NDArray[np.int64], times: Times, path: Path) -> str:
    """The unit that all times show by their size."""
    limits = [low for low, _ in UNITS.values()]
    kinds = np.searchsorted(limits, whole, side="right")
    found = np.unique(kinds)
    if len(found) > 1:
        first, second = (int(np.argmax(kinds == kind)) for kind in found[:2])
        names = ("order", *UNITS)
        raise DataError(
            f"{path}: times of several sizes: {times.whole[first]} in line {times.line[first]} looks like "
            f"{names[found[0]]}, {times.whole[second]} in line {times.line[second]} like {names[found[1]]}; if they "
            "all count the same, say what with --time-unit"
        )
    return ("order", *UNITS)[int(found[0])] if len(found) else "order"


def exact_order(times: Times, unit: str) -> NDArray[np.int64] | None:
    """(rows,) the rows in the order of their exact times; None if milliseconds are exact or that is the row order.

    unit: as `to_milliseconds` found it. Rows of equal milliseconds are kept in this order from then on.
    """
    whole, part = np.asarray(times.whole, np.int64), np.asarray(times.part, np.float64)
    if not part.any() and (times.dates or PER_MILLISECOND.get(unit, 1) == 1):
        return None
    order = np.lexsort((part, whole))
    return None if (np.diff(order) == 1).all() else order


def _compact_dates(whole: NDArray[np.int64], times: Times, path: Path) -> NDArray[np.int64] | None:
    """Milliseconds, if these numbers are dates written without signs; else None.

    Raises DataError if most of them are, but not all.
    """
    digits = len(str(whole[0])) if len(whole) else 0
    if digits not in COMPACT or whole.min() < 10 ** (digits - 1) or whole.max() >= 10**digits:
        return None
    text = pl.Series(whole).cast(pl.String)
    if digits == 10:  # chrono wants minutes after hours
        text = text + "00"
    if digits == 17:  # chrono wants a point before fractions
        text = text.str.slice(0, 14) + "." + text.str.slice(14)
    moments = text.str.to_datetime(COMPACT[digits], time_unit="ms", strict=False)
    good = moments.dt.year().is_between(FIRST_YEAR, LAST_YEAR).fill_null(value=False)
    if (bad := int((~good).sum())) > (1 - MOST) * len(whole):
        return None
    if bad:
        row = int((~good).arg_max() or 0)
        raise DataError(
            f"{path}:{times.line[row]}: time {whole[row]} is not a date, though most of the column are, without signs "
            f"(such as {whole[int(good.arg_max() or 0)]}); correct it, or add --time-unit order if these are not dates"
        )
    return moments.cast(pl.Int64).to_numpy()


def _require_year_first(whole: NDArray[np.int64], times: Times, path: Path) -> None:
    """Raises DataError if these numbers look like dates without signs that end with the year.

    As numbers they are in the order of the days: the 1st of any month before the 2nd of any other.
    """
    first, second, year = whole // 1_000_000, whole // 10_000 % 100, whole % 10_000
    days = ((first >= 1) & (first <= 12) & (second <= 31)) | ((second <= 12) & (first >= 1) & (first <= 31))
    dates = days & (second >= 1) & (year >= FIRST_YEAR) & (year <= LAST_YEAR)
    if dates.all() and len(np.unique(whole)) > 1:
        raise DataError(
            f"{path}:{times.line[0]}: time {whole[0]} looks like a date that ends with the year, as all of the "
            "column do; write them as 2025-12-31, or add --time-unit order if they are not dates"
        )


def require_exact_times(table: Table, column: str | None, times: Times) -> None:
    """Raises DataError for times in a column of float32 (or float16) that rounds them: seconds of today to 128.

    Warns of fractions in such a column, and of numbers written with few digits, with the smallest step between times.
    """
    bits = FLOATS.get(str(table.types.get(column or "")))
    if bits is not None:
        largest = max(times.whole, default=0)
        step = float(np.spacing((np.float32 if bits == 32 else np.float16)(largest)))
        what = f"the times in column {column!r} are float{bits}, whose step at {largest} is {step:.2g}"
        if largest >= 2 ** EXACT_BITS[bits]:
            raise DataError(
                f"{table.path}: {what}, so different times became the same; write them as integers, from data in which "
                "they are still whole",
            )
        if any(times.part):
            log.warning(f"{table.path.name}: {what}: closer ones are equal, and count in the order of the rows")
    if times.step > 1:
        log.warning(
            f"{table.path.name}: times in column {column!r} are written with few digits, as 1.6e+09: they are exact to "
            f"{times.step:g} only, and equal ones count in the order of the rows"
        )


def in_words(milliseconds: int, unit: str) -> str:
    """A time as people write it: 2025-12-31, or with the time of day if there is one (UTC); or a number."""
    if unit == "order":
        return str(milliseconds)
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return f"{moment:%Y-%m-%d}" if milliseconds % 86_400_000 == 0 else f"{moment:%Y-%m-%d %H:%M:%S}"

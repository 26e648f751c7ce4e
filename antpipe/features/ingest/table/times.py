"""Times of a table: dates, or numbers of any unit, become milliseconds since 1970."""

from array import array
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antpipe.errors import DataError
from antpipe.features.ingest.advice import SettingsError

# The size of a time between 1973 and 5138 tells its unit. Smaller numbers are not such times, but positions or days.
UNITS = {"s": (1e8, 1e11), "ms": (1e11, 1e14), "us": (1e14, 1e17), "ns": (1e17, 1e20)}
PER_MILLISECOND = {"ms": 1, "us": 1_000, "ns": 1_000_000}
LARGEST = 10**19
LATEST = 10**14  # milliseconds, the year 5138


@dataclass
class Times:
    """The times of the good rows of a file, as they are read. dates: whether they are dates; None before the first."""

    typed: bool = False  # the type of the column says that they are times, in milliseconds
    dates: bool | None = None
    whole: "array[int]" = field(default_factory=lambda: array("q"))
    part: "array[float]" = field(default_factory=lambda: array("d"))
    line: "array[int]" = field(default_factory=lambda: array("q"))

    def add(self, line: int, value: Any) -> None:
        """Raises ValueError if the value is not a time, or not of the same kind as those before."""
        whole, part, is_date = (value, 0.0, True) if self.typed else parse_time(value)
        if value is None:
            raise ValueError("no time")
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


def parse_time(value: Any) -> tuple[int, float, bool]:
    """(whole, fraction, False) for a number, (milliseconds, 0, True) for a date by ISO 8601 (UTC if it names no zone).

    Raises ValueError if it is neither.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError("no time")
    if isinstance(value, int) and not isinstance(value, bool):
        return value, 0.0, False
    text = str(value).strip()
    if "_" in text or not text.isascii():  # int and float would read 1_000
        raise ValueError(f"time {text[:40]!r} is neither a number nor a date by ISO 8601")
    try:
        return int(text), 0.0, False
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return _milliseconds(text), 0.0, True
    if not np.isfinite(number) or abs(number) > LARGEST:
        raise ValueError(f"time {text!r} is not a finite number")
    return int(number), number - int(number), False


def _milliseconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text.removesuffix(" UTC"))
    except ValueError:
        raise ValueError(f"time {text[:40]!r} is neither a number nor a date by ISO 8601") from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


def to_milliseconds(times: Times, unit: str, path: Path) -> tuple[NDArray[np.int64], str]:
    """(rows,) timestamps in ms, and the unit found: `date`, s, ms, us, ns or order (then they stay as they are).

    unit: auto, or one of those except `date`. Raises DataError if the sizes show two units, if a time lies beyond the
    year 5138 in this unit, or if a unit is given for dates.
    """
    whole = np.asarray(times.whole, np.int64)
    part = np.asarray(times.part, np.float64)
    if times.dates:
        if unit not in ("auto", "order"):
            raise SettingsError(
                f"{path}: its times are dates, so --time-unit {unit} means nothing", {"time_unit": "auto"}
            )
        return whole, "order" if unit == "order" else "date"
    if unit == "auto":
        unit = _unit_of(whole, times, path)
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
        return whole * 1000 + np.rint(part * 1000).astype(np.int64), unit
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

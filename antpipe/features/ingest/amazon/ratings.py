"""Published ratings without text: which column is what, and what the lines say.

Four comma-separated columns. Ratings of 2014: user,item,rating,timestamp; of 2018: item,user,rating,timestamp; both in
seconds and without a header. Benchmark of 2023: user_id,parent_asin,rating,timestamp[,history] in milliseconds, with a
header (files from before February 2024 have none). Names do not tell the releases apart (`Books.csv`), so the first
lines decide on the format; a file whose lines show too little is refused.

A line is malformed if it is not UTF-8, has another number of columns, an empty id, a time that is not a whole number or
lies beyond the year 5000, or a rating that is not between 0 and 5. A missing rating stays missing.
"""

import csv
import math
import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from antpipe.errors import DataError
from antpipe.features.ingest.advice import SettingsError
from antpipe.features.ingest.lines import read_lines
from antpipe.features.ingest.rejects import Rejects
from antpipe.store.looking import first_lines

SAMPLE = 10_000  # lines that decide the format
CLEAR = 0.95  # minimum share of lines with evidence that agree
ENOUGH = 0.5  # minimum share of lines with evidence
IN_MILLISECONDS = 10**11  # as seconds, the year 5138; as milliseconds, 1973
LATEST = 10**14
SHOWN = 40  # characters of a value that a message shows
UNITS = {1: "milliseconds", 1000: "seconds"}

# A user is A and at least nine more characters; an item is B and nine more, or the ISBN of a book.
USER = re.compile(r"A[0-9A-Z]{9,}")
ITEM = re.compile(r"B[0-9A-Z]{9}|[0-9]{9}[0-9X]")
ROLES = {
    **dict.fromkeys(("user_id", "userid", "user", "reviewerid"), "user"),
    **dict.fromkeys(("parent_asin", "asin", "item_id", "itemid", "item", "product_id", "productid"), "item"),
    **dict.fromkeys(("rating", "overall"), "rating"),
    **dict.fromkeys(("timestamp", "time", "unixreviewtime"), "timestamp"),
    "history": "history",
}


@dataclass(frozen=True)
class RatingsFormat:
    """The columns of a file: the positions of user and item, and how many milliseconds one unit of time has."""

    name: str
    about: str
    user: int
    item: int
    unit: int
    widths: tuple[int, ...] = (4,)


FORMATS = {
    form.name: form
    for form in (
        RatingsFormat("ratings-2014", "ratings of 2014 (user,item,rating,timestamp)", 0, 1, 1000),
        RatingsFormat("ratings-2018", "ratings of 2018 (item,user,rating,timestamp)", 1, 0, 1000),
        RatingsFormat("benchmark-2023", "benchmark of 2023 (user_id,parent_asin,rating,timestamp)", 0, 1, 1, (4, 5)),
    )
}
Rating = tuple[bytes, str, str, int, float | None]  # line, user, item, milliseconds, rating


def find_format(path: Path, wanted: str) -> RatingsFormat:
    """The format of a file. wanted: the name of one of FORMATS, or `auto`.

    Raises SettingsError if the lines do not show it clearly, or have a header that contradicts `wanted`.
    """
    head = [_fields(line.removeprefix(BOM_UTF8)) for _, line in islice(_filled_lines(path), SAMPLE)]
    header = header_roles(head[0]) if head else None
    rows = [fields for fields in head[1 if header else 0 :] if fields and len(fields) in (4, 5)]
    if wanted != "auto":
        chosen = FORMATS[wanted]
        if header and (header[chosen.user], header[chosen.item]) != ("user", "item"):
            raise SettingsError(
                f"{path}:1: the header {','.join(header)} is not that of {chosen.about}", {"review_format": "auto"}
            )
        return chosen
    first = header[0] if header else _first_column(path, rows)
    unit = _unit(path, rows)
    for form in FORMATS.values():
        if (form.unit, (form.user, form.item)) == (unit, (0, 1) if first == "user" else (1, 0)):
            return form
    raise SettingsError(
        f"{path}: item,user with times in milliseconds: no release is published like this",
        {"review_format": "ratings-2018"},
    )


def header_roles(fields: list[str] | None) -> list[str] | None:
    """What the columns are, by the names in a first line; None if it is not a header."""
    names = [field.strip().removeprefix("\ufeff").strip('"').lower() for field in fields or []]
    roles = [ROLES.get(name, "") for name in names]
    known = roles[:4] in (["user", "item", "rating", "timestamp"], ["item", "user", "rating", "timestamp"])
    return roles if known and roles[4:] in ([], ["history"]) else None


def _first_column(path: Path, rows: list[list[str]]) -> str:
    """`user` or `item`: what the first column holds, judged by the ids of the first lines."""
    votes = Counter(vote for fields in rows if (vote := _vote(fields[0], fields[1])))
    seen, (best, most) = votes.total(), votes.most_common(1)[0] if votes else ("", 0)
    if not rows or seen < ENOUGH * len(rows) or most < CLEAR * seen:
        raise SettingsError(
            f"{path}: cannot tell users from items: of the first {len(rows)} lines, {votes['user']} look like "
            f"user,item,rating,timestamp (release of 2014) and {votes['item']} like item,user,rating,timestamp (2018)",
            {"review_format": "ratings-2018"},
        )
    return best


def _vote(first: str, second: str) -> str:
    if USER.fullmatch(first) and ITEM.fullmatch(second):
        return "user"
    return "item" if ITEM.fullmatch(first) and USER.fullmatch(second) else ""


def _unit(path: Path, rows: list[list[str]]) -> int:
    """How many milliseconds one unit of time has, judged by the size of the numbers."""
    times = [int(fields[3]) for fields in rows if re.fullmatch("[0-9]{1,18}", fields[3])]
    large = sum(time >= IN_MILLISECONDS for time in times)
    if (1 - CLEAR) * len(times) < large < CLEAR * len(times):
        raise SettingsError(
            f"{path}: cannot tell the unit of time: of the first {len(times)} lines, {large} look like milliseconds",
            {"review_format": "benchmark-2023"},
        )
    return 1 if times and large >= CLEAR * len(times) else 1000


def _fields(line: bytes) -> list[str] | None:
    """The columns of a line; None if it cannot be split."""
    try:
        return split_line(line)
    except (ValueError, csv.Error):
        return None


def split_line(line: bytes) -> list[str]:
    """The columns of a line. Raises ValueError (not UTF-8) or csv.Error (a quote that does not end)."""
    text = line.decode()
    return next(csv.reader([text], strict=True), []) if '"' in text else text.split(",")


def read_ratings(path: Path, columns: RatingsFormat, rejects: Rejects, limit: int) -> Iterator[Rating]:
    """The values of good lines; the others go to `rejects`. A header has a line number but does not count as a line.

    limit: lines to read (0: all). Raises DataError if the file is empty; one with only a header has no interactions.
    """
    numbered = _filled_lines(path)
    head = next(numbered, None)
    if head is None:
        raise DataError(f"{path}: empty", first_lines(path))
    if not header_roles(_fields(head[1])):
        numbered = chain([(head[0], head[1].removeprefix(BOM_UTF8))], numbered)
    for number, line in islice(numbered, limit or None):
        try:
            row = parse_row(line, columns)
        except UnicodeDecodeError as error:
            rejects.add(path, number, f"not UTF-8: byte {error.start}", line)
        except (ValueError, csv.Error) as error:
            rejects.add(path, number, str(error), line)
        else:
            yield row


def _filled_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers."""
    return ((number, line) for number, line in enumerate(read_lines(path), 1) if line.strip())


def parse_row(line: bytes, columns: RatingsFormat) -> Rating:
    """What one line says. Raises ValueError (UnicodeDecodeError if it is not UTF-8) or csv.Error if it is malformed."""
    fields = split_line(line)
    if len(fields) not in columns.widths:
        raise ValueError(f"{len(fields)} column(s), expected {' or '.join(map(str, columns.widths))}")
    user, item, stars, time = fields[columns.user].strip(), fields[columns.item].strip(), fields[2], fields[3].strip()
    if not user or not item:
        raise ValueError("no user" if not user else "no item")
    if not (time.isascii() and time.isdigit()):
        raise ValueError(f"timestamp {time[:SHOWN]!r}: not a whole number")
    milliseconds = int(time[:20]) * columns.unit
    if milliseconds > LATEST:
        raise ValueError(f"timestamp {time[:SHOWN]}: beyond the year 5000 in {UNITS[columns.unit]}")
    return line, user, item, milliseconds, _rating(stars.strip())


def _rating(text: str) -> float | None:
    """Stars; None if there are none. Raises ValueError if they are not a number between 0 and 5."""
    if not text:
        return None
    try:
        stars = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        stars = math.nan
    if not 0 <= stars <= 5:
        raise ValueError(f"rating {text[:SHOWN]!r}: not a number between 0 and 5")
    return stars

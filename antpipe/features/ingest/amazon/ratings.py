"""Lines of published ratings without text: which column is what, and what the lines say.

Four comma-separated columns. Ratings of 2014: user,item,rating,timestamp; of 2018: item,user,rating,timestamp; both in
seconds and without a header. Benchmark of 2023: user_id,parent_asin,rating,timestamp[,history] in milliseconds, with a
header (files from before February 2024 have none). Two of these cannot be told by name (`Books.csv`), so the format
is decided by what the first lines show, and refused where they show too little.

A line is malformed where it is not UTF-8, has another number of columns, an empty id, a time that is no whole number
or lies beyond the year 5000, or a rating that is not between 0 and 5. A missing rating stays missing.
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
from antpipe.features.ingest.amazon.readers import Rejects
from antpipe.features.ingest.lines import again, read_lines

SAMPLE = 10_000  # lines that decide on the format
CLEAR = 0.95  # share of the lines with evidence that must agree
ENOUGH = 0.5  # share of the lines that must give evidence
IN_MILLISECONDS = 10**11  # as seconds, the year 5138; as milliseconds, 1973
LATEST = 10**14
EXCERPT = 40
UNITS = {1: "milliseconds", 1000: "seconds"}

# Reviewers: A and at least nine more; products: B and nine more, or the ISBN of a book.
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
class Columns:
    """What the columns of a file are: where user and item stand, and the milliseconds of one unit of time."""

    name: str
    about: str
    user: int
    item: int
    unit: int
    widths: tuple[int, ...] = (4,)


FORMATS = {
    form.name: form
    for form in (
        Columns("ratings-2014", "ratings of 2014 (user,item,rating,timestamp)", 0, 1, 1000),
        Columns("ratings-2018", "ratings of 2018 (item,user,rating,timestamp)", 1, 0, 1000),
        Columns("benchmark-2023", "benchmark of 2023 (user_id,parent_asin,rating,timestamp)", 0, 1, 1, (4, 5)),
    )
}
Row = tuple[bytes, str, str, int, float | None]  # line, user, item, milliseconds, rating


def find_columns(path: Path, wanted: str, command: str) -> Columns:
    """The format of a file; `wanted` names one of FORMATS, or is `auto`.

    command: of the next try, to which `--review-format` is added. DataError where the lines do not show it clearly, or
    where they have a header that says otherwise.
    """
    head = [_fields(line.removeprefix(BOM_UTF8)) for line in islice(read_lines(path), SAMPLE)]
    header = header_roles(head[0]) if head else None
    rows = [fields for fields in head[1 if header else 0 :] if fields and len(fields) in (4, 5)]
    if wanted != "auto":
        chosen = FORMATS[wanted]
        if header and (header[chosen.user], header[chosen.item]) != ("user", "item"):
            raise DataError(
                f"{path}:1: the header {','.join(header)} is not that of {chosen.about}",
                command,
            )
        return chosen
    order = header[0] if header else _order(path, rows, command)
    unit = _unit(path, rows, command)
    for form in FORMATS.values():
        if (form.unit, (form.user, form.item)) == (unit, (0, 1) if order == "user" else (1, 0)):
            return form
    raise DataError(
        f"{path}: item,user with times in milliseconds: no release is published like this",
        f"{command} --review-format ratings-2018",
    )


def header_roles(fields: list[str] | None) -> list[str] | None:
    """What the columns are by the names in a first line; None where it holds no names."""
    names = [field.strip().removeprefix("\ufeff").strip('"').lower() for field in fields or []]
    roles = [ROLES.get(name, "") for name in names]
    known = roles[:4] in (["user", "item", "rating", "timestamp"], ["item", "user", "rating", "timestamp"])
    return roles if known and roles[4:] in ([], ["history"]) else None


def _order(path: Path, rows: list[list[str]], command: str) -> str:
    """`user` or `item`: what the first column holds, as the ids of the first lines look."""
    votes = Counter(vote for fields in rows if (vote := _vote(fields[0], fields[1])))
    seen, (best, most) = votes.total(), votes.most_common(1)[0] if votes else ("", 0)
    if not rows or seen < ENOUGH * len(rows) or most < CLEAR * seen:
        raise DataError(
            f"{path}: cannot tell users from items: of the first {len(rows)} lines, {votes['user']} look like "
            f"user,item,rating,timestamp (release of 2014) and {votes['item']} like item,user,rating,timestamp (2018)",
            f"{command} --review-format ratings-2018",
        )
    return best


def _vote(first: str, second: str) -> str:
    if USER.fullmatch(first) and ITEM.fullmatch(second):
        return "user"
    return "item" if ITEM.fullmatch(first) and USER.fullmatch(second) else ""


def _unit(path: Path, rows: list[list[str]], command: str) -> int:
    """Milliseconds of the unit of time, by the size of the numbers."""
    times = [int(fields[3]) for fields in rows if re.fullmatch("[0-9]{1,18}", fields[3])]
    large = sum(time >= IN_MILLISECONDS for time in times)
    if (1 - CLEAR) * len(times) < large < CLEAR * len(times):
        raise DataError(
            f"{path}: cannot tell the unit of time: of the first {len(times)} lines, {large} look like milliseconds",
            f"{command} --review-format benchmark-2023",
        )
    return 1 if times and large >= CLEAR * len(times) else 1000


def _fields(line: bytes) -> list[str] | None:
    """The columns of a line; None where it cannot be split."""
    try:
        return split_line(line)
    except (ValueError, csv.Error):
        return None


def split_line(line: bytes) -> list[str]:
    """The columns of a line; ValueError (not UTF-8) or csv.Error (a quote that does not end)."""
    text = line.decode()
    return next(csv.reader([text], strict=True), []) if '"' in text else text.split(",")


def read_ratings(path: Path, columns: Columns, rejects: Rejects, limit: int) -> Iterator[Row]:
    """Good lines with what they say; the others go to `rejects`. A header is no line, but has a number.

    limit: lines to read (0: all). DataError where the file is empty; a header alone is a file without interactions.
    """
    numbered: Iterator[tuple[int, bytes]] = enumerate(read_lines(path), 1)
    head = next(numbered, None)
    if head is None:
        raise DataError(f"{path}: empty", again(path))
    if not header_roles(_fields(head[1])):
        numbered = chain([(1, head[1].removeprefix(BOM_UTF8))], numbered)
    for number, line in islice(numbered, limit or None):
        try:
            row = parse_row(line, columns)
        except UnicodeDecodeError as error:
            rejects.add(path, number, f"not UTF-8: byte {error.start}", line)
        except (ValueError, csv.Error) as error:
            rejects.add(path, number, str(error), line)
        else:
            yield row


def parse_row(line: bytes, columns: Columns) -> Row:
    """What one line says; UnicodeDecodeError, another ValueError or csv.Error where it is malformed."""
    fields = split_line(line)
    if len(fields) not in columns.widths:
        raise ValueError(f"{len(fields)} column(s), expected are {' or '.join(map(str, columns.widths))}")
    user, item, stars, time = fields[columns.user].strip(), fields[columns.item].strip(), fields[2], fields[3].strip()
    if not user or not item:
        raise ValueError("no user" if not user else "no item")
    if not (time.isascii() and time.isdigit()):
        raise ValueError(f"timestamp {time[:EXCERPT]!r}: not a whole number")
    milliseconds = int(time[:20]) * columns.unit
    if milliseconds > LATEST:
        raise ValueError(f"timestamp {time[:EXCERPT]}: beyond the year 5000 in {UNITS[columns.unit]}")
    return line, user, item, milliseconds, _rating(stars.strip())


def _rating(text: str) -> float | None:
    """Stars; None where there are none. ValueError where they are no number between 0 and 5."""
    if not text:
        return None
    try:
        stars = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        stars = math.nan
    if not 0 <= stars <= 5:
        raise ValueError(f"rating {text[:EXCERPT]!r}: not a number between 0 and 5")
    return stars

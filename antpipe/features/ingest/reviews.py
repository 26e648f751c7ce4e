"""The review files of a domain, of any kind, as one table of distinct lines."""

import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from antpipe.errors import DataError, UsageError
from antpipe.features.ingest.clean import drop_duplicate_lines
from antpipe.features.ingest.ratings import FORMATS, Row, find_columns, read_ratings
from antpipe.features.ingest.readers import (
    Rejects,
    Review,
    Review2018,
    Review2023,
    read_records,
    review_format,
    review_layout,
)
from antpipe.features.ingest.release_files import CSV, SPLITS, Request

LAYOUTS: dict[str, Callable[[bytes], type[Review]]] = {
    "auto": review_layout, "reviews-2018": lambda _: Review2018, "reviews-2023": lambda _: Review2023,
}  # fmt: skip


@dataclass(frozen=True)
class Reviews:
    """Distinct review lines in file order: INTERACTIONS, where user_id and item_id are places in `users`, `items`.

    With numbers instead of ids a line takes 28 bytes. Those of several files have `split`, the place of their file.
    facts: for the report.
    """

    table: pl.DataFrame
    users: pl.Series
    items: pl.Series
    facts: dict[str, Any]


class Lines:
    """Columns that grow line by line, and the numbers of the ids met."""

    def __init__(self) -> None:
        self.users: dict[str, int] = {}
        self.items: dict[str, int] = {}
        self.user_id: array[int] = array("i")
        self.item_id: array[int] = array("i")
        self.timestamp: array[int] = array("q")
        self.rating: array[float] = array("f")
        self.line_hash: array[int] = array("q")

    def read(self, rows: Iterator[Row]) -> int:
        """Take in all rows; returns how many there were."""
        users, items, before = self.users, self.items, len(self.line_hash)
        for line, user, item, milliseconds, stars in rows:
            self.user_id.append(users.setdefault(user, len(users)))
            self.item_id.append(items.setdefault(item, len(items)))
            self.timestamp.append(milliseconds)
            self.rating.append(math.nan if stars is None else stars)
            self.line_hash.append(hash(line))  # salted anew in each run, but compared only within this one
        return len(self.line_hash) - before

    def table(self) -> pl.DataFrame:
        """INTERACTIONS with numbers in place of ids, and line_hash."""
        names = ("user_id", "item_id", "timestamp", "rating", "line_hash")
        columns = {name: np.asarray(getattr(self, name)) for name in names}
        return pl.DataFrame(columns).with_columns(pl.col("rating").fill_nan(None))


def read_reviews(
    files: tuple[Path, ...], request: Request, rejects: Rejects, announce: Callable[[str], None]
) -> Reviews:
    """The review files, which are announced; malformed lines go to `rejects`, of identical lines the first stays.

    With a limit, each file is read up to that line. DataError where no line is left.
    """
    lines, forms, good, parts = Lines(), [], [], []
    for path in files:
        form, rows = _rows(path, request, rejects)
        good.append(lines.read(rows))
        forms.append(form[0])
        malformed = rejects.count(path)
        announce(f"{path.name}: {form[0]}, {good[-1] + malformed} lines")
        parts.append({"file": path.name, "lines": good[-1] + malformed, "malformed": malformed})
    every = lines.table()
    if not len(every):
        raise DataError(f"{', '.join(map(str, files))}: no line is usable", request.command("--download", "--dry-run"))
    if len(files) == len(SPLITS):
        announce("train, valid and test become one table; build-sequences keeps their split unless told otherwise")
        every = every.with_columns(pl.Series("split", np.repeat(range(len(files)), good), pl.Int8))
    table = drop_duplicate_lines(every)
    facts = line_facts(", ".join(dict.fromkeys(forms)), sum(map(rejects.count, files)), len(every), len(table))
    if len(files) > 1:
        facts["parts"] = parts
    return Reviews(table, pl.Series("user_id", list(lines.users)), pl.Series("item_id", list(lines.items)), facts)


def _rows(path: Path, request: Request, rejects: Rejects) -> tuple[list[str], Iterator[Row]]:
    """What the lines of a file are, and these lines. The words come with the first good line where JSON is read."""
    wanted, limit = request.options.review_format, request.options.limit
    is_table = path.name.endswith(CSV)
    if wanted != "auto" and is_table != (wanted in FORMATS):
        raise UsageError(f"--review-format {wanted}: {path.name} is {'no ' if not is_table else ''}comma-separated")
    if is_table:
        columns = find_columns(path, wanted, request.command())
        return [columns.about], read_ratings(path, columns, rejects, limit)
    form = [""]

    def rows() -> Iterator[Row]:
        for line, review in read_records(path, LAYOUTS[wanted], rejects, limit):
            form[0] = form[0] or review_format(review)
            yield line, review.user, review.item, review.milliseconds, review.rating

    return form, rows()


def with_ids(interactions: pl.DataFrame, reviews: Reviews) -> pl.DataFrame:
    """INTERACTIONS with the original ids in place of their numbers."""
    return interactions.with_columns(
        reviews.users.gather(interactions["user_id"]), reviews.items.gather(interactions["item_id"])
    )


def line_facts(form: str, malformed: int, good: int, kept: int) -> dict[str, Any]:
    """What became of the lines of a file: lines = kept + duplicate_lines + malformed."""
    return {
        "format": form,
        "lines": good + malformed,
        "malformed": malformed,
        "duplicate_lines": good - kept,
        "kept": kept,
    }

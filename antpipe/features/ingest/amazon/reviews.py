"""The review files of a domain, of any kind, as one table of distinct lines."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from antpipe.errors import DataError, UsageError
from antpipe.features.ingest.amazon.files import CSV, SPLITS, Request
from antpipe.features.ingest.amazon.ratings import FORMATS, Row, find_columns, read_ratings
from antpipe.features.ingest.amazon.readers import (
    Rejects,
    Review,
    Review2018,
    Review2023,
    read_records,
    review_format,
    review_layout,
)
from antpipe.features.ingest.amazon.spill import Lines, Spill, columns
from antpipe.features.ingest.lines import ahead, block_of
from antpipe.runtime.process import short_turns

LAYOUTS: dict[str, Callable[[bytes], type[Review]]] = {
    "auto": review_layout,
    "reviews-2018": lambda _: Review2018,
    "reviews-2023": lambda _: Review2023,
}


ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Reviews:
    """Distinct review lines in file order: INTERACTIONS, where user_id and item_id are places in `users`, `items`.

    With numbers instead of ids a line takes 20 bytes. Those of several files have `split`, the place of their file.
    facts: for the report.
    """

    table: pl.DataFrame
    users: pl.Series
    items: pl.Series
    facts: dict[str, Any]


def read_reviews(
    files: tuple[Path, ...], request: Request, rejects: Rejects, announce: Callable[[str], None]
) -> Reviews:
    """The review files, which are announced; malformed lines go to `rejects`, of identical lines the first stays.

    With a limit, each file is read up to that line. DataError where no line is left.
    """
    forms, good, parts = [], [], []
    with TemporaryFile(dir=folder_with_room(request.store.root)) as file, short_turns():
        spill = Spill(file)
        for path in files:
            form, lines = _lines(path, request, rejects)
            with closing(ahead(lines)) as coming:
                good.append(spill.read(coming))
            forms.append(form[0])
            malformed = rejects.count(path)
            announce(f"{path.name}: {form[0]}, {good[-1] + malformed} lines")
            parts.append({"file": path.name, "lines": good[-1] + malformed, "malformed": malformed})
        every, users, items = spill.table()
    if not len(every):
        raise DataError(f"{', '.join(map(str, files))}: no line is usable", request.command("--download", "--dry-run"))
    if len(files) == len(SPLITS):
        announce("train, valid and test become one table; build-sequences keeps their split unless told otherwise")
        every = every.with_columns(pl.Series("split", np.repeat(range(len(files)), good), pl.Int8))
    table = every.filter("is_first").drop("is_first")
    facts = line_facts(", ".join(dict.fromkeys(forms)), sum(map(rejects.count, files)), len(every), len(table))
    if len(files) > 1:
        facts["parts"] = parts
    return Reviews(table, users, items, facts)


def folder_with_room(root: Path) -> Path:
    """The store's folder, or the one that it will come to lie in: where the results go, there is room."""
    return next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())


def _lines(path: Path, request: Request, rejects: Rejects) -> tuple[list[str], Generator[Lines, None, None]]:
    """What the lines of a file are, and these lines. The words come with the first good line where JSON is read."""
    wanted, limit = request.options.review_format, request.options.limit
    is_table = path.name.endswith(CSV)
    if wanted != "auto" and is_table != (wanted in FORMATS):
        raise UsageError(f"--review-format {wanted}: {path.name} is {'no ' if not is_table else ''}comma-separated")
    if is_table:
        places = find_columns(path, wanted, request.command())
        return [places.about], _of_rows(read_ratings(path, places, rejects, limit))
    form = [""]

    def columns_of(reviews: list[Review]) -> pl.DataFrame:
        form[0] = form[0] or review_format(reviews[0])
        return columns(
            [review.user for review in reviews],
            [review.item for review in reviews],
            milliseconds(reviews),
            [review.rating for review in reviews],
        )

    return form, read_records(path, LAYOUTS[wanted], columns_of, rejects, limit)


def milliseconds(reviews: list[Review]) -> NDArray[np.int64]:
    """(N,) times of reviews of one release, since 1970."""
    if isinstance(reviews[0], Review2018):
        return 1000 * np.array([review.seconds for review in reviews], np.int64)  # type: ignore[union-attr]
    return np.array([review.milliseconds for review in reviews], np.int64)  # type: ignore[union-attr]


def _of_rows(rows: Iterator[Row]) -> Generator[Lines, None, None]:
    while some := list(islice(rows, ROWS_AT_ONCE)):
        lines, *known = zip(*some, strict=True)
        yield block_of(lines), [columns(*known)]


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

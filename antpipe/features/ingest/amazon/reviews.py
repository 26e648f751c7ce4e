"""The review files of a domain, of any kind, as one table of distinct lines.

Releases: 2014 (jmcauley.ucsd.edu/data/amazon), 2018 (nijianmo.github.io/amazon), 2023 (amazon-reviews-2023.github.io).
"""

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any

import msgspec
import numpy as np
import polars as pl
from msgspec import Meta, Struct
from numpy.typing import NDArray

from antpipe.errors import DataError, UsageError
from antpipe.features.ingest.amazon.files import CSV, SPLITS, Release
from antpipe.features.ingest.amazon.json_lines import Id, read_records
from antpipe.features.ingest.amazon.ratings import FORMATS, Rating, find_format, read_ratings
from antpipe.features.ingest.amazon.spill import Lines, Spill, columns
from antpipe.features.ingest.lines import ahead, block_of
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.rules import RawInteractions, line_counts
from antpipe.runtime.files import naming
from antpipe.runtime.logs import log
from antpipe.runtime.threads import short_turns
from antpipe.store.looking import first_lines

# Times beyond the year 5000 are milliseconds taken for seconds, or not times at all.
Seconds = Annotated[int, Meta(ge=0, le=10**11)]
Milliseconds = Annotated[int, Meta(ge=0, le=10**14)]
# Stars go from 1 to 5; 0 is written where the page showed none.
Stars = Annotated[float, Meta(ge=0, le=5)]

ROWS_AT_ONCE = 10_000


class Review2018(Struct, gc=False):
    """A review of 2014 or 2018. A missing rating stays missing, and so does `verified`, which 2014 does not have."""

    user: Id = msgspec.field(name="reviewerID")
    item: Id = msgspec.field(name="asin")
    seconds: Seconds = msgspec.field(name="unixReviewTime")
    rating: Stars | None = msgspec.field(name="overall", default=None)
    verified: bool | None = None


class Review2023(Struct, gc=False):
    """A review of 2023, whose metadata describe parents (a product with all its colours and sizes)."""

    user: Id = msgspec.field(name="user_id")
    milliseconds: Milliseconds = msgspec.field(name="timestamp")
    rating: Stars | None = None
    verified: bool | None = msgspec.field(name="verified_purchase", default=None)
    parent_asin: Id | None = None
    asin: Id | None = None

    def __post_init__(self) -> None:
        if self.parent_asin is None and self.asin is None:
            raise ValueError("neither `parent_asin` nor `asin`")

    @property
    def item(self) -> str:
        return self.parent_asin or self.asin or ""


Review = Review2018 | Review2023


def review_layout(line: bytes) -> type[Review]:
    """The record type of a review line. Raises one of MALFORMED if it shows none."""
    if b'"reviewerID"' in line:
        return Review2018
    if b'"user_id"' in line:
        return Review2023
    json.loads(line)
    raise msgspec.ValidationError("neither `reviewerID` (releases of 2014 and 2018) nor `user_id` (2023)")


LAYOUTS: dict[str, Callable[[bytes], type[Review]]] = {
    "auto": review_layout,
    "reviews-2018": lambda _: Review2018,
    "reviews-2023": lambda _: Review2023,
}


def read_reviews(files: tuple[Path, ...], release: Release, rejects: Rejects) -> RawInteractions:
    """The review files of a domain. Malformed lines go to `rejects`; the first of identical lines is kept.

    With a limit, each file is read up to that line. Raises DataError if no line is left.
    """
    formats, good, parts = [], [], []
    room = folder_with_room(release.store.root)
    with naming(room / "temporary file"), TemporaryFile(dir=room) as file, short_turns():
        spill = Spill(file)
        for path in files:
            form, lines = _lines(path, release, rejects)
            with closing(ahead(lines)) as coming:
                good.append(spill.read(coming))
            formats.append(form[0])
            malformed = rejects.count(path)
            log.info(f"{path.name}: {form[0]}, {good[-1] + malformed} lines")
            parts.append({"file": path.name, "lines": good[-1] + malformed, "malformed": malformed})
        every, users, items = spill.table()
    if not len(every):
        raise DataError(f"{', '.join(map(str, files))}: no line is usable", first_lines(files[0]))
    if len(files) == len(SPLITS):
        log.info(
            "train, valid and test become one table; build-sequences keeps their split unless --split says otherwise"
        )
        every = every.with_columns(pl.Series("split", np.repeat(range(len(files)), good), pl.Int8))
    table = every.filter("is_first").drop("is_first")
    counts = line_counts(sum(map(rejects.count, files)), len(every), len(table))
    facts: dict[str, Any] = {"format": ", ".join(dict.fromkeys(formats)), **counts}
    if len(files) > 1:
        facts["parts"] = parts
    return RawInteractions(table, users, items, facts)


def folder_with_room(root: Path) -> Path:
    """The folder of the store, or its nearest parent that exists: the results need room there anyway."""
    return next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())


def _lines(path: Path, release: Release, rejects: Rejects) -> tuple[list[str], Generator[Lines, None, None]]:
    """The format of a file, and its lines. The format of JSON lines is known once a good line has been read."""
    wanted, limit = release.options.review_format, release.options.limit
    is_csv = path.name.endswith(CSV)
    if wanted != "auto" and is_csv != (wanted in FORMATS):
        raise UsageError(f"--review-format {wanted}: {path.name} is {'' if is_csv else 'not '}comma-separated")
    if is_csv:
        chosen = find_format(path, wanted)
        return [chosen.about], _of_ratings(read_ratings(path, chosen, rejects, limit))
    form = [""]

    def columns_of(reviews: list[Review]) -> pl.DataFrame:
        form[0] = form[0] or ("reviews of 2014/2018" if isinstance(reviews[0], Review2018) else "reviews of 2023")
        return columns(
            [review.user for review in reviews],
            [review.item for review in reviews],
            milliseconds(reviews),
            [review.rating for review in reviews],
            [review.verified for review in reviews],
        )

    return form, read_records(path, LAYOUTS[wanted], columns_of, rejects, limit)


def milliseconds(reviews: list[Review]) -> NDArray[np.int64]:
    """(N,) times since 1970 of reviews of one release."""
    if isinstance(reviews[0], Review2018):
        return 1000 * np.array([review.seconds for review in reviews], np.int64)  # type: ignore[union-attr]
    return np.array([review.milliseconds for review in reviews], np.int64)  # type: ignore[union-attr]


def _of_ratings(ratings: Iterator[Rating]) -> Generator[Lines, None, None]:
    while some := list(islice(ratings, ROWS_AT_ONCE)):
        lines, users, items, times, stars = zip(*some, strict=True)
        yield block_of(lines), [columns(users, items, times, stars, [None] * len(lines))]

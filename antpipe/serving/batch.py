"""Recommendations for many at once, into one file: part by part, with bounded memory, resumable.

A finished part is a Parquet file in the folder OUT.parts. When all are there, they become OUT in one step, and the
folder is removed. It belongs to one request, whose key covers everything that the recommendations depend on.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypedDict

import numpy as np
import polars as pl

from antpipe import __version__
from antpipe.errors import IntegrityError, Interrupted, SameCommand, UsageError
from antpipe.evaluation.vectors import OpenRun
from antpipe.runtime.files import atomic
from antpipe.runtime.logs import log
from antpipe.runtime.progress import Progress, Update, silent
from antpipe.serving.audience import Audience
from antpipe.serving.diversity import pool_size
from antpipe.serving.explain import explain
from antpipe.serving.offer import Offer
from antpipe.serving.recommend import DIGITS, Wishes, best_after, log_shortfall, titles_of
from antpipe.serving.top import Top
from antpipe.store.documents import NewerFormatError, read_json, refuse_newer, write_json
from antpipe.store.lock import alone
from antpipe.store.manifest import digest
from antpipe.store.next_command import shell
from antpipe.store.tables import read_table, write_table
from antpipe.training import checkpoint

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".csv", ".jsonl")
LARGEST_PART = 8192  # histories
CANDIDATES_AT_ONCE = 1 << 21  # of a part; they take about 50 bytes each
PLAN, FORMAT, MARK = "plan.json", 1, b"antpipe.part"
FOUND = pl.Schema({"rank": pl.Int32, "item_id": pl.String, "score": pl.Float64, "title": pl.String})
WHY = pl.Schema({"modality": pl.String, "because": pl.String, "method": pl.String})


class Parts(TypedDict):
    """plan.json: the request whose parts are in the folder."""

    key: str
    parts: int


@dataclass(frozen=True)
class Part:
    """Some of the histories, and the file of their recommendations. key: that of the request."""

    number: int
    block: slice
    path: Path
    key: str

    @property
    def mark(self) -> bytes:
        """Identifies the part in its file: an intact file may be that of another part."""
        return f"{self.key} {self.number}".encode()


Engine = Callable[[Sequence[Part]], Iterator[int]]  # writes parts, and yields their numbers as they are written


@dataclass(frozen=True)
class Written:
    """A file of recommendations. histories: how many it is for; `popular` of them are empty, and `fewer` of them got
    fewer than k items. rows: recommendations; items: those offered; continued: parts finished by an earlier run.
    """

    path: Path
    histories: int
    rows: int
    items: int
    fewer: int = 0
    popular: int = 0
    continued: int = 0


def require_writable(out: Path, *, force: bool) -> None:
    """Raise UsageError for a file that has no known suffix, or that exists and is not to be replaced."""
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"--out {out}: its name must end in one of {', '.join(SUFFIXES)}",
            SameCommand({"--out": f"{out.with_suffix('')}.parquet"}),
        )
    if out.exists() and not force:
        raise UsageError(f"--out {out}: already exists; --force replaces it", SameCommand({"--force": None}))


def recommend_to_file(
    opened: OpenRun,
    audience: Audience,
    offer: Offer,
    wishes: Wishes,
    out: Path,
    *,
    force: bool = False,
    progress: Progress = silent,
    engine: Engine | None = None,
) -> Written:
    """Write recommendations for an audience to a .parquet, .csv or .jsonl file.

    One row per recommendation: what names the history, then FOUND, with wishes.explain also WHY. An interrupted call
    continues when it is repeated. force: replace the file, and discard parts of another request. engine: writes the
    parts instead of this process (on_ray.py). Raises UsageError as require_writable, and for parts of another
    request without force.
    """
    require_writable(out, force=force)
    size = min(LARGEST_PART, max(1, CANDIDATES_AT_ONCE // pool_size(min(wishes.k, len(offer.rows)), wishes.diversify)))
    blocks = [slice(start, min(start + size, len(audience))) for start in range(0, len(audience), size)]
    folder = out.with_name(f"{out.name}.parts")
    with alone(folder, "recommendations"):
        key = _key(opened, audience, offer, wishes, size)
        paths = _begin(folder, key, len(blocks), force=force)
        parts = [Part(number, block, path, key) for number, (block, path) in enumerate(zip(blocks, paths, strict=True))]
        there = [path.is_file() for path in paths]
        if any(there):
            log.info(f"{sum(there)} of {len(paths)} parts were finished by an earlier run; continuing")
        try:
            missing = [part for part, finished in zip(parts, there, strict=True) if not finished]
            here = partial(write_part, opened, audience, offer, wishes)
            numbers = engine(missing) if engine and missing else map(here, missing)
            with progress("recommend") as update:
                _show(numbers, missing, len(audience), update)
        except KeyboardInterrupt:
            kept = sum(path.is_file() for path in paths)
            raise Interrupted(f"interrupted; {kept} of {len(paths)} parts kept; the same command continues") from None
        written = _summary(audience, parts, offer, wishes, out, sum(there))
        _merge(parts, out)
        for path in [*paths, folder / PLAN]:
            path.unlink()
    return written


def _key(opened: OpenRun, audience: Audience, offer: Offer, wishes: Wishes, size: int) -> str:
    """A hash of everything that the recommendations depend on."""
    vectors = [hashlib.sha256(array.data).hexdigest() for array in (opened.encoded.numpy(), opened.items)]
    return digest([__version__, key_of_request(opened, audience, offer, wishes), vectors, size])


def key_of_request(opened: OpenRun, audience: Audience, offer: Offer, wishes: Wishes) -> str:
    """The same without the vectors that were computed from the run: for processors that round differently."""
    arrays = hashlib.sha256()
    for array in (audience.items, audience.start, audience.end, offer.rows):
        arrays.update(np.ascontiguousarray(array).data)
    run = checkpoint.describe(opened.run)
    return digest(
        [
            [run.fingerprint, run.weights_sha256],
            {name: entry["fingerprint"] for name, entry in opened.domain.manifest().items()},
            arrays.hexdigest(),
            opened.item_ids,
            [] if opened.extra is None else opened.extra["text"].to_list(),
            _hash_of(audience.owners),
            [wishes.k, wishes.include_seen, wishes.diversify, wishes.explain],
        ]
    )


def _hash_of(owners: pl.DataFrame) -> str:
    content = hashlib.sha256()
    for row in owners.iter_rows():
        content.update(json.dumps(row).encode())
    return content.hexdigest()


def _begin(folder: Path, key: str, parts: int, *, force: bool) -> list[Path]:
    """The files of all parts of the request with this key. Those of another are refused, or discarded with force."""
    plan = folder / PLAN
    try:
        refuse_newer(plan, read_json(plan, dict[str, Any], None).get("format"), FORMAT)
        before = read_json(plan, Parts, None)["key"]
    except FileNotFoundError:
        before = None
    except IntegrityError as error:
        if isinstance(error, NewerFormatError) and not force:
            raise
        if not force:
            raise IntegrityError(f"{error.message}; --force starts over", SameCommand({"--force": None})) from None
        before = "unreadable"
    old = sorted(folder.glob("part-*.parquet"))
    if before != key and old and not force:
        raise UsageError(
            f"{folder}: holds {len(old)} finished part(s) of another request (other settings, users, items or run); "
            "--force discards them",
            SameCommand({"--force": None}),
        )
    if before != key:
        for path in old:
            path.unlink()
        write_json(plan, {"format": FORMAT, "key": key, "parts": parts})
    return [folder / f"part-{number:05}.parquet" for number in range(parts)]


def write_part(opened: OpenRun, audience: Audience, offer: Offer, wishes: Wishes, part: Part) -> int:
    """Compute the recommendations of a part and write its file. Returns its number."""
    found = best_after(opened, audience.histories(part.block), offer, wishes)
    rows = _table(opened, audience, part.block, found, wishes)
    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
    write_table(part.path, table.replace_schema_metadata({MARK: part.mark}))
    return part.number


def _show(numbers: Iterable[int], missing: Sequence[Part], total: int, update: Update) -> None:
    """Show the progress of missing parts, by number, as they are written."""
    sizes = {part.number: part.block.stop - part.block.start for part in missing}
    begun, fresh, done = time.monotonic(), 0, total - sum(sizes.values())
    for number in numbers:
        fresh += sizes[number]
        rate = fresh / max(time.monotonic() - begun, 1e-9)
        update(done + fresh, total, f"{rate:.0f} histories/s")


def _table(opened: OpenRun, audience: Audience, block: slice, found: Top, wishes: Wishes) -> pl.DataFrame:
    """The rows of one part."""
    real = found.rows >= 0
    number, place = np.nonzero(real)
    rows = found.rows[real]
    titles = titles_of(opened, rows)
    ids = pl.Series(opened.item_ids, dtype=pl.String)
    columns: dict[str, Any] = {
        "rank": place + 1,
        "item_id": ids.gather(rows),
        "score": found.scores[real].round(DIGITS),
        "title": [titles[row] for row in rows.tolist()],
    }
    schema = FOUND
    if wishes.explain:
        why = [
            reason
            for history, best, scores in zip(audience.histories(block), found.rows, found.scores, strict=True)
            for reason in explain(opened, history, best[best >= 0], scores)
        ]
        schema = pl.Schema({**FOUND, **WHY})
        columns |= {
            "modality": [reason["modality"] for reason in why],
            "because": [reason["because"][0]["item_id"] if reason["because"] else None for reason in why],
            "method": [reason["method"] for reason in why],
        }
    owners = audience.owners[block]
    return owners[number].hstack(pl.DataFrame(columns).cast(schema))


def _summary(
    audience: Audience, parts: Sequence[Part], offer: Offer, wishes: Wishes, out: Path, continued: int
) -> Written:
    """What the finished parts hold. Logs how many histories got fewer items than were asked for."""
    total, enough = 0, 0
    name = audience.owners.columns[-1]
    for part in parts:
        count = pl.DataFrame(_rows_of(part)).group_by(name).len()["len"]
        total += int(count.sum())
        enough += int((count >= wishes.k).sum())
    fewer = len(audience) - enough
    popular = int((audience.start == audience.end).sum())
    log_shortfall(len(audience), popular, fewer, wishes.k)
    return Written(out, len(audience), total, len(offer.rows), fewer, popular, continued)


def _rows_of(part: Part) -> "pa.Table":
    """The rows of a finished part. Raises IntegrityError if its file is damaged, or that of another part."""
    then, mend = "remove it, and the same command continues", shell("rm", part.path)
    try:
        table = read_table(part.path, None, mend)
    except IntegrityError as error:
        raise IntegrityError(f"{error.message}; {then}", mend) from None
    if (table.schema.metadata or {}).get(MARK) != part.mark:
        raise IntegrityError(f"{part.path}: not this part of the request; {then}", mend)
    return table.replace_schema_metadata(None)


def _merge(parts: Sequence[Part], out: Path) -> None:
    """Put the parts together, in order, in the format that the suffix of `out` names."""
    import pyarrow.parquet as pq

    suffix = out.suffix.lower()
    with atomic(out) as scratch:
        if suffix == ".parquet":
            with pq.ParquetWriter(scratch, pq.read_schema(parts[0].path).remove_metadata()) as writer:
                for part in parts:
                    writer.write_table(_rows_of(part))
            return
        with scratch.open("wb") as stream:
            for part in parts:
                _append(pl.DataFrame(_rows_of(part)), stream, suffix, head=not part.number)


def _append(rows: pl.DataFrame, stream: IO[bytes], suffix: str, *, head: bool) -> None:
    if suffix == ".csv":
        rows.write_csv(stream, include_header=head)
    else:
        rows.write_ndjson(stream)

"""Stage `ingest amazon`: the published review and metadata files of one domain become a domain of the store."""

import dataclasses
import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from antpipe.config import IngestConfig
from antpipe.errors import DataError
from antpipe.features.ingest.clean import drop_duplicate_lines, drop_repeats, k_core
from antpipe.features.ingest.readers import (
    Rejects,
    describe,
    product_format,
    product_layout,
    read_records,
    review_format,
    review_layout,
    unreadable,
)
from antpipe.features.ingest.release_files import Files, command_line, find_files
from antpipe.features.ingest.tables import ITEMS, REJECTS, TEXTS, require_same_source, write_domain
from antpipe.settings import flags_of, to_json
from antpipe.store import StageResult, Store, file_sha256


@dataclass(frozen=True)
class Reviews:
    """Distinct review lines in file order: INTERACTIONS, where user_id and item_id are places in `users`, `items`.

    With numbers instead of ids a line takes 28 bytes. facts: for the report.
    """

    table: pl.DataFrame
    users: pl.Series
    items: pl.Series
    facts: dict[str, Any]


@dataclass(frozen=True)
class Catalogue:
    """The ITEMS asked for, and the ids of all items the metadata describe. facts: for the report."""

    table: pl.DataFrame
    ids: pl.Series
    facts: dict[str, Any]


NO_CATALOGUE = Catalogue(ITEMS.to_frame(), pl.Series("item_id", [], pl.String), {})


def quiet(_: str) -> None:
    """Announce nothing."""


def ingest_amazon(
    store: Store,
    source: Path,
    domain: str,
    config: IngestConfig,
    *,
    force: bool = False,
    announce: Callable[[str], None] = quiet,
) -> StageResult:
    """Read a domain of an Amazon release from local files into the store; what is read is announced.

    source: folder with the files as published (release_files.py says which are taken, readers.py what makes a line
    malformed). The order of cleaning is malformed lines, identical lines, repeats of a (user, item), items without
    metadata, k-core. The manifest's report counts what each step took; for each file, lines = kept +
    duplicate_lines + malformed.
    Raises DataError: no folder, no file, an unreadable or damaged file, too many malformed lines, nothing left, a
    domain of this name from another source (unless `force`). The store is then as it was.
    """
    target = store.new_domain(domain)
    files = find_files(store, source, domain, config)
    hashes = {path: _sha256(path) for path in (files.reviews, files.metadata) if path is not None}
    parameters = {"format": "amazon", "files": list(hashes.values()), **to_json(config)}
    del parameters["max_rejects"]  # how many bad lines are put up with does not change what the good ones give
    folder, command = str(source.resolve()), command_line(store, source, domain, config)
    if not force:
        if target.is_fresh("items", parameters):
            entry = target.entry("items")
            if _malformed(entry["report"]) <= config.max_rejects:
                return StageResult(domain, "items", "fresh", entry["statistics"] | _figures(entry["report"]))
        require_same_source(target, parameters, folder, command)
    for path in files.ignored:
        announce(f"{path.name}: not read, {files.reviews.name} is")
    more = dataclasses.replace(config, max_rejects=10 * (config.max_rejects + 1))
    rejects = Rejects(config.max_rejects, command_line(store, source, domain, more))
    interactions, items, report = read_domain(files, config, rejects, announce)
    if not len(interactions):
        raise _nothing_left(store, source, domain, config, report)
    report["folder"] = folder
    for name, (path, sha256) in zip(("reviews", "metadata"), hashes.items(), strict=False):
        report[name] = {"file": path.name, "sha256": sha256, **report[name]}
    statistics = write_domain(
        target,
        parameters=parameters,
        items=items,
        interactions=interactions,
        rejects=pl.DataFrame(rejects.rows, schema=REJECTS),
        report=report,
        flags=["--source", str(source), *flags_of(config)],
    )
    return StageResult(domain, "items", "built", statistics | _figures(report))


def _nothing_left(store: Store, source: Path, domain: str, config: IngestConfig, report: dict[str, Any]) -> DataError:
    """The error of a domain that cleaning left empty: what went where, and the weakest rules that keep something."""
    bare, core = report["without_metadata"], report["k_core"]
    if core["interactions_dropped"]:
        weaker = dataclasses.replace(config, min_user=1, min_item=1)
    else:
        weaker = dataclasses.replace(config, keep_without_metadata=True)
    return DataError(
        f"domain {domain}: no interaction is left: of {report['reviews']['kept']} distinct reviews, "
        f"{report['repeats_dropped']} were repeats of a user's item ({config.repeats}), "
        f"{0 if bare['kept'] else bare['interactions']} of items without metadata, and {core['interactions_dropped']} "
        f"of users with fewer than {config.min_user} or items with fewer than {config.min_item}",
        command_line(store, source, domain, weaker),
    )


def read_domain(
    files: Files, config: IngestConfig, rejects: Rejects, announce: Callable[[str], None]
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """The clean INTERACTIONS and ITEMS of a domain, and the report."""
    reviews = read_reviews(files.reviews, rejects)
    announce(f"{files.reviews.name}: {reviews.facts['format']}, {reviews.facts['lines']} lines")
    once = drop_repeats(reviews.table, config.repeats)
    catalogue = NO_CATALOGUE
    if files.metadata is not None:
        # The k-core of a part lies within the k-core of the whole: texts of other items need not be kept.
        core = with_ids(k_core(once, config.min_user, config.min_item)[0], reviews)
        catalogue = read_catalogue(files.metadata, set(core["item_id"]), config.text_fields, rejects)
        announce(f"{files.metadata.name}: {catalogue.facts['format']}, {catalogue.facts['lines']} lines")
    described = reviews.items.is_in(catalogue.ids.implode()).arg_true()
    kept, cleaning = drop_items(once, described, config)
    interactions = with_ids(kept, reviews)
    return (
        interactions,
        items_of(interactions, catalogue.table),
        {
            "reviews": reviews.facts,
            "metadata": catalogue.facts or None,
            "repeats_dropped": len(reviews.table) - len(once),
            **cleaning,
        },
    )


def read_reviews(path: Path, rejects: Rejects) -> Reviews:
    """A review file; malformed lines go to `rejects`, of identical lines the first stays."""
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    user, item, time, rating, line_hash = array("i"), array("i"), array("q"), array("f"), array("q")
    form = ""
    for line, review in read_records(path, review_layout, rejects):
        form = form or review_format(review)
        user.append(users.setdefault(review.user, len(users)))
        item.append(items.setdefault(review.item, len(items)))
        time.append(review.milliseconds)
        rating.append(math.nan if review.rating is None else review.rating)
        line_hash.append(hash(line))  # salted anew in each run, but compared only within this one
    columns = {"user_id": user, "item_id": item, "timestamp": time, "rating": rating, "line_hash": line_hash}
    every = pl.DataFrame({name: np.asarray(column) for name, column in columns.items()})
    table = drop_duplicate_lines(every.with_columns(pl.col("rating").fill_nan(None)))
    facts = _facts(form, rejects.count(path), len(every), len(table))
    return Reviews(table, pl.Series("user_id", list(users)), pl.Series("item_id", list(items)), facts)


def with_ids(interactions: pl.DataFrame, reviews: Reviews) -> pl.DataFrame:
    """INTERACTIONS with the original ids in place of their numbers."""
    return interactions.with_columns(
        reviews.users.gather(interactions["user_id"]), reviews.items.gather(interactions["item_id"])
    )


def read_catalogue(path: Path, wanted: set[str], text_fields: tuple[str, ...], rejects: Rejects) -> Catalogue:
    """The wanted items of a metadata file. Of several lines of an item the first counts, the others are duplicates."""
    ids: set[str] = set()
    rows, form, good = [], "", 0
    for _, product in read_records(path, product_layout, rejects):
        form = form or product_format(product)
        good += 1
        if product.item in wanted and product.item not in ids:
            rows.append(describe(product, text_fields))
        ids.add(product.item)
    facts = _facts(form, rejects.count(path), good, len(ids))
    return Catalogue(pl.DataFrame(rows, schema=ITEMS), pl.Series("item_id", list(ids)), facts)


def drop_items(
    interactions: pl.DataFrame, described: pl.Series, config: IngestConfig
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Drop items without metadata and reduce to the k-core; the figures are for the report."""
    has_metadata = pl.col("item_id").is_in(described.implode())
    candidates = interactions if config.keep_without_metadata else interactions.filter(has_metadata)
    kept, rounds = k_core(candidates, config.min_user, config.min_item)
    after = _sizes(kept)
    dropped = {f"{name}_dropped": before - after[name] for name, before in _sizes(candidates).items()}
    without = {**_sizes(interactions.filter(~has_metadata)), "kept": config.keep_without_metadata}
    return kept, {"without_metadata": without, "k_core": {"rounds": rounds, **dropped}}


def items_of(interactions: pl.DataFrame, described: pl.DataFrame) -> pl.DataFrame:
    """ITEMS that are met; those the metadata do not describe have an empty text and nothing else."""
    items = interactions.select("item_id").unique()
    bare = items.join(described, on="item_id", how="anti").with_columns(
        pl.lit("").alias("text"), *(pl.lit([], dtype=TEXTS).alias(name) for name in ITEMS if ITEMS[name] == TEXTS)
    )
    return pl.concat([described.join(items, on="item_id", how="semi"), bare], how="diagonal")


def _facts(form: str, malformed: int, good: int, kept: int) -> dict[str, Any]:
    return {
        "format": form,
        "lines": good + malformed,
        "malformed": malformed,
        "duplicate_lines": good - kept,
        "kept": kept,
    }


def _figures(report: dict[str, Any]) -> dict[str, int]:
    """What cleaning took away, in short."""
    return {
        "malformed": _malformed(report),
        "duplicate_lines": report["reviews"]["duplicate_lines"],
        "repeats_dropped": report["repeats_dropped"],
        "items_without_metadata": report["without_metadata"]["items"],
        "k_core_dropped": report["k_core"]["interactions_dropped"],
    }


def _malformed(report: dict[str, Any]) -> int:
    """Malformed lines of all files."""
    return sum(report[name]["malformed"] for name in ("reviews", "metadata") if report[name] is not None)


def _sizes(interactions: pl.DataFrame) -> dict[str, int]:
    return {
        "users": interactions["user_id"].n_unique(),
        "items": interactions["item_id"].n_unique(),
        "interactions": len(interactions),
    }


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise unreadable(path, error) from None

"""Stage `ingest amazon`: the published review and metadata files of one domain become a domain of the store."""

import dataclasses
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from antpipe.config import IngestConfig, flag_name, to_json
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
from antpipe.features.ingest.tables import INTERACTIONS, ITEMS, REJECTS, write_domain
from antpipe.store import StageResult, Store, file_sha256

SUFFIXES = (".json.gz", ".jsonl.gz", ".json", ".jsonl")
REVIEW_NAMES = ("{}_5", "reviews_{}_5", "{}", "reviews_{}")
REVIEWS = pl.Schema({**INTERACTIONS, "line_hash": pl.Int64()})
CHUNK = 200_000


@dataclass(frozen=True)
class Source:
    """A domain's files. metadata: None only where items may stay undescribed. ignored: there too, but not read."""

    reviews: Path
    metadata: Path | None
    ignored: list[Path]


@dataclass(frozen=True)
class Contents:
    """What a file says. table: INTERACTIONS, or the ITEMS asked for. duplicates: lines that repeat an earlier one."""

    table: pl.DataFrame
    format: str
    lines: int
    duplicates: int


NO_CATALOGUE = Contents(ITEMS.to_frame(), "none", 0, 0)


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
    """Read a domain of an Amazon release (2014, 2018 or 2023) from the folder `source` into the store.

    Reviews are DOMAIN_5 or DOMAIN (.json or .jsonl, plain or .gz, `reviews_` in front or not). Where several are
    there, the 5-core file is read: papers report on it, and the complete one would only be brought down to it.
    Metadata are meta_DOMAIN, first with the suffix of the reviews, so that releases do not mix. What is read, in
    which format, and what is left aside is announced.

    Order of cleaning: malformed lines, identical lines, repeats of a (user, item), items without metadata, k-core.
    A line is malformed where it is not UTF-8 or JSON, where user, item or time is missing or of the wrong type, and
    where the rating is not between 0 and 5; a missing rating stays missing. Of several metadata lines of an item
    the first counts. Memory holds ids, times, ratings and the texts of items that can stay, not the reviews.

    Raises DataError: no folder, no file, an unreadable file, too many malformed lines, nothing left. The store
    is then as it was.
    """
    target = store.new_domain(domain)
    files = find_source(store, source, domain, config)
    hashes = {path: _sha256(path) for path in (files.reviews, files.metadata) if path is not None}
    parameters = {"format": "amazon", "files": list(hashes.values()), **to_json(config)}
    if not force and target.is_fresh("items", parameters):
        return StageResult(domain, "items", "fresh", target.entry("items")["statistics"])
    for path in files.ignored:
        announce(f"{domain}: {path.name} is there too and is not read")

    more = dataclasses.replace(config, max_rejects=10 * (config.max_rejects + 1))
    rejects = Rejects(config.max_rejects, command_line(store, source, domain, more))
    reviews = read_reviews(files.reviews, rejects)
    announce(f"{domain}: {files.reviews.name}: {reviews.format}, {reviews.lines} lines")
    once = drop_repeats(reviews.table, config.repeats)
    # The k-core of a part lies within the k-core of the whole: other items cannot stay, their texts are not kept.
    wanted = k_core(once, config.min_user, config.min_item)[0]["item_id"]
    catalogue, described = NO_CATALOGUE, NO_CATALOGUE.table.select("item_id")
    if files.metadata is not None:
        catalogue, described = read_catalogue(files.metadata, set(wanted), config.text_fields, rejects)
        announce(f"{domain}: {files.metadata.name}: {catalogue.format}, {catalogue.lines} lines")
    kept, cleaning = _drop(once, described, config)
    report = {
        "reviews": _file_report(files.reviews, hashes, reviews, rejects),
        "metadata": files.metadata and _file_report(files.metadata, hashes, catalogue, rejects),
        "repeats_dropped": len(reviews.table) - len(once),
        **cleaning,
    }
    statistics = write_domain(
        target,
        parameters=parameters,
        items=_items_of(kept, catalogue.table),
        interactions=kept,
        rejects=pl.DataFrame(rejects.rows, schema=REJECTS),
        report=report,
    )
    return StageResult(domain, "items", "built", statistics | _figures(report))


def find_source(store: Store, source: Path, domain: str, config: IngestConfig) -> Source:
    """The files of a domain in a folder; DataError names the domains that are there."""
    if not source.is_dir():
        raise DataError(f"--source {source}: no such folder", command_line(store, "DIR", domain, config))
    found = [path for name in REVIEW_NAMES for path in _candidates(source, name.format(domain))]
    if not found:
        there = domains_in(source)
        raise DataError(
            f"{source}: no review file of domain {domain} ({domain}_5.json.gz, {domain}.jsonl.gz, …); "
            f"domains there: {', '.join(there) or 'none'}",
            command_line(store, source, ",".join(there), config)
            if there
            else command_line(store, "DIR", domain, config),
        )
    reviews = found[0]
    # Python's sort is stable: same suffix first, then the order of SUFFIXES.
    metadata = sorted(_candidates(source, f"meta_{domain}"), key=lambda path: _is_jsonl(path) != _is_jsonl(reviews))
    if not metadata and not config.keep_without_metadata:
        raise DataError(
            f"{source}: no metadata file of domain {domain} (meta_{domain}.json.gz, meta_{domain}.jsonl.gz, …)",
            command_line(store, source, domain, dataclasses.replace(config, keep_without_metadata=True)),
        )
    return Source(reviews, metadata[0] if metadata else None, found[1:] + metadata[1:])


def _candidates(source: Path, stem: str) -> list[Path]:
    return [path for suffix in SUFFIXES if (path := source / f"{stem}{suffix}").is_file()]


def _is_jsonl(path: Path) -> bool:
    return ".jsonl" in path.suffixes


def domains_in(source: Path) -> list[str]:
    """Domains a folder has review files of."""
    names = set()
    for path in source.iterdir():
        suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
        if suffix and not path.name.startswith("meta_"):
            names.add(path.name.removesuffix(suffix).removeprefix("reviews_").removesuffix("_5"))
    return sorted(names)


def command_line(store: Store, source: str | Path, domain: str, config: IngestConfig) -> str:
    """The command that ingests with these settings (those that are not the defaults are spelt out)."""
    words = ["antpipe", "ingest", "amazon", "--source", str(source), "--domains", domain, "--store", str(store.root)]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            words.append(f"--{flag_name(field.name)}")
            if not isinstance(value, bool):
                words.append(",".join(value) if isinstance(value, tuple) else str(value))
    return shlex.join(words)


def read_reviews(path: Path, rejects: Rejects) -> Contents:
    """Interactions of a review file in the order of its lines, identical lines once; malformed ones to `rejects`."""
    chunks, rows, form = [], [], ""
    for line, review in read_records(path, review_layout, rejects):
        form = form or review_format(review)
        # The hash is salted anew in each run; it is only compared within this one.
        rows.append((review.user, review.item, review.milliseconds, review.rating, hash(line)))
        if len(rows) == CHUNK:
            chunks.append(pl.DataFrame(rows, schema=REVIEWS, orient="row"))
            rows = []
    chunks.append(pl.DataFrame(rows, schema=REVIEWS, orient="row"))
    every = pl.concat(chunks)
    table = drop_duplicate_lines(every)
    lines = len(every) + rejects.count(path)
    return Contents(table, form, lines, len(every) - len(table))


def read_catalogue(
    path: Path, wanted: set[str], text_fields: tuple[str, ...], rejects: Rejects
) -> tuple[Contents, pl.DataFrame]:
    """The wanted items of a metadata file, and the ids (`item_id`) of all it describes.

    Of several lines of an item the first counts, the others are duplicates.
    """
    ids: set[str] = set()
    rows, form, good = [], "", 0
    for _, product in read_records(path, product_layout, rejects):
        form = form or product_format(product)
        good += 1
        if product.item in wanted and product.item not in ids:
            rows.append(describe(product, text_fields))
        ids.add(product.item)
    table = pl.DataFrame(rows, schema=ITEMS)
    described = pl.DataFrame({"item_id": list(ids)}, schema={"item_id": pl.String})
    return Contents(table, form, good + rejects.count(path), good - len(ids)), described


def _drop(
    interactions: pl.DataFrame, described: pl.DataFrame, config: IngestConfig
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Drop items without metadata and reduce to the k-core; the figures are for the report."""
    without = interactions.join(described, on="item_id", how="anti")
    candidates = interactions
    if not config.keep_without_metadata:
        candidates = interactions.join(described, on="item_id", how="semi", maintain_order="left")
    kept, rounds = k_core(candidates, config.min_user, config.min_item)
    after = _sizes(kept)
    dropped = {f"{name}_dropped": before - after[name] for name, before in _sizes(candidates).items()}
    return kept, {
        "without_metadata": {**_sizes(without), "kept": config.keep_without_metadata},
        "k_core": {"rounds": rounds, **dropped},
    }


def _items_of(interactions: pl.DataFrame, described: pl.DataFrame) -> pl.DataFrame:
    """ITEMS of the items that are met; those the metadata do not describe have an empty text."""
    items = interactions.select("item_id").unique().join(described, on="item_id", how="left")
    nothing = pl.lit([], dtype=pl.List(pl.String))
    return items.with_columns(
        pl.col("text").fill_null(""), pl.col("category", "image_urls", "image_files").fill_null(nothing)
    )


def _file_report(path: Path, hashes: dict[Path, str], contents: Contents, rejects: Rejects) -> dict[str, Any]:
    malformed = rejects.count(path)
    return {
        "file": path.name,
        "sha256": hashes[path],
        "format": contents.format,
        "lines": contents.lines,
        "malformed": malformed,
        "duplicate_lines": contents.duplicates,
        "kept": contents.lines - malformed - contents.duplicates,
    }


def _figures(report: dict[str, Any]) -> dict[str, int]:
    """What cleaning took away, in short."""
    files = [report[name] for name in ("reviews", "metadata") if report[name] is not None]
    return {
        "malformed": sum(file["malformed"] for file in files),
        "duplicate_lines": report["reviews"]["duplicate_lines"],
        "repeats_dropped": report["repeats_dropped"],
        "items_without_metadata": report["without_metadata"]["items"],
        "k_core_dropped": report["k_core"]["interactions_dropped"],
    }


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

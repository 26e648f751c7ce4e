"""Stage `ingest amazon`: the published review and metadata files of one domain become a domain of the store."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from threading import Event
from typing import Any

import polars as pl

from antpipe.errors import DataError
from antpipe.features.ingest.amazon.files import Files, Request, find_files
from antpipe.features.ingest.amazon.readers import Rejects, describe, product_format, product_layout, read_records
from antpipe.features.ingest.amazon.reviews import Reviews, line_facts, read_reviews, with_ids
from antpipe.features.ingest.domain import (
    ITEMS,
    REJECTS,
    TEXTS,
    domain_statistics,
    require_same_source,
    rules_told,
    write_domain,
)
from antpipe.features.ingest.lines import unreadable
from antpipe.features.ingest.rules import drop_repeats, k_core
from antpipe.features.ingest.shared_users import hashes_of, places_of, users_of
from antpipe.settings.base import flags_of, to_json
from antpipe.settings.ingest import AmazonConfig, IngestConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.store import Store

AS_PUBLISHED = AmazonConfig()
ROWS_AT_ONCE = 10_000
HASHED_AT_ONCE = 1 << 22  # bytes


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
    options: AmazonConfig = AS_PUBLISHED,
    force: bool = False,
    dry_run: bool = False,
    announce: Callable[[str], None] = quiet,
) -> StageResult:
    """Read a domain of an Amazon release from local files into the store; what is read is announced.

    source: folder with the files as published (release_files.py says which are taken, readers.py and ratings.py what
    makes a line malformed). The order of cleaning is malformed lines, identical lines, users of other domains (where
    asked for), repeats of a (user, item), items without metadata, k-core. The manifest's report counts what each step
    took; for each file, lines = kept + duplicate_lines + malformed. dry_run: all of this, but nothing is written.
    Raises DataError: no folder, no file, an unreadable or damaged file, lines whose format cannot be told, too many
    malformed lines, nothing left, a domain of this name from another source (unless `force`). The store is then as it
    was.
    """
    target = store.new_domain(domain)
    request = Request(store, source, domain, config, options)
    files = find_files(request)
    elsewhere = users_of(store, domain, config.drop_shared_users_from)
    with hashing([path for path in (*files.reviews, files.metadata) if path is not None]) as hashes:
        if not force and "items" in target.manifest():
            parameters = _parameters(request, hashes(), elsewhere)
            if target.is_fresh("items", parameters):
                entry = target.entry("items")
                if _malformed(entry["report"]) <= config.max_rejects:
                    return StageResult(domain, "items", "fresh", entry["statistics"] | _figures(entry["report"]))
            require_same_source(target, parameters, str(source.resolve()), request.command())
        announce(rules_told(config, config.text_fields))
        for path in files.ignored:
            announce(f"{path.name}: not read, {files.reviews[0].name} is")
        interactions, items, report, rejects = read_domain(files, request, elsewhere, announce)
        if not len(interactions):
            raise _nothing_left(request, report)
        sums = hashes()
    _add_origin(report, request, files, sums)
    if dry_run:
        statistics = domain_statistics(items, interactions.rename({"user_id": "user"}))
        return StageResult(domain, "items", "would be built", statistics | _figures(report))
    statistics = write_domain(
        target,
        parameters=_parameters(request, sums, elsewhere),
        items=items,
        interactions=interactions,
        rejects=pl.DataFrame(rejects.rows, schema=REJECTS),
        report=report,
        flags=["--source", str(source), *flags_of(config), *flags_of(options)],
    )
    return StageResult(domain, "items", "built", statistics | _figures(report))


@contextmanager
def hashing(paths: Sequence[Path]) -> Iterator[Callable[[], dict[Path, str]]]:
    """Yields what waits for the sha256 of the files, which a thread works out while they are read.

    Whoever leaves early ends the thread. DataError, when it is waited for, where a file cannot be read.
    """
    leaving = Event()

    def work() -> dict[Path, str]:
        sums = {}
        for path in paths:
            hashed = hashlib.sha256()
            try:
                with path.open("rb") as file:
                    while some := file.read(HASHED_AT_ONCE):
                        if leaving.is_set():
                            return {}  # nobody waits for it
                        hashed.update(some)
            except OSError as error:
                raise unreadable(path, error) from None
            sums[path] = hashed.hexdigest()
        return sums

    with ThreadPoolExecutor(1) as thread:
        try:
            yield thread.submit(work).result
        finally:
            leaving.set()


def _add_origin(report: dict[str, Any], request: Request, files: Files, sums: dict[Path, str]) -> None:
    """Tell in the report where the data come from and how they were read."""
    rules = request.rules
    report |= {"folder": str(request.source.resolve()), "limit": request.options.limit}
    report |= {"rules": rules_told(rules, rules.text_fields)}
    for name, paths in (("reviews", files.reviews), ("metadata", (files.metadata,))):
        known = [path for path in paths if path is not None]
        if known:
            about = {"file": [path.name for path in known], "sha256": [sums[path] for path in known]}
            report[name] = {key: ", ".join(values) for key, values in about.items()} | report[name]


def _parameters(request: Request, sums: dict[Path, str], elsewhere: dict[str, pl.Series]) -> dict[str, Any]:
    """What the fingerprint covers. The files tell which of them were chosen; how many bad lines are put up with does
    not change what the good ones give."""
    parameters = {"format": "amazon", "files": list(sums.values()), **to_json(request.rules)}
    del parameters["max_rejects"]
    options = to_json(request.options)
    parameters |= {name: options[name] for name in ("review_format", "limit")}
    return parameters | {"drop_shared_users_from": hashes_of(elsewhere)}


def _nothing_left(request: Request, report: dict[str, Any]) -> DataError:
    """The error of a domain that cleaning left empty: what went where, and the weakest rules that keep something."""
    rules, bare, core = request.rules, report["without_metadata"], report["k_core"]
    shared = report["shared_users"].get("interactions", 0)
    if core["interactions_dropped"]:
        weaker = dataclasses.replace(rules, min_user=1, min_item=1)
    elif bare["interactions"] and not bare["kept"]:
        weaker = dataclasses.replace(rules, keep_without_metadata=True)
    else:
        weaker = dataclasses.replace(rules, drop_shared_users_from=None)
    return DataError(
        f"domain {request.domain}: no interaction is left: of {report['reviews']['kept']} distinct reviews, "
        + (f"{shared} were of users of {', '.join(rules.drop_shared_users_from or ())}, " if shared else "")
        + f"{report['repeats_dropped']} were repeats of a user's item ({rules.repeats}), "
        f"{0 if bare['kept'] else bare['interactions']} of items without metadata, and {core['interactions_dropped']} "
        f"of users with fewer than {rules.min_user} or items with fewer than {rules.min_item}",
        request.with_rules(weaker).command(),
    )


def read_domain(
    files: Files, request: Request, elsewhere: dict[str, pl.Series], announce: Callable[[str], None]
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any], Rejects]:
    """The clean INTERACTIONS and ITEMS of a domain, the report, and the malformed lines."""
    rules = request.rules
    more = dataclasses.replace(rules, max_rejects=10 * (rules.max_rejects + 1))
    rejects = Rejects(rules.max_rejects, request.with_rules(more).command())
    reviews = read_reviews(files.reviews, request, rejects, announce)
    own, shared = drop_shared_users(reviews, elsewhere)
    once = drop_repeats(own, rules.repeats)
    catalogue = NO_CATALOGUE
    if files.metadata is not None:
        # The k-core of a part lies within the k-core of the whole: texts of other items need not be kept.
        core = with_ids(k_core(once, rules.min_user, rules.min_item)[0], reviews)
        catalogue = read_catalogue(files.metadata, set(core["item_id"].unique()), rules.text_fields, rejects)
        announce(f"{files.metadata.name}: {catalogue.facts['format']}, {catalogue.facts['lines']} lines")
    described = reviews.items.is_in(catalogue.ids.implode()).arg_true()
    kept, cleaning = drop_items(once, described, rules)
    interactions = with_ids(kept, reviews)
    report = {
        "reviews": reviews.facts,
        "metadata": catalogue.facts or None,
        "shared_users": shared,
        "repeats_dropped": len(own) - len(once),
        **cleaning,
    }
    return interactions, items_of(interactions, catalogue.table), report, rejects


def drop_shared_users(reviews: Reviews, elsewhere: dict[str, pl.Series]) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The reviews of users that no target has, and the figures for the report (none where there is no target)."""
    if not elsewhere:
        return reviews.table, {}
    places = places_of(reviews.users, elsewhere)
    own = reviews.table.filter(~pl.col("user_id").is_in(places.implode()))
    return own, {"from": list(elsewhere), "users": len(places), "interactions": len(reviews.table) - len(own)}


def read_catalogue(path: Path, wanted: set[str], text_fields: tuple[str, ...], rejects: Rejects) -> Catalogue:
    """The wanted items of a metadata file. Of several lines of an item the first counts, the others are duplicates."""
    ids: set[str] = set()
    parts, rows, form, good = [], [], "", 0
    with closing(read_records(path, product_layout, list, rejects)) as records:
        for product in chain.from_iterable(piece for _, some in records for piece in some):
            form = form or product_format(product)
            good += 1
            if product.item in wanted and product.item not in ids:
                rows.append(describe(product, text_fields))
                if len(rows) == ROWS_AT_ONCE:  # a table takes a fraction of the memory of its rows as dictionaries
                    parts.append(pl.DataFrame(rows, schema=ITEMS))
                    rows = []
            ids.add(product.item)
    facts = line_facts(form, rejects.count(path), good, len(ids))
    table = pl.concat([*parts, pl.DataFrame(rows, schema=ITEMS)])
    return Catalogue(table, pl.Series("item_id", list(ids)), facts)


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


def _figures(report: dict[str, Any]) -> dict[str, int]:
    """What cleaning took away, in short."""
    shared = {"shared_users_dropped": report["shared_users"]["users"]} if report["shared_users"] else {}
    limit = {"limit": report["limit"]} if report["limit"] else {}
    return limit | {
        "malformed": _malformed(report),
        "duplicate_lines": report["reviews"]["duplicate_lines"],
        **shared,
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

"""fetch-images: the pictures behind a catalogue's image URLs, and a record of what became of each URL.

A download is often done only in part, but an artefact is complete or absent. So there are two things:

- DOMAIN/fetched/ is a cache: the pictures, and a ledger by URL (fetch/ledger.py). It grows while URLs are requested,
  survives kills, and knows nothing about items. After another ingest, the new catalogue uses what it needs from it.
- pictures.parquet is the artefact: the URL, its state and its file for each item and slot of the catalogue, made from
  items.parquet and the cache at the end of a run. Like all artefacts it carries the hash of the id table, so after an
  ingest it is stale and unused until fetch-images runs again. embed-image takes the pictures from it, and its own
  fingerprint covers them. While some URLs are not yet requested (--limit, an interruption, a dead host), it is
  `partial`: usable, and `antpipe status` names the command that continues.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock, Timeout

from antpipe.errors import AntpipeError, DataError, Interrupted, PartialError
from antpipe.features.fetch.ledger import FAILED, FOLDER, OK, PERMANENT, SCHEMA, Entry, is_there, read_ledger, sweep
from antpipe.features.fetch.workers import fetch_all
from antpipe.runtime.disk import FULL
from antpipe.runtime.files import make_folder
from antpipe.runtime.logs import log
from antpipe.runtime.progress import Progress, silent
from antpipe.settings.base import flags_of
from antpipe.settings.features import FetchConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.domain import Domain
from antpipe.store.manifest import digest
from antpipe.store.next_command import build_command
from antpipe.store.store import Store

PLACEHOLDER, PENDING = "placeholder", "pending"
STATES = (OK, PLACEHOLDER, FAILED, "gone", "refused", "invalid", PENDING)
# Settings of a single run, left out when the command is repeated.
ONCE = ("limit", "retry_failed", "retry_permanent")


def fetch_images(
    store: Store,
    domain: str,
    config: FetchConfig,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> StageResult:
    """Request the first `max_images` URLs of each item, unless they are in the cache, and write pictures.parquet.

    Its rows: item, slot (from 1), url, and the columns of the ledger; state is one of STATES. Equal URLs are requested
    once. Pictures whose file is gone or changed are fetched again; failures only with `retry_failed` and
    `retry_permanent`. force: write pictures.parquet even if it would be the same; what is in the cache is not requested
    again. progress counts URLs of this run.

    Raises DataError if no item has a URL or another run is at work in this domain; IntegrityError for a damaged ledger;
    PartialError, with everything written, for a coverage below `min_coverage`; AntpipeError if the disk fails;
    Interrupted on Ctrl-C, after writing everything that is complete.
    """
    place = store.domain(domain)
    wanted = wanted_urls(place, config.max_images)
    if not wanted["url"].len():
        raise DataError(
            f"domain {domain}: none of its {place.rows()} items has an image URL",
            build_command(place, "image", flags=["--images", "DIR"]),
        )
    again = build_command(place, "pictures", flags=flags_of(config, ONCE))
    with _alone(place, again) as folder, progress(f"{domain} pictures") as update:
        entries = read_ledger(folder)
        todo = _to_ask(place.path, wanted, entries, config)
        try:
            fetched = fetch_all(todo, folder, entries, config, update)
        except KeyboardInterrupt:
            _publish(place, wanted, entries, config, force)
            raise Interrupted(f"domain {domain}: interrupted; what was complete is kept", again) from None
        except OSError as error:
            then = "; make room, then run it again" if error.errno in FULL else ""
            raise AntpipeError(
                f"{error.filename or folder}: {error.strerror or error}; what was complete is kept{then}", again
            ) from None
        status, figures = _publish(place, wanted, entries, config, force)
    _report(place, figures, config)
    return StageResult(domain, "pictures", status, figures | {"asked": sum(fetched.values())})


def wanted_urls(place: Domain, most: int) -> pl.DataFrame:
    """item (int32), slot (int32, from 1), url: the first different URLs of each item."""
    table = pl.DataFrame(place.table("items", ["item", "image_urls"]))
    urls = table.explode("image_urls").select("item", pl.col("image_urls").str.strip_chars().alias("url"))
    urls = urls.filter(pl.col("url").is_not_null() & (pl.col("url") != "")).unique(maintain_order=True)
    slot = pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over("item")
    return urls.select("item", slot.alias("slot"), "url").filter(pl.col("slot") <= most)


@contextmanager
def _alone(place: Domain, again: str) -> Iterator[Path]:
    """The cache folder, for one run at a time. again: the command of this run."""
    folder = place.path / FOLDER
    make_folder(folder)
    try:
        with FileLock(folder / ".lock", timeout=0):
            sweep(folder)
            yield folder
    except Timeout:
        raise DataError(f"{folder}: another fetch-images is at work here; wait until it ends", again) from None


def _to_ask(root: Path, wanted: pl.DataFrame, entries: dict[str, Entry], config: FetchConfig) -> list[str]:
    """The URLs to request in this run. Drops entries whose picture is no longer on disk. root: the domain's folder."""
    again = {FAILED: config.retry_failed, **dict.fromkeys(PERMANENT, config.retry_permanent)}
    todo = []
    for url in wanted["url"].unique(maintain_order=True):
        entry = entries.get(url)
        if entry and entry.state == OK and not is_there(root, entry):
            del entries[url]
            entry = None
        if entry is None or again.get(entry.state, False):
            todo.append(url)
    return todo[: config.limit] if config.limit else todo


def picture_table(wanted: pl.DataFrame, entries: dict[str, Entry], config: FetchConfig) -> pl.DataFrame:
    """`wanted` with what the ledger knows about each URL; placeholders get a state of their own."""
    columns = [name for name in SCHEMA if name != "url"]
    known = [entries.get(url) for url in wanted["url"]]
    facts = pl.DataFrame(
        {name: [entry and getattr(entry, name) for entry in known] for name in columns},
        schema={name: SCHEMA[name] if name != "time" else pl.Int64() for name in columns},
    )
    facts = facts.cast({"time": SCHEMA["time"]}).with_columns(pl.col("state").fill_null(PENDING))
    return _name_placeholders(wanted.hstack(facts), config)


def _name_placeholders(table: pl.DataFrame, config: FetchConfig) -> pl.DataFrame:
    """Mark pictures that show no item: the same bytes under many URLs, or hardly any pixels."""
    ok = pl.col("state") == OK
    same = pl.col("url").filter(ok).n_unique().over("sha256")
    repeated = ok & (same >= config.placeholder_urls) if config.placeholder_urls else pl.lit(False)
    tiny = ok & (pl.min_horizontal("width", "height") < config.min_side)
    reason = (
        pl.when(tiny)
        .then(pl.format("{} x {} pixels", "width", "height"))
        .when(repeated)
        .then(pl.format("the same bytes under {} URLs", same))
        .otherwise("reason")
    )
    state = pl.when(tiny | repeated).then(pl.lit(PLACEHOLDER)).otherwise("state")
    return table.with_columns(state.alias("state"), reason.alias("reason"))


def _publish(
    place: Domain, wanted: pl.DataFrame, entries: dict[str, Entry], config: FetchConfig, force: bool
) -> tuple[str, dict[str, Any]]:
    """Write pictures.parquet if it changed; returns `built` or `fresh`, and the figures."""
    table = picture_table(wanted, entries, config)
    usable = table.filter(pl.col("state") == OK).select("item", "slot", "sha256")
    figures = _figures(place, table)
    # The fingerprint covers only what embed-image uses: another failure of a URL makes no vector stale.
    parameters = {"pictures": digest(usable.rows())}
    content = digest(table.with_columns(pl.col("time").dt.epoch("ms")).rows())
    if not force and place.manifest().get("pictures", {}).get("content") == content:
        state = place.state("pictures").status
        if state == "partial" or (state == "fresh" and place.is_fresh("pictures", parameters)):
            return "fresh", figures
    reasons = Counter(table.filter(pl.col("state") != OK).select("state", "reason").rows())
    with place.writing("pictures", parameters) as out:
        if not wanted.equals(wanted_urls(place, config.max_images)):  # the store notices a later change
            raise DataError(
                f"domain {place.name}: its items changed while their pictures were fetched; pictures is as before, and "
                "nothing that was fetched is lost",
                build_command(place, "pictures", flags=flags_of(config, ONCE)),
            )
        out.parquet("pictures.parquet", table.to_arrow())
        out.details |= {
            "rows": len(table),
            "content": content,
            "figures": figures,
            "flags": flags_of(config, ONCE),
            "reasons": {f"{state}: {reason}": count for (state, reason), count in reasons.most_common(20)},
        }
        if figures[PENDING]:
            out.details["incomplete"] = f"{figures[PENDING]} of {figures['urls']} URLs were not asked for yet"
    return "built", figures


def _figures(place: Domain, table: pl.DataFrame) -> dict[str, Any]:
    """Items, those with a picture and their share; then different URLs, in total and by state."""
    ok = table.filter(pl.col("state") == OK)
    rows, present = place.rows(), ok["item"].n_unique()
    states = dict(table.unique("url").group_by("state").len().rows())
    return {
        "items": rows,
        "present": present,
        "coverage": round(present / rows, 4),
        "urls": table["url"].n_unique(),
        **{state: states.get(state, 0) for state in STATES},
        "megabytes": round(int(ok.unique("sha256")["bytes"].sum()) / 1e6, 1),
    }


def _report(place: Domain, figures: dict[str, Any], config: FetchConfig) -> None:
    """Log how to get more pictures, if more are available. Raises PartialError if there are too few."""
    again = None
    if figures[FAILED]:
        again = build_command(place, "pictures", flags=flags_of(replace(config, retry_failed=True), ONCE[:1]))
        log.warning(f"{place.name}: URLs that failed temporarily: {figures[FAILED]}; to ask again: {again}")
    if figures[PENDING]:
        again = build_command(place, "pictures", flags=flags_of(config, ONCE))
        log.info(f"{place.name}: URLs not asked for yet: {figures[PENDING]}; to continue: {again}")
    lost = sum(figures[state] for state in PERMANENT)
    if lost:
        reasons = [reason for reason in place.entry("pictures")["reasons"] if reason.partition(":")[0] in PERMANENT]
        often = reasons[0] if reasons else "for reasons of their own"
        retry = build_command(place, "pictures", flags=flags_of(replace(config, retry_permanent=True), ONCE[:2]))
        log.info(f"{place.name}: URLs without a picture: {lost} (mostly {often}); to ask again all the same: {retry}")
    if figures["present"] < config.min_coverage * figures["items"]:
        raise PartialError(
            f"domain {place.name}: only {figures['present']} of {figures['items']} items ({figures['coverage']:.1%}) "
            f"have a fetched picture; --min-coverage asks for {config.min_coverage:.1%}; what was fetched is kept",
            again or build_command(place, "image", flags=["--images", "DIR"]),
        )

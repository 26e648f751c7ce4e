"""Stage `ingest table`: interactions and items from tables of any shop become a domain of the store."""

import dataclasses
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from antpipe.errors import DataError, UsageError
from antpipe.features.ingest.amazon.readers import Rejects
from antpipe.features.ingest.domain import (
    INTERACTIONS,
    ITEMS,
    REJECTS,
    TEXTS,
    command_of,
    domain_statistics,
    require_same_source,
    rules_told,
    write_domain,
)
from antpipe.features.ingest.rules import drop_repeats, k_core
from antpipe.features.ingest.shared_users import hashes_of, places_of, users_of
from antpipe.features.ingest.table.columns import (
    INTERACTION_ROLES,
    ITEM_ROLES,
    Columns,
    choose_columns,
    parse_map,
    require_known,
)
from antpipe.features.ingest.table.files import open_table
from antpipe.features.ingest.table.rows import Catalogue, Interactions, read_catalogue, read_interactions
from antpipe.settings.base import flags_of, to_json
from antpipe.settings.ingest import IngestConfig, TableConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.domain import Domain
from antpipe.store.files import file_sha256
from antpipe.store.store import Store

EXAMPLES = 3


@dataclass(frozen=True)
class Source:
    """The files of one domain. form: the format in the manifest; flags: how the command is told where they are."""

    interactions: Path | None
    items: Path | None
    form: str
    flags: tuple[str, ...]


def table_source(interactions: Path | None, items: Path | None) -> Source:
    """The source of `ingest table`."""
    named = {"--interactions": interactions, "--items": items}
    flags = tuple(word for flag, path in named.items() if path is not None for word in (flag, str(path)))
    return Source(interactions, items, "table", flags)


def ingest_table(
    store: Store,
    domain: str,
    source: Source,
    config: IngestConfig,
    table: TableConfig,
    *,
    force: bool = False,
    dry_run: bool = False,
    announce: Callable[[str], None],
) -> StageResult:
    """Read a domain from tables into the store; the columns and times chosen are announced.

    The rules and their order are those of `ingest amazon`: malformed rows, identical rows, users of other domains
    (where asked for), repeats of a (user, item), items without metadata, k-core; without interactions all items stay.
    For each file, lines = kept + duplicate_lines + malformed. dry_run: all of this, but nothing is written. Raises
    UsageError for a --map that means nothing, DataError for files, columns and times that cannot be used, too many
    malformed rows, nothing left, and a domain of this name from another source (unless `force`). The store is then as
    it was.
    """
    target = store.new_domain(domain)
    command = _command(store, domain, source, config, table)
    columns = _columns(source, config, table, command)
    elsewhere = users_of(store, domain, config.drop_shared_users_from)
    parameters = _parameters(source, columns, config, table, elsewhere)
    folder = " and ".join(str(one.table.path.resolve()) for one in columns.values())
    if not force:
        fresh = _fresh(target, source, parameters, config)
        if fresh:
            return fresh
        require_same_source(target, parameters, folder, command)
    for one in columns.values():
        announce(one.told())
    rules = _rules(columns, config)
    announce(rules)
    rejects = _rejects(store, domain, source, config, table)
    items, interactions, report = _read(columns, config, table, elsewhere, rejects, announce)
    if not len(items):
        raise _nothing_left(store, domain, source, config, table, report)
    report |= {
        "folder": folder,
        "picture_folder": _picture_folder(source) if items["image_files"].list.len().sum() else None,
        "limit": table.limit,
        "rules": rules,
    }
    if dry_run:
        statistics = domain_statistics(items, interactions.rename({"user_id": "user"}))
        return StageResult(domain, "items", "would be built", statistics | _figures(report))
    statistics = write_domain(
        target,
        parameters=parameters,
        items=items,
        interactions=interactions,
        rejects=pl.DataFrame(rejects.rows, schema=REJECTS),
        report=report,
        flags=[*source.flags, *flags_of(config), *flags_of(table)],
    )
    return StageResult(domain, "items", "built", statistics | _figures(report))


def _rules(columns: dict[str, Columns], config: IngestConfig) -> str:
    """What is done to the rows, as it is announced and stored."""
    text = columns["items"].roles.get("text", config.text_fields) if "items" in columns else ("none",)
    if "interactions" not in columns:
        return f"rules: of several rows of an item the first; text: {', '.join(text)}"
    return rules_told(config, text)


def _rejects(store: Store, domain: str, source: Source, config: IngestConfig, table: TableConfig) -> Rejects:
    """Room for as many malformed rows as allowed, and the advice to allow more."""
    more = dataclasses.replace(config, max_rejects=10 * (config.max_rejects + 1))
    return Rejects(config.max_rejects, _command(store, domain, source, more, table))


def _parameters(
    source: Source,
    columns: dict[str, Columns],
    config: IngestConfig,
    table: TableConfig,
    elsewhere: dict[str, pl.Series],
) -> dict[str, Any]:
    """What the fingerprint covers."""
    parameters = {
        "format": source.form,
        "files": [file_sha256(one.table.path) for one in columns.values()],
        **to_json(config),
        "columns": {name: one.roles for name, one in columns.items()},
        "time_unit": table.time_unit,
        "quotes": table.quotes,
    }
    del parameters["max_rejects"]  # how many bad rows are put up with does not change what the good ones give
    if table.limit:
        parameters["limit"] = table.limit
    return parameters | {"drop_shared_users_from": hashes_of(elsewhere)}


def _fresh(target: Domain, source: Source, parameters: dict[str, Any], config: IngestConfig) -> StageResult | None:
    """The result of an ingest that is there already. One whose picture files have moved is none."""
    if not target.is_fresh("items", parameters):
        return None
    entry = target.entry("items")
    report = entry["report"]
    if report["picture_folder"] not in (None, _picture_folder(source)) or _malformed(report) > config.max_rejects:
        return None
    return StageResult(target.name, "items", "fresh", entry["statistics"] | _figures(report))


def _command(store: Store, domain: str, source: Source, config: IngestConfig, table: TableConfig) -> str:
    words = ["antpipe", *command_of(source.form).split(), "--domains", domain, "--store", str(store.root)]
    return shlex.join([*words, *source.flags, *flags_of(config), *flags_of(table)])


def _columns(source: Source, config: IngestConfig, table: TableConfig, command: str) -> dict[str, Columns]:
    """The columns of both files, as far as they are named. The headers alone are read."""
    if source.interactions is None and source.items is None:
        raise UsageError("name at least one of --interactions and --items")
    if source.items is None and not config.keep_without_metadata:
        raise DataError(
            "without --items no item has a text, price or picture; keep them all the same?",
            f"{command} --keep-without-metadata",
        )
    wanted = parse_map(table)
    files = {"interactions": source.interactions, "items": source.items}
    tables = {name: open_table(path, table.quotes) for name, path in files.items() if path is not None}
    require_known(list(tables.values()), wanted)
    columns = {}
    if "interactions" in tables:
        roles = {role: wanted[role] for role in INTERACTION_ROLES if role in wanted}
        one = choose_columns(tables["interactions"], INTERACTION_ROLES, roles, "user item")
        if "time" not in one.roles and table.time_unit != "order":
            raise DataError(
                f"{one.table.path}: no column looks like the time; columns there: {', '.join(one.table.columns)}; if "
                "the rows of each user are in order, say so",
                f"{command} --time-unit order",
            )
        columns["interactions"] = one
    if "items" in tables:
        roles = {role: wanted[role] for role in ITEM_ROLES if role in wanted}
        columns["items"] = choose_columns(tables["items"], ITEM_ROLES, roles, "item")
    return columns


def _read(
    columns: dict[str, Columns],
    config: IngestConfig,
    table: TableConfig,
    elsewhere: dict[str, pl.Series],
    rejects: Rejects,
    announce: Callable[[str], None],
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """Clean ITEMS and INTERACTIONS, and the report."""
    if "interactions" not in columns:
        everything = read_catalogue(columns["items"], None, config.text_fields, rejects, table.limit)
        _announce_missing(everything, announce)
        return everything.table, INTERACTIONS.to_frame(), {"interactions": None, "items": everything.facts}
    read = read_interactions(columns["interactions"], table, rejects)
    facts = read.facts
    announce(
        f"{facts['file']}: {facts['lines']} rows, times are {facts['time_unit']}, from {facts['first_time']} to "
        f"{facts['last_time']}" + ("" if read.ordered_only else " ms")
    )
    shared = places_of(read.users, elsewhere)
    own = read.table.filter(~pl.col("user_id").is_in(shared.implode()))
    once = drop_repeats(own, config.repeats)
    catalogue: Catalogue | None = None
    if "items" in columns:
        # The k-core of a part lies within the k-core of the whole: texts of other items need not be kept.
        core = with_ids(k_core(once, config.min_user, config.min_item)[0], read)
        catalogue = read_catalogue(columns["items"], set(core["item_id"]), config.text_fields, rejects)
        _announce_missing(catalogue, announce)
    kept, cleaning = drop_items(once, catalogue, read.items, config)
    interactions = with_ids(kept, read)
    report = {
        "interactions": facts,
        "items": catalogue and catalogue.facts,
        "time_unit": facts["time_unit"],
        "shared_users": {"from": list(elsewhere), "users": len(shared), "interactions": len(read.table) - len(own)},
        "repeats_dropped": len(own) - len(once),
        **cleaning,
    }
    return items_of(interactions, catalogue), interactions, report


def with_ids(interactions: pl.DataFrame, read: Interactions) -> pl.DataFrame:
    """INTERACTIONS with the original ids in place of their numbers."""
    return interactions.with_columns(
        read.users.gather(interactions["user_id"]), read.items.gather(interactions["item_id"])
    )


def drop_items(
    interactions: pl.DataFrame, catalogue: Catalogue | None, items: pl.Series, config: IngestConfig
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Drop items without metadata and reduce to the k-core; the figures are for the report."""
    known = catalogue.ids if catalogue else pl.Series("item_id", [], pl.String)
    described = pl.col("item_id").is_in(items.is_in(known.implode()).arg_true().implode())
    candidates = interactions if config.keep_without_metadata else interactions.filter(described)
    kept, rounds = k_core(candidates, config.min_user, config.min_item)
    bare = interactions.filter(~described)
    return kept, {
        "without_metadata": {
            "items": bare["item_id"].n_unique(),
            "interactions": len(bare),
            "kept": config.keep_without_metadata,
        },
        "k_core": {"rounds": rounds, "interactions_dropped": len(candidates) - len(kept)},
    }


def items_of(interactions: pl.DataFrame, catalogue: Catalogue | None) -> pl.DataFrame:
    """ITEMS that are met; those the catalogue does not describe have an empty text and nothing else."""
    met = interactions.select("item_id").unique()
    described = catalogue.table if catalogue else ITEMS.to_frame()
    bare = met.join(described, on="item_id", how="anti").with_columns(
        pl.lit("").alias("text"), *(pl.lit([], dtype=TEXTS).alias(name) for name in ITEMS if ITEMS[name] == TEXTS)
    )
    return pl.concat([described.join(met, on="item_id", how="semi"), bare], how="diagonal")


def _announce_missing(catalogue: Catalogue, announce: Callable[[str], None]) -> None:
    if catalogue.missing:
        announce(
            f"{catalogue.facts['file']}: {len(catalogue.missing)} picture file(s) are not there, for example "
            f"{', '.join(catalogue.missing[:EXAMPLES])}; embed-image --images DIR takes files named after the items"
        )


def _nothing_left(
    store: Store, domain: str, source: Source, config: IngestConfig, table: TableConfig, report: dict[str, Any]
) -> DataError:
    bare, core = report["without_metadata"], report["k_core"]["interactions_dropped"]
    if core:
        weaker = dataclasses.replace(config, min_user=1, min_item=1)
    elif bare["interactions"] and not bare["kept"]:
        weaker = dataclasses.replace(config, keep_without_metadata=True)
    else:
        weaker = dataclasses.replace(config, drop_shared_users_from=None)
    return DataError(
        f"domain {domain}: no interaction is left: of {report['interactions']['kept']} distinct rows, "
        f"{report['shared_users']['interactions']} were of users of other domains, "
        f"{report['repeats_dropped']} were repeats of a user's item ({config.repeats}), "
        f"{0 if bare['kept'] else bare['interactions']} of items without metadata (do the two files name items "
        f"alike?), and {core} of users with fewer than {config.min_user} or items with fewer than {config.min_item}",
        _command(store, domain, source, weaker, table),
    )


def _picture_folder(source: Source) -> str | None:
    return None if source.items is None else str(source.items.resolve().parent)


def _malformed(report: dict[str, Any]) -> int:
    return sum(report[name]["malformed"] for name in ("interactions", "items") if report[name] is not None)


def _figures(report: dict[str, Any]) -> dict[str, int]:
    """What cleaning took away, in short."""
    files = [report[name] for name in ("interactions", "items") if report[name] is not None]
    figures = {
        **({"limit": report["limit"]} if report["limit"] else {}),
        "malformed": _malformed(report),
        "duplicate_lines": sum(facts["duplicate_lines"] for facts in files),
    }
    if report["interactions"] is None:
        return figures
    shared = report["shared_users"]
    return figures | {
        **({"shared_users_dropped": shared["users"]} if shared["from"] else {}),
        "repeats_dropped": report["repeats_dropped"],
        "items_without_metadata": report["without_metadata"]["items"],
        "k_core_dropped": report["k_core"]["interactions_dropped"],
    }

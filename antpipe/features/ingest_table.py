"""Stage `ingest table`: interactions and items from tables of any shop become a domain of the store."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from antpipe.errors import SameCommand, UsageError
from antpipe.features.ingest.advice import SettingsError, advised, flags_with
from antpipe.features.ingest.domain import INTERACTIONS
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.rules import Cleaned, clean, rules_in_words
from antpipe.features.ingest.shared_users import users_of
from antpipe.features.ingest.stage import cleaning_parameters, finish, fresh_result, require_same_source
from antpipe.features.ingest.table.columns import (
    INTERACTION_ROLES,
    ITEM_ROLES,
    Columns,
    choose_columns,
    parse_map,
    require_header,
    require_known,
)
from antpipe.features.ingest.table.cure import require_few
from antpipe.features.ingest.table.files import open_table
from antpipe.features.ingest.table.folder import sha256_of
from antpipe.features.ingest.table.kept import KEPT, require_kept
from antpipe.features.ingest.table.rows import read_interactions, read_items
from antpipe.runtime.logs import log
from antpipe.settings.base import flags_of
from antpipe.settings.ingest import IngestConfig, TableConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.next_command import ingest_command, spell
from antpipe.store.store import Store

# Settings that are part of the fingerprint if they are not the default.
READING = ("date_format", "encoding", "where", "drop_users", "category_separator", "allow_outside")


@dataclass(frozen=True)
class TableSource:
    """The files of one domain. source_format: for the manifest. flags: those of the command that name the files. cold:
    how many items outside the k-core stay if the settings do not say (None: all)."""

    interactions: Path | None
    items: Path | None
    source_format: str
    flags: tuple[str, ...]
    cold: int | None = None


def table_source(interactions: Path | None, items: Path | None) -> TableSource:
    """The source of `ingest table`."""
    named = {"--interactions": interactions, "--items": items}
    flags = tuple(word for flag, path in named.items() if path is not None for word in (flag, str(path)))
    return TableSource(interactions, items, "table", flags)


def ingest_table(
    store: Store,
    domain: str,
    source: TableSource,
    config: IngestConfig,
    table: TableConfig,
    *,
    force: bool = False,
    dry_run: bool = False,
) -> StageResult:
    """Read a domain from tables into the store, by the rules of ingest/rules.py.

    Without interactions all items stay. The report in the manifest counts what each step dropped; for each file,
    lines = kept + duplicate_lines + malformed. dry_run: all of this, but nothing is written.
    Raises UsageError for an invalid --map or a missing source, and DataError for files, columns and times that cannot
    be used, too many malformed rows, a domain of which nothing is left, and (unless `force`) a domain of this name from
    another source. The store is then as it was.
    """
    stage, target = ingest_command(source.source_format), store.new_domain(domain)

    def command(better: Mapping[str, Any]) -> str:
        flags = [*source.flags, *flags_with(better, config, table)]
        switches = {"--force": force, "--dry-run": dry_run}
        flags += [name for name, given in switches.items() if given]
        return spell(stage, domains=[domain], store=store.root, flags=flags)

    with advised(stage, command):
        columns, mapped = _columns(source, config, table), parse_map(table)
        elsewhere = users_of(store, domain, config.drop_shared_users_from)
        parameters = {
            "format": source.source_format,
            "files": [sha256_of(one.table) for one in columns.values()],
            **cleaning_parameters(config, elsewhere, source.cold),
            "columns": {name: one.described(mapped) for name, one in columns.items()},
            "time_unit": table.time_unit,
            "quotes": table.quotes is not False,
            **({"limit": table.limit} if table.limit else {}),
            **({"keep_column": list(table.keep_column)} if table.keep_column else {}),
            **{name: getattr(table, name) for name in READING if getattr(table, name) != getattr(TableConfig, name)},
        }
        folder = " and ".join(str(one.table.path.resolve()) for one in columns.values())
        picture_folder = None if source.items is None else str(columns["items"].table.home.resolve())
        if not force:
            before = target.manifest().get("items", {}).get("report", {}).get("picture_folder")
            moved = before not in (None, picture_folder)
            cold = config.most_cold(source.cold) != 0
            verified = "interactions" in columns and "verified" in columns["interactions"].roles
            fresh = not moved and fresh_result(
                target, parameters, config.max_rejects, keeps_cold=cold, reads_verified=verified
            )
            if fresh:
                return fresh
            require_same_source(target, parameters, folder, command({}))
        rules = _rules(columns, config)
        for one in columns.values():
            log.info(one.in_words())
        log.info(rules)
        rejects = Rejects(config.max_rejects)
        cleaned = _read(domain, source, columns, config, table, elsewhere, rejects)
    pictured = pl.concat([cleaned.items, cleaned.cold])["image_files"].list.len().sum()
    cleaned.report.update(
        folder=folder,
        picture_folder=picture_folder if pictured else None,
        limit=table.limit,
        rules=rules,
    )
    flags = [*source.flags, *flags_of(config), *flags_of(table)]
    return finish(target, parameters, cleaned, rejects, flags=flags, dry_run=dry_run)


def _rules(columns: Mapping[str, Columns], config: IngestConfig) -> str:
    """What is done to the rows, as it is logged and stored."""
    text = ", ".join(columns["items"].roles.get("text", config.text_fields)) if "items" in columns else "none"
    if "interactions" not in columns:
        return f"rules: of several rows of an item the first; text: {text}"
    return rules_in_words(config, text)


def _columns(source: TableSource, config: IngestConfig, table: TableConfig) -> dict[str, Columns]:
    """The columns of the files that are named. Only the headers are read."""
    if source.interactions is None and source.items is None:
        raise UsageError("name at least one of --interactions and --items")
    if source.items is None and not config.keep_without_metadata:
        raise SettingsError(
            "without --items no item has a text, price or picture; to keep them all, add --keep-without-metadata",
            {"keep_without_metadata": True},
        )
    wanted = parse_map(table)
    files = {"interactions": source.interactions, "items": source.items}
    tables = {name: open_table(path, table.quotes, table.encoding) for name, path in files.items() if path is not None}
    require_known(list(tables.values()), wanted)
    columns = {}
    if "interactions" in tables:
        one = choose_columns(tables["interactions"], INTERACTION_ROLES, wanted, ("user", "item"))
        if "time" not in one.roles and table.time_unit != "order":
            raise SettingsError(
                f"{one.table.path}: no column looks like the time; columns there: {', '.join(one.table.columns)}; if "
                "the rows of each user are in order, add --time-unit order",
                {"time_unit": "order"},
            )
        columns["interactions"] = one
    if "items" in tables:
        columns["items"] = choose_columns(tables["items"], ITEM_ROLES, wanted, ("item",))
    for one in columns.values():
        require_header(one, table)
    if table.keep_column:
        if "items" not in columns:
            raise UsageError("--keep-column names columns of --items", SameCommand(without=("--keep-column",)))
        require_kept(tables["items"], table.keep_column)
        columns["items"].roles[KEPT] = list(dict.fromkeys(table.keep_column))
    return columns


def _read(
    domain: str,
    source: TableSource,
    columns: Mapping[str, Columns],
    config: IngestConfig,
    table: TableConfig,
    elsewhere: Mapping[str, pl.Series],
    rejects: Rejects,
) -> Cleaned:
    if "interactions" not in columns:
        items = read_items(columns["items"], config.text_fields, rejects, table, limit=table.limit)
        require_few(rejects, {columns["items"].table.path: items.facts["lines"]}, table)
        report = {"interactions": None, "items": items.facts}
        return Cleaned(items.table, INTERACTIONS.to_frame(), report, cold=items.table.clear())
    visits = read_interactions(columns["interactions"], table, rejects)
    everywhere = replace(table, where=None)
    described = (
        partial(read_items, columns["items"], config.text_fields, rejects, everywhere) if "items" in columns else None
    )
    lines = {columns["interactions"].table.path: visits.facts["lines"]}
    try:
        cleaned = clean(domain, visits, described, elsewhere, config, source.cold)
    except SettingsError:
        if rejects.count(columns["interactions"].table.path) > config.max_rejects:  # the likelier cause
            require_few(rejects, lines, table)
        raise
    if "items" in columns:
        lines[columns["items"].table.path] = cleaned.report["items"]["lines"]
    require_few(rejects, lines, table)
    cleaned.report["time_unit"] = visits.facts["time_unit"]
    return cleaned

"""What ingest stages share around the cleaning rules: whether a domain is fresh, may be replaced, and its writing."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from antpipe.errors import DataError
from antpipe.features.ingest.domain import domain_statistics, log_order, numbered_tables, write_domain
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.rules import Cleaned
from antpipe.features.ingest.shared_users import hashes_of
from antpipe.runtime.logs import log
from antpipe.settings.base import to_json
from antpipe.settings.ingest import IngestConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.domain import Domain
from antpipe.store.next_command import build_command, ingest_command
from antpipe.store.order import basis_of, measure_order, order_of

FILES = ("interactions", "items")  # of a report
DROPPED = ("where_dropped", "users_dropped")  # lines left out at the user's request
# Their names in reports that `ingest amazon` of 0.1.0 wrote.
RENAMED = {"reviews": "interactions", "metadata": "items"}


def require_same_source(domain: Domain, parameters: Mapping[str, Any], folder: str, command: str) -> None:
    """Refuse to replace a domain by data of another source. A domain that does not exist yet passes.

    Two sources are the same if they have the same format, and either the same folder or the same content: a folder may
    have moved, and its files may have been updated. folder: of the files, empty for generated data. command: builds
    this domain from the new source. Raises DataError, whose next command is that one with --force.
    """
    entry = domain.manifest().get("items")
    if entry is None:
        return
    before, old_folder = entry["parameters"], entry["report"].get("folder", "")
    same_files = folder == old_folder or before.get("files") == parameters.get("files")
    if before["format"] != parameters["format"] or not same_files:
        old, new = (
            f"`{ingest_command(source_format)}`" + (f" of {where}" if where else "")
            for source_format, where in ((before["format"], old_folder), (parameters["format"], folder))
        )
        raise DataError(
            f"domain {domain.name} holds data from {old}, which {new} would replace; choose another name or store, or "
            "add --force",
            f"{command} --force",
        )


def cleaning_parameters(
    config: IngestConfig, elsewhere: Mapping[str, pl.Series], usual_cold: int | None = 0
) -> dict[str, Any]:
    """What the rules add to the parameters of a fingerprint.

    `max_rejects` is left out: it does not change the accepted lines. So is the usual number of cold items (see
    `rules.clean`): what earlier versions ingested without them stays fresh.
    """
    parameters = to_json(config) | {"drop_shared_users_from": hashes_of(elsewhere)}
    del parameters["max_rejects"], parameters["drop_cold"], parameters["cold_items"]
    most = config.most_cold(usual_cold)
    return parameters | ({} if most == usual_cold else {"cold_items": "all" if most is None else most})


def fresh_result(
    domain: Domain,
    parameters: Mapping[str, Any],
    max_rejects: int,
    duplicates_in: Sequence[str] = FILES,
    keeps_cold: bool = False,
    reads_verified: bool = False,
) -> StageResult | None:
    """The result of an ingest that would only repeat what is there; None if it must run.

    It must also run if the domain has more malformed lines than are tolerated now. Warns of a doubtful order again.
    keeps_cold: whether it would keep cold items, which earlier versions left out; reads_verified: whether it would read
    which purchases are verified, likewise.
    """
    if not domain.is_fresh("items", parameters):
        return None
    entry = domain.entry("items")
    figures = _figures(entry["report"], duplicates_in)
    if figures["malformed"] > max_rejects:
        return None
    if "cold" not in entry["report"] and keeps_cold and entry["report"].get("interactions"):
        command = build_command(domain, "items", force=True)
        log.info(f"{domain.name}: ingested without the items outside the k-core; to add them: {command}")
    if reads_verified and "verified" not in entry["report"]["interactions"].get("columns", {}):
        command = build_command(domain, "items", force=True)
        log.info(f"{domain.name}: ingested without which purchases are verified; to add it: {command}")
    log_order(domain, order_of(domain))
    return StageResult(domain.name, "items", "fresh", entry["statistics"] | figures)


def finish(
    domain: Domain,
    parameters: Mapping[str, Any],
    cleaned: Cleaned,
    rejects: Rejects,
    *,
    flags: Sequence[str],
    dry_run: bool,
    duplicates_in: Sequence[str] = FILES,
) -> StageResult:
    """Write a domain, unless it is a dry run. duplicates_in: the files whose duplicate lines are counted in figures."""
    figures = _figures(cleaned.report, duplicates_in)
    if dry_run:
        items, _, interactions = numbered_tables(cleaned.items, cleaned.interactions, cold=cleaned.cold)
        ids = items["item_id"][: len(cleaned.items)]
        log_order(domain, measure_order(interactions, ids, basis_of(parameters, cleaned.report)))
        statistics = domain_statistics(items, interactions, len(cleaned.items))
        return StageResult(domain.name, "items", "would be built", statistics | figures)
    statistics = write_domain(
        domain,
        parameters=parameters,
        items=cleaned.items,
        interactions=cleaned.interactions,
        rejects=rejects.table(),
        report=cleaned.report,
        flags=flags,
        cold=cleaned.cold,
    )
    return StageResult(domain.name, "items", "built", statistics | figures)


def _figures(report: Mapping[str, Any], duplicates_in: Sequence[str]) -> dict[str, int]:
    """What cleaning dropped, in short."""
    facts = {RENAMED.get(name, name): value for name, value in report.items()}
    files = {name: facts[name] for name in FILES if facts[name] is not None}
    figures = {
        **({"limit": facts["limit"]} if facts["limit"] else {}),
        "malformed": sum(file["malformed"] for file in files.values()),
        "duplicate_lines": sum(file["duplicate_lines"] for name, file in files.items() if name in duplicates_in),
        **{name: file[name] for file in files.values() for name in DROPPED if name in file},
    }
    if "interactions" not in files:
        return figures
    shared = facts["shared_users"]
    return figures | {
        **({"shared_users_dropped": shared["users"]} if shared.get("from") else {}),
        "repeats_dropped": facts["repeats_dropped"],
        "items_without_metadata": facts["without_metadata"]["items"],
        "k_core_dropped": facts["k_core"]["interactions_dropped"],
        **({"cold_items": facts["cold"]["kept"]} if "cold" in facts else {}),
    }

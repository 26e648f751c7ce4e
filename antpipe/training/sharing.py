"""Users whom the source of a transfer shares with its target: the source has seen what the target is tested on."""

from collections.abc import Iterable

import polars as pl

from antpipe.runtime.logs import log
from antpipe.store.domain import Domain
from antpipe.store.next_command import build_command_with
from antpipe.store.store import Store

DROP = "--drop-shared-users-from"
DROPPED_BY = ("amazon", "table", "import recbole")  # source formats whose ingest has this flag


def tell_shared_users(store: Store, sources: Iterable[str], targets: Iterable[str]) -> None:
    """Warn for each source and target that have users of the same original id, with the command that drops them.

    Domains that are not in the store, and sources that are targets themselves, are left out.
    """
    there, aims = set(store.domains()), list(dict.fromkeys(targets))
    for target in aims:
        users = _users(store.domain(target)) if target in there else pl.Series("user_id", [], pl.String)
        for source in dict.fromkeys(sources) if len(users) else ():
            if source not in there or source in aims:
                continue
            shared = int(users.is_in(_users(store.domain(source)).implode()).sum())
            if shared:
                log.warning(
                    f"source {source} and target {target} share {shared} of the target's {len(users)} users, so "
                    f"pre-training has seen some of what is tested; to drop them from the source: {DROP} {target}"
                    + _how(store.domain(source), target)
                )


def _users(domain: Domain) -> pl.Series:
    return pl.Series("user_id", domain.table("users", ["user_id"])["user_id"].to_pylist(), pl.String)


def _how(source: Domain, target: str) -> str:
    """The command that ingests the source again without the users of the target, in brackets, if its ingest can."""
    entry = source.manifest().get("items", {})
    if entry.get("parameters", {}).get("format") not in DROPPED_BY:
        return " when it is ingested"
    flags = entry.get("flags", [])
    before = flags[flags.index(DROP) + 1].split(",") if DROP in flags else []
    wanted = ",".join(dict.fromkeys([*before, target]))
    return f" ({build_command_with(source, 'items', DROP, wanted, force=True)})"

"""Users of several domains: a source domain can be ingested without the users of its targets.

Pre-training on a user of both would leak what the target is tested on. Users with the same original id are the same
user, as in the Amazon releases.
"""

from collections.abc import Mapping

import polars as pl

from antpipe.errors import UsageError
from antpipe.store.domain import Domain
from antpipe.store.manifest import digest
from antpipe.store.store import Store


def users_of(store: Store, domain: str, targets: tuple[str, ...] | None) -> dict[str, pl.Series]:
    """Original ids of each target's users. Raises UsageError if a target is the domain itself, DataError if unknown."""
    users = {}
    for name in targets or ():
        if name == domain:
            raise UsageError(f"--drop-shared-users-from {name}: this is the domain being ingested")
        column = store.domain(name).table("users", ["user_id"])["user_id"]
        users[name] = pl.Series("user_id", column.to_pylist(), pl.String)
    return users


def hashes_of(users: Mapping[str, pl.Series]) -> dict[str, str]:
    """A hash of each target's users, for the fingerprint: an ingest is stale once they have changed."""
    return {name: digest(sorted(ids.to_list())) for name, ids in users.items()}


def changed_targets(store: Store, domain: Domain) -> str:
    """Why the users who were left out of a domain are no longer those of its targets; '' if they still are.

    A target that is damaged or no longer in the store does not count.
    """
    hashes = domain.entry("items")["parameters"].get("drop_shared_users_from") or {}
    known = [name for name in hashes if name in store.domains()]
    there = tuple(name for name in known if store.domain(name).state("items").status == "fresh")
    now = hashes_of(users_of(store, domain.name, there))
    changed = [name for name in there if now[name] != hashes[name]]
    return f"the users of {', '.join(changed)}, who were left out, changed since" if changed else ""


def positions_of(users: pl.Series, elsewhere: Mapping[str, pl.Series]) -> pl.Series:
    """The positions in `users` of those that a target has too."""
    shared = pl.concat([pl.Series("user_id", [], pl.String), *elsewhere.values()])
    return users.is_in(shared.implode()).arg_true()

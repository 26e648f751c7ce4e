"""Users that several domains have: a source domain can be ingested without those of its targets.

A user in both would show the pre-training what the target's test is about. Users are the same where their original
ids are, as in the releases of Amazon reviews.
"""

import polars as pl

from antpipe.errors import UsageError
from antpipe.store.artefacts import State
from antpipe.store.domain import Domain
from antpipe.store.files import digest
from antpipe.store.store import Store


def users_of(store: Store, domain: str, targets: tuple[str, ...] | None) -> dict[str, pl.Series]:
    """The original ids of the users of each target. UsageError for the domain itself, DataError for an unknown one."""
    users = {}
    for name in targets or ():
        if name == domain:
            raise UsageError(f"--drop-shared-users-from {name}: this is the domain itself")
        column = store.domain(name).table("users", ["user_id"])["user_id"]
        users[name] = pl.Series("user_id", column.to_pylist(), pl.String)
    return users


def hashes_of(users: dict[str, pl.Series]) -> dict[str, str]:
    """A hash of each target's users, for the fingerprint: an ingest is stale once they are others."""
    return {name: digest(sorted(ids.to_list())) for name, ids in users.items()}


def with_targets(store: Store, domain: Domain, state: State) -> State:
    """`state` of the domain's items, or stale where a target has other users than those that were left out.

    A target that is damaged or no longer in the store says nothing.
    """
    if state.status != "fresh":
        return state
    hashes = domain.entry("items")["parameters"].get("drop_shared_users_from") or {}
    known = [name for name in hashes if name in store.domains()]
    there = tuple(name for name in known if store.domain(name).state("items").status == "fresh")
    now = hashes_of(users_of(store, domain.name, there))
    changed = [name for name in there if now[name] != hashes[name]]
    if not changed:
        return state
    why = f"{', '.join(changed)}: its users, who were left out, are others now"
    return State("items", "stale", why, domain.command("items"))


def places_of(users: pl.Series, elsewhere: dict[str, pl.Series]) -> pl.Series:
    """The places in `users` of those that a target has too."""
    shared = pl.concat([pl.Series("user_id", [], pl.String), *elsewhere.values()])
    return users.is_in(shared.implode()).arg_true()

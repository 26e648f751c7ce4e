"""Maintenance of an installation and a store."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from antpipe.api.settings import default_store, names_of, store_of
from antpipe.store.store import Store

if TYPE_CHECKING:
    from antpipe.upkeep.findings import Finding
    from antpipe.upkeep.unused import Collected


def doctor(
    store: Store | str | Path | None = None, *, deep: bool = False, runs: str | Path | None = None
) -> "list[Finding]":
    """Check Python, libraries, machine, store and runs; each finding says how bad it is and what fixes it.

    store: default as on the command line. deep: read every file of the store and of its runs. runs: where to look for
    runs (default: the folder that holds the store). Nothing is raised for what is found.

    >>> [finding.about for finding in ant.doctor("shop", runs="runs") if finding.severity == "damaged"]
    []
    """
    from antpipe.upkeep.doctor import examine

    place = default_store() if store is None else store_of(store)
    return examine(place, Path(runs) if runs is not None else None, deep=deep)


def store_gc(
    store: Store | str | Path,
    domains: str | Sequence[str] | None = None,
    *,
    runs: str | Path | None = None,
    remove: bool = False,
) -> "Collected":
    """Find what nothing refers to: leftovers of killed writers, pictures and files that nothing names.

    domains: default all. runs: also superseded weights and items of the runs in and below this folder. remove: remove
    what is found, under the locks of each domain; without it nothing is changed. What antpipe does not recognise as its
    own is kept, and so are links; both are in `unknown`.

    >>> ant.store_gc("shop").unused
    []
    """
    from antpipe.upkeep.superseded import collect_in_runs
    from antpipe.upkeep.unused import collect, collected

    place = store_of(store)
    found = collect(place, names_of(domains) if domains else None, remove=remove)
    if runs is None:
        return found
    superseded = collect_in_runs(place, Path(runs), remove=remove)
    return collected([*found.unused, *found.unknown, *superseded], removed=remove)

"""`antpipe doctor`: checks libraries, machine, store and runs, and continues whatever it meets."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from antpipe.store.store import Store
from antpipe.upkeep import machine
from antpipe.upkeep.findings import Finding, guarded
from antpipe.upkeep.libraries import examine_libraries


def examine(store: Store, runs: Path | None = None, *, deep: bool = False) -> list[Finding]:
    """All findings: the environment first, then the domains of the store and the runs on them.

    runs: where runs are looked for (default: the folder that holds the store). deep: read every file, and load torch
    and FAISS. Raises UsageError if the store is a file.
    """
    looks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("libraries", examine_libraries),
        ("processor", machine.processor),
        ("memory", machine.memory),
        ("disk", partial(machine.disks, store.root)),
        ("gpu", partial(machine.gpu, deep)),
        ("openmp", partial(machine.openmp, deep)),
        ("store", partial(domains_of, store, deep)),
    ]
    if store.domains():
        looks.append(("runs", partial(runs_on, store, store.root.parent if runs is None else runs, deep)))
    return [finding for about, look in looks for finding in guarded(about, look)]


# These modules load libraries; if one is missing, that is a finding too.


def domains_of(store: Store, deep: bool) -> Iterable[Finding]:
    from antpipe.upkeep.stores import examine_store

    return examine_store(store, deep)


def runs_on(store: Store, folder: Path, deep: bool) -> Iterable[Finding]:
    from antpipe.upkeep.runs import examine_runs

    return examine_runs(store, folder, deep)

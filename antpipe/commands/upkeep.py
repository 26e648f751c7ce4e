"""Commands that maintain an installation and a store."""

from pathlib import Path
from typing import Annotated

from antpipe import api
from antpipe.commands import show
from antpipe.commands.flags import DATA, Call, SomeDomains, app, command, flag, store
from antpipe.store.next_command import spell

Runs = Annotated[Path | None, flag("--runs", "where runs are looked for [default: the folder that holds the store]")]


@command(app, "doctor", DATA, examples=["antpipe doctor", "antpipe doctor --store shop --deep"])
def doctor(
    call: Call,
    deep: Annotated[bool, flag("--deep", "read every file of the store and its runs")] = False,
    runs: Runs = None,
) -> None:
    """Check libraries, machine, store and runs."""
    from antpipe.upkeep.findings import raise_worst

    found = api.upkeep.doctor(call.store, deep=deep, runs=runs)
    call.show(found, show.findings(found))
    raise_worst(found)


@command(store, "gc", examples=["antpipe store gc", "antpipe store gc --runs runs --yes"])
def store_gc(
    call: Call,
    domains: SomeDomains = None,
    yes: Annotated[bool, flag("--yes", "remove what is found; without it, it is only listed")] = False,
    runs: Annotated[Path | None, flag("--runs", "also superseded weights of runs in and below this folder")] = None,
) -> None:
    """List what nothing refers to, or remove it."""
    found = api.upkeep.store_gc(call.store, domains, runs=runs, remove=yes)
    flags = [*(["--domains", domains] if domains else []), *(["--runs", str(runs)] if runs else []), "--yes"]
    call.show(found, show.leftovers(found, spell("store gc", store=call.store.root, flags=flags)))

"""Commands that give an overview: what the store holds, which encoders there are, and the demonstration."""

from pathlib import Path
from typing import Annotated

from antpipe import api
from antpipe.commands import show
from antpipe.commands.flags import DATA, FEATURES, USING, Call, Force, SomeDomains, app, command, flag
from antpipe.runtime.logs import log
from antpipe.runtime.terminal import on_stderr
from antpipe.settings.model import EMBEDDED
from antpipe.store.next_command import spell


@command(app, "stats", DATA, examples=["antpipe stats --domains Shop,Source"])
def stats(call: Call, domains: SomeDomains = None) -> None:
    """Show size, density, coverage, order and overlap of domains."""
    figures = api.overview.stats(call.store, domains)
    call.show(figures, show.statistics(figures["domains"], figures["shared"]) if figures["domains"] else empty(call))


@command(app, "status", DATA, examples=["antpipe status --verify"])
def status(
    call: Call,
    domains: SomeDomains = None,
    verify: Annotated[bool, flag("--verify", "read all files and compare their content hashes")] = False,
    runs: Annotated[
        Path | None, flag("--runs", "where runs are looked for [default: the folder that holds the store]")
    ] = None,
) -> None:
    """Show the states of artefacts, runs, and the next step."""
    states = api.overview.status(call.store, domains, verify=verify)
    found = [] if call.json else api.overview.runs(call.store, runs)
    found = [run for run in found if set(run.domains) & set(states)]
    step = api.overview.next_step(call.store, states, found) if states and not call.json else ""
    call.show(states, show.overview(states, found, step) or empty(call))


def empty(call: Call) -> str:
    """The message for a store without domains."""
    return f"store {call.store.root}: no domain yet; next: {spell('ingest sample', store=call.store.root)}"


@command(app, "encoders", FEATURES, examples=["antpipe encoders --kind image --match siglip"])
def encoders(
    call: Call,
    kind: Annotated[str | None, flag("--kind", f"only {' or '.join(EMBEDDED)}")] = None,
    match: Annotated[str | None, flag("--match", "only names that contain this, of all there are")] = None,
    everything: Annotated[bool, flag("--all", "also all that open_clip and timm can load")] = False,
) -> None:
    """List encoders on this machine and on the hub."""
    from antpipe.features.encoders.listing import more_to_show

    rows = api.overview.encoders(kind, match, everything=everything)
    if not everything and match is None and kind != "text":
        log.info(more_to_show())
    call.show(rows, show.encoders(rows) or f"no encoder has {match!r} in its name")


@command(app, "demo", USING, takes=api.overview.demo, examples=["antpipe demo --store demo-store"])
def demo(call: Call, force: Force = False) -> None:
    """Run the whole pipeline on generated shops."""
    result = api.overview.demo(call.store, force=force, progress=on_stderr, **call.settings)
    call.show(result, show.demonstration(result))

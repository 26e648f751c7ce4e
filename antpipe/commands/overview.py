"""Commands about the whole: what the store holds, which encoders there are, and the demonstration."""

from typing import Annotated

import typer

from antpipe.commands import show
from antpipe.commands.flags import Common, Force, app, command, embedded, names, notice
from antpipe.settings.demo import DemoConfig
from antpipe.settings.features import EMBEDDED


@command(app, "status")
def status(
    common: Common,
    domains: Annotated[str | None, typer.Option("--domains", help="only these domains")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="read all files and compare their content hashes")] = False,
) -> None:
    """What the store holds: fresh, stale (why) or missing (next command)."""
    from antpipe.features.ingest.shared_users import with_targets
    from antpipe.features.whiten import with_fit
    from antpipe.store.artefacts import ARTEFACTS
    from antpipe.store.domain import Domain

    look = Domain.verify if verify else Domain.state
    chosen = names(domains) if domains else common.store.domains()
    places = {name: common.store.domain(name) for name in chosen}
    states = {name: [look(place, artefact) for artefact in ARTEFACTS] for name, place in places.items()}
    for name, place in places.items():
        states[name] = [with_targets(common.store, place, s) if s.artefact == "items" else s for s in states[name]]
        states[name] = [with_fit(common.store, place, s) for s in states[name]]
    # Of what cannot be built (pictures without an URL), or is built by those who ask for it, there is nothing to tell.
    states = {
        name: [state for state in row if state.status != "missing" or state.next_command]
        for name, row in states.items()
    }
    nothing = f"store {common.store.root}: no domain yet; next: antpipe ingest sample --store {common.store.root}"
    common.show(states, show.states(states) or nothing)


@command(app, "encoders")
def encoders(
    common: Common,
    kind: Annotated[str | None, typer.Option("--kind", help=f"only these: {' or '.join(EMBEDDED)}")] = None,
    match: Annotated[str | None, typer.Option("--match", help="only names that contain this, of all there are")] = None,
    everything: Annotated[bool, typer.Option("--all", help="all that open_clip and timm can load, too")] = False,
) -> None:
    """Encoders on this machine and on the hub, by the names --encoder takes."""
    from antpipe.features.encoders.listing import list_encoders, more_to_show

    every = everything or match is not None
    rows = list_encoders(embedded(kind, "--kind") if kind else None, match, every)
    if not every and kind != "text":
        notice(more_to_show())
    common.show(rows, show.encoders(rows) or f"no encoder has {match!r} in its name")


@command(app, "stats")
def stats(
    common: Common,
    domains: Annotated[str | None, typer.Option("--domains", help="these domains (default: all)")] = None,
) -> None:
    """Size, density and coverage of domains, and the users and items they share."""
    from antpipe.store.figures import statistics

    figures = statistics(common.store, names(domains) if domains else common.store.domains())
    nothing = f"store {common.store.root}: no domain yet; next: antpipe ingest sample --store {common.store.root}"
    common.show(figures, show.statistics(figures["domains"], figures["shared"]) if figures["domains"] else nothing)


@command(app, "demo")
def demo(common: Common, config: DemoConfig, force: Force = False) -> None:
    """The whole pipeline on generated shops, ending in a table of scratch, finetune and relearn."""
    from antpipe.demo import run_demo

    result = run_demo(common.store, config, force=force, say=notice)
    common.show(result, result["table"])

"""Commands that use a run."""

from typing import Annotated

import typer

from antpipe import show
from antpipe.commands.flags import Common, Domains, OneDomain, Run, app, command, names, notice
from antpipe.config import EvaluateConfig
from antpipe.parallel import world_of


@command(app, "evaluate")
def evaluate(
    common: Common,
    run: Run,
    domains: Domains,
    config: EvaluateConfig,
    slices: Annotated[bool, typer.Option("--slices", help="print figures by kind of target and history too")] = False,
) -> None:
    """Full ranking over the target's catalogue, under both protocols."""
    from antpipe.evaluate import evaluate_run

    if world_of().rank:  # of several processes the first one evaluates
        return
    results = [evaluate_run(common.store, run, name, config, notice) for name in names(domains)]
    common.show(results, show.evaluations(results, slices))


@command(app, "recommend")
def recommend(
    common: Common,
    run: Run,
    domains: OneDomain,
    user: Annotated[str | None, typer.Option("--user", help="a user of the domain (original id)")] = None,
    items: Annotated[str | None, typer.Option("--items", help="item ids seen so far, the oldest first")] = None,
    k: Annotated[int, typer.Option("--k", help="number of items")] = 10,
    include_seen: Annotated[bool, typer.Option("--include-seen", help="items of the history may come again")] = False,
) -> None:
    """The next items for a user, or after items named by hand."""
    from antpipe.recommend import recommend as find

    history = [part.strip() for part in items.split(",")] if items else []
    rows = find(common.store, run, domains, user=user, items=history, k=k, include_seen=include_seen, notice=notice)
    common.show(rows, show.recommendations(rows))

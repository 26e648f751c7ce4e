"""Commands that judge runs, and the one that uses them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from antpipe import api
from antpipe.commands import show
from antpipe.commands.flags import (
    JUDGING,
    OUTPUT,
    RUN,
    USING,
    Call,
    Domains,
    Force,
    OneDomain,
    RunFolder,
    app,
    command,
    flag,
)
from antpipe.errors import UsageError
from antpipe.runtime.terminal import on_stderr
from antpipe.training.parallel import world_of


@command(
    app,
    "evaluate",
    JUDGING,
    takes=api.runs.Run.evaluate,
    examples=["antpipe evaluate --run runs/shop --domains Shop --slices"],
)
def evaluate(
    call: Call,
    run: RunFolder,
    domains: Domains,
    slices: Annotated[bool, flag("--slices", "also print the figures of each slice", OUTPUT)] = False,
) -> None:
    """Rank the whole catalogue for each test position."""
    if world_of().rank:  # of several processes, the first one evaluates
        return
    opened = api.runs.Run.open(run, call.store)
    results = [opened.evaluate(name, **call.settings).figures for name in api.settings.names_of(domains)]
    call.show(results, show.evaluations(results, slices))


@command(
    app,
    "compare",
    JUDGING,
    takes=api.judging.compare,
    examples=[
        "antpipe compare --target Shop --from runs/source --seeds 5 --out cmp",
        "antpipe compare --target Shop --sources Beauty,Sports --arms scratch,relearn,baselines --out cmp",
        "antpipe compare --target Shop --sources Beauty,Sports --target-users 500,1000,2000 --out curve",
    ],
)
def compare(
    call: Call,
    targets: Annotated[str, typer.Option("--target", "--targets", "--domains", help="targets, separated by commas")],
    out: Annotated[Path, flag("--out", "folder of the comparison: runs, results, tables")],
    origins: Annotated[str | None, flag("--from", "pre-trained runs, separated by commas")] = None,
    sources: Annotated[str | None, flag("--sources", "domains to pre-train on here")] = None,
    given: Annotated[
        list[str] | None, flag("--run", "finished runs, as ARM=DIR,DIR2 (one per seed); repeatable")
    ] = None,
    dry_run: Annotated[bool, flag("--dry-run", "say what would be trained", RUN)] = False,
    force: Force = False,
) -> None:
    """Train several arms with equal seeds and test the transfer."""
    start = [Path(part) for part in api.settings.names_of(origins, "--from")] if origins else []
    runs = given_runs(given or ())
    if dry_run:
        rows = api.judging.plan_comparison(
            call.store, targets, out=out, start=start, sources=sources or (), runs=runs, force=force, **call.settings
        )
        call.show(rows, show.to_do(rows))
        return
    found = api.judging.compare(
        call.store,
        targets,
        out=out,
        start=start,
        sources=sources or (),
        runs=runs,
        force=force,
        progress=on_stderr,
        **call.settings,
    )
    call.show(found.figures, f"{found}\n\n{out / 'comparison.json'}, {out / 'comparison.md'}")


def given_runs(words: Sequence[str]) -> dict[str, list[Path]]:
    """`ARM=DIR,DIR2` of each --run."""
    found: dict[str, list[Path]] = {}
    for word in words:
        name, _, folders = word.partition("=")
        if not name or not all(folders.split(",")):
            raise UsageError(f"--run {word}: write ARM=DIR, or ARM=DIR,DIR2")
        found.setdefault(name, []).extend(Path(folder) for folder in folders.split(","))
    return found


@command(
    app,
    "recommend",
    USING,
    examples=[
        "antpipe recommend --run runs/shop --domains Shop --user U42",
        "antpipe recommend --run runs/shop --domains Shop --items B01,B07 --k 5",
        "antpipe recommend --run runs/shop --domains Shop --user U42 --new-items arrivals.csv",
    ],
)
def recommend(
    call: Call,
    run: RunFolder,
    domains: OneDomain,
    user: Annotated[str | None, flag("--user", "a user of the domain (original id)")] = None,
    items: Annotated[str | None, flag("--items", "item ids of a history, oldest first")] = None,
    k: Annotated[int, flag("--k", "number of items [default: 10]")] = 10,
    include_seen: Annotated[bool, flag("--include-seen", "items of the history may be recommended again")] = False,
    new_items: Annotated[
        Path | None,
        flag("--new-items", "CSV, Parquet or JSON of products that the store does not have, to rank among the others"),
    ] = None,
) -> None:
    """Recommend the next items for a user or a history of items."""
    if (user is None) == (items is None):
        raise UsageError("name either --user or --items")
    histories = [[part.strip() for part in items.split(",")]] if items is not None else []
    frame = api.runs.Run.open(run, call.store).recommend(
        domains,
        users=[user] if user is not None else [],
        histories=histories,
        k=k,
        include_seen=include_seen,
        new_items=new_items,
    )
    rows = frame.select("rank", "item_id", "title", "score").to_dicts()
    call.show(rows, show.recommendations(rows))

"""Commands that judge runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from antpipe import api
from antpipe.commands import show
from antpipe.commands.flags import (
    JUDGING,
    LIST,
    OUTPUT,
    RUN,
    Call,
    Domains,
    Force,
    RunFolder,
    app,
    command,
    flag,
)
from antpipe.comparison.paper import require_format
from antpipe.errors import UsageError
from antpipe.runtime.terminal import on_stderr
from antpipe.training.parallel import world_of

TEXT = "text"


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
    per_user: Annotated[
        Path | None, flag("--per-user", "Parquet file for the rank and metrics of each user", OUTPUT)
    ] = None,
) -> None:
    """Rank the whole catalogue for each test position."""
    if world_of().rank:  # of several processes, the first one evaluates
        return
    opened, names = api.runs.Run.open(run, call.store), api.settings.names_of(domains)
    if per_user is not None and (len(names) > 1 or per_user.suffix != ".parquet"):
        raise UsageError(f"--per-user {per_user}: one .parquet file for one domain")
    results = [opened.evaluate(name, per_user=per_user, **call.settings).figures for name in names]
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
        "antpipe compare --target Shop --from runs/source --out cmp --format latex --columns recall@10,ndcg@10",
    ],
)
def compare(
    call: Call,
    targets: Annotated[
        str, typer.Option("--target", "--targets", "--domains", help="targets, separated by commas"), LIST
    ],
    out: Annotated[Path, flag("--out", "folder of the comparison: runs, results, tables")],
    origins: Annotated[str | None, flag("--from", "pre-trained runs, separated by commas"), LIST] = None,
    sources: Annotated[str | None, flag("--sources", "domains to pre-train on here"), LIST] = None,
    given: Annotated[
        list[str] | None, flag("--run", "finished runs, as ARM=DIR,DIR2 (one per seed); repeatable")
    ] = None,
    dry_run: Annotated[bool, flag("--dry-run", "show what would be trained", RUN)] = False,
    force: Force = False,
    form: Annotated[
        str, flag("--format", "what is printed: text, or a table as markdown, csv or latex", OUTPUT)
    ] = TEXT,
    columns: Annotated[
        str | None, flag("--columns", "metrics of that table, separated by commas", OUTPUT), LIST
    ] = None,
    rows: Annotated[str | None, flag("--rows", "arms of that table, in this order", OUTPUT), LIST] = None,
) -> None:
    """Train several arms with equal seeds and test the transfer."""
    if form != TEXT:
        require_format(form)
    chosen = {"--columns": columns, "--rows": rows}
    for name in [name for name, value in chosen.items() if value is not None and form == TEXT]:
        raise UsageError(f"{name} {chosen[name]}: only with --format markdown, csv or latex")
    start = [Path(part) for part in api.settings.names_of(origins, "--from")] if origins else []
    runs = given_runs(given or ())
    if dry_run:
        planned = api.judging.plan_comparison(
            call.store, targets, out=out, start=start, sources=sources or (), runs=runs, force=force, **call.settings
        )
        call.show(planned, show.to_do(planned))
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
    if form != TEXT:
        of_table = {name: api.settings.names_of(value, name) if value else [] for name, value in chosen.items()}
        call.show(found.figures, found.paper_table(form, metrics=of_table["--columns"], arms=of_table["--rows"]))
        return
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

"""Commands that use a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from antpipe.commands import show
from antpipe.commands.flags import Common, Domains, Force, OneDomain, Run, app, command, names, notice
from antpipe.errors import UsageError
from antpipe.runtime.progress import on_stderr as progress
from antpipe.settings.evaluation import CompareConfig, EvaluateConfig
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import RaceConfig, TrainConfig
from antpipe.training.parallel import world_of


@command(app, "evaluate")
def evaluate(
    common: Common,
    run: Run,
    domains: Domains,
    config: EvaluateConfig,
    slices: Annotated[bool, typer.Option("--slices", help="print figures by kind of target and history too")] = False,
) -> None:
    """Full ranking over the target's catalogue, under both protocols."""
    from antpipe.evaluation.evaluate import evaluate_run

    if world_of().rank:  # of several processes the first one evaluates
        return
    results = [evaluate_run(common.store, run, name, config, notice) for name in names(domains)]
    common.show(results, show.evaluations(results, slices))


@command(app, "compare")
def compare(
    common: Common,
    targets: Annotated[str, typer.Option("--target", "--targets", "--domains", help="targets, separated by commas")],
    config: CompareConfig,
    training: TrainConfig,
    model: ModelConfig,
    race: RaceConfig,
    out: Annotated[Path, typer.Option("--out", help="folder of the comparison: runs, results, tables")],
    origins: Annotated[str | None, typer.Option("--from", help="pre-trained runs, separated by commas")] = None,
    sources: Annotated[str | None, typer.Option("--sources", help="domains to pre-train on here")] = None,
    given: Annotated[
        list[str] | None, typer.Option("--run", help="runs that are there, as ARM=DIR,DIR2 (a seed each); repeatable")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be trained")] = False,
    force: Force = False,
) -> None:
    """Train several ways to a recommender, with equal seeds and budget, and say whether transfer helped."""
    from antpipe.comparison.plan import Request
    from antpipe.comparison.run import OUTCOME, run_comparison, what_would_be_done
    from antpipe.comparison.table import as_text
    from antpipe.training import checkpoint

    folders = [Path(part) for part in names(origins, "--from")] if origins else []
    runs = given_runs(given or [])
    origin = [*folders, *(some[0] for some in runs.values())]
    inherited = checkpoint.describe(origin[0]).model_config() if origin else None
    model = common.resolve(ModelConfig, inherited)
    source_model = common.resolve(ModelConfig, inherited, on_target=False)
    request = Request(
        common.store,
        out,
        tuple(names(targets)),
        config,
        model,
        source_model,
        training,
        race,
        tuple(folders),
        tuple(names(sources, "--sources")) if sources else (),
        runs,
        common.toml.get("stage", {}),
    )
    if dry_run:
        rows = what_would_be_done(request, force=force)
        common.show(rows, show.to_do(rows))
        return
    try:
        found = run_comparison(request, force=force, notice=notice, watch=progress)
    except KeyboardInterrupt:
        notice(f"next: the same command{' without --force' if force else ''} goes on from here")
        raise
    common.show(found, f"{as_text(found)}\n\n{out / OUTCOME}.json, {out / OUTCOME}.md")


def given_runs(words: Sequence[str]) -> dict[str, list[Path]]:
    """`ARM=DIR,DIR2` of each --run."""
    found: dict[str, list[Path]] = {}
    for word in words:
        name, _, folders = word.partition("=")
        if not name or not all(folders.split(",")):
            raise UsageError(f"--run {word}: write ARM=DIR, or ARM=DIR,DIR2")
        found.setdefault(name, []).extend(Path(folder) for folder in folders.split(","))
    return found


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
    from antpipe.evaluation.recommend import recommend as find

    history = [part.strip() for part in items.split(",")] if items else []
    rows = find(common.store, run, domains, user=user, items=history, k=k, include_seen=include_seen, notice=notice)
    common.show(rows, show.recommendations(rows))

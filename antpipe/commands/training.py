"""Commands that make a run: training, and taking over a checkpoint."""

from pathlib import Path
from typing import Annotated, Any

import typer

from antpipe.commands import show
from antpipe.commands.flags import Common, Domains, Force, app, command, imports, names, notice
from antpipe.errors import UsageError
from antpipe.runtime.progress import on_stderr as progress
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import RaceConfig, TrainConfig
from antpipe.training.parallel import world_of

SHOWN_EPOCH = ("loss", "valid_recall@10", "seconds")  # the rest is in RUN/metrics.jsonl


@command(app, "train")
def train(
    common: Common,
    stage: Annotated[str, typer.Option("--stage", help="pretrain, scratch, finetune, relearn, auto, or your own")],
    domains: Domains,
    config: TrainConfig,
    model: ModelConfig,
    race: RaceConfig,
    out: Annotated[Path | None, typer.Option("--out", help="folder of the run")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="run to start from (finetune, relearn)")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what the stage does with each group")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on where an interrupted run in --out stands")] = False,
    force: Force = False,
) -> None:
    """Train one stage: pretrain on sources; scratch, finetune or relearn on a target; auto chooses on validation."""
    from antpipe.core.stages import group_table
    from antpipe.training import checkpoint
    from antpipe.training.race import AUTO
    from antpipe.training.run import PRETRAIN, plan_run, run_stage
    from antpipe.training.state import read_cost

    inherited = checkpoint.describe(source).model_config() if source else None
    model = common.resolve(ModelConfig, inherited, on_target=stage != PRETRAIN)
    request: dict[str, Any] = {
        "model_config": model,
        "config": config,
        "source": source,
        "own_stages": common.toml.get("stage", {}),
    }
    if stage == AUTO:
        train_auto(common, names(domains), request, race, out, dry_run=dry_run, resume=resume, force=force)
        return
    if dry_run:
        plan = plan_run(common.store, names(domains), stage, **request, notice=notice)
        rows = group_table(plan.actions, plan.model)
        common.show(rows, show.groups(rows))
        return
    if out is None:
        raise UsageError("--out is missing: name the folder of the run, or add --dry-run")
    with progress(stage) as update:

        def epoch(row: dict[str, Any]) -> None:
            update(row["epoch"], config.epochs, show.inline({name: row.get(name, "") for name in SHOWN_EPOCH}))

        def step(epochs_done: float, figures: dict[str, float]) -> None:
            update(epochs_done, config.epochs, show.inline(figures))

        done, was_there = run_stage(
            common.store,
            names(domains),
            stage,
            **request,
            out=out,
            force=force,
            resume=resume,
            notice=notice,
            progress=epoch,
            stepping=step,
        )
    if not was_there and not world_of().rank:
        notice(f"{out}: {show.inline(read_cost(out))}")
    common.show(done, show.run(out, done, "fresh" if was_there else "trained"))


def train_auto(
    common: Common,
    domains: list[str],
    request: dict[str, Any],
    race: RaceConfig,
    out: Path | None,
    *,
    dry_run: bool,
    resume: bool,
    force: bool,
) -> None:
    """Race the stages for a target and say which one was chosen, and why."""
    from antpipe.training.race import check_limits, run_auto, rungs

    config, own_stages = request["config"], request.pop("own_stages")
    if own_stages:
        notice(f"--stage auto chooses among {', '.join(race.candidates)}; your own stages take no part")
    check_limits(config)
    if dry_run:
        marks = rungs(config.epochs, config.eval_every, race.first_rung)
        plan = {"candidates": race.candidates, "rungs": marks, "epochs": config.epochs}
        drops = ", ".join(map(str, marks)) or "no"
        common.show(plan, f"{', '.join(race.candidates)}: the worse half goes after {drops} of {config.epochs} epochs")
        return
    if out is None:
        raise UsageError("--out is missing: name the folder of the run, or add --dry-run")
    with progress(f"{out.name} auto") as update:

        def epoch(row: dict[str, Any]) -> None:
            update(row["epoch"], config.epochs, show.inline({name: row.get(name, "") for name in SHOWN_EPOCH}))

        try:
            done, was_there, decision = run_auto(
                common.store,
                domains,
                **request,
                race=race,
                out=out,
                force=force,
                resume=resume,
                notice=notice,
                progress=epoch,
            )
        except KeyboardInterrupt:
            notice("next: the same command with --resume")
            raise
    result = {"checkpoint": done, "auto": decision}
    common.show(result, f"{show.run(out, done, 'fresh' if was_there else 'trained')}\n{show.race(decision)}")


@command(imports, "ant-checkpoint")
def import_ant_checkpoint(
    common: Common,
    path: Annotated[Path, typer.Argument(help="torch file, .safetensors, or .npz of the authors' arrays")],
    out: Annotated[Path, typer.Option("--out", help="folder of the run")],
    heads: Annotated[int, typer.Option("--heads", help="attention heads, which no shape tells")] = ModelConfig.heads,
    fusion: Annotated[float, typer.Option("--fusion", help="weight of image * text")] = ModelConfig.fusion,
    transductive: Annotated[bool, typer.Option("--transductive", help="with its item ids")] = False,
    force: Force = False,
) -> None:
    """A checkpoint of the authors' code, to evaluate, finetune or relearn from."""
    from antpipe.interop.ant_checkpoint import import_checkpoint

    done, was_there = import_checkpoint(
        path, out, heads=heads, fusion=fusion, transductive=transductive, force=force, notice=notice
    )
    common.show(done, show.run(out, done, "fresh" if was_there else "imported"))

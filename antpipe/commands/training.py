"""Commands that make a run: training, and taking over a checkpoint."""

from pathlib import Path
from typing import Annotated, Any

import typer

from antpipe import show
from antpipe.commands.flags import Common, Domains, Force, app, command, imports, names, notice
from antpipe.config import ModelConfig, TrainConfig
from antpipe.errors import UsageError
from antpipe.parallel import world_of
from antpipe.progress import progress

SHOWN_EPOCH = ("loss", "valid_recall@10", "seconds")  # the rest is in RUN/metrics.jsonl


@command(app, "train")
def train(
    common: Common,
    stage: Annotated[str, typer.Option("--stage", help="pretrain, scratch, finetune, relearn, or one of your own")],
    domains: Domains,
    config: TrainConfig,
    model: ModelConfig,
    out: Annotated[Path | None, typer.Option("--out", help="folder of the run")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="run to start from (finetune, relearn)")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what the stage does with each group")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on where an interrupted run in --out stands")] = False,
    force: Force = False,
) -> None:
    """Train one stage: pretrain on sources; scratch, finetune or relearn on a target."""
    from antpipe import checkpoint
    from antpipe.resume import read_cost
    from antpipe.runs import plan_run, run_stage
    from antpipe.transfer import group_table

    if source is not None:
        model = common.resolve(ModelConfig, checkpoint.describe(source).model_config())
    request: dict[str, Any] = {
        "model_config": model, "config": config, "source": source, "own_stages": common.toml.get("stage", {}),
    }  # fmt: skip
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
            common.store, names(domains), stage, **request, out=out, force=force, resume=resume, notice=notice,
            progress=epoch, stepping=step,
        )  # fmt: skip
    if not was_there and not world_of().rank:
        notice(f"{out}: {show.inline(read_cost(out))}")
    common.show(done, show.run(out, done, "fresh" if was_there else "trained"))


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

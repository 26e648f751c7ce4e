"""Commands that train."""

from pathlib import Path
from typing import Annotated

import typer

from antpipe import api
from antpipe.commands import show
from antpipe.commands.flags import LIST, RUN, TRAINING, Call, Domains, Force, app, command, flag
from antpipe.errors import UsageError
from antpipe.runtime.logs import log
from antpipe.runtime.terminal import on_stderr
from antpipe.settings.fork_merge import ForkMergeConfig
from antpipe.training.parallel import world_of


@command(
    app,
    "train",
    TRAINING,
    takes=api.training.train,
    examples=[
        "antpipe train --stage pretrain --domains Beauty,Sports --out runs/source",
        "antpipe train --stage relearn --domains Shop --from runs/source --out runs/shop",
        "antpipe train --stage fork-merge --domains Shop --auxiliaries Beauty,Sports --out runs/merged",
    ],
)
def train(
    call: Call,
    stage: Annotated[
        str,
        flag(
            "--stage",
            "pretrain, scratch, finetune, relearn, floor, rerank, auto, fork-merge, merge, or yours",
        ),
    ],
    domains: Domains,
    out: Annotated[Path | None, flag("--out", "folder of the run")] = None,
    source: Annotated[Path | None, flag("--from", "run to start from (finetune, relearn, auto); merge: A,B")] = None,
    auxiliaries: Annotated[
        str | None, flag("--auxiliaries", "domains to train the target with, A,B", ForkMergeConfig.panel), LIST
    ] = None,
    refit: Annotated[
        bool,
        flag(
            "--refit", "then train again on training + validation, for as many epochs as were best, into OUT/refit", RUN
        ),
    ] = False,
    dry_run: Annotated[bool, flag("--dry-run", "show what the stage does with each parameter group", RUN)] = False,
    resume: Annotated[bool, flag("--resume", "continue the interrupted run in --out", RUN)] = False,
    force: Force = False,
) -> None:
    """Train: pretrain, scratch, finetune, relearn or auto."""
    if dry_run and stage == api.training.AUTO and not refit:
        plan = api.training.plan_race(**call.settings)
        call.show(plan, show.race_plan(plan))
        return
    if dry_run:
        rows = api.training.plan_training(
            call.store, stage, domains, start=source, auxiliaries=auxiliaries or (), refit=refit, **call.settings
        )
        call.show(rows, show.groups(rows))
        return
    if out is None:
        raise UsageError("--out is missing: name the folder of the run, or add --dry-run")
    run = api.training.train(
        call.store,
        stage,
        domains,
        out=out,
        start=source,
        auxiliaries=auxiliaries or (),
        refit=refit,
        resume=resume,
        force=force,
        progress=on_stderr,
        **call.settings,
    )
    for one in (run, run.refit) if stage != api.training.AUTO and not world_of().rank else ():
        if one and one.status == "trained" and one.cost["steps"]:
            log.info(f"{one.folder}: {show.inline(one.cost)}")
    if stage == api.training.AUTO:
        call.show({"checkpoint": run.checkpoint, "auto": run.decision}, f"{show.run(run)}\n{show.race(run.decision)}")
    elif stage in api.training.REPORTED:
        call.show({"checkpoint": run.checkpoint, stage: run.decision}, f"{show.run(run)}\n{show.merged(run.decision)}")
    elif run.refit:
        both = {"checkpoint": run.checkpoint, "refit": run.refit.checkpoint}
        call.show(both, f"{show.run(run)}\n{show.run(run.refit)}")
    else:
        call.show(run.checkpoint, show.run(run))


@command(
    app,
    "tune",
    TRAINING,
    takes=api.training.tune,
    examples=[
        "antpipe tune --target Shop --trials 20 --out search",
        "antpipe tune --target Shop --stage relearn --from runs/source --search lr,hidden_dropout --out search",
        "antpipe train --stage scratch --domains Shop --config search/best.toml --out runs/shop",
    ],
)
def tune(
    call: Call,
    target: Annotated[str, typer.Option("--target", "--domains", help="the target")],
    out: Annotated[Path, flag("--out", "folder of the search: trials, best settings")],
    source: Annotated[Path | None, flag("--from", "run to start from (finetune, relearn)")] = None,
    resume: Annotated[bool, flag("--resume", "continue the search in --out", RUN)] = False,
    force: Force = False,
) -> None:
    """Search for better settings on the validation split."""
    found = api.training.tune(
        call.store, target, out=out, start=source, resume=resume, force=force, progress=on_stderr, **call.settings
    )
    call.show(show.tuned_as_data(found), show.tuned(found))

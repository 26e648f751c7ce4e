"""A run: one stage trained on domains of the store, from the request to its checkpoint folder."""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from antpipe.core import stages
from antpipe.core.batches import examples, sample
from antpipe.core.catalogue import Catalogue, load_catalogue
from antpipe.errors import DataError, DivergedError, UsageError
from antpipe.runtime.compiling import compile_parts
from antpipe.runtime.devices import choose_device, choose_precision, require_compiler
from antpipe.runtime.process import stopping
from antpipe.settings.base import flags_of, to_json
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import WITHOUT_EFFECT, TrainConfig
from antpipe.store.artefacts import artefact_of
from antpipe.store.files import digest, write_json
from antpipe.store.lock import alone
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.compatibility import check_fit, reads_features_of_checkpoint
from antpipe.training.loop import TrainingData, fit
from antpipe.training.parallel import ALONE, World, held_by_first, of_first, together, world_of
from antpipe.training.state import (
    COST,
    FINISHED,
    NOTHING,
    UNFINISHED,
    Keeping,
    Position,
    add_row,
    at_of,
    begin,
    cost_of,
    has_state,
    position_of,
    remove_state,
    what_is_there,
)
from antpipe.training.tracking import require_tracker, tracking

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant

PRETRAIN = "pretrain"  # the only stage on several domains, with the in-batch losses


@dataclass(frozen=True)
class Plan:
    """A run that was checked and is ready to train: what it starts from, reads and does to each group."""

    stage: str
    actions: stages.Stage
    start: Checkpoint | None
    data: TrainingData
    described: Checkpoint
    model: "Ant"


def plan_run(
    store: Store,
    domains: Sequence[str],
    stage: str,
    *,
    model_config: ModelConfig,
    config: TrainConfig,
    source: Path | None,
    own_stages: Mapping[str, object] = MappingProxyType({}),
    notice: Callable[[str], None],
) -> Plan:
    """Check a request and build its model with the first values of the stage.

    source: the run to start from, for stages that keep or freeze something. own_stages: the user's `[stage.NAME]`
    sections. notice: told what is worth knowing once. Raises DataError where the store lacks something or the
    checkpoint does not fit, UsageError where stage, domains and source do not go together.
    """
    import torch

    actions = stages.find_stage(stage, own_stages)
    start = _check_request(stage, actions, domains, source)
    data = load_training_data(store, domains, config, notice)
    if config.reference and stage != PRETRAIN and len(data.catalogue) > config.sampled_above:
        raise UsageError(
            f"--reference needs the softmax over all {len(data.catalogue)} items, not over a sample",
            f"the same command with --sampled-above {len(data.catalogue)}",
        )
    if config.reference and model_config.history_score:
        raise UsageError("--reference: the authors' code adds nothing to scores", "the same with --no-history-score")
    if not config.features():
        check_ids_only(stage, actions, model_config, config)
    described = describe_run(
        store, data.catalogue, stage=stage, actions=actions, model_config=model_config, config=config, start=start
    )
    torch.manual_seed(config.seed)
    model = described.build()
    if start is not None and source is not None:
        check_fit(store, actions, start, described, source=source, notice=notice)
        if model_config.init == "authors":  # their constructor draws experts N(0, .02), their re-learning Xavier
            model.reset_experts("xavier")
        exceptions = stages.REFERENCE_EXCEPTIONS.get(stage, {}) if config.reference else {}
        stages.apply(actions, model, checkpoint.load_weights(source, start), exceptions)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"--stage {stage} freezes every parameter of this model: there is nothing to train")
    return Plan(stage, actions, start, data, described, model)


def run_stage(
    store: Store,
    domains: Sequence[str],
    stage: str,
    *,
    out: Path,
    model_config: ModelConfig,
    config: TrainConfig,
    source: Path | None,
    own_stages: Mapping[str, object] = MappingProxyType({}),
    force: bool,
    resume: bool = False,
    pause_after: int = 0,
    notice: Callable[[str], None],
    progress: Callable[[dict[str, Any]], None],
    stepping: Callable[[float, dict[str, float]], None] | None = None,
) -> tuple[Checkpoint, bool]:
    """Plan a run (see plan_run), train it, and write the checkpoint of its best epoch to `out`.

    force: begin anew whatever the folder holds. resume: go on where an unfinished run in it stands; the result is that
    of a run which was never interrupted (bit-equal on a CPU with the same number of threads). pause_after: raise Paused
    after this many epochs, with the state kept to be resumed (0: train to the end). progress: told the
    figures of each epoch; stepping: after each step, the epochs done (a fraction) and the epoch's loss and rate so far.
    Returns the checkpoint and whether it was there already (the same run finished before). Raises UsageError where
    the folder holds another run, or an unfinished one without force or resume, AntpipeError where another process
    is training in it, and KeyboardInterrupt after Ctrl-C.
    """
    if source is not None and source.resolve() == out.resolve():
        raise UsageError(f"--out {out}: is the run to start from", "name another folder")
    if force and resume:
        raise UsageError("--force begins anew and --resume goes on: choose one of them")
    world = world_of()
    if world.size > 1 and config.reference:
        raise UsageError("--reference reproduces a step of one process", "the same command without torchrun")
    require_tracker(config.track)
    device = choose_device(config.device, world.local_rank if world.size > 1 else None)
    if config.compile:
        require_compiler(device)
    config = replace(config, precision=choose_precision(config.precision, device))
    if world.rank:  # the first one speaks for all
        notice, progress, stepping = nothing, nothing, None
    with together(world, device), ExitStack() as held:
        plan = plan_run(
            store,
            domains,
            stage,
            model_config=model_config,
            config=config,
            source=source,
            own_stages=own_stages,
            notice=notice,
        )
        inherited = plan.start.model_config() if plan.start else None
        command = train_command(store, domains, stage, out, source, model_config, config, inherited)
        held.enter_context(held_by_first(lambda: lock(out, force), world))
        there = NOTHING
        if not force:  # all look, and nobody writes before all have looked
            there = what_is_there(out, plan.described, resume=resume, command=command, processes=world.size)
            of_first(str, world)
        if there == FINISHED:
            return checkpoint.describe(out), True
        if resume and there == NOTHING:
            notice(f"{out} holds nothing to resume; training begins")
        return train_plan(
            plan,
            out,
            config,
            device,
            begun=there == UNFINISHED,
            command=command,
            pause_after=pause_after,
            notice=notice,
            progress=progress,
            stepping=stepping,
            world=world,
        ), False


def lock(out: Path, force: bool) -> AbstractContextManager[None]:
    """Hold the folder of a run as its only writer. A finished run, which is only looked at, needs no lock."""
    only_look = not force and not has_state(out) and (out / checkpoint.DESCRIPTION).exists()
    return nullcontext() if only_look else alone(out, "run")


def nothing(_: object) -> None:
    """Show nothing."""


def train_plan(
    plan: Plan,
    out: Path,
    config: TrainConfig,
    device: "torch.device",
    *,
    begun: bool,
    command: str,
    pause_after: int,
    notice: Callable[[str], None],
    progress: Callable[[dict[str, Any]], None],
    stepping: Callable[[float, dict[str, float]], None] | None,
    world: World = ALONE,
) -> Checkpoint:
    """The training of a run that was checked (see run_stage for what it takes); begun: from the state in the folder."""
    rows = of_first(lambda: begin(out, begun=begun), world)

    def show(at: Position, share: float) -> None:
        if stepping is not None:
            figures = {"loss": at.loss / at.positions, "positions_per_second": at.positions / at.seconds}
            stepping(at.epoch - 1 + share, figures)

    def record(row: dict[str, Any]) -> None:
        if world.rank:
            return
        add_row(out, row)
        track(row)
        progress(row)

    model, pretraining = plan.model.to(device), plan.stage == PRETRAIN
    if config.compile:
        compile_parts(model)
    tracker = "none" if world.rank else config.track
    with stopping() as asked, tracking(tracker, out, plan.described, rows) as track:
        keep = Keeping(out, plan.described, config.save_every, begun, asked, show, world, pause_after)
        try:
            best_epoch, best = fit(
                model,
                plan.data,
                pretraining=pretraining,
                config=config,
                device=device,
                record=record,
                keep=keep,
                world=world,
            )
        except KeyboardInterrupt:
            notice(f"{out}: interrupted; {f'{at_of(out)} kept' if has_state(out) else 'nothing is kept yet'}")
            notice(f"next: {command} --resume")
            raise
        except DivergedError as error:
            raise DivergedError(error.message, f"{command} --lr {config.lr / 10:g} --force") from None

    def finish() -> Checkpoint:
        at = position_of(out)
        done = replace(plan.described, best_epoch=best_epoch, metrics=best, epochs=len(at.rows))
        checkpoint.save(out, model, done)
        write_json(out / COST, cost_of(at, device))
        remove_state(out)
        return done

    return of_first(finish, world)


def train_command(
    store: Store,
    domains: Sequence[str],
    stage: str,
    out: Path,
    source: Path | None,
    model_config: ModelConfig,
    config: TrainConfig,
    inherited: ModelConfig | None,
) -> str:
    """The command line of a run; for a stage of one's own, without the file that defines it.

    inherited: the model of the run to start from, which such a command takes for what it does not say.
    """
    words = ["antpipe", "train", "--stage", stage, "--domains", ",".join(domains), "--out", str(out)]
    words += ["--from", str(source)] if source else []
    words += flags_of(model_config, inherited=inherited, environment=os.environ)
    words += [*flags_of(config, environment=os.environ), "--store", str(store.root)]
    return shlex.join(words) + ("" if stage in stages.STAGES else " --config …")


def _check_request(stage: str, actions: stages.Stage, domains: Sequence[str], source: Path | None) -> Checkpoint | None:
    """The checkpoint to start from, where the stage needs one."""
    if stage != PRETRAIN and len(domains) != 1:
        raise UsageError(f"--stage {stage} trains on one domain, not on {len(domains)}", "name one with --domains")
    if not stages.needs_checkpoint(actions):
        if source is not None:
            raise UsageError(f"--stage {stage} starts from nothing: leave --from out")
        return None
    if source is None:
        raise UsageError(f"--stage {stage} starts from a checkpoint", f"antpipe train --stage {stage} --from RUN …")
    return checkpoint.describe(source)


def check_ids_only(stage: str, actions: stages.Stage, model_config: ModelConfig, config: TrainConfig) -> None:
    """Refuse what `--modalities none` does not go with: features are then neither learned nor taken over."""
    if not model_config.transductive:
        raise UsageError("--modalities none leaves an item nothing but its id", "the same command with --transductive")
    if config.reference or (reads_features_of_checkpoint(actions) and actions["ids"] != stages.KEEP):
        what = "--reference" if config.reference else f"--stage {stage}"
        raise UsageError(f"{what} reads features of items: it does not go with --modalities none")


def load_training_data(
    store: Store, domains: Sequence[str], config: TrainConfig, notice: Callable[[str], None]
) -> TrainingData:
    """Everything training reads, mapped from the store."""
    catalogue = load_catalogue(store, domains, config.features(), notice, config.whitened)
    sequences = tuple(store.domain(name).sequences() for name in domains)
    lengths = {part.max_len for part in sequences}
    if len(lengths) > 1:
        raise DataError(
            f"{', '.join(domains)}: sequences built with different --max-len {sorted(lengths)}",
            f"antpipe build-sequences --domains {','.join(domains)} --store {store.root}",
        )
    validation = {name: examples(part, "valid") for name, part in zip(domains, sequences, strict=True)}
    validation = {name: sample(part, config.valid_sample) for name, part in validation.items() if len(part)}
    if not validation:
        raise DataError(f"{', '.join(domains)}: no user has an item to validate on; 3 items a user are needed")
    return TrainingData(catalogue, sequences, validation)


def describe_run(
    store: Store,
    catalogue: Catalogue,
    *,
    stage: str,
    actions: stages.Stage,
    model_config: ModelConfig,
    config: TrainConfig,
    start: Checkpoint | None,
) -> Checkpoint:
    """The description of a run before it is trained; its fingerprint covers all that determines the result."""
    modalities = {m: {"width": w, "encoder": catalogue.encoders[m]} for m, w in catalogue.widths.items()}
    if start is not None and reads_features_of_checkpoint(actions):
        modalities = start.modalities | {m: v for m, v in modalities.items() if m in start.modalities}
    read = [artefact_of(modality, config.whitened) for modality in modalities]
    domains = {
        name: {artefact: store.domain(name).entry(artefact)["fingerprint"] for artefact in artefacts}
        for name, artefacts in (
            (name, [*(a for a in read if a in store.domain(name).manifest()), "sequences"])
            for name in catalogue.domains
        )
    }
    settings = {key: value for key, value in to_json(config).items() if key not in WITHOUT_EFFECT}
    max_len = store.domain(catalogue.domains[0]).sequences().max_len
    items = len(catalogue) if model_config.transductive else None
    begun = [start.fingerprint, start.weights_sha256] if start else None
    order = list(catalogue.domains)  # of the items' numbering, and so of the batches
    determined = [stage, dict(actions), to_json(model_config), settings, modalities, max_len, order, domains, begun]
    return Checkpoint(
        fingerprint=digest(determined),
        stage=stage,
        groups=dict(actions),
        model=to_json(model_config),
        train=to_json(config),
        modalities=modalities,
        max_len=max_len,
        items=items,
        domains=domains,
        source=start.fingerprint if start else None,
        best_epoch=0,
        epochs=0,
        metrics={},
    )

"""A run: one stage trained on domains of the store, from the request to its checkpoint folder."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antpipe.core import stages
from antpipe.core.floor import COSINE, begin_at_floor, known_in
from antpipe.core.untrained import in_words
from antpipe.errors import AntpipeError, DivergedError, Interrupted, SameCommand, UsageError
from antpipe.runtime.devices import choose_device, compile_parts, require_compiler
from antpipe.runtime.files import flush
from antpipe.runtime.logs import log, silenced
from antpipe.runtime.process import continued_by, stopping
from antpipe.runtime.progress import Progress, Update, silent
from antpipe.settings.base import flag_name
from antpipe.settings.training import LATER, WITHOUT_EFFECT, TrainConfig
from antpipe.store.documents import write_json
from antpipe.store.files import file_sha256
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.folder import METRICS, RunFolder, another_folder
from antpipe.training.loop import fit
from antpipe.training.opening import words_read_by
from antpipe.training.parallel import ALONE, World, held_by_first, of_first, together, world_of
from antpipe.training.rehearsal import rehearse, rehearse_itself
from antpipe.training.replay import out_of_memory
from antpipe.training.request import PRETRAIN, WITHOUT_STEPS, Plan, RunRequest
from antpipe.training.state import Keeping, Position, begin, cost_of, position_of, read_header, remove_state
from antpipe.training.tracking import require_tracker, tracking
from antpipe.training.trained_items import write_items
from antpipe.training.worth import use_reranker, without_training

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant

NOTHING, UNFINISHED, FINISHED = "nothing", "unfinished", "finished"
UNNAMED = "the weights it started from, or the antpipe version that made it"  # what else sets two runs apart


def run_stage(
    request: RunRequest,
    out: Path,
    *,
    force: bool = False,
    resume: bool = False,
    pause_after: int = 0,
    progress: Progress = silent,
) -> tuple[Checkpoint, bool]:
    """Train a run and write the checkpoint of its best epoch to the folder `out`.

    force: start over, whatever the folder holds. resume: continue an unfinished run in it; the result is that of a run
    that was never interrupted (bit-equal on a CPU with the same number of threads). pause_after: raise Paused after
    this many epochs, with the state kept for resuming (0: train to the end). progress: shows epochs, under the stage.
    Returns the checkpoint, and whether it was there already because the same run had finished. Raises what
    RunRequest.plan raises, UsageError if the folder holds another run, or an unfinished one and neither force nor
    resume is given, AntpipeError if another process trains in it, DivergedError if the loss is not finite, and
    Interrupted after Ctrl-C.
    """
    check_folder(request, out, force=force, resume=resume)
    training, folder, world = request.training, RunFolder(out), world_of()
    if world.size > 1 and training.reference:
        raise UsageError("--reference reproduces a step of one process", SameCommand(without=("torchrun",)))
    require_tracker(training.track)
    device = device_of(training, world)
    if training.compile:
        require_compiler(device)
    with together(world, device), ExitStack() as held:
        if world.rank:  # the first process speaks for all
            held.enter_context(silenced())
            progress = silent
        plan = request.plan()
        command = partial(plan.request.command, out, processes=world.size)
        held.enter_context(held_by_first(lambda: folder.lock(force), world))
        there = NOTHING
        if not force:  # all processes look before any of them writes
            there = what_is_there(plan, out, resume=resume, processes=world.size)
            of_first(str, world)
        if there == FINISHED:
            return checkpoint.describe(out), True
        if resume and there == NOTHING:
            log.info(f"{out} holds nothing to resume; training begins")
        begun = there == UNFINISHED
        model = model_to_train(plan, request.home(out)).to(device)
        if training.compile:
            compile_parts(model)
        done = of_first(lambda: begin(folder, begun=begun), world)
        tracker = "none" if world.rank else training.track
        label = request.stage if request.refit is None else f"{request.stage}, refit"
        with stopping() as asked, tracking(tracker, out, plan.described, done) as track, progress(label) as bar:
            keep = Keeping(folder, plan.described, training.save_every, begun, asked, track, pause_after, world)
            try:
                with naming_what_to_lower(folder, training, command):
                    at = train(model, plan, request.home(out), device, keep, bar, world)
            except KeyboardInterrupt:
                if world.rank:
                    raise
                kept = f"{position_of(folder)} kept" if folder.is_unfinished() else "nothing is kept yet"
                raise Interrupted(f"{out}: interrupted; {kept}", command("--resume")) from None
            except DivergedError as error:
                smaller = f"{training.lr / 10:g}"
                raise DivergedError(error.message, command("--lr", smaller, "--force")) from None
        with continued_by(command("--resume")):
            return of_first(lambda: finish(folder, model, plan, at, device), world), False


def train(
    model: "Ant", plan: Plan, home: Path, device: "torch.device", keep: Keeping, update: Update, world: World
) -> Position:
    """Teach the re-ranker, and train, if the stage does. Raises KeyboardInterrupt after Ctrl-C at any time."""
    request, data = plan.request, plan.trained_on()
    teach(model, plan, home, world, begun=keep.begun)
    if request.stage in WITHOUT_STEPS or request.refit == 0:
        at = without_training(model, data, device, choose=request.refit is None)
    else:
        settings, on_sources = plan.training(), request.stage == PRETRAIN
        at = fit(model, data, settings, pretraining=on_sources, device=device, keep=keep, update=update, world=world)
    if of_first(keep.asked_to_stop, world):  # after the last step
        raise KeyboardInterrupt
    return at


def run_and_refit(
    request: RunRequest, out: Path, *, force: bool = False, resume: bool = False, progress: Progress = silent
) -> tuple[tuple[Checkpoint, bool], tuple[Checkpoint, bool]]:
    """Train a run, then retrain it on training and validation targets together, up to its best epoch, in OUT/refit.

    If the vectors of the first run add too little to its floor, the second run is that floor, which knows the
    validation targets too. Takes and raises what run_stage does, and returns what that returns for both runs.
    """
    world, more = world_of(), {"force": force, "resume": resume}
    with together(world, device_of(request.training, world)):
        first = run_stage(replace(request, then_refit=True), out, **more, progress=progress)
        again = run_stage(request.refitted(first[0]), RunFolder(out).refit, **more, progress=progress)
    return first, again


def device_of(training: TrainConfig, world: World) -> "torch.device":
    """The device on which this process trains."""
    return choose_device(training.device, world.local_rank if world.size > 1 else None)


def check_folder(request: RunRequest, out: Path, *, force: bool, resume: bool) -> None:
    """Refuse the run to start from as the folder of a new one, and contradictory flags."""
    if request.source is not None and request.source.resolve() == out.resolve():
        raise UsageError(f"--out {out}: is the run to start from", another_folder(out))
    if force and resume:
        raise UsageError("--force starts over and --resume continues: choose one of them")


def model_to_train(plan: Plan, home: Path) -> "Ant":
    """A model with the initial values of its stage; for the refit of a run that did not beat its floor, with the values
    of that run. home: the folder of the run, or of the one that is refitted."""
    model = build_model(plan)
    if plan.request.refit == 0:
        model.load_state_dict(checkpoint.load_weights(home, checkpoint.describe(home)))
    return model


def build_model(plan: Plan) -> "Ant":
    """A model with the initial values of its stage: drawn from the seed, or taken from the run it starts from."""
    import torch

    request = plan.request
    torch.manual_seed(request.training.seed)
    model = plan.described.build()
    if plan.start is not None and request.source is not None:
        if request.model.init == "authors":  # their constructor draws experts N(0, .02), their re-learning Xavier
            model.reset_experts("xavier")
        exceptions = stages.REFERENCE_EXCEPTIONS.get(request.stage, {}) if request.training.reference else {}
        stages.apply(plan.actions, model, checkpoint.load_weights(request.source, plan.start), exceptions)
    if model.floor is not None and request.stage != PRETRAIN and plan.actions["ids"] != stages.KEEP:
        ((domain, valid),) = plan.data.validation.items()
        known = known_in(plan.data.catalogue, model.widths, domain, plan.data.sequences[0])
        fitted = begin_at_floor(model, known, valid)
        if request.stage in WITHOUT_STEPS:
            log.info(f"{domain}  floor: {in_words(fitted)}")
            with torch.no_grad():
                model.floor[COSINE].zero_()
    return model


def teach(model: "Ant", plan: Plan, home: Path, world: World = ALONE, *, begun: bool) -> None:
    """Let the re-ranker of a target learn from it; a refit takes over the re-ranker of its run, in `home`.

    begun: nothing is to be done, because the state of the run has what was learned.
    """
    request, frozen = plan.request, plan.actions["reranker"] == stages.FREEZE
    if model.reranker is None or request.stage == PRETRAIN or frozen or begun or request.refit == 0:
        return
    if request.refit is None:
        learned = of_first(lambda: rehearse_itself(model, plan.data, request.training.seed), world)
    else:
        there, own = checkpoint.load_weights(home, checkpoint.describe(home)), "reranker."
        learned = {name.removeprefix(own): value for name, value in there.items() if name.startswith(own)}
    model.reranker.load_state_dict(learned)


@contextmanager
def naming_what_to_lower(folder: RunFolder, training: TrainConfig, command: Callable[..., str]) -> Iterator[None]:
    """Turn a lack of GPU memory into an AntpipeError that says what helps, and what is kept."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        lack = error
    else:
        return
    there = f"{position_of(folder)} kept" if folder.is_unfinished() else "nothing is kept yet"
    less = ["--batch-size", str(max(1, training.batch_size // 2)), "--force"]
    if training.gpu_features == "on":
        less = ["--gpu-features", "auto", *(["--resume"] if folder.is_unfinished() else [])]
    raise AntpipeError(f"{folder.path}: out of GPU memory ({there}); lower {less[0]}", command(*less)) from lack


def finish(folder: RunFolder, model: "Ant", plan: Plan, at: Position, device: "torch.device") -> Checkpoint:
    """Turn the unfinished run in the folder into a finished one."""
    if plan.request.stage == PRETRAIN and model.reranker is not None:
        words, seed = words_read_by(plan.described), plan.request.training.seed
        model.reranker.load_state_dict(rehearse(model, plan.request.store, plan.data, seed, words=words))
    if plan.request.refit and model.floor is not None:  # no targets to judge by: as in the run it belongs to
        home = plan.request.home(folder.path)
        there = checkpoint.load_weights(home, checkpoint.describe(home))
        model.floor[COSINE].detach().copy_(there[f"floor.{COSINE}"])
        use_reranker(model, float(there.get("reranker.weight", 0.0)))
    written = write_items(folder, plan.request.store, plan.described.id_tables, plan.trained_on().sequences)
    done = replace(plan.described, best_epoch=at.best_epoch, metrics=at.best, epochs=len(at.rows), id_tables=written)
    checkpoint.save(folder.path, model, done)
    flush(folder.metrics)
    write_json(folder.cost, {**cost_of(at, device), METRICS: file_sha256(folder.metrics)})
    remove_state(folder)
    return done


# -- what is in a folder ------------------------------------------------------------------------------------------


def what_is_there(plan: Plan, out: Path, *, resume: bool, processes: int = 1) -> str:
    """How much of a run its folder holds: NOTHING, UNFINISHED or FINISHED.

    Raises UsageError if it holds another run, or this one unfinished and it is not to be resumed.
    """
    folder, described = RunFolder(out), plan.described
    if folder.is_unfinished():
        check_resume(plan, folder, resume=resume, processes=processes)
        return UNFINISHED
    if not folder.is_finished():
        return NOTHING
    existing = checkpoint.describe(out)
    if existing.fingerprint != described.fingerprint:
        what = f"stage {existing.stage}"
        if existing.stage == described.stage:
            what = "; ".join(differences(asdict(existing), asdict(described))) or UNNAMED
        home = plan.request.home(out)
        raise UsageError(f"--out {out}: holds another run: {what}; --force replaces it", another_folder(home))
    return FINISHED


def check_resume(plan: Plan, folder: RunFolder, *, resume: bool, processes: int) -> None:
    """Refuse to continue the state of another run or of another number of processes, and to start over unasked.

    An unfinished run is never discarded without --force nor continued without --resume, because either may surprise:
    the first loses hours, the second trusts settings that one may have forgotten.
    """
    out, header = folder.path, read_header(folder)
    there, at = asdict(header["described"]), header["position"]
    if there["fingerprint"] != plan.described.fingerprint:
        what = "; ".join(differences(there, asdict(plan.described))) or UNNAMED
        raise UsageError(
            f"{out} holds an unfinished run ({at}) with other settings: {what}. "
            "Name another folder, or add --force to discard it",
            plan.request.command(out, "--force", processes=processes),
        )
    if not resume:
        raise UsageError(
            f"{out} holds this run, unfinished ({at}): --resume continues it, --force starts over",
            plan.request.command(out, "--resume", processes=header["processes"]),
        )
    if header["processes"] != processes:
        raise UsageError(
            f"{out} is a run of {header['processes']} process(es), not of {processes}; each has its own random numbers",
            plan.request.command(out, "--resume", processes=header["processes"]),
        )


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What sets two descriptions of runs apart, as far as it determines a run: one phrase per difference."""
    single = [key for key in ("stage", "max_len", "items", "source") if there[key] != here[key]]
    found = [f"{key} {there[key]} (now {here[key]})" for key in single]
    before, now = (",".join(side["domains"]) for side in (there, here))
    if before != now and there["domains"].keys() == here["domains"].keys():
        found.append(f"domains {before} (now {now})")
    later = {  # what antpipe 0.1.0 did, which had no such settings
        "groups": {name: here["groups"].get(name) for name in ("floor", "reranker")},
        "model": {"floor": False, "reranker": False},
        "train": {name: getattr(TrainConfig, name) for name in LATER},
    }
    for group in ("groups", "model", "train", "modalities", "domains"):
        old, new = (json.loads(json.dumps(side[group])) for side in (there, here))  # tuples as lists, as on disk
        old = later.get(group, {}) | old
        for name in old | new:
            if old.get(name) != new.get(name) and not (group == "train" and name in WITHOUT_EFFECT):
                setting = group in ("model", "train")
                what = f"--{flag_name(name)}" if setting else f"{group} {name}"
                was = ", which it was made without" if setting and name not in old else f" {old.get(name)}"
                found.append(f"{what}{was} (now {new.get(name)})")
    if there.get("refit") != here["refit"]:
        before, now = (side["epochs"] if side else "none" for side in (there.get("refit"), here["refit"]))
        found.append(f"refit epochs {before} (now {now})")
    if not found and there.get("negatives", "") != here["negatives"]:
        found.append("negatives that include the user's own next items, as in antpipe 0.1.0 (now left out)")
    return found

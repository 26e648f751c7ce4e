"""What `antpipe compare` refuses: runs that are not comparable, before anything is trained as far as possible."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from antpipe.comparison.plan import CONTROL, GIVEN, RACED, TRAINED, UNTRAINED, Job, Mix, Request
from antpipe.core.batches import examples
from antpipe.errors import DataError, UsageError
from antpipe.evaluation.baselines.judge import baseline_fingerprint
from antpipe.runtime.devices import choose_device, choose_precision
from antpipe.settings.base import flag_name, from_json, to_json
from antpipe.settings.training import WITHOUT_EFFECT, TrainConfig
from antpipe.training import checkpoint
from antpipe.training.checkpoint import DESCRIPTION, Checkpoint
from antpipe.training.race import check_limits, what_is_raced
from antpipe.training.race_folder import FOLDER
from antpipe.training.run import PRETRAIN, nothing, plan_run, train_command
from antpipe.training.state import NOTHING, has_state, what_is_there

SPLIT = "test"


def check_request(request: Request, work: Sequence[Job], *, force: bool) -> None:
    """Refuse what can be known to fail before anything is trained."""
    names = {job.arm.name for job in work}
    if not request.targets or len(set(request.targets)) != len(request.targets):
        raise UsageError("--target: give each target once")
    for target in request.targets:
        if not len(examples(request.store.domain(target).sequences(), SPLIT)):
            raise DataError(f"domain {target}: no position to predict in split {SPLIT}")
    if CONTROL not in names and any(job.arm.judged for job in work):
        raise UsageError(f"a verdict on transfer needs the control: add {CONTROL} to --arms, or --run {CONTROL}=RUN")
    for job in work:
        if job.arm.kind == UNTRAINED:
            baseline_fingerprint(request.store, job.arm.name, job.target)
    check_seeds(request, work)
    if any(job.arm.judged and job.arm.model.init == "authors" for job in work):
        raise UsageError(
            f"--init authors: {CONTROL} and the arms that start from a run would begin with other first values",
            "the same command with --init xavier",
        )
    for mix in [] if force else {job.arm.mix.name: job.arm.mix for job in work if job.arm.mix}.values():
        if mix.to_train:
            mix_there(mix, request)
    check_alike(request, work, force=force, pretrained=False)


def settled(training: TrainConfig) -> TrainConfig:
    """With the precision that `auto` stands for here: it is part of a budget."""
    return replace(training, precision=choose_precision(training.precision, choose_device(training.device)))


def holds_something(folder: Path) -> bool:
    """Whether there is a run or a race in a folder, finished or not."""
    return has_state(folder) or (folder / DESCRIPTION).exists() or (folder / FOLDER).exists()


def mix_there(mix: Mix, request: Request) -> str:
    """What the folder of a mix holds of it: NOTHING, UNFINISHED or FINISHED. Raises UsageError where it holds another
    run, as training it would."""
    if not holds_something(mix.folder):
        return NOTHING
    training = settled(mix.training)
    wanted = plan_run(
        request.store, mix.domains, PRETRAIN, model_config=mix.model, config=training, source=None, notice=nothing
    ).described
    command = train_command(request.store, mix.domains, PRETRAIN, mix.folder, None, mix.model, training, None)
    return what_is_there(mix.folder, wanted, resume=True, command=command)


def job_there(job: Job, request: Request) -> str:
    """The same of a run that is to be trained or raced, from a run that is there."""
    if not holds_something(job.folder):
        return NOTHING
    if job.arm.kind == RACED and job.arm.mix:
        return what_is_raced(
            request.store,
            job.target,
            out=job.folder,
            model_config=job.arm.model,
            config=job.training(),
            race=request.race,
            source=job.arm.mix.folder,
            reads=as_control(job, request).modalities,
        )
    wanted = planned(job, request)
    check_finished(job, wanted)
    source = job.arm.mix.folder if job.arm.mix else None
    inherited = checkpoint.describe(source).model_config() if source else None
    command = train_command(
        request.store, [job.target], job.arm.stage, job.folder, source, job.arm.model, job.training(), inherited
    )
    return what_is_there(job.folder, wanted, resume=True, command=command)


def planned(job: Job, request: Request) -> Checkpoint:
    """What a run would be, by its description."""
    return plan_run(
        request.store,
        [job.target],
        job.arm.stage,
        model_config=job.arm.model,
        config=job.training(),
        source=job.arm.mix.folder if job.arm.mix else None,
        own_stages=request.own_stages,
        notice=nothing,
    ).described


def as_control(job: Job, request: Request) -> Checkpoint:
    """What the control would be with the settings of a raced run, whose stage is not known before the race."""
    return plan_run(
        request.store,
        [job.target],
        CONTROL,
        model_config=job.arm.model,
        config=job.training(),
        source=None,
        own_stages=request.own_stages,
        notice=nothing,
    ).described


def check_seeds(request: Request, work: Sequence[Job]) -> None:
    """All arms but those without training have runs on each target, with equal seeds, each once."""
    names = {job.arm.name for job in work if job.arm.kind != UNTRAINED}
    for target in request.targets:
        by_arm: dict[str, list[int]] = {}
        for job in work:
            if job.target == target and job.arm.kind != UNTRAINED:
                by_arm.setdefault(job.arm.name, []).append(job.seed)
        for name in sorted(names - by_arm.keys()):
            raise UsageError(f"{target}: {name} has no run on it", f"add one a seed to --run {name}=…")
        first = CONTROL if CONTROL in by_arm else next(iter(by_arm), CONTROL)
        for name, seeds in by_arm.items():
            for seed in seeds:
                if seeds.count(seed) > 1:
                    raise UsageError(f"{target}: {name} has seed {seed} twice; each seed counts once")
            if sorted(seeds) != sorted(by_arm[first]):
                raise UsageError(
                    f"{target}: {name} has the seeds {told(seeds)}, {first} has {told(by_arm[first])}; "
                    "only equal seeds are compared"
                )


def check_alike(request: Request, work: Sequence[Job], *, force: bool, pretrained: bool) -> None:
    """Refuse runs that differ from their target's control in catalogue, split, features, model or budget: those handed
    in, and those that are to be trained or were, as far as what they start from is there.

    pretrained: this command has pre-trained its mixes; before that, with force, those in their folders do not count.
    """
    for target in request.targets:
        there: list[tuple[Job, Checkpoint]] = []
        for job in sorted((job for job in work if job.target == target), key=lambda job: job.arm.name != CONTROL):
            if job.arm.kind == GIVEN:
                there.append((job, checkpoint.describe(job.folder)))
                check_current(request, job, there[-1][1])
            elif job.arm.kind in (RACED, TRAINED) and job.arm not in [other.arm for other, _ in there]:
                if job.arm.kind == RACED:
                    check_limits(job.training())
                    there.append((job, as_control(job, request)))
                mix = job.arm.mix
                if mix and ((force and mix.to_train and not pretrained) or not (mix.folder / DESCRIPTION).exists()):
                    continue
                if job.arm.kind == TRAINED:
                    there.append((job, planned(job, request)))
                if not force:
                    job_there(job, request)
        alike = [pair for pair in there if pair[0].arm.alike]
        for job, described in alike[1:]:
            first, control = alike[0]
            found = unlike(described, control, target)
            if found:
                raise UsageError(
                    f"{target}: {job.arm.name} ({job.folder}) and {first.arm.name} ({first.folder}) "
                    f"are not comparable: {'; '.join(found)}"
                )


def check_current(request: Request, job: Job, described: Checkpoint) -> None:
    """Refuse a run handed in whose target was another catalogue or split, or had other features, than now."""
    place = request.store.domain(job.target)
    for artefact, fingerprint in described.domains[job.target].items():
        if place.entry(artefact)["fingerprint"] != fingerprint:
            raise DataError(
                f"{job.folder} was trained on other {named(artefact)} of {job.target} than are in {request.store.root}"
            )


def check_finished(job: Job, wanted: Checkpoint) -> None:
    """Refuse a folder of this comparison that holds a run with other settings; they are named."""
    if (job.folder / DESCRIPTION).exists() and not has_state(job.folder):
        found = checkpoint.describe(job.folder)
        if found.fingerprint != wanted.fingerprint:
            since = [name for name in wanted.model | wanted.train if name not in found.model | found.train]
            differing = (
                unlike(found, wanted, job.target)
                or [f"made without --{flag_name(name)}, as antpipe then was" for name in since]
                or ["another run to start from"]
            )
            raise UsageError(
                f"{job.folder} holds another run: {'; '.join(differing)}", "name another --out, or add --force"
            )


def named(artefact: str) -> str:
    return "sequences (catalogue, split or --max-len)" if artefact == "sequences" else f"{artefact} features"


def unlike(one: Checkpoint, other: Checkpoint, target: str) -> list[str]:
    """What sets two runs on a target apart besides their stage and seed, a phrase each."""
    found = []
    mine, theirs = one.domains.get(target, {}), other.domains.get(target, {})
    if set(mine) != set(theirs):
        found.append(f"reads {told(set(mine) - {'sequences'})} (not {told(set(theirs) - {'sequences'})})")
    for artefact in [name for name in mine if name in theirs and mine[name] != theirs[name]]:
        found.append(f"other {named(artefact)} of {target}")
    for old, new in zip(settings_of(other), settings_of(one), strict=True):
        for name in old | new:
            before, now = (json.loads(json.dumps(side.get(name))) for side in (old, new))  # tuples as lists
            if before != now and name not in (*WITHOUT_EFFECT, "seed"):
                found.append(f"--{flag_name(name)} {told(now)} (not {told(before)})")
    return found


def settings_of(run: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of model and training; what was no setting yet when the run was made is at its default."""
    return to_json(run.model_config()), to_json(from_json(TrainConfig, run.train))


def told(value: object) -> str:
    if not isinstance(value, Iterable) or isinstance(value, str):
        return str(value)
    return ", ".join(str(part) for part in sorted(value)) or "nothing"

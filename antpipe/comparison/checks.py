"""What `antpipe compare` refuses: runs that are not comparable, as far as possible before anything is trained."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from antpipe.comparison.modalities import Starts, way_out
from antpipe.comparison.plan import (
    CONTROL,
    GIVEN,
    RACED,
    TRAINED,
    UNTRAINED,
    ComparisonRequest,
    Job,
    Mix,
    planned,
)
from antpipe.core.batches import examples
from antpipe.errors import DataError, SameCommand, UsageError
from antpipe.evaluation.baselines.judge import baseline_fingerprint
from antpipe.settings.base import flag_name, from_json, to_json
from antpipe.settings.methods import METHOD_SETTINGS
from antpipe.settings.training import WITHOUT_EFFECT, TrainConfig
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.folder import RunFolder, another_folder
from antpipe.training.race import check_limits, what_is_raced
from antpipe.training.request import FORK_MERGE, Plan
from antpipe.training.run import FINISHED, NOTHING, UNFINISHED, what_is_there
from antpipe.training.state import read_header

SPLIT = "test"
# Lists that may name more than a run can read: what is compared is what it read.
LISTS = ("modalities", "whitened")


def check_request(request: ComparisonRequest, work: Sequence[Job]) -> None:
    """Refuse what is wrong with a request, whatever its runs are."""
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
    check_pretrain_seeds(request)
    if any(job.arm.judged and job.arm.request.model.init == "authors" for job in work):
        raise UsageError(
            f"--init authors: {CONTROL} and the arms that start from a run would have different initial values",
            SameCommand({"--init": "xavier"}),
        )


def check_seeds(request: ComparisonRequest, work: Sequence[Job]) -> None:
    """Refuse arms (except those without training) that do not have the same seeds, each once, on every target."""
    names = {job.arm.name for job in work if job.arm.kind != UNTRAINED}
    for target in request.targets:
        by_arm: dict[str, list[int]] = {}
        for job in work:
            if job.target == target and job.arm.kind != UNTRAINED:
                by_arm.setdefault(job.arm.name, []).append(job.seed)
        for name in sorted(names - by_arm.keys()):
            raise UsageError(f"{target}: {name} has no run on it; add one per seed to --run {name}=RUN,RUN2")
        first = CONTROL if CONTROL in by_arm else next(iter(by_arm), CONTROL)
        for name, seeds in by_arm.items():
            for seed in seeds:
                if seeds.count(seed) > 1:
                    raise UsageError(f"{target}: {name} has seed {seed} twice; each seed counts once")
            if sorted(seeds) != sorted(by_arm[first]):
                raise UsageError(
                    f"{target}: {name} has the seeds {listed(seeds)}, {first} has {listed(by_arm[first])}; "
                    "only equal seeds are compared"
                )


def check_pretrain_seeds(request: ComparisonRequest) -> None:
    """Refuse several pre-training seeds without anything to pre-train, and a number that does not divide the seeds."""
    draws, seeds = request.config.pretrain_seeds, request.config.seeds
    if draws == 1:
        return
    if not request.sources or request.origins or request.given:
        raise UsageError(f"--pretrain-seeds {draws}: is for runs pre-trained here, from --sources alone")
    if seeds % draws:
        raise UsageError(
            f"--pretrain-seeds {draws}: {seeds} seeds cannot take equal turns; use a divisor of --seeds",
            SameCommand({"--pretrain-seeds": str(seeds)}),
        )


@contextmanager
def elsewhere(out: Path) -> Iterator[None]:
    """Errors that propose another folder for one run propose one for the whole comparison instead. out: its folder."""
    try:
        yield
    except UsageError as error:
        if isinstance(error.next_command, SameCommand) and "--out" in error.next_command.flags:
            raise UsageError(error.message, another_folder(out)) from error
        raise


# -- what is there ----------------------------------------------------------------------------------------------


def starts_of(work: Sequence[Job], *, force: bool) -> Starts:
    """What the arms start from, by the name of the mix: runs that exist, or what a mix will be once trained.

    force: mixes are trained again, so what is there does not count. Raises UsageError if the folder of a mix that is to
    be trained holds another run, as training it would.
    """
    starts = {}
    for mix in {job.mix.name: job.mix for job in work if job.mix}.values():
        plan = planned(mix.request) if mix.to_train else None
        there = plan is None or (not force and mix_there(mix, plan) == FINISHED)
        starts[mix.name] = checkpoint.describe(mix.folder) if plan is None or there else plan.described
    return starts


def is_there(start: Checkpoint) -> bool:
    """Whether a run was trained, and not only planned."""
    return bool(start.weights_sha256)


def mix_there(mix: Mix, plan: Plan) -> str:
    """What the folder of a mix holds of it: NOTHING, UNFINISHED or FINISHED. Raises UsageError if it is another run."""
    return what_is_there(plan, mix.folder, resume=True) if RunFolder(mix.folder).holds_something() else NOTHING


def job_there(job: Job, request: ComparisonRequest, start: Checkpoint | None) -> str:
    """What the folder of a run to be trained or raced holds of it. start: what it starts from.

    If that is yet to be trained, the run in the folder counts if it has the same settings and started from the same
    sources; whether it started from the same weights is not known yet.
    """
    folder = RunFolder(job.folder)
    if not folder.holds_something():
        return NOTHING
    if start is not None and not is_there(start):
        check_settings(job, start)
        return UNFINISHED if folder.is_unfinished() or folder.candidates.exists() else NOTHING
    if job.arm.kind == RACED:
        reads = planned(job.as_control()).described.reads(job.target)
        return what_is_raced(job.request, job.folder, request.race, reads)
    plan = planned(job.request, start)
    if folder.is_finished() and not folder.is_unfinished():
        found = checkpoint.describe(job.folder)
        if found.fingerprint != plan.described.fingerprint:
            refuse_other(job, found, plan.described)
    return what_is_there(plan, job.folder, resume=True)


def refit_there(job: Job, start: Checkpoint | None) -> str:
    """What a finished run's folder holds of its refit, if that is asked for. Raises UsageError if it is another's."""
    if not job.then_refit:
        return NOTHING
    again = job.refitted(checkpoint.describe(job.folder))
    there = RunFolder(again.folder).holds_something()
    return what_is_there(planned(again.request, start), again.folder, resume=True) if there else NOTHING


def check_settings(job: Job, start: Checkpoint) -> None:
    """Refuse a folder whose run has other settings than the job, or started from another run than `start` will be.

    For a race, which ends with any of its candidates, only settings are compared.
    """
    folder = RunFolder(job.folder)
    if folder.is_unfinished():
        found = read_header(folder)["described"]
    elif folder.is_finished():
        found = checkpoint.describe(job.folder)
    else:
        return  # a race in progress: its candidates are checked when it continues
    if job.arm.kind != RACED:
        wanted = planned(job.request, start).described
        if determined(found) != determined(wanted):
            refuse_other(job, found, wanted)
        return
    wanted = planned(job.as_control()).described
    epochs = folder.read_decision().get("epochs", found.train["epochs"])  # of both stages of a winner that has two
    found = replace(found, train=found.train | {"epochs": epochs})
    if unlike(found, wanted, job.target) or found.train["seed"] != job.seed:
        refuse_other(job, found, wanted)


def determined(run: Checkpoint) -> str:
    """Everything that determines the result of a run, except the weights it starts from."""
    settings = {key: value for key, value in run.train.items() if key not in WITHOUT_EFFECT}
    shape = (run.model, run.modalities, run.max_len, run.items)
    return json.dumps([run.stage, run.groups, settings, *shape, run.domains, run.source], sort_keys=True)


def refuse_other(job: Job, found: Checkpoint, wanted: Checkpoint) -> NoReturn:
    """Say what sets the run in a folder of this comparison apart from the one that belongs there."""
    since = [name for name in wanted.model | wanted.train if name not in found.model | found.train]
    before, now = settings_of(found)[1], settings_of(wanted)[1]
    others = [name for name in ("seed", *LISTS) if before[name] != now[name]]
    differing = (
        unlike(found, wanted, job.target)
        or [f"--{flag_name(name)} {listed(before[name])} (not {listed(now[name])})" for name in others]
        or ([f"stage {found.stage}"] if found.stage != wanted.stage else [])
        or [
            f"--{flag_name(name)} {before[name]} (not {now[name]})"
            for name in METHOD_SETTINGS
            if before[name] != now[name]
        ]
        or [f"made by an antpipe without --{flag_name(name)}" for name in since]
        or ["other sources" if wanted.stage == FORK_MERGE else "another run to start from"]
    )
    raise UsageError(
        f"{job.folder} holds another run: {'; '.join(differing)}; --force replaces it",
        another_folder(job.folder),
    )


# -- what is alike ----------------------------------------------------------------------------------------------


def check_alike(request: ComparisonRequest, work: Sequence[Job], starts: Starts, *, force: bool) -> None:
    """Refuse runs that differ from their target's control in catalogue, split, features, model or budget: runs handed
    in, runs to be trained and, unless `force`, runs in the folders of the comparison.

    starts: see starts_of.
    """
    for target in request.targets:
        there: list[tuple[Job, Checkpoint]] = []
        for job in sorted((job for job in work if job.target == target), key=lambda job: job.arm.name != CONTROL):
            start = starts[job.mix.name] if job.mix else None
            if job.arm.kind == GIVEN:
                there.append((job, checkpoint.describe(job.folder)))
                check_current(request, job, there[-1][1])
            if job.arm.kind not in (RACED, TRAINED):
                continue
            if job.arm not in [other.arm for other, _ in there]:  # one run stands for all seeds of the arm
                there.append((job, first_of_arm(job, start)))
            if not force and job_there(job, request, start) == FINISHED:
                refit_there(job, start)
        alike = [pair for pair in there if pair[0].arm.alike]
        for job, described in alike[1:]:
            first, control = alike[0]
            found = unlike(described, control, target)
            if found:
                only_reads = len(found) == 1 and described.reads(target) != control.reads(target)
                raise UsageError(
                    f"{target}: {job.arm.name} ({job.folder}) and {first.arm.name} ({first.folder}) "
                    f"are not comparable: {'; '.join(found)}",
                    way_out(target, request, work, starts) if only_reads else None,
                )


def first_of_arm(job: Job, start: Checkpoint | None) -> Checkpoint:
    """What the runs of an arm on a target would be. Refuses what cannot be trained."""
    if job.arm.kind == RACED:
        check_limits(job.request.training)
        return planned(job.as_control()).described
    return planned(job.request, None if start is None or is_there(start) else start).described


def check_current(request: ComparisonRequest, job: Job, described: Checkpoint) -> None:
    """Refuse a run handed in whose target had another catalogue, split or features than now."""
    here = request.store.domain(job.target)
    for artefact, fingerprint in described.domains[job.target].items():
        if here.entry(artefact)["fingerprint"] != fingerprint:
            raise DataError(
                f"{job.folder} was trained on other {named(artefact)} of {job.target} than are in {request.store.root}"
            )


def named(artefact: str) -> str:
    return "sequences (catalogue, split or --max-len)" if artefact == "sequences" else f"{artefact} features"


def unlike(one: Checkpoint, other: Checkpoint, target: str) -> list[str]:
    """What sets two runs on a target apart besides their stage, method and seed, one phrase per difference."""
    found = []
    mine, theirs = one.domains.get(target, {}), other.domains.get(target, {})
    if set(mine) != set(theirs):
        found.append(f"reads {listed(set(mine) - {'sequences'})} (not {listed(set(theirs) - {'sequences'})})")
    for artefact in [name for name in mine if name in theirs and mine[name] != theirs[name]]:
        found.append(f"other {named(artefact)} of {target}")
    if bool(one.refit) != bool(other.refit):
        found.append(f"{'was' if one.refit else 'was not'} refitted on training + validation")
    for old, new in zip(settings_of(other), settings_of(one), strict=True):
        for name in old | new:
            before, now = (json.loads(json.dumps(side.get(name))) for side in (old, new))  # tuples as lists
            if before != now and name not in (*WITHOUT_EFFECT, *LISTS, *METHOD_SETTINGS, "seed"):
                found.append(f"--{flag_name(name)} {listed(now)} (not {listed(before)})")
    return found


def settings_of(run: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of model and training. Those that did not exist when the run was made have their defaults."""
    return to_json(run.model_config()), to_json(from_json(TrainConfig, run.train))


def listed(value: object) -> str:
    if not isinstance(value, Iterable) or isinstance(value, str):
        return str(value)
    return ", ".join(str(part) for part in sorted(value)) or "nothing"

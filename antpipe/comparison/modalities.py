"""The modalities that the arms of a comparison read: the same ones, so that arms are compared, and not features."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from antpipe.comparison.plan import CONTROL, GIVEN, RACED, TRAINED, Arm, ComparisonRequest, Job, planned
from antpipe.core import stages
from antpipe.errors import DataError, UsageError
from antpipe.runtime.logs import log
from antpipe.settings.model import MODALITIES
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.race import STAGES_OF

Starts = Mapping[str, Checkpoint]  # what the arms start from, or will start from, by the name of the mix


@dataclass(frozen=True)
class Reader:
    """What an arm, or one run of an arm that was handed in, reads of a target, and what it starts from."""

    arm: Arm
    reads: frozenset[str]
    start: Checkpoint | None = None


def readers_of(target: str, request: ComparisonRequest, work: Sequence[Job], starts: Starts) -> list[Reader]:
    """The arms that must read the same of a target, each once, and each run handed in."""
    found: list[Reader] = []
    seen: list[Arm] = []
    for job in work:
        if job.target != target or not job.arm.alike:
            continue
        if job.arm.kind == GIVEN:
            found.append(Reader(job.arm, frozenset(checkpoint.describe(job.folder).reads(target))))
        elif job.arm.kind in (TRAINED, RACED) and job.arm not in seen:
            seen.append(job.arm)
            found.append(reader_of(job, request, starts))
    return found


def reader_of(job: Job, request: ComparisonRequest, starts: Starts) -> Reader:
    """What an arm can read; for a race, what all candidates that can train can read."""
    start = starts[job.mix.name] if job.mix else None
    if job.arm.kind == TRAINED:
        return Reader(job.arm, frozenset(planned(job.request, start).described.reads(job.target)), start)
    reads = []
    for name in request.race.candidates:
        stage = STAGES_OF[name][0]
        begins = stages.needs_checkpoint(stages.STAGES[stage])
        run = replace(job.request, stage=stage, source=job.request.source if begins else None)
        try:
            reads.append(frozenset(planned(run, start if begins else None).described.reads(job.target)))
        except DataError:  # the race leaves it out, or fails because of it
            continue
    return Reader(job.arm, frozenset.intersection(*reads) if reads else frozenset(MODALITIES), start)


def narrowed(request: ComparisonRequest, work: Sequence[Job], starts: Starts) -> tuple[list[Job], dict[str, str]]:
    """The work with the modalities that all arms of a target can read, if they would differ; and why, by target.

    Runs of arms that read the same anyway keep the whole list. Runs handed in stay as they are; whether they read the
    same is checked later. Raises UsageError if the arms have no modality in common.
    """
    reads: dict[str, tuple[str, ...]] = {}
    why: dict[str, str] = {}
    for target in request.targets if request.common else ():
        readers = readers_of(target, request, work, starts)
        common = common_of(readers)
        if all(reader.reads == set(common) for reader in readers):
            continue
        if not common:
            raise UsageError(nothing_in_common(target, readers), way_out(target, request, work, starts))
        reads[target] = common
        why[target] = f"every arm reads {', '.join(common)} ({'; '.join(reasons(target, readers, common))})"
        log.info(f"{target}: {why[target]}")
    trained = [job.arm.alike and job.arm.kind in (TRAINED, RACED) for job in work]
    jobs = [replace(job, reads=reads.get(job.target)) if one else job for job, one in zip(work, trained, strict=True)]
    return jobs, why


def common_of(readers: Iterable[Reader]) -> tuple[str, ...]:
    """The modalities that all of them read, in the usual order."""
    every = [reader.reads for reader in readers]
    return tuple(modality for modality in MODALITIES if every and all(modality in reads for reads in every))


def reasons(target: str, readers: Sequence[Reader], common: Sequence[str]) -> list[str]:
    """What keeps the arms from reading more, one phrase per cause."""
    left = [name for name in MODALITIES if name not in common and any(name in reader.reads for reader in readers)]
    mixes = {reader.arm.mix.name for reader in readers if reader.arm.mix}
    found: dict[str, list[str]] = {}
    for reader in readers:
        for modality in [name for name in left if name not in reader.reads]:
            if reader.arm.kind == GIVEN:
                who = f"{reader.arm.name} was trained without"
            elif reader.arm.mix and reader.start and modality not in reader.start.modalities:
                who = f"{reader.arm.mix.name if len(mixes) > 1 else 'the run to start from'} has no"
            else:
                who = f"no item of {target} has a"
            if modality not in found.setdefault(who, []):
                found[who].append(modality)
    return [f"{who} {' or '.join(what)}" for who, what in found.items()]


def nothing_in_common(target: str, readers: Sequence[Reader]) -> str:
    """What each arm reads, when no modality is common to all."""
    cells = {f"{reader.arm.name} reads {', '.join(sorted(reader.reads)) or 'nothing'}": None for reader in readers}
    return f"{target}: no modality is read by every arm: {', '.join(cells)}"


def way_out(target: str, request: ComparisonRequest, work: Sequence[Job], starts: Starts) -> str | None:
    """The command that compares arms which read alike, when some do not; None if there is none.

    It asks for the common modalities; if that was asked for, it leaves out the arms that cannot read what the runs
    handed in, or else the control, read.
    """
    everything = [job if job.arm.kind == GIVEN else replace(job, reads=MODALITIES) for job in work]
    readers = readers_of(target, request, everything, starts)
    common, given = set(common_of(readers)), [reader.reads for reader in readers if reader.arm.kind == GIVEN]
    if common and all(reads == common for reads in given):
        return None if request.common else replace(request, common=True).command()
    wanted = given[0] if given else next((r.reads for r in readers if r.arm.request.stage == CONTROL), frozenset())
    unfit = {reader.arm.way for reader in readers if not reader.reads >= wanted}
    kept = tuple(name for name in request.config.arms if name not in unfit)
    if not (wanted and kept and all(reads == wanted for reads in given) and CONTROL in {*kept, *request.given}):
        return None
    return replace(request, common=True, config=replace(request.config, arms=kept)).command()

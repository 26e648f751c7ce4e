"""`antpipe compare`: train what is missing, judge everything on the test split, and say whether transfer helped.

All of it is in one folder: pre-trained mixes in pretrain/, runs in TARGET/, a small JSON per run in results/, and the
outcome in comparison.json and comparison.md. If interrupted anywhere, the same command continues.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Required, TypedDict

from antpipe.comparison import outcome as comparison
from antpipe.comparison.arms import plan_arms
from antpipe.comparison.checks import (
    SPLIT,
    check_alike,
    check_request,
    elsewhere,
    is_there,
    job_there,
    refit_there,
    starts_of,
)
from antpipe.comparison.curve import with_subsets, write_subsets
from antpipe.comparison.modalities import Starts, narrowed
from antpipe.comparison.order import order_facts
from antpipe.comparison.plan import GIVEN, RACED, UNTRAINED, Arm, ComparisonRequest, Job, Mix, jobs, planned
from antpipe.comparison.table import as_markdown
from antpipe.errors import IntegrityError, SameCommand, UsageError
from antpipe.evaluation.baselines.judge import baseline_fingerprint, judge_baseline
from antpipe.evaluation.evaluate import evaluate_run
from antpipe.evaluation.ranks import require_own
from antpipe.features.subset import is_written
from antpipe.runtime.files import atomic, make_folder
from antpipe.runtime.logs import each_message_once, log
from antpipe.runtime.process import continued_by
from antpipe.runtime.progress import Progress, silent
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.store.documents import read_json, write_json
from antpipe.store.tables import read_table
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.folder import RunFolder
from antpipe.training.methods.fork_merge import run_fork_merge
from antpipe.training.methods.fork_request import ForkMergeRequest
from antpipe.training.parallel import world_of
from antpipe.training.race import run_auto
from antpipe.training.request import PRETRAIN
from antpipe.training.run import FINISHED, NOTHING, UNFINISHED, run_stage

OUTCOME = "comparison"  # .json and .md


class Record(TypedDict, total=False):
    """The JSON of a run in results/."""

    arm: Required[str]
    target: Required[str]
    seed: Required[int]
    run: Required[str]
    fingerprint: Required[str]
    weights_sha256: Required[str]
    budget: Required[dict[str, Any]]
    seconds: Required[float | None]
    split: Required[str]
    items: Required[int]
    positions: Required[int]
    target_in_history: Required[float]
    protocols: Required[dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Prepared:
    """A checked comparison: its arms, the mixes to pre-train, its runs, and what these start from.

    remarks: by target, why its arms read fewer modalities than asked for. order: by target, see order_facts.
    """

    arms: list[Arm]
    mixes: list[Mix]
    jobs: list[Job]
    starts: Starts
    remarks: dict[str, str]
    order: dict[str, dict[str, Any]]


def prepare(request: ComparisonRequest, force: bool) -> Prepared:
    """Settle and check everything that can be settled before anything is trained."""
    arms, mixes = plan_arms(request)
    work = list(jobs(arms, request))
    check_request(request, work)
    with elsewhere(request.out):
        starts = starts_of(work, force=force)
        work, remarks = narrowed(request, work, starts)
        check_alike(request, work, starts, force=force)
    return Prepared(arms, mixes, work, starts, remarks, order_facts(request.store, request.targets, starts))


def run_comparison(request: ComparisonRequest, *, force: bool = False, progress: Progress = silent) -> dict[str, Any]:
    """Train what is missing, evaluate, test, and write comparison.json and comparison.md to the folder.

    force: train everything of this comparison again. progress: shows epochs, run by run. Returns the content of
    comparison.json (see comparison.outcome). Raises UsageError or DataError, as far as possible before anything is
    trained, if arms, runs and targets do not go together, naming the difference; and Interrupted after Ctrl-C.
    """
    if world_of().size > 1:
        raise UsageError("compare runs in one process", SameCommand(without=("torchrun",)))
    request = with_subsets(request)
    with each_message_once(), continued_by(request.command()):
        plan_arms(request)  # refuses here what it would refuse later, before any subset is written
        write_subsets(request)
        ready = prepare(request, force)
        for mix in ready.mixes:
            pretrain(mix, force, progress)
        if ready.mixes:  # now every run to start from is there
            check_alike(request, ready.jobs, starts_of(ready.jobs, force=False), force=force)
        results = finish_all(ready.jobs, request, force, progress)
        outcome = comparison.outcome(request, ready.arms, ready.jobs, results)
        again = [job.refitted(checkpoint.describe(job.folder)) for job in ready.jobs if job.then_refit]
        if again:
            refits = comparison.after_refit(request, again, finish_all(again, request, force, progress))
            for target, facts in outcome["targets"].items():
                facts["refit"] = refits[target]
        left = [
            arm.name for arm in ready.arms if request.config.refit and arm.kind != UNTRAINED and not arm.is_refitted()
        ]
        for facts in outcome["targets"].values() if left else ():
            facts["notes"].append(f"not refitted: {', '.join(left)} (only single stages that are trained here are)")
    for target, facts in ready.order.items():
        found = outcome["targets"][target]
        found |= facts | {"notes": [*facts["notes"], *found["notes"]]}
    for target, remark in ready.remarks.items():
        outcome["targets"][target]["notes"].insert(0, remark)
    write_json(request.out / f"{OUTCOME}.json", outcome)
    text = as_markdown(outcome)
    with atomic(request.out / f"{OUTCOME}.md") as scratch:
        scratch.write_text(text, encoding="utf-8")
    return outcome


def what_would_be_done(request: ComparisonRequest, *, force: bool = False) -> list[dict[str, Any]]:
    """For --dry-run: a row for each pre-training and run with its state: finished, unfinished or missing.

    Raises what run_comparison would raise before it trains.
    """
    request = with_subsets(request)
    with each_message_once():
        ready = prepare_dry(request, force)
    rows = [
        {
            "target": ", ".join(mix.request.domains),
            "arm": PRETRAIN,
            "seed": mix.request.training.seed,
            "folder": str(mix.folder),
            "state": state_of_mix(mix, ready.starts[mix.name], force),
        }
        for mix in ready.mixes
    ]
    for job in ready.jobs:
        facts = {"target": job.target, "arm": job.arm.name, "seed": job.seed, "folder": str(job.folder)}
        there = not unwritten(request, job.target)
        rows.append({**facts, "state": state_of(job, request, ready.starts, force) if there else NOTHING})
        if job.then_refit:
            start, done = ready.starts[job.mix.name] if job.mix else None, rows[-1]["state"] == FINISHED
            again = {"arm": f"{job.arm.name}, refit", "folder": str(RunFolder(job.folder).refit)}
            rows.append({**facts, **again, "state": refit_there(job, start) if done else NOTHING})
    return [row | {"state": "missing" if row["state"] == NOTHING else row["state"]} for row in rows]


def unwritten(request: ComparisonRequest, target: str) -> bool:
    """Whether a target is a subset that is still to be drawn, or drawn again."""
    return target in request.subsets and not is_written(request.store, request.subsets[target])


def prepare_dry(request: ComparisonRequest, force: bool) -> Prepared:
    """As `prepare`, without writing subsets: the domains they are to be drawn from stand in for those not there yet."""
    absent = [target for target in request.targets if unwritten(request, target)]
    if not absent or request.given:  # runs that were handed in have seen their subset
        return prepare(request, force)
    arms, mixes = plan_arms(request)
    work = list(jobs(arms, request))
    there = tuple(target for target in request.targets if target not in absent)
    ready = prepare(replace(request, targets=there), force).jobs if there else []
    whole = tuple(dict.fromkeys(request.subsets[target].of for target in absent))
    prepare(replace(request, targets=whole, subsets={}, out=request.out / "unwritten"), force)
    settled = {(job.target, job.arm.name, job.seed): job for job in ready}
    work = [settled.get((job.target, job.arm.name, job.seed), job) for job in work]
    return Prepared(arms, mixes, work, starts_of(work, force=force), {}, {})


def state_of_mix(mix: Mix, start: Checkpoint, force: bool) -> str:
    """How much of a checked mix is done: NOTHING, UNFINISHED or FINISHED. start: see starts_of."""
    if is_there(start):
        return FINISHED
    return UNFINISHED if RunFolder(mix.folder).is_unfinished() and not force else NOTHING


def state_of(job: Job, request: ComparisonRequest, starts: Starts, force: bool) -> str:
    """How much of a job is done: NOTHING, UNFINISHED or FINISHED."""
    if job.arm.kind == GIVEN:
        return FINISHED
    if force:
        return NOTHING
    if job.arm.kind == UNTRAINED:
        same = read_record(job, request).get("fingerprint") == record_of_baseline(job)["fingerprint"]
        return FINISHED if same and ranks_of(job).exists() else NOTHING
    return job_there(job, request, starts[job.mix.name] if job.mix else None)


# -- work -------------------------------------------------------------------------------------------------------


def pretrain(mix: Mix, force: bool, progress: Progress) -> None:
    """Pre-train a mix of sources, unless that was done."""
    resume = not force and RunFolder(mix.folder).is_unfinished()
    done, was_there = run_stage(
        mix.request, mix.folder, force=force, resume=resume, progress=lambda _: progress(f"{PRETRAIN} {mix.name}")
    )
    log.info(
        f"{PRETRAIN} {mix.name} ({', '.join(mix.request.domains)}): {'fresh' if was_there else 'trained'}, "
        f"best epoch {done.best_epoch} of {done.epochs}"
    )


def finish_all(work: list[Job], request: ComparisonRequest, force: bool, progress: Progress) -> list[dict[str, Any]]:
    """Finish runs in turn, and log each; see finish. Raises IntegrityError, once the others are finished, if one is
    damaged."""
    results, damaged = [], []
    for number, job in enumerate(work, 1):
        try:
            results.append(finish(job, request, force, progress))
        except IntegrityError as error:
            damaged.append(error)
            log.warning(f"[{number}/{len(work)}] {label_of(job)}: {error.message}")
            continue
        log.info(f"[{number}/{len(work)}] {label_of(job)}: {results[-1]['status']}")
    raise_first(damaged, len(work))
    return results


def raise_first(damaged: Sequence[IntegrityError], of: int) -> None:
    """Raise what is wrong with the first of several damaged runs, once the others are finished."""
    if damaged:
        others = f" ({len(damaged)} of {of} runs are damaged; the others are finished)"
        raise IntegrityError(damaged[0].message + others, damaged[0].next_command)


def finish(job: Job, request: ComparisonRequest, force: bool, progress: Progress) -> dict[str, Any]:
    """Train (or fit) and evaluate one run as far as that is not done; the content of its JSON in results/.

    It has the run's fingerprint and weights, budget, seconds of training and the evaluation under both protocols.
    Raises IntegrityError if a file of the run is damaged, or if its ranks are not those of its result.
    """
    known = {} if force else read_record(job, request)
    untrained = job.arm.kind == UNTRAINED
    facts = record_of_baseline(job) if untrained else train_job(job, request, force, progress)
    status = facts.pop("status")
    same = all(known.get(key) == facts[key] for key in ("fingerprint", "weights_sha256"))
    same = same and (comparison.BEYOND in known or not request.config.beyond_accuracy)
    if same and ranks_of(job).exists():
        mend = comparison.ranks_again(job, request.store)
        require_own(read_table(ranks_of(job), comparison.COMPARED, mend), known["protocols"], ranks_of(job), mend)
        return {**known, "status": "fresh" if untrained else status}
    if untrained:
        found = judge_baseline(request.store, job.arm.name, job.target, job.folder, SPLIT)
        facts |= {key: found[key] for key in ("seconds", "weights") if key in found}
    else:
        judging = EvaluateConfig(split=SPLIT, device=request.training.device)
        found = evaluate_run(request.store, job.folder, job.target, judging)
    record = {
        "arm": job.arm.name,
        "kind": job.arm.kind,
        "mix": job.mix.name if job.mix else None,
        "target": job.target,
        "seed": job.seed,
        "run": str(job.folder),
        **facts,
        **{key: found[key] for key in ("split", "items", "positions", "target_in_history", "protocols")},
    }
    if request.config.beyond_accuracy:
        record[comparison.BEYOND] = measure_beyond(job, request)
    path = request.out / job.record()
    make_folder(path.parent)
    write_json(path, record)
    return {**record, "status": status}


def measure_beyond(job: Job, request: ComparisonRequest) -> dict[str, Any]:
    """What the recommendations of a judged run are like, beyond accuracy."""
    from antpipe.evaluation.beyond import beyond_accuracy, beyond_accuracy_of_baseline

    if job.arm.kind == UNTRAINED:
        return beyond_accuracy_of_baseline(request.store, job.arm.name, job.target, job.folder, SPLIT)
    return beyond_accuracy(request.store, job.folder, job.target, SPLIT)


def read_record(job: Job, request: ComparisonRequest) -> dict[str, Any]:
    """The result of a job that was finished before; empty if there is none, or, with a warning, if it is damaged."""
    path = request.out / job.record()
    try:
        read_json(path, Record, None)
        return read_json(path, dict[str, Any], None)
    except FileNotFoundError:
        return {}
    except IntegrityError as error:
        log.warning(f"{error.message}; it will be recomputed")
        return {}


def ranks_of(job: Job) -> Path:
    return RunFolder(job.folder).ranks(job.target, SPLIT)


def label_of(job: Job) -> str:
    return f"{job.target}  {job.arm.name}  seed {job.seed}{'' if job.refit is None else '  refit'}"


def record_of_baseline(job: Job) -> dict[str, Any]:
    """What is recorded of a baseline that is not trained. It is fitted only when it is judged."""
    fingerprint = baseline_fingerprint(job.request.store, job.arm.name, job.target)
    return {"fingerprint": fingerprint, "weights_sha256": "", "budget": {}, "seconds": 0.0, "status": "judged"}


def train_job(job: Job, request: ComparisonRequest, force: bool, progress: Progress) -> dict[str, Any]:
    """Train a run unless it is finished or was handed in; return what is recorded of it."""
    folder, was_there, decision = RunFolder(job.folder), True, dict[str, Any]()
    label = label_of(job)
    if job.arm.kind == RACED:
        resume, reads = not force and folder.candidates.exists(), planned(job.as_control()).described.reads(job.target)
        _, was_there, decision = run_auto(
            job.request,
            job.folder,
            race=request.race,
            force=force,
            resume=resume,
            reads=reads,
            progress=lambda stage: progress(f"{label}: {stage}"),
        )
    elif isinstance(job.request, ForkMergeRequest):
        resume = not force and folder.is_unfinished()
        _, was_there, _ = run_fork_merge(
            job.request,
            job.folder,
            force=force,
            resume=resume,
            progress=lambda part: progress(f"{label}: {part}"),
        )
    elif job.arm.kind != GIVEN:
        resume = not force and folder.is_unfinished()
        _, was_there = run_stage(
            job.request, job.folder, force=force, resume=resume, progress=lambda _: progress(label)
        )
    done = checkpoint.describe(job.folder)
    return {
        "fingerprint": done.fingerprint,
        "weights_sha256": done.weights_sha256,
        "budget": budget_of(done, decision),
        "seconds": seconds_of(folder),
        "status": "fresh" if was_there else "trained",
    } | ({"chosen": decision["chosen"]} if decision else {})


def budget_of(done: Checkpoint, decision: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was allowed and what it took: the training settings that are a budget, and the epochs it did.

    decision: that of the race it won, if any; then the epochs of the winner's first stage count too.
    """
    kept = ("epochs", "batch_size", "lr", "lr_decay", "patience", "limit_steps", "precision")
    before = decision["epochs"] - done.train["epochs"] if decision else 0
    return {
        **{key: done.train[key] for key in kept},
        "epochs": done.train["epochs"] + before,
        "epochs_done": done.epochs + before,
        "best_epoch": done.best_epoch and done.best_epoch + before,  # 0: its floor
    }


def seconds_of(folder: RunFolder) -> float | None:
    """Seconds of training, of all candidates if there was a race; None if the run does not say."""
    decision = folder.read_decision()
    return sum(decision["seconds"].values()) if decision else folder.read_cost().get("seconds")

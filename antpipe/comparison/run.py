"""`antpipe compare`: train what is missing, judge everything on the test split, and say whether transfer helped.

All of it is in one folder: pre-trained mixes in pretrain/, runs in TARGET/, one small JSON a run in results/, and the
outcome in comparison.json and comparison.md. Interrupted anywhere, the same command goes on.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from antpipe.comparison import outcome as comparison
from antpipe.comparison.checks import SPLIT, as_control, check_alike, check_request, job_there, mix_there, settled
from antpipe.comparison.plan import GIVEN, RACED, UNTRAINED, Job, Mix, Request, jobs, plan_arms
from antpipe.comparison.table import as_markdown
from antpipe.errors import UsageError
from antpipe.evaluation.baselines.judge import baseline_fingerprint, judge_baseline
from antpipe.evaluation.evaluate import evaluate_run
from antpipe.runtime.files import atomic
from antpipe.runtime.progress import Update
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.store.files import write_json
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.parallel import world_of
from antpipe.training.race import run_auto, without_next
from antpipe.training.race_folder import FOLDER, read_decision
from antpipe.training.run import PRETRAIN, run_stage
from antpipe.training.state import COST, FINISHED, NOTHING, UNFINISHED, has_state, read_cost

OUTCOME = "comparison"  # .json and .md
Say = Callable[[str], None]
Watch = Callable[[str], AbstractContextManager[Update]]


def run_comparison(request: Request, *, force: bool, notice: Say, watch: Watch) -> dict[str, Any]:
    """Train what is missing, evaluate, test, and write comparison.json and comparison.md to the folder.

    force: train everything of this comparison anew. notice: gets a line a run. watch: shows progress under a label.
    Returns the content of comparison.json (see comparison.outcome). Raises UsageError or DataError, before anything is
    trained as far as possible, where arms, runs and targets do not go together; the difference is named.
    """
    if world_of().size > 1:
        raise UsageError("compare runs in one process", "the same command without torchrun")
    request, notice = replace(request, training=settled(request.training)), once(notice)
    arms, to_pretrain = plan_arms(request)
    work = list(jobs(arms, request))
    check_request(request, work, force=force)
    for mix in to_pretrain:
        pretrain(mix, request, force, notice, watch)
    check_alike(request, work, force=force, pretrained=True)  # now that every run to start from is there
    results = []
    for number, job in enumerate(work, 1):
        results.append(finish(job, request, force, notice, watch))
        notice(f"[{number}/{len(work)}] {job.target}  {job.arm.name}  seed {job.seed}: {results[-1]['status']}")
    outcome = comparison.outcome(request, arms, work, results)
    write_json(request.out / f"{OUTCOME}.json", outcome)
    text = as_markdown(outcome)
    with atomic(request.out / f"{OUTCOME}.md") as scratch:
        scratch.write_text(text, encoding="utf-8")
    return outcome


def once(notice: Say) -> Say:
    """Say each thing a single time: what holds for one run of a comparison mostly holds for all."""
    said: set[str] = set()

    def say(message: str) -> None:
        if message not in said:
            said.add(message)
            notice(message)

    return say


def what_would_be_done(request: Request, *, force: bool) -> list[dict[str, Any]]:
    """For --dry-run: a row for each pre-training and run with its state: finished, unfinished or missing. Raises what
    run_comparison would, before it trains."""
    request = replace(request, training=settled(request.training))
    arms, to_pretrain = plan_arms(request)
    work = list(jobs(arms, request))
    check_request(request, work, force=force)
    rows = [
        {
            "target": ", ".join(mix.domains),
            "arm": PRETRAIN,
            "seed": mix.training.seed,
            "folder": str(mix.folder),
            "state": NOTHING if force else mix_there(mix, request),
        }
        for mix in to_pretrain
    ]
    begun = {mix.folder: row["state"] == FINISHED for mix, row in zip(to_pretrain, rows, strict=True)}
    for job in work:
        ready = not job.arm.mix or begun.get(job.arm.mix.folder, True)  # else what it starts from will be another run
        rows.append(
            {
                "target": job.target,
                "arm": job.arm.name,
                "seed": job.seed,
                "folder": str(job.folder),
                "state": state_of(job, request, ready, force),
            }
        )
    return [row | {"state": "missing" if row["state"] == NOTHING else row["state"]} for row in rows]


def state_of(job: Job, request: Request, ready: bool, force: bool) -> str:
    """NOTHING, UNFINISHED or FINISHED: how far a job was done. ready: the run it starts from is there."""
    if job.arm.kind == GIVEN:
        return FINISHED
    if force:
        return NOTHING
    if job.arm.kind == UNTRAINED:
        path = request.out / job.record()
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        same = known.get("fingerprint") == fit_baseline(job, request)["fingerprint"]
        return FINISHED if same and ranks_of(job).exists() else NOTHING
    if ready:
        return job_there(job, request)
    return UNFINISHED if has_state(job.folder) or (job.folder / FOLDER).exists() else NOTHING


# -- work -------------------------------------------------------------------------------------------------------


def pretrain(mix: Mix, request: Request, force: bool, notice: Say, watch: Watch) -> None:
    """Pre-train a mix of sources, unless that was done."""
    with watch(f"pretrain {mix.name}") as update:
        done, was_there = run_stage(
            request.store,
            mix.domains,
            PRETRAIN,
            out=mix.folder,
            model_config=mix.model,
            config=mix.training,
            source=None,
            force=force,
            resume=not force and has_state(mix.folder),
            notice=without_next(notice),
            progress=lambda row: update(row["epoch"], mix.training.epochs),
        )
    notice(
        f"pretrain {mix.name} ({', '.join(mix.domains)}): {'fresh' if was_there else 'trained'}, "
        f"best epoch {done.best_epoch} of {done.epochs}"
    )


def finish(job: Job, request: Request, force: bool, notice: Say, watch: Watch) -> dict[str, Any]:
    """Train (or fit) and evaluate one run as far as that is not done; the content of its JSON in results/.

    It has the run's fingerprint and weights, budget, seconds of training and the evaluation under both protocols.
    """
    path = request.out / job.record()
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() and not force else {}
    facts = fit_baseline(job, request) if job.arm.kind == UNTRAINED else train_job(job, request, force, notice, watch)
    status = facts.pop("status")
    same = all(known.get(key) == facts[key] for key in ("fingerprint", "weights_sha256"))
    if same and ranks_of(job).exists():
        return {**known, "status": "fresh" if job.arm.kind == UNTRAINED else status}
    if job.arm.kind == UNTRAINED:
        found = judge_baseline(request.store, job.arm.name, job.target, job.folder, SPLIT)
        facts["seconds"] = found["seconds"]
    else:
        judging = EvaluateConfig(split=SPLIT, device=request.training.device)
        found = evaluate_run(request.store, job.folder, job.target, judging, notice)
    record = {
        "arm": job.arm.name,
        "kind": job.arm.kind,
        "mix": job.arm.mix.name if job.arm.mix else None,
        "target": job.target,
        "seed": job.seed,
        "run": str(job.folder),
        **facts,
        **{key: found[key] for key in ("split", "items", "positions", "target_in_history", "protocols")},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return {**record, "status": status}


def ranks_of(job: Job) -> Path:
    return job.folder / f"ranks-{job.target}-{SPLIT}.parquet"


def fit_baseline(job: Job, request: Request) -> dict[str, Any]:
    """A baseline without training is fitted when it is judged; this only says which one it is."""
    fingerprint = baseline_fingerprint(request.store, job.arm.name, job.target)
    return {"fingerprint": fingerprint, "weights_sha256": "", "budget": {}, "seconds": 0.0, "status": "judged"}


def train_job(job: Job, request: Request, force: bool, notice: Say, watch: Watch) -> dict[str, Any]:
    """Train a run unless it is finished or was handed in; what is recorded of it."""
    arm, training = job.arm, job.training()
    source = arm.mix.folder if arm.mix else None
    with watch(f"{job.target} {arm.name} seed {job.seed}") as update:
        request_of_run: dict[str, Any] = {
            "out": job.folder,
            "model_config": arm.model,
            "config": training,
            "source": source,
            "force": force,
            "notice": without_next(notice),
            "progress": lambda row: update(row["epoch"], training.epochs),
        }
        was_there = True
        if arm.kind == RACED:
            label = f"{job.target}  {arm.name}  seed {job.seed}"
            request_of_run["notice"] = lambda said: notice(f"{label}, {said}" if said.startswith("after ") else said)
            _, was_there, _ = run_auto(
                request.store,
                [job.target],
                **request_of_run,
                race=request.race,
                resume=not force and (job.folder / FOLDER).exists(),
                reads=as_control(job, request).modalities,
            )
        elif arm.kind != GIVEN:
            _, was_there = run_stage(
                request.store,
                [job.target],
                arm.stage,
                **request_of_run,
                own_stages=request.own_stages,
                resume=not force and has_state(job.folder),
            )
    done, decision = checkpoint.describe(job.folder), read_decision(job.folder) if arm.kind == RACED else {}
    return {
        "fingerprint": done.fingerprint,
        "weights_sha256": done.weights_sha256,
        "budget": budget_of(done, decision),
        "seconds": seconds_of(job),
        "status": "fresh" if was_there else "trained",
    } | ({"chosen": decision["chosen"]} if decision else {})


def budget_of(done: Checkpoint, decision: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was allowed and took: settings of training that are a budget, and the epochs it went through.

    decision: of the race it won, if any: the epochs of the stage that the winner went through before count too.
    """
    kept = ("epochs", "batch_size", "lr", "lr_decay", "patience", "limit_steps", "precision")
    before = decision["epochs"] - done.train["epochs"] if decision else 0
    return {
        **{key: done.train[key] for key in kept},
        "epochs": done.train["epochs"] + before,
        "epochs_done": done.epochs + before,
        "best_epoch": done.best_epoch + before,
    }


def seconds_of(job: Job) -> float | None:
    """Seconds of training, of all candidates where there was a race; None where the run does not tell."""
    decision: Mapping[str, Any] = read_decision(job.folder)
    if decision:
        return float(sum(decision["seconds"].values()))
    return read_cost(job.folder)["seconds"] if (job.folder / COST).exists() else None

"""`train --stage auto`: a race among stages on the validation split, by successive halving.

All candidates train to the first rung, the worse half is dropped, the others go on to the next one, and the last goes
on to the full number of epochs (Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943). A candidate resumes its
own state, so the winner is the run it would have been alone. The test split is never read.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from antpipe import checkpoint
from antpipe.checkpoint import DESCRIPTION, Checkpoint
from antpipe.config import ModelConfig, RaceConfig, TrainConfig
from antpipe.devices import choose_device, choose_precision
from antpipe.errors import DataError, DivergedError, UsageError
from antpipe.parallel import world_of
from antpipe.resume import COST, METRICS, Paused, has_state, position_of
from antpipe.runs import nothing, plan_run, run_stage
from antpipe.settings import to_json
from antpipe.store import Store, digest, write_json
from antpipe.train import SELECTION

AUTO = "auto"  # the name of the stage
DECISION = "auto.json"
FOLDER = "candidates"  # in the run, until the race is over
# The stages of a candidate, one after the other: after the first rung the second goes on from the first.
STAGES_OF: dict[str, tuple[str, ...]] = {
    "scratch": ("scratch",),
    "finetune": ("finetune",),
    "relearn": ("relearn",),
    "relearn-then-unfreeze": ("relearn", "unfreeze"),
}


@dataclass(frozen=True)
class Leg:
    """One stage of a candidate: where it trains, from what, and for how many epochs."""

    stage: str
    folder: Path
    source: Path | None
    epochs: int


@dataclass(frozen=True)
class Request:
    """What all candidates have in common."""

    store: Store
    domain: str
    out: Path
    source: Path
    model: ModelConfig
    training: TrainConfig
    race: RaceConfig
    notice: Callable[[str], None]
    progress: Callable[[dict[str, Any]], None]


def rungs(epochs: int, eval_every: int, first: float) -> list[int]:
    """Epochs after which candidates are dropped: the share `first` of all, twice that, and so on, below all of them;
    each is one that is validated."""
    found: list[int] = []
    share = first
    while share < 1:
        rung = -(-max(1, round(epochs * share)) // eval_every) * eval_every
        if rung < epochs and rung not in found:
            found.append(rung)
        share *= 2
    return found


def survivors(scores: Mapping[str, float]) -> list[str]:
    """The better half, rounded up; who is level with the last of them stays too."""
    cut = sorted(scores.values(), reverse=True)[math.ceil(len(scores) / 2) - 1]
    return [name for name, score in scores.items() if score >= cut]


def legs_of(name: str, request: Request) -> list[Leg]:
    """The stages of a candidate with their share of the epochs."""
    epochs, marks = request.training.epochs, rungs_of(request)
    first, *more = STAGES_OF[name]
    home = request.out / FOLDER / name
    start = request.source if first != "scratch" else None
    if not more:
        return [Leg(first, home, start, epochs)]
    turn = marks[0] if marks else max(1, epochs // 2)
    before = home.with_name(f"{name}-1")
    return [Leg(first, before, start, turn), Leg(more[0], home, before, epochs - turn)]


def rungs_of(request: Request) -> list[int]:
    return rungs(request.training.epochs, request.training.eval_every, request.race.first_rung)


def run_auto(
    store: Store,
    domains: Sequence[str],
    *,
    out: Path,
    model_config: ModelConfig,
    config: TrainConfig,
    race: RaceConfig,
    source: Path | None,
    force: bool,
    resume: bool = False,
    notice: Callable[[str], None],
    progress: Callable[[dict[str, Any]], None],
) -> tuple[Checkpoint, bool, dict[str, Any]]:
    """Race the candidates and leave the winner's run in `out`, with the race in RUN/auto.json.

    Takes what run_stage takes. Returns the checkpoint, whether it was there already, and the content of auto.json:
    `chosen`, `why`, `rungs` (epochs, validation scores and who was kept), `left_out` (why by candidate) and the
    `seconds` all of it took. Raises UsageError where the request or the folder does not fit.
    """
    if source is None or len(domains) != 1:
        raise UsageError("--stage auto chooses for one target, from a checkpoint: give one domain and --from RUN")
    if world_of().size > 1:
        raise UsageError("--stage auto runs in one process", "the same command without torchrun")
    if force and resume:
        raise UsageError("--force begins anew and --resume goes on: choose one of them")
    config = replace(config, precision=choose_precision(config.precision, choose_device(config.device)))
    request = Request(store, domains[0], out, source, model_config, config, race, notice, progress)
    able, left_out = able_candidates(request)
    fingerprint = digest([AUTO, race.first_rung, list(able), able, to_json(config)["epochs"]])
    there = read_decision(out)
    if not force and there.get("fingerprint") == fingerprint and (out / DESCRIPTION).exists():
        shutil.rmtree(out / FOLDER, ignore_errors=True)
        return checkpoint.describe(out), True, there
    check_folder(out, force=force, resume=resume)
    decision = {"fingerprint": fingerprint, **run_race(list(able), left_out, request)}
    take_over(request, decision)
    return checkpoint.describe(out), False, decision


def able_candidates(request: Request) -> tuple[dict[str, str], dict[str, str]]:
    """Candidates that can train here with the fingerprint of their first stage, and the others with the reason."""
    able, left_out = {}, {}
    for name in request.race.candidates:
        if len(STAGES_OF[name]) > request.training.epochs:
            left_out[name] = f"it takes at least {len(STAGES_OF[name])} epochs"
            continue
        leg = legs_of(name, request)[0]
        try:
            plan = plan_run(
                request.store, [request.domain], leg.stage, model_config=request.model,
                config=replace(request.training, epochs=leg.epochs), source=leg.source, notice=nothing,
            )  # fmt: skip
            able[name] = plan.described.fingerprint
        except DataError as error:
            if name == "scratch":  # what it lacks, all lack
                raise
            left_out[name] = error.message
            request.notice(f"{name} is left out: {error.message}")
    if not able:
        raise DataError(f"no candidate can train on {request.domain}: {'; '.join(left_out.values())}")
    return able, left_out


def check_folder(out: Path, *, force: bool, resume: bool) -> None:
    """Refuse a folder with another run, or with an unfinished race that is neither gone on with nor given up."""
    if force:
        shutil.rmtree(out / FOLDER, ignore_errors=True)
        (out / DECISION).unlink(missing_ok=True)
    elif (out / FOLDER).exists():
        if not resume:
            raise UsageError(f"{out} holds an unfinished race: --resume goes on from there, --force begins again")
    elif (out / DESCRIPTION).exists() or has_state(out):
        raise UsageError(f"--out {out}: holds another run", "name another folder, or add --force")


def run_race(names: list[str], left_out: dict[str, str], request: Request) -> dict[str, Any]:
    """Train, compare and drop until one is left, then train that one to the end."""
    found: list[dict[str, Any]] = []
    racing = names
    for rung in rungs_of(request) or [request.training.epochs]:  # too few epochs for rungs: all of them train
        if len(racing) == 1:
            break
        scores = {}
        for name in racing:
            try:
                train_until(legs_of(name, request), rung, request)
                scores[name] = score_at(legs_of(name, request), rung)
            except DivergedError as error:
                left_out[name] = error.message
        if not scores:
            raise DivergedError(f"every candidate diverged: {'; '.join(left_out.values())}")
        racing = survivors(scores)
        found.append({"epochs": rung, "scores": scores, "kept": racing})
        request.notice(f"after {rung} epochs, valid_{SELECTION}: {told(scores)}; goes on: {', '.join(racing)}")
    last = found[-1]["scores"] if found else dict.fromkeys(racing, 0.0)
    chosen = max(racing, key=lambda name: last[name])  # the first of equal ones
    train_until(legs_of(chosen, request), request.training.epochs, request)
    seconds = {
        name: sum(row["seconds"] for leg in legs_of(name, request) for row in rows_of(leg)) for name in names
    }  # fmt: skip
    return {
        "chosen": chosen, "why": reason(chosen, found, left_out), "selection": f"valid {SELECTION}, protocol all",
        "epochs": request.training.epochs, "rungs": found, "left_out": left_out, "seconds": seconds,
    }  # fmt: skip


def train_until(legs: Sequence[Leg], epochs: int, request: Request) -> None:
    """Go on with a candidate until it has trained this many epochs in all."""
    for leg in legs:
        here = min(leg.epochs, epochs)
        epochs -= here
        if here == 0 or (has_state(leg.folder) and here <= len(position_of(leg.folder).rows) < leg.epochs):
            continue
        with suppress(Paused):
            run_stage(
                request.store, [request.domain], leg.stage, out=leg.folder, model_config=request.model,
                config=replace(request.training, epochs=leg.epochs), source=leg.source, force=False,
                resume=has_state(leg.folder), pause_after=here if here < leg.epochs else 0,
                notice=without_next(request.notice), progress=request.progress,
            )  # fmt: skip


def without_next(notice: Callable[[str], None]) -> Callable[[str], None]:
    """The same without the advice how to go on with a single run: it is the whole that is to be gone on with."""
    return lambda message: None if message.startswith("next: ") else notice(message)


def rows_of(leg: Leg) -> list[dict[str, Any]]:
    """The figures of a leg's epochs so far; those that led to a finished run too."""
    path = leg.folder / METRICS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def score_at(legs: Sequence[Leg], epochs: int) -> float:
    """The best validation score of the stage a candidate is in after this many epochs, up to then."""
    offset = 0
    for leg in legs[:-1]:
        if epochs <= offset + leg.epochs:
            break
        offset += leg.epochs
    else:
        leg = legs[-1]
    rows = [row for row in rows_of(leg) if offset + row["epoch"] <= epochs]
    return max(float(row[f"valid_{SELECTION}"]) for row in rows if f"valid_{SELECTION}" in row)


def told(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {score:.4f}" for name, score in sorted(scores.items(), key=lambda pair: -pair[1]))


def reason(chosen: str, found: list[dict[str, Any]], left_out: Mapping[str, str]) -> str:
    """Why this one, in a sentence."""
    if not found:
        return "the only candidate" + (f"; left out: {', '.join(left_out)}" if left_out else "")
    last = found[-1]
    level = [name for name, score in last["scores"].items() if score == last["scores"][chosen] and name != chosen]
    return f"valid_{SELECTION} after {last['epochs']} epochs: {told(last['scores'])}" + (
        f" (level with {', '.join(level)}; the first in order counts)" if level else ""
    )


def read_decision(out: Path) -> dict[str, Any]:
    """What an earlier race in this folder decided; empty where there was none."""
    path = out / DECISION
    decision: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return decision


def take_over(request: Request, decision: dict[str, Any]) -> None:
    """The winner's run becomes that of the folder; the candidates go, once the decision is on the disk."""
    winner, out = legs_of(decision["chosen"], request)[-1].folder, request.out
    weights = checkpoint.weights_path(winner, checkpoint.describe(winner).weights_sha256)
    for name in (weights.name, METRICS, COST, DESCRIPTION):  # the description last: it names the weights
        scratch = out / f".{name}"
        shutil.copyfile(winner / name, scratch)
        scratch.replace(out / name)
    for leftover in out.glob("model-*.safetensors"):
        if leftover.name != weights.name:
            leftover.unlink()
    write_json(out / DECISION, decision)
    shutil.rmtree(out / FOLDER)

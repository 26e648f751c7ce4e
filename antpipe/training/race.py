"""`train --stage auto`: a race among stages on the validation split, by successive halving.

All candidates train to the first rung, the worse half is dropped, the others go on to the next one, and the last goes
on to the full number of epochs (Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943). A candidate resumes its
own state, so the winner is the run it would have been alone. The test split is never read.
"""

import json
import math
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from antpipe.errors import DataError, DivergedError, UsageError
from antpipe.runtime.devices import choose_device, choose_precision
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import RaceConfig, TrainConfig
from antpipe.store.files import digest
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.loop import SELECTION
from antpipe.training.parallel import world_of
from antpipe.training.race_folder import FOLDER, begin_race, lock, race_there, read_decision, take_over
from antpipe.training.run import nothing, plan_run, run_stage
from antpipe.training.state import FINISHED, METRICS, Paused, has_state, position_of

AUTO = "auto"  # the name of the stage
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
    reads: frozenset[str] | None = None

    def again(self) -> str:
        """The command that begins anew."""
        return f"antpipe train --stage {AUTO} --domains {self.domain} --from {self.source} --out {self.out} … --force"


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
    reads: Collection[str] | None = None,
    notice: Callable[[str], None],
    progress: Callable[[dict[str, Any]], None],
) -> tuple[Checkpoint, bool, dict[str, Any]]:
    """Race the candidates and leave the winner's run in `out`, with the race in RUN/auto.json.

    Takes what run_stage takes. reads: leave out candidates that would read other modalities than these. Returns the
    checkpoint, whether it was there already, and the content of auto.json: `chosen`, `why`, `rungs` (epochs, validation
    scores and who was kept), `left_out` (why by candidate), the `seconds` all of it took and the `weights_sha256` of
    the winner. Raises UsageError where the request or the folder does not fit, AntpipeError where another process is at
    work in it.
    """
    if source is None or len(domains) != 1:
        raise UsageError("--stage auto chooses for one target, from a checkpoint: give one domain and --from RUN")
    if world_of().size > 1:
        raise UsageError("--stage auto runs in one process", "the same command without torchrun")
    if force and resume:
        raise UsageError("--force begins anew and --resume goes on: choose one of them")
    check_limits(config)
    config = replace(config, precision=choose_precision(config.precision, choose_device(config.device)))
    modalities = None if reads is None else frozenset(reads)
    request = Request(store, domains[0], out, source, model_config, config, race, notice, progress, modalities)
    able, left_out = able_candidates(request)
    fingerprint = fingerprint_of(able, request)
    with lock(out, force):
        if not force and race_there(out, fingerprint, resume=resume) == FINISHED:
            shutil.rmtree(out / FOLDER, ignore_errors=True)
            return checkpoint.describe(out), True, read_decision(out)
        begin_race(out, fingerprint, force=force)
        decision = {"fingerprint": fingerprint, **run_race(list(able), left_out, request)}
        take_over(legs_of(decision["chosen"], request)[-1].folder, out, decision)
    return checkpoint.describe(out), False, decision


def what_is_raced(
    store: Store,
    domain: str,
    *,
    out: Path,
    model_config: ModelConfig,
    config: TrainConfig,
    race: RaceConfig,
    source: Path,
    reads: Collection[str],
) -> str:
    """What run_auto would find in the folder: NOTHING, UNFINISHED or FINISHED; config: with its precision settled.
    Raises UsageError where it would refuse the folder."""
    request = Request(store, domain, out, source, model_config, config, race, nothing, nothing, frozenset(reads))
    return race_there(out, fingerprint_of(able_candidates(request)[0], request), resume=True)


def check_limits(config: TrainConfig) -> None:
    """Refuse a limit of steps: it would hold for each stage of a candidate, and no race has rungs in steps."""
    if config.limit_steps:
        raise UsageError("--limit-steps does not go with --stage auto, which counts in epochs", "use --epochs instead")


def fingerprint_of(able: Mapping[str, str], request: Request) -> str:
    """Of all that determines a race. able: by candidate, the fingerprint of its first stage."""
    return digest([AUTO, request.race.first_rung, list(able), dict(able), request.training.epochs])


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
                request.store,
                [request.domain],
                leg.stage,
                model_config=request.model,
                config=replace(request.training, epochs=leg.epochs),
                source=leg.source,
                notice=nothing,
            )
            read = plan.described.modalities.keys()
            if request.reads is not None and read != request.reads:
                raise DataError(f"it reads {', '.join(sorted(read))}, not {', '.join(sorted(request.reads))}")
            able[name] = plan.described.fingerprint
        except DataError as error:
            if name == "scratch":  # what it lacks, all lack
                raise
            left_out[name] = error.message
            request.notice(f"{name} is left out: {error.message}")
    if not able:
        raise DataError(f"no candidate can train on {request.domain}: {'; '.join(left_out.values())}")
    return able, left_out


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
            raise all_diverged(left_out, request)
        racing = survivors(scores)
        found.append({"epochs": rung, "scores": scores, "kept": racing})
        request.notice(f"after {rung} epochs, valid_{SELECTION}: {told(scores)}; goes on: {', '.join(racing)}")
    chosen = finish_best(found[-1]["scores"] if found else dict.fromkeys(racing, 0.0), left_out, request)
    seconds = {name: sum(row["seconds"] for leg in legs_of(name, request) for row in rows_of(leg)) for name in names}
    return {
        "chosen": chosen,
        "why": reason(chosen, found, left_out),
        "selection": f"valid {SELECTION}, protocol all",
        "epochs": request.training.epochs,
        "rungs": found,
        "left_out": left_out,
        "seconds": seconds,
    }


def finish_best(scores: Mapping[str, float], left_out: dict[str, str], request: Request) -> str:
    """Train the best of the last rung to the end, the next best where that one diverges; its name."""
    for name in sorted(scores, key=lambda name: -scores[name]):  # of equal ones the first
        try:
            train_until(legs_of(name, request), request.training.epochs, request)
            return name
        except DivergedError as error:
            left_out[name] = error.message
            request.notice(f"{name} is left out: {error.message}")
    raise all_diverged(left_out, request)


def all_diverged(left_out: Mapping[str, str], request: Request) -> DivergedError:
    said = "; ".join(f"{name}: {why}" for name, why in left_out.items())
    return DivergedError(f"every candidate diverged or was left out: {said}", f"{request.again()}, and a smaller --lr")


def train_until(legs: Sequence[Leg], epochs: int, request: Request) -> None:
    """Go on with a candidate until it has trained this many epochs in all."""
    for leg in legs:
        here = min(leg.epochs, epochs)
        epochs -= here
        if here == 0 or (has_state(leg.folder) and here <= len(position_of(leg.folder).rows) < leg.epochs):
            continue
        with suppress(Paused):
            run_stage(
                request.store,
                [request.domain],
                leg.stage,
                out=leg.folder,
                model_config=request.model,
                config=replace(request.training, epochs=leg.epochs),
                source=leg.source,
                force=False,
                resume=has_state(leg.folder),
                pause_after=here if here < leg.epochs else 0,
                notice=without_next(request.notice),
                progress=request.progress,
            )


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
    diverged = [name for name in last["scores"] if name in left_out]
    return (
        f"valid_{SELECTION} after {last['epochs']} epochs: {told(last['scores'])}"
        + (f" (level with {', '.join(level)}; the first in order counts)" if level else "")
        + (f"; {', '.join(diverged)} diverged later" if diverged else "")
    )

"""`train --stage auto`: a race among stages on the validation split, by successive halving.

All candidates train to the first rung, the worse half is dropped, the others continue to the next one, and the last of
them to the full number of epochs (Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943). A candidate resumes
its own state, so the winner is the run it would have been alone. The test split is never read.
"""

import math
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from antpipe.errors import DataError, DivergedError, SameCommand, UsageError
from antpipe.runtime.files import atomic, make_folder
from antpipe.runtime.logs import each_message_once, log, silenced
from antpipe.runtime.process import continued_by
from antpipe.runtime.progress import Progress, silent
from antpipe.settings.base import flags_of
from antpipe.settings.comparison import RaceConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.documents import read_json, write_json
from antpipe.store.manifest import digest
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.folder import TRAIN_AGAIN, RunFolder, another_folder
from antpipe.training.parallel import world_of
from antpipe.training.request import RunRequest
from antpipe.training.run import FINISHED, NOTHING, UNFINISHED, check_folder, run_stage
from antpipe.training.state import Paused, in_epochs, position_of
from antpipe.training.tracking import TENSORBOARD
from antpipe.training.worth import GAIN, KEPT, LEAST_GAIN, RERANKED, SELECTION, START, TIE_BREAK, VALID, standing

AUTO = "auto"  # the name of the stage
# The stages of a candidate, one after the other: after the first rung the second continues from the first.
STAGES_OF: dict[str, tuple[str, ...]] = {
    "scratch": ("scratch",),
    "finetune": ("finetune",),
    "relearn": ("relearn",),
    "relearn-then-unfreeze": ("relearn", "unfreeze"),
}


@dataclass(frozen=True)
class Leg:
    """One stage of a candidate, and the folder it trains in."""

    request: RunRequest
    folder: RunFolder

    @property
    def epochs(self) -> int:
        return self.request.training.epochs


@dataclass(frozen=True)
class Race:
    """A race: the run requested, the folder it goes to, and how the winner is chosen.

    reads: candidates that would read other modalities are left out.
    """

    request: RunRequest
    folder: RunFolder
    config: RaceConfig
    reads: frozenset[str] | None = None

    def rungs(self) -> list[int]:
        training = self.request.training
        return rungs(training.epochs, training.eval_every, self.config.first_rung)

    def legs(self, name: str) -> list[Leg]:
        """The stages of a candidate with their share of the epochs."""
        epochs, marks = self.request.training.epochs, self.rungs()
        first, *more = STAGES_OF[name]
        home = RunFolder(self.folder.candidates / name)
        start = self.request.source if first != "scratch" else None
        if not more:
            return [self._leg(first, home, start, epochs)]
        turn = marks[0] if marks else max(1, epochs // 2)
        before = RunFolder(home.path.with_name(f"{name}-1"))
        return [self._leg(first, before, start, turn), self._leg(more[0], home, before.path, epochs - turn)]

    def _leg(self, stage: str, folder: RunFolder, source: Path | None, epochs: int) -> Leg:
        training = replace(self.request.training, epochs=epochs)
        return Leg(replace(self.request, stage=stage, source=source, training=training), folder)

    def command(self, *more: str) -> str:
        """The command line of this race, with more flags."""
        flags = [*flags_of(self.config, environment=os.environ), *more]
        return replace(self.request, own_stages={}).command(self.folder.path, *flags)


def rungs(epochs: int, eval_every: int, first: float) -> list[int]:
    """Epochs after which candidates are dropped: the share `first` of all, twice that, and so on, below all of them.

    Each of them is validated.
    """
    found: list[int] = []
    share = first
    while share < 1:
        rung = -(-max(1, round(epochs * share)) // eval_every) * eval_every
        if rung < epochs and rung not in found:
            found.append(rung)
        share *= 2
    return found


Score = tuple[float, float, float]  # as `worth.standing` returns it


def survivors(scores: Mapping[str, Score]) -> list[str]:
    """The better half, rounded up, and any candidate level with the last of them."""
    cut = sorted(scores.values(), reverse=True)[math.ceil(len(scores) / 2) - 1]
    return [name for name, score in scores.items() if score >= cut]


def run_auto(
    request: RunRequest,
    out: Path,
    *,
    race: RaceConfig,
    force: bool = False,
    resume: bool = False,
    reads: Collection[str] | None = None,
    progress: Progress = silent,
) -> tuple[Checkpoint, bool, dict[str, Any]]:
    """Race the candidates and leave the winner's run in `out`, and how the race went in RUN/auto.json.

    request: of stage auto; the user's own stages take no part. reads: leave out candidates that would read other
    modalities of the domain than these. Otherwise it takes and raises what run_stage does. Returns the checkpoint,
    whether it was there already, and the content of auto.json: `chosen`, `why`, `rungs` (epochs, validation scores and
    candidates kept), `left_out` (why, by candidate), `seconds` by candidate and the winner's `weights_sha256`.
    """
    if request.source is None or len(request.domains) != 1:
        raise UsageError("--stage auto chooses for one target, from a checkpoint: give one domain and --from RUN")
    if world_of().size > 1:
        raise UsageError("--stage auto runs in one process", SameCommand(without=("torchrun",)))
    check_folder(request, out, force=force, resume=resume)
    check_limits(request.training)
    folder = RunFolder(out)
    contest = Race(request, folder, race, None if reads is None else frozenset(reads))
    with each_message_once(), ExitStack() as held:
        able, left_out = able_candidates(contest)
        fingerprint = fingerprint_of(able, contest)
        held.enter_context(folder.lock(force))
        if not force and race_there(folder, fingerprint, resume=resume) == FINISHED:
            shutil.rmtree(folder.candidates, ignore_errors=True)
            return checkpoint.describe(out), True, folder.read_decision()
        begin_race(folder, fingerprint, force=force)
        with continued_by(contest.command("--resume")):
            decision = {"fingerprint": fingerprint, **run_race(list(able), left_out, contest, progress)}
        take_over(contest.legs(decision["chosen"])[-1].folder, folder, decision)
    return checkpoint.describe(out), False, decision


def what_is_raced(request: RunRequest, out: Path, race: RaceConfig, reads: Collection[str]) -> str:
    """What run_auto would find in the folder: NOTHING, UNFINISHED or FINISHED. Raises UsageError if it would refuse."""
    contest = Race(request, RunFolder(out), race, frozenset(reads))
    with silenced():
        able, _ = able_candidates(contest)
    return race_there(contest.folder, fingerprint_of(able, contest), resume=True)


def check_limits(config: TrainConfig) -> None:
    """Refuse a limit of steps: it would hold for each stage of a candidate, and a race has no rungs in steps."""
    if config.limit_steps:
        raise UsageError(
            "--limit-steps does not go with --stage auto, which counts in epochs",
            SameCommand(without=("--limit-steps",)),
        )


def fingerprint_of(able: Mapping[str, str], race: Race) -> str:
    """A hash of everything that determines a race. able: the fingerprint of each candidate's first stage."""
    return digest([AUTO, race.config.first_rung, list(able), dict(able), race.request.training.epochs])


def able_candidates(race: Race) -> tuple[dict[str, str], dict[str, str]]:
    """Candidates that can train here, with the fingerprint of their first stage; and the others, with the reason."""
    able: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name in race.config.candidates:
        if len(STAGES_OF[name]) > race.request.training.epochs:
            leave_out(name, f"it takes at least {len(STAGES_OF[name])} epochs", left_out)
            continue
        try:
            with silenced():
                described = race.legs(name)[0].request.plan().described
            read = described.reads(race.request.domains[0])
            if race.reads is not None and read != race.reads:
                raise DataError(f"it reads {', '.join(sorted(read))}, not {', '.join(sorted(race.reads))}")
            able[name] = described.fingerprint
        except DataError as error:
            if name == "scratch":  # whatever it lacks, the others lack too
                raise
            leave_out(name, error.message, left_out)
    if not able:
        raise DataError(f"no candidate can train on {race.request.domains[0]}: {'; '.join(left_out.values())}")
    return able, left_out


def run_race(names: list[str], left_out: dict[str, str], race: Race, progress: Progress) -> dict[str, Any]:
    """Train, compare and drop until one is left, then train that one to the end."""
    found: list[dict[str, Any]] = []
    scores: dict[str, Score] = {}
    racing, epochs = names, race.request.training.epochs
    for rung in race.rungs() or [epochs]:  # too few epochs for rungs: all candidates train to the end
        if len(racing) == 1:
            break
        scores = {}
        for name in racing:
            try:
                train_until(race.legs(name), rung, progress)
                scores[name] = score_at(race.legs(name), rung)
            except DivergedError as error:
                leave_out(name, error.message, left_out)
        if not scores:
            raise all_diverged(left_out, race)
        racing = survivors(scores)
        recalls = {name: recall for name, (recall, _, _) in scores.items()}
        ties = {name: {TIE_BREAK: ndcg, "loss": -loss} for name, (_, ndcg, loss) in scores.items()}
        found.append({"epochs": rung, "scores": recalls, "ties": ties, "kept": racing})
        log.info(
            f"{race.folder.path}: {VALID}{SELECTION} after {in_epochs(rung)} of {epochs}: {in_order(scores)}; "
            f"kept: {', '.join(racing)}"
        )
    chosen = finish_best(scores or dict.fromkeys(racing, (0.0, 0.0, 0.0)), left_out, race, progress)
    rows = {name: [row for leg in race.legs(name) for row in rows_of(leg)] for name in names}
    return {
        "chosen": chosen,
        "why": reason(chosen, scores, found, left_out),
        "selection": f"valid {SELECTION}, protocol all",
        "epochs": epochs,
        "rungs": found,
        "left_out": left_out,
        "seconds": {name: sum(row["seconds"] for row in rows[name]) for name in names},
    }


def finish_best(scores: Mapping[str, Score], left_out: dict[str, str], race: Race, progress: Progress) -> str:
    """Train the best of the last rung to the end, or the next best if that one diverges; return its name."""
    for name in by_score(scores):
        try:
            train_until(race.legs(name), race.request.training.epochs, progress)
            return name
        except DivergedError as error:
            leave_out(name, error.message, left_out)
    raise all_diverged(left_out, race)


def leave_out(name: str, why: str, left_out: dict[str, str]) -> None:
    left_out[name] = why
    log.warning(f"{name} is left out: {why}")


def all_diverged(left_out: Mapping[str, str], race: Race) -> DivergedError:
    why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
    smaller = f"{race.request.training.lr / 10:g}"
    return DivergedError(f"every candidate diverged or was left out: {why}", race.command("--lr", smaller, "--force"))


def train_until(legs: Sequence[Leg], epochs: int, progress: Progress) -> None:
    """Continue training a candidate until it has done this many epochs in all."""
    for leg in legs:
        here = min(leg.epochs, epochs)
        epochs -= here
        begun = leg.folder.is_unfinished()
        if here == 0 or (begun and here <= len(position_of(leg.folder).rows) < leg.epochs):
            continue
        with suppress(Paused):
            pause = here if here < leg.epochs else 0
            run_stage(leg.request, leg.folder.path, resume=begun, pause_after=pause, progress=progress)


def rows_of(leg: Leg) -> list[dict[str, Any]]:
    """The figures of each epoch of a stage; those of a paused one from its state, which has a checksum."""
    return position_of(leg.folder).rows if leg.folder.is_unfinished() else leg.folder.read_rows()


def score_at(legs: Sequence[Leg], epochs: int) -> Score:
    """The validation score of the stage a candidate is in after this many epochs, if it ended there.

    With a floor, that is the floor as it is kept, and what the vectors of the best epoch change in the floor alone, if
    they would stay.
    """
    offset = 0
    for leg in legs[:-1]:
        if epochs <= offset + leg.epochs:
            break
        offset += leg.epochs
    else:
        leg = legs[-1]
    rows = [row for row in rows_of(leg) if offset + row["epoch"] <= epochs]
    judged = [row for row in rows if f"{VALID}{SELECTION}" in row]
    if RERANKED not in rows[0]:  # it has no floor
        return max(standing(row, row["loss"], VALID) for row in judged)
    alone, kept = (np.array(standing(rows[0], 0.0, prefix)) for prefix in (START, KEPT))
    best = max(judged, key=lambda row: (row[f"{VALID}{GAIN}"], *standing(row, 0.0, VALID)), default=None)
    if best is not None and best[f"{VALID}{GAIN}"] > LEAST_GAIN:
        kept += standing(best, 0.0, VALID) - alone
    recall, ndcg, loss = kept.tolist()
    return recall, ndcg, loss


def by_score(scores: Mapping[str, Score]) -> list[str]:
    """The names, best first; equal ones keep their order."""
    return sorted(scores, key=lambda name: scores[name], reverse=True)


def in_order(scores: Mapping[str, Score]) -> str:
    return ", ".join(f"{name} {scores[name][0]:.4f}" for name in by_score(scores))


def reason(chosen: str, scores: Mapping[str, Score], found: list[dict[str, Any]], left_out: Mapping[str, str]) -> str:
    """Why this candidate was chosen, in a sentence. scores: those of the last rung."""
    if not found:
        return "the only candidate" + (f"; left out: {', '.join(left_out)}" if left_out else "")
    same_recall = [name for name in scores if scores[name][0] == scores[chosen][0] and name != chosen]
    level = [name for name in same_recall if scores[name] == scores[chosen]]
    diverged = [name for name in scores if name in left_out]
    return (
        f"{VALID}{SELECTION} after {in_epochs(found[-1]['epochs'])}: {in_order(scores)}"
        + (f" (level with {', '.join(level)}; the first in order counts)" if level else "")
        + (f" (of equal ones {TIE_BREAK} decides, then the loss)" if same_recall and not level else "")
        + (f"; {', '.join(diverged)} diverged later" if diverged else "")
    )


# -- the folder of a race ---------------------------------------------------------------------------------------------


def race_there(folder: RunFolder, fingerprint: str, *, resume: bool) -> str:
    """How much of this race the folder holds: NOTHING, UNFINISHED or FINISHED.

    Raises UsageError if it holds another run or race, or this one unfinished and it is not to be resumed.
    """
    out, decision = folder.path, folder.read_decision()
    same = folder.is_finished() and decision.get("fingerprint") == fingerprint
    if same and checkpoint.describe(out).weights_sha256 == decision.get("weights_sha256"):
        return FINISHED
    if folder.candidates.exists():
        if not resume:
            raise UsageError(f"{out} holds an unfinished race: --resume continues it, --force starts over")
        begun = read_json(folder.race, dict[str, str], TRAIN_AGAIN) if folder.race.exists() else {}
        if begun.get("fingerprint") != fingerprint:
            raise UsageError(
                f"{out} holds an unfinished race of other candidates, settings or data; --force replaces it",
                another_folder(out),
            )
        return UNFINISHED
    if folder.is_finished() or folder.is_unfinished():
        raise UsageError(f"--out {out}: holds another run; --force replaces it", another_folder(out))
    return NOTHING


def begin_race(folder: RunFolder, fingerprint: str, *, force: bool) -> None:
    """Record which race is in the folder. force: discard what an earlier one left there."""
    if force:
        shutil.rmtree(folder.candidates, ignore_errors=True)
        folder.decision.unlink(missing_ok=True)
    make_folder(folder.candidates)
    write_json(folder.race, {"fingerprint": fingerprint})


def take_over(winner: RunFolder, folder: RunFolder, decision: dict[str, Any]) -> None:
    """Copy the winner's run to the race's folder, and record its weights in the decision. The candidates are deleted
    once all of that is on disk."""
    sha256 = decision["weights_sha256"] = checkpoint.describe(winner.path).weights_sha256
    id_tables = checkpoint.describe(winner.path).id_tables
    items = [winner.items(id_tables)] if id_tables else []
    files = (
        winner.weights(sha256),
        *items,
        winner.metrics,
        winner.cost,
        winner.description,
    )  # the description names the others, so it is last
    for path in files:
        with atomic(folder.path / path.name) as scratch:
            shutil.copyfile(path, scratch)
    if (winner.path / TENSORBOARD).is_dir():
        shutil.copytree(winner.path / TENSORBOARD, folder.path / TENSORBOARD, dirs_exist_ok=True)
    for leftover in folder.leftovers(sha256, id_tables):
        leftover.unlink()
    write_json(folder.decision, decision)
    shutil.rmtree(folder.candidates)

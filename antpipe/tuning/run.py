"""`antpipe tune`: train trials one after the other, stop the worse ones early, and keep the best settings.

Trials are compared at the rungs of `train --stage auto`: one that is in the worse half of all trials so far stops there
(asynchronous successive halving, Li et al. 2020, https://arxiv.org/abs/1810.05934). All figures are of the validation
split; the test split is never read.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from antpipe.errors import AntpipeError, DivergedError, SameCommand, UsageError
from antpipe.runtime.logs import each_message_once, log
from antpipe.runtime.process import continued_by
from antpipe.runtime.progress import Progress
from antpipe.settings.base import flag_name
from antpipe.settings.tuning import Dimension
from antpipe.store.lock import alone
from antpipe.training import checkpoint
from antpipe.training.folder import RunFolder
from antpipe.training.parallel import world_of
from antpipe.training.race import Leg, rows_of, score_at, survivors, train_until
from antpipe.training.replay import out_of_memory
from antpipe.training.worth import SELECTION, VALID
from antpipe.tuning.best import commands_after, write_best
from antpipe.tuning.draw import draw, require_optuna
from antpipe.tuning.search import Search
from antpipe.tuning.trials import FAILED, FINISHED, PRUNED, RUNNING, Rung, SearchFolder, Trial, best_of

FEW = 1000  # validation positions below which settings that look better are often not
USUAL_RECALL = 0.1  # of which a standard error is named before anything is trained


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    folder: that of the search. status: `searched`, or `fresh` if all trials were there. trials: in order; the first
    has the settings as given. best: the best of those trained to the end, on validation. settings: a file
    with its settings, for `train(config=…)`. positions: of the validation split. standard_error: of the first trial's
    recall on these. next: command lines that train with the settings, and that judge them on the test split.
    """

    folder: Path
    status: str
    trials: list[Trial]
    best: Trial
    settings: Path
    positions: int
    standard_error: float
    next: dict[str, str]


def run_search(search: Search, *, force: bool, resume: bool, progress: Progress) -> Tuned:
    """Search, and write DIR/trials.jsonl and DIR/best.toml.

    Raises UsageError for settings that cannot be searched and for a folder that holds something else, what
    RunRequest.plan raises, DivergedError if no trial could be trained, and Interrupted after Ctrl-C.
    """
    require_optuna()
    if force and resume:
        raise UsageError("--force starts over and --resume continues: choose one of them")
    if world_of().size > 1:
        raise UsageError("tune runs in one process", SameCommand(without=("torchrun",)))
    folder, space = SearchFolder(search.out), search.space()
    folder.refuse_run()
    with each_message_once():
        plan = search.request.plan()
        fingerprint = search.fingerprint(plan.described.fingerprint)
        positions = sum(map(len, plan.data.validation.values()))
        with alone(search.out, "search"):
            if force:
                folder.clear()
            else:
                exhausted = partial(is_exhausted, space, search.request.training.seed)
                folder.check(fingerprint, search.about(), search.config.trials, exhausted, resume=resume)
            folder.begin(fingerprint, search.about())
            before = folder.trials()
            warn_if_few(search, positions)
            log.info(f"{search.out}: searching {', '.join(space)}")
            with continued_by(search.command("--resume")):
                trials = run_trials(search, list(before), progress)
            best = best_of(trials)
            if best is None:
                raise none_trained(search, trials)
            comment = f"trial {best.trial} of {len(trials)}, {VALID}{SELECTION} {best.metrics[SELECTION]:.4f}"
            file = write_best(search, best, comment)
    error = standard_error(trials[0].metrics.get(SELECTION, best.metrics[SELECTION]), positions)
    status = "fresh" if trials == before else "searched"
    return Tuned(search.out, status, trials, best, file, positions, error, commands_after(search))


def warn_if_few(search: Search, positions: int) -> None:
    if positions < FEW:
        error = standard_error(USUAL_RECALL, positions)
        log.warning(
            f"{search.target}: {positions:,} validation positions, so a {SELECTION} of {USUAL_RECALL} has a standard "
            f"error of {error:.3f}: settings that differ by less look alike"
        )


def standard_error(recall: float, positions: int) -> float:
    return math.sqrt(recall * (1 - recall) / positions)


def is_exhausted(space: Mapping[str, Dimension], seed: int, trials: Sequence[Trial]) -> bool:
    return draw(space, seed, trials) is None


def run_trials(search: Search, trials: list[Trial], progress: Progress) -> list[Trial]:
    """Train the trials that are not done yet, and record each when it begins and when it ends."""
    folder, space, seed = SearchFolder(search.out), search.space(), search.request.training.seed
    folder.forget_pruned(trials)  # which a killed search may not have reached
    for number in range(search.config.trials):
        if number == len(trials):
            values = search.as_given() if number == 0 else draw(space, seed, trials)
            if values is None:
                log.info(f"{search.out}: {number} trials are all there are in this space")
                break
            trials.append(Trial(number, RUNNING, values))
            folder.write(trials)
        if trials[number].state == RUNNING:
            trials[number] = run_trial(search, trials[: number + 1], progress)
            folder.write(trials)
            folder.forget_pruned(trials[-1:])
            log.info(f"{search.out}: {line_of(trials[number], search.config.trials)}")
    return trials


def run_trial(search: Search, trials: Sequence[Trial], progress: Progress) -> Trial:
    """Train the last of these trials until it is done, or falls into the worse half of them."""
    trial = trials[-1]
    leg = Leg(search.with_values(trial.settings), RunFolder(SearchFolder(search.out).trial(trial.trial)))
    found: list[Rung] = []
    try:
        for rung in search.rungs():
            if not is_done(leg):
                train_until([leg], rung, progress)
            recall, ndcg, _ = score_at([leg], rung)
            found.append(Rung(rung, recall, ndcg))
            if not is_done(leg) and is_worse(found[-1], trials[:-1]):
                return with_cost(replace(trial, state=PRUNED, rungs=found), leg)
        if not is_done(leg):
            train_until([leg], leg.epochs, progress)
    except DivergedError as error:
        return replace(trial, state=FAILED, rungs=found, why=error.message)
    except AntpipeError as error:
        if not (isinstance(error.__cause__, RuntimeError) and out_of_memory(error.__cause__)):
            raise
        return replace(trial, state=FAILED, rungs=found, why=error.message)
    done = checkpoint.describe(leg.folder.path)
    ended = replace(trial, state=FINISHED, rungs=found, metrics=dict(done.metrics), best_epoch=done.best_epoch)
    return with_cost(replace(ended, fingerprint=done.fingerprint), leg)


def is_done(leg: Leg) -> bool:
    """Whether the run of a trial is finished, perhaps early (`--patience`)."""
    return leg.folder.is_finished() and not leg.folder.is_unfinished()


def is_worse(here: Rung, others: Sequence[Trial]) -> bool:
    """Whether a trial is in the worse half of all that reached this rung. Losses of different settings are not
    comparable, so they are left out."""
    scores = {f"{one.trial}": rung.score() for one in others for rung in one.rungs if rung.epochs == here.epochs}
    scores["this"] = here.score()
    return "this" not in survivors({name: (*score, 0.0) for name, score in scores.items()})


def with_cost(trial: Trial, leg: Leg) -> Trial:
    rows = rows_of(leg)
    return replace(trial, epochs=len(rows), seconds=round(sum(row["seconds"] for row in rows), 3))


def none_trained(search: Search, trials: Sequence[Trial]) -> DivergedError:
    why = "; ".join(dict.fromkeys(one.why for one in trials))
    clipped = None if "clip" in search.fixed else search.command("--clip", "1", "--force")
    return DivergedError(f"no trial could be trained: {why}", clipped or "antpipe tune --help")


def line_of(trial: Trial, count: int) -> str:
    """A trial in a line: how it ended, its figures and its settings."""
    figures = f"{VALID}{SELECTION} {trial.last_score()[0]:.4f}" if trial.state != FAILED else trial.why
    ended = f"{trial.state} after {trial.epochs}" if trial.state == PRUNED else trial.state
    return f"trial {trial.trial} of {count} {ended}, {figures}: {in_words(trial)}"


def in_words(trial: Trial) -> str:
    """The settings of a trial, as flags name them."""
    return ", ".join(f"{flag_name(name)} {value}" for name, value in trial.settings.items())

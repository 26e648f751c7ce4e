"""`train --stage fork-merge`: a target trained with auxiliary domains, in branches that are merged by validation.

ForkMerge (Jiang and others, NeurIPS 2023, https://arxiv.org/abs/2301.12618). Each branch is a run in RUN/branches that
pauses where branches are merged; RUN/state.safetensors holds the merged weights, so a kill loses no finished round.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antpipe.errors import DivergedError, Interrupted, UsageError
from antpipe.runtime.devices import compile_parts, require_compiler
from antpipe.runtime.logs import each_message_once, log
from antpipe.runtime.process import stopping
from antpipe.runtime.progress import Progress, Update, silent
from antpipe.store.documents import write_json
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.folder import RunFolder
from antpipe.training.loop import fit, trained_by
from antpipe.training.methods.fork_request import ForkMergePlan, ForkMergeRequest
from antpipe.training.methods.merging import average, chosen_shares
from antpipe.training.methods.mixed_steps import MixedSteps, shares_of
from antpipe.training.methods.reports import read_report, report_file
from antpipe.training.parallel import ALONE
from antpipe.training.replay import adam, replays
from antpipe.training.request import FORK_MERGE
from antpipe.training.run import (
    FINISHED,
    UNFINISHED,
    build_model,
    check_folder,
    device_of,
    finish,
    naming_what_to_lower,
    teach,
    what_is_there,
)
from antpipe.training.state import (
    Keeping,
    Paused,
    Position,
    Training,
    add_row,
    begin,
    in_epochs,
    load_state,
    position_of,
)
from antpipe.training.tracking import require_tracker, tracking
from antpipe.training.validation import validating
from antpipe.training.worth import (
    SELECTION,
    VALID,
    judge_beginning,
    keep_floor_unless_beaten,
    standing,
    take_if_best,
    weighed,
    weighing,
)

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant

TARGET = "target"  # the branch without auxiliaries
Judge = Callable[[], dict[str, float]]
OTHER = "other auxiliaries, other settings of fork-merge, or the weights it started from"


@dataclass
class Merging:
    """A run in progress. branches: the auxiliaries of each branch, by its name; known once they are ranked."""

    plan: ForkMergePlan
    folder: RunFolder
    device: "torch.device"
    asked_to_stop: Callable[[], bool]
    progress: Progress
    branches: dict[str, tuple[str, ...]] = field(default_factory=dict)
    learned: "dict[str, torch.Tensor]" = field(default_factory=dict)  # by the re-ranker, before branches

    def home(self, name: str) -> RunFolder:
        return RunFolder(self.folder.path / "branches" / name)

    def keeping(self, name: str, until: int = 0) -> Keeping:
        folder, training = self.home(name), self.plan.request.training
        begun = folder.is_unfinished()
        described = self.plan.described
        return Keeping(folder, described, training.save_every, begun, self.asked_to_stop, lambda _: None, until)

    def model(self) -> "Ant":
        model = build_model(self.plan).to(self.device)
        if model.reranker is not None and self.learned:
            model.reranker.load_state_dict(self.learned)
        if self.plan.request.training.compile:
            compile_parts(model)
        return model

    def train(self, name: str, auxiliaries: Sequence[str], until: int) -> None:
        """Train a branch until it has done this many epochs."""
        keep = self.keeping(name, until)
        if keep.begun and len(position_of(keep.folder).rows) >= until:
            return
        begin(keep.folder, begun=keep.begun)
        others = {one: self.plan.others[one] for one in auxiliaries}
        mixed = partial(MixedSteps, others=others) if others else None
        with self.progress(f"{FORK_MERGE}: {name}") as bar, suppress(Paused):
            fit(
                self.model(),
                self.plan.data,
                self.plan.training(),
                pretraining=False,
                device=self.device,
                keep=keep,
                update=without_last_epoch(bar),
                mixed=mixed,
            )

    def state_of(self, name: str) -> Training:
        """The state of a branch, in a model of its own."""
        keep, model = self.keeping(name), build_model(self.plan).to(self.device)
        static = not self.branches.get(name) and replays(self.device, ALONE, self.plan.request.training)
        optimiser = adam(trained_by(model), self.plan.request.training.lr, self.device, recorded=static)
        state = Training(model, optimiser, {})
        load_state(state, keep.folder, ALONE)
        return state

    def hand_out(self, merged: "Mapping[str, torch.Tensor]", mark: int) -> None:
        """Give merged weights to the branches that have not trained beyond them. Their optimisers are unchanged."""
        for name in self.branches:
            at = position_of(self.home(name))
            if len(at.rows) == mark and not at.step:
                state = self.state_of(name)
                state.model.load_state_dict(dict(merged))
                self.keeping(name).save(state)


def without_last_epoch(bar: Update) -> Update:
    """Progress of a branch that does not count the last epoch, which it never trains."""

    def update(done: float, total: int, note: str = "") -> None:
        bar(min(done, total - 1), total - 1, note)

    return update


def run_fork_merge(
    request: ForkMergeRequest, out: Path, *, force: bool = False, resume: bool = False, progress: Progress = silent
) -> tuple[Checkpoint, bool, dict[str, Any]]:
    """Train a target with auxiliaries in branches, and leave the best merged weights as a run in `out`.

    Takes and raises what run_stage does. Returns the checkpoint, whether it was there already, and the content of
    RUN/fork-merge.json: `ranking` (validation by auxiliary; empty if there was nothing to rank), `branches` (the
    auxiliaries of each, and the share of steps per domain) and `rounds` (epochs, validation and weight of each branch,
    and validation of the merged weights).
    """
    check_folder(request, out, force=force, resume=resume)
    training, folder = request.training, RunFolder(out)
    require_tracker(training.track)
    device = device_of(training, ALONE)
    if training.compile:
        require_compiler(device)
    with each_message_once(), ExitStack() as held:
        plan = request.plan()
        held.enter_context(folder.lock(force))
        there = "" if force else there_of(plan, out, resume=resume)
        if there == FINISHED:
            shutil.rmtree(out / "branches", ignore_errors=True)
            return checkpoint.describe(out), True, read_report(out, FORK_MERGE)
        if there != UNFINISHED:
            shutil.rmtree(out / "branches", ignore_errors=True)
        done = begin(folder, begun=there == UNFINISHED)
        asked = held.enter_context(stopping())
        track = held.enter_context(tracking(training.track, out, plan.described, done))
        run = Merging(plan, folder, device, asked, progress)
        keep = Keeping(folder, plan.described, training.save_every, there == UNFINISHED, asked, track)
        try:
            with naming_what_to_lower(folder, training, partial(plan.request.command, out)):
                run_rounds(run, keep)
        except KeyboardInterrupt:
            kept = f"{position_of(folder)} kept, as are the branches" if folder.is_unfinished() else "nothing is kept"
            raise Interrupted(f"{out}: interrupted; {kept}", plan.request.command(out, "--resume")) from None
        except DivergedError as error:
            smaller = f"{training.lr / 10:g}"
            raise DivergedError(error.message, plan.request.command(out, "--lr", smaller, "--force")) from None
    return checkpoint.describe(out), False, read_report(out, FORK_MERGE)


def there_of(plan: ForkMergePlan, out: Path, *, resume: bool) -> str:
    """Like what_is_there, which does not know about auxiliaries, but with an error that names them."""
    try:
        return what_is_there(plan, out, resume=resume)
    except UsageError as error:
        message = error.message.replace("the weights it started from", OTHER)
        raise UsageError(message, error.next_command) from None


def run_rounds(run: Merging, keep: Keeping) -> None:
    """Rank, then train and merge round by round, and finish the run with its best merged weights."""
    plan, model = run.plan, run.model()
    judge = validating(model, plan.data, run.device, lambda: None)
    weigh = None if model.floor is None else weighing(model, plan.data, judge)
    teach(model, plan, run.folder.path, begun=keep.begun)
    state = keep.begin(model, adam(trained_by(model), plan.request.training.lr, run.device, recorded=False), {})
    at = state.at
    if model.reranker is not None:
        run.learned = {name: value.clone() for name, value in model.reranker.state_dict().items()}
    judged = weighed(judge, weigh)
    judge_beginning(state, judge, plan.data, beside_floor=weigh is not None)
    if not keep.begun:
        keep.save(state)
    ranking = rank(run)
    run.branches = branches_of(list(ranking) or list(plan.others), plan.request.sizes())
    marks, patience = plan.marks(), plan.request.training.patience
    while not at.finished:
        if at.rows:
            run.hand_out(model.state_dict(), len(at.rows))
        mark = next(one for one in marks if one > len(at.rows))
        for name, auxiliaries in run.branches.items():
            run.train(name, auxiliaries, mark)
        rows, valid = merge(run, state, judged, mark)
        take_if_best(state, mark, valid, rows[-1]["loss"])
        at.finished = mark == marks[-1] or 0 < patience <= mark - at.best_epoch
        for row in rows:
            at.epoch_done(row)
            add_row(run.folder, row)
            keep.track(row)
        totals(run, at)
        keep.save(state)
    model.load_state_dict(state.best_weights)
    if weigh is not None:
        at.best_epoch, at.best = keep_floor_unless_beaten(model, at, judge, weigh, plan.data)
    write_json(report_file(run.folder.path, FORK_MERGE), report(run, at, ranking))
    finish(run.folder, model, plan, at, run.device)
    shutil.rmtree(run.folder.path / "branches")


def rank(run: Merging) -> dict[str, dict[str, float]]:
    """The auxiliaries, best first, with the validation of the target after a short training with each; empty if there
    is nothing to rank."""
    epochs, plan = run.plan.ranked_after(), run.plan
    if not epochs:
        return {}
    found = {}
    for name in plan.others:
        run.train(f"rank-{name}", [name], epochs)
        found[name] = position_of(run.home(f"rank-{name}"))
    order = sorted(found, key=lambda name: best_of(found[name]), reverse=True)
    scores = ", ".join(f"{name} {found[name].best[SELECTION]:.4f}" for name in order)
    log.info(f"{run.folder.path}: {VALID}{SELECTION} after {in_epochs(epochs)} with each auxiliary: {scores}")
    return {name: found[name].best for name in order}


def best_of(at: Position) -> tuple[float, float, float]:
    loss = at.rows[at.best_epoch - 1]["loss"] if at.best_epoch else float("-inf")
    return standing(at.best, loss)


def branches_of(ranked: Sequence[str], sizes: Sequence[int]) -> dict[str, tuple[str, ...]]:
    return {TARGET: (), **{f"top-{size}": tuple(ranked[:size]) for size in sizes}}


def merge(run: Merging, state: Training, judge: Judge, mark: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Give the model the merged weights of the branches; return the rows of the round's epochs, and the validation.

    The weights of a branch are its best so far.
    """
    states = {name: run.state_of(name) for name in run.branches}
    found = {name: one.at for name, one in states.items()}
    ranked = sorted(found, key=lambda name: best_of(found[name]), reverse=True)
    parts = {name: one.best_weights for name, one in states.items()}

    def judged(shares: Mapping[str, float]) -> dict[str, float]:
        state.model.load_state_dict(average(parts, shares))
        return judge()

    steps = run.plan.request.config.merge_steps
    shares, valid = chosen_shares(ranked, found[ranked[0]].best, judged, steps)
    state.model.load_state_dict(average(parts, shares))
    weights = {name: shares[name] / sum(shares.values()) for name in run.branches}
    rows = [row_of(found, epoch) for epoch in range(len(state.at.rows) + 1, mark + 1)]
    for name in run.branches:
        rows[-1] |= {f"{name}_{VALID}{SELECTION}": found[name].best[SELECTION], f"{name}_weight": weights[name]}
    rows[-1] |= {f"{VALID}{name}": value for name, value in valid.items()}
    log.info(
        f"{run.folder.path}: {VALID}{SELECTION} after {mark} of {run.plan.marks()[-1]} epochs: "
        + ", ".join(f"{name} {found[name].best[SELECTION]:.4f} (weight {weights[name]:.2f})" for name in run.branches)
        + f"; merged {valid[SELECTION]:.4f}"
    )
    return rows, dict(valid)


def row_of(found: Mapping[str, Position], epoch: int) -> dict[str, Any]:
    """The figures of an epoch: those of the branch on the target alone, and the seconds of all branches."""
    rows = {name: at.rows[epoch - 1] for name, at in found.items()}
    own = {key: value for key, value in rows[TARGET].items() if not key.startswith(VALID)}
    return own | {"seconds": sum(row["seconds"] for row in rows.values())}


def totals(run: Merging, at: Position) -> None:
    """Count the steps, positions and seconds of all branches, and of the runs that ranked the auxiliaries."""
    names = [*run.branches, *(f"rank-{name}" for name in run.plan.others if run.plan.ranked_after())]
    every = [position_of(run.home(name)) for name in names]
    at.steps = sum(one.steps for one in every)
    at.all_positions = sum(one.all_positions for one in every)
    at.all_seconds = sum(one.all_seconds for one in every)


def report(run: Merging, at: Position, ranking: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The content of RUN/fork-merge.json, which remains once branches are deleted."""
    target = run.plan.request.domains[0]
    rounds = [row for row in at.rows if f"{TARGET}_weight" in row]
    return {
        "fingerprint": run.plan.described.fingerprint,
        "target": target,
        "selection": f"valid {SELECTION}, protocol all",
        "ranking": {name: figures[SELECTION] for name, figures in ranking.items()},
        "branches": {
            name: dict(zip((target, *others), shares_of(others), strict=True)) for name, others in run.branches.items()
        },
        "rounds": [
            {
                "epochs": row["epoch"],
                "branches": {name: row[f"{name}_{VALID}{SELECTION}"] for name in run.branches},
                "weights": {name: row[f"{name}_weight"] for name in run.branches},
                "merged": row[f"{VALID}{SELECTION}"],
            }
            for row in rounds
        ],
    }

"""`train --stage fork-merge`: a target trained with auxiliary domains, in branches that are merged by validation.

ForkMerge (Jiang and others, NeurIPS 2023, https://arxiv.org/abs/2301.12618). Each branch is a run in RUN/branches that
pauses where branches are merged; RUN/state.safetensors has the merged weights, so a kill loses no finished round.
"""

import copy
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from antpipe.core.batches import Batch, step_windows
from antpipe.core.catalogue import load_catalogue
from antpipe.core.floor import known_of
from antpipe.errors import DataError, DivergedError, Interrupted, SameCommand, UsageError
from antpipe.runtime.devices import compile_parts, require_compiler
from antpipe.runtime.logs import each_message_once, log
from antpipe.runtime.process import stopping
from antpipe.runtime.progress import Progress, Update, silent
from antpipe.settings.base import flags_of, to_json
from antpipe.settings.fork_merge import ForkMergeConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.documents import read_json, write_json
from antpipe.store.manifest import digest
from antpipe.store.next_command import build_command_with
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.compatibility import fits, rebuild, shown
from antpipe.training.data import TrainingData
from antpipe.training.folder import TRAIN_AGAIN, RunFolder
from antpipe.training.loop import (
    SELECTION,
    START,
    VALID,
    ExactSteps,
    candidates_of,
    fit,
    judge_beginning,
    keep_floor_unless_beaten,
    reads_known,
    scalars_of,
    standing,
    take_if_best,
    trained_by,
    windows_to_train,
)
from antpipe.training.methods.merging import average, chosen_shares
from antpipe.training.parallel import ALONE, world_of
from antpipe.training.replay import Setup, adam, replays
from antpipe.training.request import FORK_MERGE, Plan, RunRequest, reads_words
from antpipe.training.run import (
    FINISHED,
    UNFINISHED,
    build_model,
    check_folder,
    device_of,
    finish,
    naming_what_to_lower,
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

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant

TARGET = "target"  # the branch without auxiliaries
DRAW = 17  # of the random numbers that choose the domain of each step
Judge = Callable[[], dict[str, float]]
OTHER = "other auxiliaries, other settings of fork-merge, or the weights it started from"


@dataclass(frozen=True)
class ForkMergeRequest(RunRequest):
    """A run of stage fork-merge on one target: from scratch, or from `source` as finetune starts."""

    auxiliaries: tuple[str, ...] = ()
    config: ForkMergeConfig = field(default_factory=ForkMergeConfig)

    def plan(self, start: Checkpoint | None = None) -> "ForkMergePlan":
        """Check everything that can be checked before training. Raises what RunRequest.plan does, and UsageError or
        DataError for auxiliaries that the target cannot be trained with."""
        self._check()
        stage = "scratch" if self.source is None else "finetune"
        plain = RunRequest(self.store, self.domains, stage, self.model, self.training, self.source).plan(start)
        others = {name: auxiliary_data(name, plain) for name in self.auxiliaries}
        read = {name: artefacts_of(name, data, plain) for name, data in others.items()}
        settings = to_json(replace(self.config, branches=self.sizes()))
        fingerprint = digest([FORK_MERGE, plain.described.fingerprint, read, settings])
        described = replace(plain.described, stage=FORK_MERGE, fingerprint=fingerprint)
        asked = replace(self, training=plain.request.training)
        return ForkMergePlan(asked, plain.actions, plain.start, plain.data, described, others)

    def command(self, out: Path, *more: str, processes: int = 1) -> str:
        own = ["--auxiliaries", ",".join(self.auxiliaries), *flags_of(self.config, environment=os.environ)]
        return super().command(out, *own, *more, processes=processes)

    def sizes(self) -> tuple[int, ...]:
        """How many auxiliaries each branch has, beside the branch on the target alone."""
        return tuple(sorted({min(size, len(self.auxiliaries)) for size in self.config.branches}))

    def _check(self) -> None:
        if len(self.domains) != 1:
            raise UsageError(
                f"--stage {FORK_MERGE} trains for one target, not for {len(self.domains)}",
                SameCommand({"--domains": self.domains[0]}),
            )
        target = self.domains[0]
        if not self.auxiliaries:
            raise UsageError(f"--stage {FORK_MERGE} trains a target with other domains: name them with --auxiliaries")
        if target in self.auxiliaries:
            left = [name for name in self.auxiliaries if name != target]
            raise UsageError(
                f"--auxiliaries {','.join(self.auxiliaries)}: {target} is the target",
                SameCommand({"--auxiliaries": ",".join(left)}) if left else None,
            )
        if world_of().size > 1:
            raise UsageError(f"--stage {FORK_MERGE} runs in one process", SameCommand(without=("torchrun",)))
        if self.asks_for_refit():
            raise UsageError(f"--refit does not go with --stage {FORK_MERGE}", SameCommand(without=("--refit",)))
        if self.training.limit_steps:
            raise UsageError(
                f"--limit-steps does not go with --stage {FORK_MERGE}, which counts in epochs",
                SameCommand(without=("--limit-steps",)),
            )
        if not self.training.features():
            raise UsageError(f"--modalities none: ids belong to the target, so {FORK_MERGE} would share nothing")


@dataclass(frozen=True)
class ForkMergePlan(Plan):
    """A checked run of stage fork-merge. others: the data of each auxiliary."""

    request: ForkMergeRequest
    others: Mapping[str, TrainingData]

    def training(self) -> TrainConfig:
        """The settings of a branch. With one epoch more it never ends by itself, but pauses for the last merge."""
        training = self.request.training
        every = min(training.eval_every, training.epochs)
        return replace(training, epochs=training.epochs + 1, eval_every=every, patience=0)

    def marks(self) -> list[int]:
        """The epochs after which branches are merged; each is one that is validated."""
        every, epochs = self.training().eval_every, self.request.training.epochs
        step, last = rounded_up(self.request.config.epoch_step, every), epochs // every * every
        return [*range(step, last, step), last]

    def ranked_after(self) -> int:
        """The epochs of the runs that rank auxiliaries; 0 if every branch has none or all of them."""
        if self.request.sizes() == (len(self.others),):
            return 0
        return min(rounded_up(self.request.config.prune_epochs, self.training().eval_every), self.marks()[-1])


def rounded_up(epochs: int, every: int) -> int:
    """The least multiple of `every` that is not below this number of epochs."""
    return -(-epochs // every) * every


# -- auxiliaries ------------------------------------------------------------------------------------------------------


def auxiliary_data(name: str, plan: Plan) -> TrainingData:
    """What a branch reads of an auxiliary. Raises DataError if it shares no modality with the target, has features of
    other encoders or sequences of another length, or nothing to learn from."""
    request, described = plan.request, plan.described
    store, target, training = request.store, request.domains[0], request.training
    domain, read = store.domain(name), tuple(described.modalities)
    whitened = tuple(modality for modality in training.whitened if modality in read)
    there = [modality for modality in plan.data.catalogue.widths if modality in domain.manifest()]
    if not [modality for modality in there if domain.entry(modality)["present"]]:
        own = ", ".join(plan.data.catalogue.widths)
        states = (domain.state(modality).next_command for modality in plan.data.catalogue.widths)
        raise DataError(
            f"auxiliary {name}: has no {own.replace(', ', ' and no ')}, which is what this run reads of {target}",
            next(filter(None, states), None),
        )
    words = reads_words(request.stage, request.model, training)
    catalogue = load_catalogue(store, (name,), read, whitened, words=words)
    for modality, encoder in catalogue.encoders.items():
        trained, here = described.modalities[modality], {"width": catalogue.widths[modality], "encoder": encoder}
        if not fits(trained, here):
            raise DataError(
                f"auxiliary {name}: has {modality} of {shown(here)}, this run reads that of {shown(trained)}",
                rebuild(store, name, modality, described),
            )
    sequences = domain.sequences()
    if sequences.max_len != described.max_len:
        raise DataError(
            f"auxiliary {name}: its sequences have --max-len {sequences.max_len}, those of {target} "
            f"{described.max_len}",
            build_command_with(domain, "sequences", "--max-len", str(described.max_len)),
        )
    data = TrainingData(catalogue, (sequences,), {})
    try:
        windows_to_train(data, training, in_batch=False)
    except DataError as error:
        raise DataError(f"auxiliary {name}: {error.message}", error.next_command) from None
    return data


def artefacts_of(name: str, data: TrainingData, plan: Plan) -> dict[str, str]:
    """The fingerprints of what is read of an auxiliary."""
    domain, white = plan.request.store.domain(name), plan.described.whitened()
    read = [f"{modality}-white" if modality in white else modality for modality in data.catalogue.widths]
    return {artefact: domain.entry(artefact)["fingerprint"] for artefact in (*read, "sequences")}


def shares_of(auxiliaries: Sequence[str]) -> list[float]:
    """The probability that a step of a branch belongs to the target, and to each of its auxiliaries: 1 and 1/k, before
    they are divided by their sum."""
    weights = [1.0, *(1 / len(auxiliaries) for _ in auxiliaries)]
    return [weight / sum(weights) for weight in weights]


class MixedSteps:
    """Takes the steps of a branch, each on one domain with its own catalogue and softmax, drawn by `shares_of`.

    An epoch has as many steps as one on the target alone. In each epoch, every domain goes over its positions in a new
    order, as often as its steps take.
    """

    late, features = 0, None

    def __init__(self, setup: Setup, others: Mapping[str, TrainingData]) -> None:
        self.setup, self.shares = setup, shares_of(list(others))
        self.domains = [ExactSteps(setup), *(ExactSteps(auxiliary(setup, data)) for data in others.values())]
        self.current = self.domains[0]

    def batches(self, epoch: int, start: int, stop: int | None) -> Iterator[Batch]:
        """The steps of an epoch, from number `start` on."""
        for domain in self.domains[1:]:
            domain.setup.model.train()
        drawn = self.drawn(epoch)
        before = np.bincount(drawn[:start], minlength=len(self.domains)).tolist()
        steps = [self.endless(domain, epoch, skipped) for domain, skipped in zip(self.domains, before, strict=True)]
        for number in drawn[start:stop]:
            self.current = self.domains[number]
            yield next(steps[number])

    def drawn(self, epoch: int) -> list[int]:
        """The domain of each step of an epoch."""
        setup, config = self.setup, self.setup.config
        passes = range((epoch - 1) * setup.passes + 1, epoch * setup.passes + 1)
        steps = sum(1 for one in passes for _ in step_windows(setup.windows, config.batch_size, config.seed, one))
        rng = np.random.default_rng([config.seed, epoch, DRAW])
        found: list[int] = rng.choice(len(self.domains), steps, p=self.shares).tolist()
        return found

    def endless(self, domain: ExactSteps, epoch: int, skipped: int) -> Iterator[Batch]:
        """The steps of a domain in an epoch, without end, from number `skipped` on."""
        passes = (domain.batches(epoch + again * self.setup.config.epochs, 0, None) for again in count())
        return islice(chain.from_iterable(passes), skipped, None)

    def take(self, batch: Batch, check: Callable[[float], None]) -> Callable[[], float]:
        """Do a step on the domain of the batch that `batches` gave last."""
        return self.current.take(batch, check)

    def features_mb(self) -> float:
        return 0.0


def auxiliary(setup: Setup, data: TrainingData) -> Setup:
    """What steps on an auxiliary are taken with: the target's model without its ids, and its optimiser."""
    windows = windows_to_train(data, setup.config, in_batch=False)
    known = known_of(data.sequences, data.catalogue) if reads_known(setup.model, setup.config) else None
    drawn = candidates_of(data, False, setup.config)
    model = without_ids(setup.model)
    return replace(
        setup, model=model, catalogue=data.catalogue, windows=windows, candidates=drawn, passes=1, known=known
    )


def without_ids(model: "Ant") -> "Ant":
    """The same model, sharing all parameters, but that it knows no ids."""
    shared = copy.copy(model)
    shared._modules = {**model._modules, "ids": None}
    return shared


# -- a run ------------------------------------------------------------------------------------------------------------


@dataclass
class Merging:
    """A run under way. branches: the auxiliaries of each branch, by its name; known once they are ranked."""

    plan: ForkMergePlan
    folder: RunFolder
    device: "torch.device"
    asked_to_stop: Callable[[], bool]
    progress: Progress
    branches: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def home(self, name: str) -> RunFolder:
        return RunFolder(self.folder.path / "branches" / name)

    def keeping(self, name: str, until: int = 0) -> Keeping:
        folder, training = self.home(name), self.plan.request.training
        begun = folder.is_unfinished()
        described = self.plan.described
        return Keeping(folder, described, training.save_every, begun, self.asked_to_stop, lambda _: None, until)

    def model(self) -> "Ant":
        model = build_model(self.plan).to(self.device)
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
        """The state of a branch; its weights are not those of any other."""
        keep, model = self.keeping(name), build_model(self.plan).to(self.device)
        static = not self.branches.get(name) and replays(self.device, ALONE, self.plan.request.training)
        state = Training(model, adam(trained_by(model), self.plan.request.training.lr, self.device, recorded=static))
        load_state(state, keep.folder, ALONE)
        return state

    def hand_out(self, merged: "Mapping[str, torch.Tensor]", mark: int) -> None:
        """Give merged weights to the branches that have not trained beyond them. Their optimisers stay as they are."""
        for name in self.branches:
            at = position_of(self.home(name))
            if len(at.rows) == mark and not at.step:
                state = self.state_of(name)
                state.model.load_state_dict(dict(merged))
                self.keeping(name).save(state)


def without_last_epoch(bar: Update) -> Update:
    """Shows the epochs of a branch without the one that it never trains."""

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
            return checkpoint.describe(out), True, read_report(out)
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
            kept = f"{position_of(folder)} kept, and those of branches" if folder.is_unfinished() else "nothing is kept"
            raise Interrupted(f"{out}: interrupted; {kept}", plan.request.command(out, "--resume")) from None
        except DivergedError as error:
            smaller = f"{training.lr / 10:g}"
            raise DivergedError(error.message, plan.request.command(out, "--lr", smaller, "--force")) from None
    return checkpoint.describe(out), False, read_report(out)


def there_of(plan: ForkMergePlan, out: Path, *, resume: bool) -> str:
    """As what_is_there, whose differences do not cover auxiliaries."""
    try:
        return what_is_there(plan, out, resume=resume)
    except UsageError as error:
        message = error.message.replace("the weights it started from", OTHER)
        raise UsageError(message, error.next_command) from None


def read_report(out: Path) -> dict[str, Any]:
    """What a run of stage fork-merge found; empty if the folder has no such run."""
    path = out / f"{FORK_MERGE}.json"
    return read_json(path, dict[str, Any], TRAIN_AGAIN) if path.exists() else {}


def run_rounds(run: Merging, keep: Keeping) -> None:
    """Rank, then train and merge round by round, and finish the run with its best merged weights."""
    plan, model = run.plan, run.model()
    judge = validating(model, plan.data, run.device, lambda: None)
    begun = {name: value.clone() for name, value in scalars_of(model).items()}
    state = keep.begin(model, adam(trained_by(model), plan.request.training.lr, run.device, recorded=False))
    at = state.at
    judge_beginning(state, judge, True)
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
        rows, valid = merge(run, state, judge, mark)
        take_if_best(state, mark, valid, rows[-1]["loss"])
        at.finished = mark == marks[-1] or 0 < patience <= mark - at.best_epoch
        for row in rows:
            at.epoch_done(row)
            add_row(run.folder, row)
            keep.track(row)
        totals(run, at)
        keep.save(state)
    model.load_state_dict(state.best_weights)
    if begun and at.best_epoch:
        keep_floor_unless_beaten(model, at, begun, judge, plan.data)
    write_json(run.folder.path / f"{FORK_MERGE}.json", report(run, at, ranking))
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
    """Give the model the merged weights of the branches; the rows of the round's epochs, and the validation.

    The weights of a branch are its best up to now.
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
    own = {key: value for key, value in rows[TARGET].items() if not key.startswith((VALID, START))}
    return own | {"seconds": sum(row["seconds"] for row in rows.values())}


def totals(run: Merging, at: Position) -> None:
    """Count the steps, positions and seconds of all branches, and of the runs that ranked the auxiliaries."""
    names = [*run.branches, *(f"rank-{name}" for name in run.plan.others if run.plan.ranked_after())]
    every = [position_of(run.home(name)) for name in names]
    at.steps = sum(one.steps for one in every)
    at.all_positions = sum(one.all_positions for one in every)
    at.all_seconds = sum(one.all_seconds for one in every)


def report(run: Merging, at: Position, ranking: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """What is kept in RUN/fork-merge.json, once branches are gone."""
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

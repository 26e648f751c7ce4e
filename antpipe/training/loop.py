"""Training: one visible loop for every stage; what differs between stages is data (core/stages.py)."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from antpipe.core.batches import Batch, Candidates, Windows, batches, training_windows
from antpipe.core.catalogue import item_inputs
from antpipe.core.gpu.packing import PackedBatch
from antpipe.core.transitions import training_items
from antpipe.errors import DataError, DivergedError, SameCommand
from antpipe.runtime.logs import log
from antpipe.runtime.progress import Update, ignore
from antpipe.settings.training import TrainConfig
from antpipe.training.checkpoint import keeping
from antpipe.training.data import TrainingData
from antpipe.training.methods.choose import method_of
from antpipe.training.parallel import ALONE, World, add_gradients, of_first, rows_of, total
from antpipe.training.replay import Setup, StaticSteps, adam, replays
from antpipe.training.state import Keeping, Position, Row, Training
from antpipe.training.step_loss import Flags, pretraining_loss, target_loss
from antpipe.training.validation import validating
from antpipe.training.worth import (
    SELECTION,
    VALID,
    judge_beginning,
    keep_floor_unless_beaten,
    take_if_best,
    weighed,
    weighing,
)

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant

STEPS_OF_A_PASS = 16  # over the data of a small shop, whose batches may be smaller
SHOWN = ("loss", f"{VALID}{SELECTION}", "seconds")  # during training; the rest is in RUN/metrics.jsonl


def fit(
    model: "Ant",
    data: TrainingData,
    config: TrainConfig,
    *,
    pretraining: bool,
    device: "torch.device",
    keep: Keeping | None = None,
    update: Update = ignore,
    world: World = ALONE,
    mixed: Callable[[Setup], Any] | None = None,
) -> Position:
    """Train, validate, and leave the model with the weights of its best epoch.

    pretraining: in-batch losses over the items of all domains, instead of the full softmax over one catalogue.
    data: without validation examples, the last epoch is taken as the best. keep: keeps the run on disk and continues
    one that is there; without it, training leaves nothing on disk. update: gets the epochs done (a fraction between
    epochs) and the latest figures. world: this process among those that train together. mixed: makes the object that
    takes the steps, instead of ExactSteps (training/methods/fork_merge.py). Returns the final position: the best epoch
    (from 1; 0: the floor alone, because the vectors add too little to it), its metrics (the mean over domains) and the
    figures of all epochs. Raises DivergedError if the loss is not finite, Paused if `keep` asks for a pause, and
    KeyboardInterrupt after Ctrl-C.
    """
    windows = windows_to_train(data, config, in_batch=pretraining and config.in_batch())
    config, passes = sized(config, int(windows.targets.sum()))
    static, drawn = mixed is None and replays(device, world, config), candidates_of(data, pretraining, config)
    method = method_of(model, data, windows, config, device)
    optimiser = adam([*trained_by(model), *method.parameters], config.lr, device, recorded=static)
    epoch_positions = passes * int(windows.targets.sum()) + 1  # one more: an epoch is not done before its validation
    setup = Setup(
        model,
        data.catalogue,
        windows,
        drawn,
        config,
        optimiser,
        device,
        pretraining,
        world,
        passes,
        no_negatives(data, config),
        method,
    )
    steps: Any = StaticSteps(setup) if static else (mixed or ExactSteps)(setup)
    judge = validating(model, data, device, lambda: steps.features, vectors_alone=pretraining)
    weigh = weighing(model, data, judge) if judge.floors else None
    seed_dropout(config.seed, world)
    state = keep.begin(model, optimiser, method.tensors) if keep else Training(model, optimiser, method.tensors)
    at, under_way, began = state.at, deque[tuple[Any, Callable[[], float]]](), time.perf_counter()
    bad_batch = keep.folder.bad_batch if keep and not world.rank else None

    def settle(left: int = 0) -> None:
        """Wait for the steps in progress, except the last `left` of them, and count them."""
        nonlocal began
        while len(under_way) > left:
            batch, read = under_way.popleft()
            value = read()
            began, lap = time.perf_counter(), time.perf_counter() - began
            at.step_done(value, len(batch.targets), lap)
            update(at.epoch - 1 + at.positions / epoch_positions, config.epochs, note_of(at.figures()))

    judged = partial(of_first, weighed(judge, weigh), world)
    judge_beginning(state, partial(of_first, judge, world), data, beside_floor=weigh is not None)

    while not at.finished:
        model.train()
        lr = set_learning_rate(optimiser, config, pretraining, at.epoch)
        began = time.perf_counter()
        for batch in steps.batches(at.epoch, at.step, last_step(config, at)):
            under_way.append((batch, steps.take(batch, partial(check_finite, batch=batch, at=at, path=bad_batch))))
            settle(steps.late)
            if keep:
                keep.after_step(state, settle)
        settle()
        row = row_of(at, lr) | (at.begun if at.epoch == 1 else {}) | method.figures()
        at.finished = at.epoch == config.epochs or at.steps == config.limit_steps
        if at.finished or (data.validation and at.epoch % config.eval_every == 0):
            valid = judged()
            row |= {f"{VALID}{name}": value for name, value in valid.items()}
            take_if_best(state, at.epoch, valid, row["loss"])
            at.finished |= 0 < config.patience <= at.epoch - at.best_epoch
        at.epoch_done(row)
        update(len(at.rows), config.epochs, note_of({name: row[name] for name in SHOWN if name in row}))
        if keep:
            keep.after_epoch(state)
    model.load_state_dict(state.best_weights)
    if weigh is not None:
        at.best_epoch, at.best = of_first(partial(keep_floor_unless_beaten, model, at, judge, weigh, data), world)
    at.gpu_features_mb = steps.features_mb()
    return at


def row_of(at: Position, lr: float) -> Row:
    """The figures of the epoch in progress, except those of its validation."""
    return {
        "epoch": at.epoch,
        "loss": at.loss / at.positions,
        "lr": lr,
        "seconds": at.seconds,
        "positions_per_second": at.positions / at.seconds,
    }


class ExactSteps:
    """Takes training steps on the exact blocks of core/batches.py."""

    late = 0  # a step is done when `take` returns
    features = None  # on the device

    def __init__(self, setup: Setup) -> None:
        self.setup, catalogue, world = setup, setup.catalogue, setup.world
        device, precision = setup.device, setup.config.precision
        self.inputs_of = partial(item_inputs, catalogue, setup.model.widths, device=device, precision=precision)
        own = np.arange(len(catalogue))[rows_of(len(catalogue), world)]
        self.kept = self.inputs_of(own) if setup.candidates.drawn == len(catalogue) else None  # steps read all of it

    def batches(self, epoch: int, start: int, stop: int | None) -> Iterator[Batch]:
        """The steps of an epoch, from number `start` on."""
        setup, config = self.setup, self.setup.config
        passes = range((epoch - 1) * setup.passes + 1, epoch * setup.passes + 1)
        order = (
            batches(setup.windows, config.batch_size, config.seed, one, setup.candidates, setup.world.share)
            for one in passes
        )
        return islice(chain.from_iterable(order), start, stop)

    def take(self, batch: Batch, check: Callable[[float], None]) -> Callable[[], float]:
        """Do a step, unless `check` refuses its loss. Returns a function that gives the loss."""
        import torch

        setup, config, world = self.setup, self.setup.config, self.setup.world
        inputs = self.kept or self.inputs_of(batch.items[rows_of(len(batch.items), world)])
        loss_of = setup.method.loss or (pretraining_loss if setup.pretraining else target_loss)
        with torch.autocast(setup.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = loss_of(setup.model, inputs, batch, config, world, setup.new)
        setup.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        add_gradients(setup.trained(), world)
        if config.clip:
            torch.nn.utils.clip_grad_norm_(setup.trained(), config.clip)
        value = float(total(loss, world))  # not before backward(): on a GPU, reading it waits for all queued work
        check(value)
        setup.optimiser.step()
        return lambda: value

    def features_mb(self) -> float:
        return 0.0


def sized(config: TrainConfig, positions: int) -> tuple[TrainConfig, int]:
    """The settings, with batch size and learning rate adapted to the number of training positions, and the number of
    passes over these in an epoch."""
    batch = config.batch_size
    if config.smallest_batch:
        batch = min(batch, max(config.smallest_batch, positions // STEPS_OF_A_PASS))
    passes = max(1, -(-config.least_steps // -(-positions // batch)))
    if batch != config.batch_size or passes > 1:
        log.info(f"{positions:,} training positions: {batch} per step, {passes} pass{'es' * (passes > 1)} per epoch")
    return replace(config, batch_size=batch, lr=config.lr * math.sqrt(batch / config.batch_size)), passes


def note_of(figures: Mapping[str, float]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in figures.items())


def windows_to_train(data: TrainingData, config: TrainConfig, *, in_batch: bool) -> Windows:
    """The windows of all domains. in_batch: negatives are the next items of a batch's other users.

    Raises DataError if there is nothing to learn from.
    """
    windows = training_windows(data.sequences, data.catalogue.offsets, config.stride)
    if not len(windows.first):
        raise DataError("no training position: every user has fewer than 2 items in training")
    if in_batch and (len(np.unique(windows.user)) == 1 or config.batch_size <= windows.targets.min()):
        raise DataError(
            "no negatives: they are the next items of a batch's other users, but with "
            f"--batch-size {config.batch_size} no batch has two users with training positions",
            SameCommand({"--pretrain-drawn": "1000"}),
        )
    return windows


def trained_by(model: "Ant") -> "list[torch.nn.Parameter]":
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def no_negatives(data: TrainingData, config: TrainConfig) -> Flags | None:
    """(N,) True for items that do not occur in training, if these are not negatives; None if all items may be."""
    if config.unsold_negatives:
        return None
    sizes = [len(data.catalogue.rows(name)) for name in data.catalogue.domains]
    parts = zip(data.sequences, sizes, strict=True)
    return np.concatenate([np.bincount(training_items(part)[0], minlength=size) == 0 for part, size in parts])


def candidates_of(data: TrainingData, pretraining: bool, config: TrainConfig) -> Candidates:
    return Candidates(len(data.catalogue), drawn_items(len(data.catalogue), pretraining, config))


def drawn_items(size: int, pretraining: bool, config: TrainConfig) -> int:
    """The number of items that each step draws in addition to its own: `pretrain_drawn` in pre-training; on a target
    all (the full softmax), or `drawn` if there are more than `sampled_above`."""
    if pretraining:
        return min(size, config.pretrain_drawn)
    return size if size <= config.sampled_above else config.drawn


def seed_dropout(seed: int, world: World) -> None:
    """Give each process except the first its own random numbers; the first continues those of a single process."""
    import torch

    if world.rank:
        torch.manual_seed(int(np.random.default_rng([seed, world.rank]).integers(2**63)))


def set_learning_rate(optimiser: "torch.optim.Adam", config: TrainConfig, pretraining: bool, epoch: int) -> float:
    """The learning rate of an epoch, from 1: it falls by a constant factor per epoch."""
    decay = config.pretrain_lr_decay if pretraining else config.lr_decay
    lr = config.lr * decay ** (epoch - 1)
    for group in optimiser.param_groups:
        if isinstance(group["lr"], float):
            group["lr"] = lr
        else:  # a tensor, which a recorded step reads
            group["lr"].fill_(lr)
    return lr


def last_step(config: TrainConfig, at: Position) -> int | None:
    """The step of this epoch to stop at, if the number of steps is limited."""
    return at.step + config.limit_steps - at.steps if config.limit_steps else None


def check_finite(loss: float, batch: Batch | PackedBatch, at: Position, path: Path | None) -> None:
    """Refuse a step on a loss that is not finite, and save its batch to `path`.

    The arrays hold item rows of all domains together: `items` (n,) the batch reads, `targets` (P,), and `inputs_0`,
    `inputs_1`, ... (B, L) of its blocks.
    """
    if math.isfinite(loss):
        return
    saved = ""
    batch = batch.exact() if isinstance(batch, PackedBatch) else batch
    if path is not None:
        blocks: dict[str, Any] = {
            f"inputs_{number}": batch.items[block.inputs] for number, block in enumerate(batch.blocks)
        }
        with keeping(path, "the training state is untouched"):
            np.savez(path, items=batch.items, targets=batch.items[batch.targets], **blocks)
        saved = f"; its batch is in {path}"
    raise DivergedError(
        f"the loss is not finite ({loss}) in epoch {at.epoch}, step {at.step + 1}{saved}. "
        "A lower --lr or --clip 1 may keep it finite"
    )

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
from antpipe.core.floor import known_of
from antpipe.core.gpu.packing import PackedBatch
from antpipe.errors import DataError, DivergedError, SameCommand
from antpipe.runtime.logs import log
from antpipe.runtime.progress import Update, ignore
from antpipe.settings.training import TrainConfig
from antpipe.training.checkpoint import keeping
from antpipe.training.data import TrainingData
from antpipe.training.methods.choose import method_of
from antpipe.training.parallel import ALONE, World, add_gradients, of_first, rows_of, total
from antpipe.training.rehearsal import SHOPS
from antpipe.training.replay import Setup, StaticSteps, adam, replays
from antpipe.training.state import Keeping, Position, Row, Training
from antpipe.training.step_loss import pretraining_loss, target_loss
from antpipe.training.validation import validating

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant

STEPS_OF_A_PASS = 16  # over the data of a small shop, whose batches may be smaller
SELECTION = "recall@10"  # of protocol `all` on the validation split: chooses the best epoch
# Of equal ones this decides, then the loss: in a catalogue of hardly more than 10 items all have the same recall.
TIE_BREAK = "ndcg@10"
VALID, START = "valid_", "start_"  # before these figures in RUN/metrics.jsonl: of an epoch, of a floor before training
# An epoch counts if it beats the floor by more standard errors than chance would in one of twenty runs. Hits of a floor
# and of a run that began there correlate by .85 to .93 (docs/results.md).
STANDARD_ERRORS = 1.645
CORRELATION = 0.9
SHOWN = ("loss", f"{VALID}{SELECTION}", "seconds")  # while it trains; the rest is in RUN/metrics.jsonl


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
    data: without validation examples nothing is chosen, the last epoch counts. keep: keeps the run on disk and
    continues one that is there; without it, training leaves nothing on disk. update: gets the epochs done (a fraction
    between epochs) and the latest figures. world: this process among those that train together. mixed: makes what takes
    the steps, in place of ExactSteps (training/methods/fork_merge.py). Returns the final
    position: the best epoch (from 1; 0: the floor that a model on a target began with, which no epoch beat beyond
    chance), its metrics (the mean over domains) and the figures of all epochs. Raises DivergedError if the loss is not
    finite, Paused if `keep` asks for a pause, and KeyboardInterrupt after Ctrl-C.
    """
    windows = windows_to_train(data, config, in_batch=pretraining and config.in_batch())
    config, passes = sized(config, int(windows.targets.sum()))
    known = known_of(data.sequences, data.catalogue, model.widths) if reads_known(model, config) else None
    static, drawn = mixed is None and replays(device, world, config), candidates_of(data, pretraining, config)
    method = method_of(model, data, windows, config, device)
    optimiser = adam([*trained_by(model), *method.parameters], config.lr, device, recorded=static)
    epoch_positions = passes * int(windows.targets.sum()) + 1  # one more: an epoch is not done before its validation
    setup = Setup(
        model, data.catalogue, windows, drawn, config, optimiser, device, pretraining, world, passes, known, method
    )
    steps: Any = StaticSteps(setup) if static else (mixed or ExactSteps)(setup)
    judge = validating(model, data, device, lambda: steps.features)
    begun = {name: value.clone() for name, value in scalars_of(model).items()}
    seed_dropout(config.seed, world)
    state = keep.begin(model, optimiser, method.tensors) if keep else Training(model, optimiser, method.tensors)
    at, under_way, began = state.at, deque[tuple[Any, Callable[[], float]]](), time.perf_counter()
    bad_batch = keep.folder.bad_batch if keep and not world.rank else None

    def settle(left: int = 0) -> None:
        """Count the steps that are under way, but the last `left` of them."""
        nonlocal began
        while len(under_way) > left:
            batch, read = under_way.popleft()
            value = read()
            began, lap = time.perf_counter(), time.perf_counter() - began
            at.step_done(value, len(batch.targets), lap)
            update(at.epoch - 1 + at.positions / epoch_positions, config.epochs, note_of(at.figures()))

    judge_beginning(state, lambda: of_first(judge, world), 0 if pretraining else data.judged())

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
        row = row_of(at, lr) | method.figures()
        at.finished = at.epoch == config.epochs or at.steps == config.limit_steps
        if at.finished or (data.validation and at.epoch % config.eval_every == 0):
            valid = of_first(judge, world)
            row |= {f"{VALID}{name}": value for name, value in valid.items()}
            take_if_best(state, at.epoch, valid, row["loss"])
            at.finished |= 0 < config.patience <= at.epoch - at.best_epoch
        at.epoch_done(row)
        update(len(at.rows), config.epochs, note_of({name: row[name] for name in SHOWN if name in row}))
        if keep:
            keep.after_epoch(state)
    model.load_state_dict(state.best_weights)
    if begun and at.best_epoch and data.validation and not pretraining:
        keep_floor_unless_beaten(model, at, begun, lambda: of_first(judge, world), data)
    at.gpu_features_mb = steps.features_mb()
    return at


def row_of(at: Position, lr: float) -> Row:
    """The figures of the epoch under way, but those of its validation."""
    row = {
        "epoch": at.epoch,
        "loss": at.loss / at.positions,
        "lr": lr,
        "seconds": at.seconds,
        "positions_per_second": at.positions / at.seconds,
    }
    begun = at.best if at.epoch == 1 else {}
    return row | {f"{START}{name}": begun[name] for name in (SELECTION, TIE_BREAK) if name in begun}


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
            loss = loss_of(setup.model, inputs, batch, config, world, setup.known)
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


def standing(figures: Mapping[str, float], loss: float, prefix: str = "") -> tuple[float, float, float]:
    """What validations are compared by. prefix: of names in metrics.jsonl, where 0.1.0 wrote no NDCG of a floor."""
    return figures[prefix + SELECTION], figures.get(prefix + TIE_BREAK, 0.0), -loss


def take_if_best(state: Training, epoch: int, valid: dict[str, float], loss: float = -math.inf) -> None:
    """Keep the weights if no earlier validation was as good. epoch: those done. loss: of this one."""
    at = state.at
    before = at.rows[at.best_epoch - 1]["loss"] if at.best_epoch else -math.inf  # not above an equal floor
    if not at.best or standing(valid, loss) > standing(at.best, before):
        at.best_epoch, at.best = epoch, valid
        weights = state.model.state_dict()
        state.best_weights = {name: tensor.detach().clone() for name, tensor in weights.items()}


def judge_beginning(state: Training, judge: Callable[[], dict[str, float]], positions: int) -> None:
    """Judge a floor alone, and with the vectors that the model begins with: training on a target has to beat both.

    positions: of the target that are judged; 0 in pre-training.
    """
    import torch

    use_reranker(state.model, 0.0)  # while it trains
    if state.model.floor is None or not positions or state.at.best:
        return
    cosine = state.model.floor["cosine"]
    begun = cosine.detach().clone()
    with torch.no_grad():
        cosine.zero_()
    take_if_best(state, 0, judge_reranked(state.model, judge, positions))
    with torch.no_grad():
        cosine.copy_(begun)
    use_reranker(state.model, 0.0)
    take_if_best(state, 0, judge())


def judge_reranked(model: "Ant", judge: Callable[[], dict[str, float]], positions: int = 0) -> dict[str, float]:
    """The figures of a model, re-ranked if there is a re-ranker and the model is not better alone.

    positions: how many are judged, if only more than chance counts as better: the positions that taught the re-ranker,
    those of shops as small or of the target itself, speak for re-ranking a floor, too. They do not speak for re-ranking
    that of a much larger shop, nor what training made of it.
    """
    use_reranker(model, 0.0)
    alone = judge()
    if model.reranker is None or not model.reranker.learned():
        return alone
    use_reranker(model, 1.0)
    again = judge()
    trusted = 0 < positions <= 2 * max(SHOPS)
    worse = standing(again, 0.0) < standing(alone, 0.0)
    if worse and (not trusted or beyond_chance(alone[SELECTION], again[SELECTION], positions)):
        use_reranker(model, 0.0)
        return alone
    return again


def use_reranker(model: "Ant", weight: float) -> None:
    if model.reranker is not None:
        model.reranker.weight.detach().fill_(weight)


def scalars_of(model: "Ant") -> dict[str, "torch.Tensor"]:
    """The weights of a floor's terms and of the history; none of a model without a floor."""
    if model.floor is None or model.history_score is None:
        return {}
    return {**{name: value.detach() for name, value in model.floor.items()}, "history": model.history_score.detach()}


def keep_floor_unless_beaten(
    model: "Ant",
    at: Position,
    begun: "Mapping[str, torch.Tensor]",
    judge: Callable[[], dict[str, float]],
    data: TrainingData,
) -> None:
    """Give a trained model the weights of the floor alone, unless its best epoch beats that beyond chance.

    begun: the weights that the run began with. Judged by a few hundred positions, one of some epochs is always better
    by chance, and no better elsewhere.
    """
    positions = data.judged()
    best, trained = at.best, {name: value.clone() for name, value in scalars_of(model).items()}
    for name, value in scalars_of(model).items():
        value.copy_(begun[name])
    scalars_of(model)["cosine"].zero_()
    floor = judge_reranked(model, judge, positions)
    if beyond_chance(best[SELECTION], floor[SELECTION], positions):
        for name, value in scalars_of(model).items():
            value.copy_(trained[name])
        at.best = best if model.reranker is None else judge_reranked(model, judge)
        return
    log.info(
        f"epoch {at.best_epoch} is not better than the floor beyond chance: valid_{SELECTION} {best[SELECTION]:.4f} "
        f"against {floor[SELECTION]:.4f} of {positions:,} positions; the floor is kept"
    )
    at.best_epoch, at.best = 0, floor


def beyond_chance(recall: float, floor: float, positions: int) -> bool:
    """Whether a recall is above that of a floor by more than STANDARD_ERRORS of their difference."""
    error = math.sqrt(2 * (1 - CORRELATION) * floor * (1 - floor) / positions)
    return recall - floor > STANDARD_ERRORS * error


def without_training(model: "Ant", data: TrainingData, device: "torch.device", *, choose: bool) -> Position:
    """The position of a run without training steps, which is finished before it begins."""
    judge = validating(model, data, device, lambda: None)
    return Position(best=judge_reranked(model, judge, data.judged()) if choose else judge(), finished=True)


def sized(config: TrainConfig, positions: int) -> tuple[TrainConfig, int]:
    """The settings with the batch size and learning rate for so many training positions, and how often an epoch goes
    over them."""
    batch = config.batch_size
    if config.smallest_batch:
        batch = min(batch, max(config.smallest_batch, positions // STEPS_OF_A_PASS))
    passes = max(1, -(-config.least_steps // -(-positions // batch)))
    if batch != config.batch_size or passes > 1:
        log.info(f"{positions:,} training positions: {batch} per step, {passes} passes per epoch")
    return replace(config, batch_size=batch, lr=config.lr * math.sqrt(batch / config.batch_size)), passes


def reads_known(model: "Ant", config: TrainConfig) -> bool:
    """Whether training needs to know transitions, or which items do not occur in training."""
    return model.floor is not None or not config.unsold_negatives


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


def candidates_of(data: TrainingData, pretraining: bool, config: TrainConfig) -> Candidates:
    return Candidates(len(data.catalogue), drawn_items(len(data.catalogue), pretraining, config))


def drawn_items(size: int, pretraining: bool, config: TrainConfig) -> int:
    """How many items of a catalogue each step draws in addition to its own: `pretrain_drawn` in pre-training; all (the
    full softmax) on a target, unless it has more than `sampled_above`."""
    if pretraining:
        return min(size, config.pretrain_drawn)
    return size if size <= config.sampled_above else config.drawn


def seed_dropout(seed: int, world: World) -> None:
    """Give each process but the first random numbers of its own; the first continues those of a single process."""
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

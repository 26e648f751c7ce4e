"""Training: one visible loop for every stage; what differs between stages is data (core/stages.py)."""

import math
import time
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from antpipe.core import losses
from antpipe.core.batches import Batch, Candidates, Windows, batches, history_pairs, pairs_among, training_windows
from antpipe.core.catalogue import Ints, ItemInputs, item_inputs
from antpipe.core.ranking import evaluate, metrics
from antpipe.errors import DataError, DivergedError
from antpipe.runtime.devices import uncompiled
from antpipe.runtime.progress import Update, ignore
from antpipe.settings.training import TrainConfig
from antpipe.training.checkpoint import keeping
from antpipe.training.data import TrainingData
from antpipe.training.parallel import ALONE, World, add_gradients, gather_rows, of_first, rows_of, total
from antpipe.training.state import Keeping, Position, Training

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant

SELECTION = "recall@10"  # of protocol `all` on the validation split: chooses the best epoch
SHOWN = ("loss", f"valid_{SELECTION}", "seconds")  # while it trains; the rest is in RUN/metrics.jsonl


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
) -> Position:
    """Train, validate, and leave the model with the weights of its best epoch.

    pretraining: in-batch losses over the items of all domains, instead of the full softmax over one catalogue.
    keep: keeps the run on disk and continues one that is there; without it, training leaves nothing on disk.
    update: gets the epochs done (a fraction between epochs) and the latest figures. world: this process among those
    that train together. Returns the final position: the best epoch (from 1), its validation metrics (the mean over
    domains) and the figures of all epochs. Raises DivergedError if the loss is not finite, Paused if `keep` asks for a
    pause, and KeyboardInterrupt after Ctrl-C.
    """
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=config.lr, fused=True)
    windows = windows_to_train(data, config)
    epoch_positions = int(windows.targets.sum()) + 1  # one more: an epoch is not done before its validation
    size = len(data.catalogue)
    candidates = Candidates(size, drawn_items(size, pretraining, config))
    inputs_of = partial(item_inputs, data.catalogue, model.widths, device=device, precision=config.precision)
    kept = inputs_of(np.arange(size)[rows_of(size, world)]) if candidates.drawn == size else None
    loss_of = pretraining_loss if pretraining else target_loss
    seed_dropout(config.seed, world)
    state = keep.begin(model, optimiser) if keep else Training(model, optimiser)
    at = state.at

    while not at.finished:
        model.train()
        lr = set_learning_rate(optimiser, config, pretraining, at.epoch)
        began = time.perf_counter()
        order = batches(windows, config.batch_size, config.seed, at.epoch, candidates, world.share)
        for batch in islice(order, at.step, last_step(config, at)):
            inputs = kept or inputs_of(batch.items[rows_of(len(batch.items), world)])
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                loss = loss_of(model, inputs, batch, config, world)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            add_gradients(trained, world)
            if config.clip:
                torch.nn.utils.clip_grad_norm_(trained, config.clip)
            value = float(total(loss, world))  # not before backward(): on a GPU, reading it waits for all queued work
            check_finite(value, batch, at, keep.folder.bad_batch if keep and not world.rank else None)
            optimiser.step()
            began, lap = time.perf_counter(), time.perf_counter() - began
            at.step_done(value, len(batch.targets), lap)
            update(at.epoch - 1 + at.positions / epoch_positions, config.epochs, note_of(at.figures()))
            if keep:
                keep.after_step(state)
        row = {
            "epoch": at.epoch,
            "loss": at.loss / at.positions,
            "lr": lr,
            "seconds": at.seconds,
            "positions_per_second": at.positions / at.seconds,
        }
        at.finished = at.epoch == config.epochs or at.steps == config.limit_steps
        if at.finished or at.epoch % config.eval_every == 0:
            valid = of_first(lambda: validate(model, data, device), world)
            row |= {f"valid_{name}": value for name, value in valid.items()}
            if at.best_epoch == 0 or valid[SELECTION] > at.best[SELECTION]:
                at.best_epoch, at.best = at.epoch, valid
                state.best_weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            at.finished |= 0 < config.patience <= at.epoch - at.best_epoch
        at.epoch_done(row)
        update(len(at.rows), config.epochs, note_of({name: row[name] for name in SHOWN if name in row}))
        if keep:
            keep.after_epoch(state)
    model.load_state_dict(state.best_weights)
    return at


def note_of(figures: Mapping[str, float]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in figures.items())


def windows_to_train(data: TrainingData, config: TrainConfig) -> Windows:
    """The windows of all domains. Raises DataError if there is nothing to learn from."""
    windows = training_windows(data.sequences, data.catalogue.offsets, config.stride)
    if not len(windows.first):
        raise DataError("no training position: every user has fewer than 2 items in training")
    return windows


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
        group["lr"] = lr
    return lr


def last_step(config: TrainConfig, at: Position) -> int | None:
    """The step of this epoch to stop at, if the number of steps is limited."""
    return at.step + config.limit_steps - at.steps if config.limit_steps else None


def check_finite(loss: float, batch: Batch, at: Position, path: Path | None) -> None:
    """Refuse a step on a loss that is not finite, and save its batch to `path`.

    The arrays hold item rows of all domains together: `items` (n,) the batch reads, `targets` (P,), and `inputs_0`,
    `inputs_1`, ... (B, L) of its blocks.
    """
    if math.isfinite(loss):
        return
    saved = ""
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


def hidden_states(model: "Ant", items: "torch.Tensor", batch: Batch) -> "torch.Tensor":
    """What the model expects at each of this process's positions: (p, D). items: (n, D) vectors of batch.items."""
    import torch

    if not batch.blocks:
        return items[:0]
    inputs = np.concatenate([block.inputs.ravel() for block in batch.blocks])  # (T,)
    starts = np.cumsum([0, *(block.inputs.size for block in batch.blocks)])
    positions = np.concatenate([start + block.positions for start, block in zip(starts, batch.blocks, strict=False)])
    # Not items[inputs]: on a CPU, threads add up its gradient in any order, and the last digits vary.
    read = items.index_select(0, torch.from_numpy(inputs).to(items.device))  # (T, D)
    hidden = model.encode_blocks(read, [block.inputs.shape for block in batch.blocks])
    return hidden.index_select(0, torch.from_numpy(positions).to(items.device))


def target_loss(
    model: "Ant", inputs: ItemInputs, batch: Batch, config: TrainConfig, world: World = ALONE
) -> "torch.Tensor":
    """Softmax over batch.items: the whole catalogue, or a sample of it. inputs: this process's share of them."""
    import torch

    items = gather_rows(model.items(inputs.features, inputs.ids, inputs.present).fused, len(batch.items), world)
    targets = torch.from_numpy(batch.targets[batch.own_targets()]).to(items.device)
    hidden = hidden_states(model, items, batch)
    if not config.reference:
        return softmax_over_items(model, hidden, items, batch)
    zeros = {name: torch.zeros_like(values[:1]) for name, values in inputs.features.items()}
    nothing = {name: torch.zeros_like(there[:1]) for name, there in inputs.present.items()}
    padding = model.items(zeros, None, nothing).fused[0]
    return losses.reference_full_softmax(hidden, items, padding, targets, model.config.temperature)


def softmax_over_items(model: "Ant", hidden: "torch.Tensor", items: "torch.Tensor", batch: Batch) -> "torch.Tensor":
    """Cross-entropy of this process's positions among batch.items. hidden: (p, D), items: (n, D)."""
    import torch

    targets = torch.from_numpy(batch.targets[batch.own_targets()]).to(items.device)
    sampled = None if batch.log_inclusion is None else torch.from_numpy(batch.log_inclusion).to(items.device)
    return losses.full_softmax(
        hidden, items, targets, model.config.temperature, sampled, len(batch.targets), history_bonus(model, batch)
    )


def history_bonus(model: "Ant", batch: Batch, candidates: Ints | None = None) -> losses.Bonus | None:
    """What the model adds to the scores of items in a position's history, if it learns that.

    candidates: (P,) the scored items as rows of batch.items; None for all of these.
    """
    import torch

    if model.history_score is None:
        return None
    pairs = history_pairs(batch.blocks, len(batch.items))
    rows, columns = pairs if candidates is None else pairs_among(pairs, candidates)
    device = model.history_score.device
    return losses.Bonus(model.history_score, torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device))


def pretraining_loss(
    model: "Ant", inputs: ItemInputs, batch: Batch, config: TrainConfig, world: World = ALONE
) -> "torch.Tensor":
    """The loss of sequences and next items, plus the weighted image-text loss if there are both modalities.

    The first is InfoNCE among the batch's next items or, with `pretrain_drawn`, a softmax over the batch's own items
    and those drawn. inputs: this process's share of batch.items.
    """
    import torch

    vectors = model.items(inputs.features, inputs.ids, inputs.present)
    n, temperature = len(batch.items), model.config.temperature
    fused = gather_rows(vectors.fused, n, world)
    targets = torch.from_numpy(batch.targets).to(fused.device)  # (P,)
    hidden = hidden_states(model, fused, batch)
    first, count = batch.first, len(batch.targets)
    if config.reference:
        loss = losses.reference_in_batch(hidden, fused[targets], targets, temperature)
    elif config.pretrain_drawn:
        loss = softmax_over_items(model, hidden, fused, batch)
    else:
        bonus = history_bonus(model, batch, batch.targets)
        next_items = fused.index_select(0, targets)
        loss = losses.in_batch(hidden, next_items, targets, temperature, first, count, bonus)
    if not ("image" in vectors.parts and "text" in vectors.parts and config.image_text_weight):
        return loss
    has_image = gather_rows(inputs.present["image"][:, None].float(), n, world)[:, 0].bool()[targets]  # (P,)
    texts = gather_rows(vectors.parts["text"], n, world).index_select(0, targets)
    images = gather_rows(vectors.parts["image"], n, world).index_select(0, targets)
    if config.reference:
        return loss + config.image_text_weight * losses.reference_image_text(images, texts, has_image, temperature)
    own = batch.own_targets()
    pairs = losses.image_text(images[own], texts, has_image[own], temperature, first, int(has_image.sum()))
    return loss + config.image_text_weight * pairs


def validate(model: "Ant", data: TrainingData, device: "torch.device") -> dict[str, float]:
    """Validation metrics of protocol `all`, the mean over domains (each with the same weight)."""
    with uncompiled(model):
        results = [
            metrics(evaluate(model, data.catalogue, domain, part, device).by_protocol["all"])
            for domain, part in data.validation.items()
        ]
    return {name: float(np.mean([result[name] for result in results])) for name in results[0]}

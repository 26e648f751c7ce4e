"""Training: one visible loop for every stage; what differs between stages is data (transfer.py)."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from antpipe import losses
from antpipe.config import TrainConfig
from antpipe.data import Batch, Catalogue, Examples, ItemInputs, batches, item_inputs, training_windows
from antpipe.errors import DataError
from antpipe.ranking import evaluate, metrics
from antpipe.store import Sequences

if TYPE_CHECKING:
    import torch

    from antpipe.model import Ant

SELECTION = "recall@10"  # of protocol `all` on the validation split: chooses the best epoch


@dataclass(frozen=True)
class TrainingData:
    """What fit() reads: features and windows of all domains together, validation examples of each domain."""

    catalogue: Catalogue
    sequences: tuple[Sequences, ...]
    validation: dict[str, Examples]


def fit(
    model: "Ant",
    data: TrainingData,
    *,
    pretraining: bool,
    config: TrainConfig,
    device: "torch.device",
    record: Callable[[dict[str, Any]], None],
) -> tuple[int, dict[str, float]]:
    """Train, validate, and leave the model with the weights of its best epoch.

    pretraining: in-batch losses over the items of all domains, instead of the full softmax over one catalogue.
    Returns that epoch (from 1) and its validation metrics, the mean over domains. record: gets epoch, loss,
    learning rate, seconds, positions a second and the validation metrics.
    """
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=config.lr, fused=True)
    decay = config.pretrain_lr_decay if pretraining else config.lr_decay
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, decay)
    windows = training_windows(data.sequences, data.catalogue.offsets)
    if not len(windows.first):
        raise DataError("no training position: every user has fewer than 2 items in training")
    whole = None if pretraining else len(data.catalogue)
    kept = None if whole is None else item_inputs(data.catalogue, model.widths, np.arange(whole), device)
    loss_of = pretraining_loss if pretraining else target_loss
    best_epoch, best, best_weights = 0, {SELECTION: -1.0}, {}

    for epoch in range(1, config.epochs + 1):
        model.train()
        began, total, count = time.perf_counter(), 0.0, 0
        for batch in batches(windows, config.batch_size, config.seed, epoch, whole):
            inputs = kept or item_inputs(data.catalogue, model.widths, batch.items, device)
            loss = loss_of(model, inputs, batch, config)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += float(loss.detach()) * len(batch.targets)
            count += len(batch.targets)
        seconds = time.perf_counter() - began
        row = {"epoch": epoch, "loss": total / count, "lr": schedule.get_last_lr()[0],
               "seconds": seconds, "positions_per_second": count / seconds}  # fmt: skip
        schedule.step()
        if epoch % config.eval_every == 0 or epoch == config.epochs:
            valid = validate(model, data, device)
            row |= {f"valid_{name}": value for name, value in valid.items()}
            if valid[SELECTION] > best[SELECTION]:
                best_epoch, best = epoch, valid
                best_weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        record(row)
    model.load_state_dict(best_weights)
    return best_epoch, best


def hidden_states(model: "Ant", items: "torch.Tensor", batch: Batch) -> "torch.Tensor":
    """What the model expects at each position with a target: (P, D). items: (n, D) vectors of batch.items."""
    import torch

    parts = []
    for block in batch.blocks:
        inputs = torch.from_numpy(block.inputs).to(items.device)
        hidden = model.encode(items[inputs]).flatten(0, 1)  # (B * L, D)
        parts.append(hidden[torch.from_numpy(block.positions).to(items.device)])
    return torch.cat(parts)


def target_loss(model: "Ant", inputs: ItemInputs, batch: Batch, config: TrainConfig) -> "torch.Tensor":
    """Full softmax over the catalogue, of which batch.items is all."""
    import torch

    items = model.items(inputs.features, inputs.ids, inputs.present).fused
    targets = torch.from_numpy(batch.targets).to(items.device)
    hidden = hidden_states(model, items, batch)
    if not config.reference:
        return losses.full_softmax(hidden, items, targets, model.config.temperature)
    zeros = {name: torch.zeros_like(values[:1]) for name, values in inputs.features.items()}
    nothing = {name: torch.zeros_like(there[:1]) for name, there in inputs.present.items()}
    padding = model.items(zeros, None, nothing).fused[0]
    return losses.reference_full_softmax(hidden, items, padding, targets, model.config.temperature)


def pretraining_loss(model: "Ant", inputs: ItemInputs, batch: Batch, config: TrainConfig) -> "torch.Tensor":
    """In-batch InfoNCE of sequence and next item, plus the weighted image-text loss where there are both."""
    import torch

    vectors = model.items(inputs.features, inputs.ids, inputs.present)
    targets = torch.from_numpy(batch.targets).to(vectors.fused.device)
    temperature = model.config.temperature
    in_batch = losses.reference_in_batch if config.reference else losses.in_batch
    image_text = losses.reference_image_text if config.reference else losses.image_text
    loss = in_batch(hidden_states(model, vectors.fused, batch), vectors.fused[targets], targets, temperature)
    if "image" in vectors.parts and "text" in vectors.parts and config.image_text_weight:
        images, texts = vectors.parts["image"][targets], vectors.parts["text"][targets]
        loss = loss + config.image_text_weight * image_text(
            images, texts, inputs.present["image"][targets], temperature
        )
    return loss


def validate(model: "Ant", data: TrainingData, device: "torch.device") -> dict[str, float]:
    """Validation metrics of protocol `all`, the mean over domains (each counts the same)."""
    results = [
        metrics(evaluate(model, data.catalogue, domain, part, device).by_protocol["all"])
        for domain, part in data.validation.items()
    ]
    return {name: float(np.mean([result[name] for result in results])) for name in results[0]}

"""The loss of a step on exact blocks: of a stage on a target, and of pre-training."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from antpipe.core import losses
from antpipe.core.batches import Batch, history_pairs, pairs_among
from antpipe.core.catalogue import Ints, ItemInputs
from antpipe.settings.training import TrainConfig
from antpipe.training.parallel import ALONE, World, gather_rows

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant

Flags = NDArray[np.bool_]


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
    model: "Ant",
    inputs: ItemInputs,
    batch: Batch,
    config: TrainConfig,
    world: World = ALONE,
    new: Flags | None = None,
) -> "torch.Tensor":
    """Softmax over batch.items: the whole catalogue, or a sample of it. inputs: this process's share of them. new: (N,)
    True for items that are not negatives, because they do not occur in training."""
    import torch

    items = gather_rows(model.items(inputs.features, inputs.ids, inputs.present).fused, len(batch.items), world)
    targets = torch.from_numpy(batch.targets[batch.own_targets()]).to(items.device)
    hidden = hidden_states(model, items, batch)
    if not config.reference:
        return softmax_over_items(model, hidden, items, batch, bonus_of(model, batch), candidates_only(new, batch))
    zeros = {name: torch.zeros_like(values[:1]) for name, values in inputs.features.items()}
    nothing = {name: torch.zeros_like(there[:1]) for name, there in inputs.present.items()}
    padding = model.items(zeros, None, nothing).fused[0]
    return losses.reference_full_softmax(hidden, items, padding, targets, model.config.temperature)


def softmax_over_items(
    model: "Ant",
    hidden: "torch.Tensor",
    items: "torch.Tensor",
    batch: Batch,
    bonus: losses.Bonus | None,
    log_inclusion: NDArray[np.float32] | None,
) -> "torch.Tensor":
    """Cross-entropy of this process's positions among batch.items. hidden: (p, D), items: (n, D)."""
    import torch

    targets = torch.from_numpy(batch.targets[batch.own_targets()]).to(items.device)
    sampled = None if log_inclusion is None else torch.from_numpy(log_inclusion).to(items.device)
    return losses.full_softmax(hidden, items, targets, model.config.temperature, sampled, len(batch.targets), bonus)


def candidates_only(new: Flags | None, batch: Batch) -> NDArray[np.float32] | None:
    """The log probability that each of batch.items is among them, infinite for items that are not negatives."""
    if new is None or not new[batch.items].any():
        return batch.log_inclusion
    inclusion = np.zeros(len(batch.items), np.float32) if batch.log_inclusion is None else batch.log_inclusion
    return np.where(new[batch.items], np.float32(np.inf), inclusion)


def bonus_of(model: "Ant", batch: Batch, candidates: Ints | None = None) -> losses.Bonus | None:
    """The learned score of items in the history, for a model that has one. The score of a floor is not part of a step:
    it is fitted to validation positions (core/floor.py).

    candidates: (P,) the scored items as rows of batch.items; None for all of batch.items.
    """
    import torch

    if model.history_score is None or model.floor is not None:
        return None
    pairs = history_pairs(batch.blocks, len(batch.items))
    pairs = pairs if candidates is None else pairs_among(pairs, candidates)
    return losses.Bonus(model.history_score, *(torch.from_numpy(one).to(model.history_score.device) for one in pairs))


def pretraining_loss(
    model: "Ant",
    inputs: ItemInputs,
    batch: Batch,
    config: TrainConfig,
    world: World = ALONE,
    new: Flags | None = None,
) -> "torch.Tensor":
    """The loss of sequences and next items, plus the weighted image-text loss if there are both modalities.

    The first is InfoNCE among the batch's next items, where a user's own are not negatives (with `reference` they are),
    or with `pretrain_drawn` a softmax over the batch's own items and those drawn. inputs: this process's share of
    batch.items.
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
        loss = softmax_over_items(model, hidden, fused, batch, bonus_of(model, batch), candidates_only(new, batch))
    else:
        bonus = bonus_of(model, batch, batch.targets)
        next_items = fused.index_select(0, targets)
        users = torch.from_numpy(batch.users).to(fused.device)
        loss = losses.in_batch(hidden, next_items, targets, temperature, first, count, bonus, users)
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

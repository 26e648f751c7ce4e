"""The loss of a step on exact blocks: of a stage on a target, and of pre-training."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from antpipe.core import losses
from antpipe.core.batches import Batch, history_pairs, pairs_among
from antpipe.core.catalogue import Ints, ItemInputs
from antpipe.core.floor import products_of, recent, step_pairs, text_read, text_recent, word_pairs
from antpipe.core.untrained import RECENT, TRANSITIONS, WORDS, Untrained, of_items
from antpipe.settings.training import TrainConfig
from antpipe.training.parallel import ALONE, World, gather_rows

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant


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
    known: Untrained | None = None,
) -> "torch.Tensor":
    """Softmax over batch.items: the whole catalogue, or a sample of it. inputs: this process's share of them."""
    import torch

    items = gather_rows(model.items(inputs.features, inputs.ids, inputs.present).fused, len(batch.items), world)
    targets = torch.from_numpy(batch.targets[batch.own_targets()]).to(items.device)
    hidden = hidden_states(model, items, batch)
    if not config.reference:
        extras = extras_of(model, inputs, batch, known, world)
        return softmax_over_items(model, hidden, items, batch, extras, candidates_only(known, batch, config))
    zeros = {name: torch.zeros_like(values[:1]) for name, values in inputs.features.items()}
    nothing = {name: torch.zeros_like(there[:1]) for name, there in inputs.present.items()}
    padding = model.items(zeros, None, nothing).fused[0]
    return losses.reference_full_softmax(hidden, items, padding, targets, model.config.temperature)


def softmax_over_items(
    model: "Ant",
    hidden: "torch.Tensor",
    items: "torch.Tensor",
    batch: Batch,
    extras: losses.Extras,
    log_inclusion: NDArray[np.float32] | None,
) -> "torch.Tensor":
    """Cross-entropy of this process's positions among batch.items. hidden: (p, D), items: (n, D)."""
    import torch

    targets = torch.from_numpy(batch.targets[batch.own_targets()]).to(items.device)
    sampled = None if log_inclusion is None else torch.from_numpy(log_inclusion).to(items.device)
    return losses.full_softmax(hidden, items, targets, model.config.temperature, sampled, len(batch.targets), extras)


def candidates_only(known: Untrained | None, batch: Batch, config: TrainConfig) -> NDArray[np.float32] | None:
    """The log probabilities of batch.items to be among them, infinite for those that do not occur in training, if these
    are not negatives."""
    if config.unsold_negatives or known is None or not known.new[batch.items].any():
        return batch.log_inclusion
    inclusion = np.zeros(len(batch.items), np.float32) if batch.log_inclusion is None else batch.log_inclusion
    return np.where(known.new[batch.items], np.float32(np.inf), inclusion)


def extras_of(
    model: "Ant",
    inputs: ItemInputs,
    batch: Batch,
    known: Untrained | None,
    world: World = ALONE,
    candidates: Ints | None = None,
) -> losses.Extras:
    """What the model adds to the cosines of a step: a learned score of items in the history, and the floor's terms.

    known: what the floor knows. candidates: (P,) the scored items as rows of batch.items; None for all of these.
    """
    import torch
    import torch.nn.functional as F

    if model.history_score is None:
        return losses.Extras()
    device = model.history_score.device
    pairs = history_pairs(batch.blocks, len(batch.items))
    pairs = pairs if candidates is None else pairs_among(pairs, candidates)
    seen = losses.Bonus(model.history_score, *(torch.from_numpy(one).to(device) for one in pairs))
    if model.floor is None or known is None:
        return losses.Extras([seen])
    last = recent(batch.blocks)
    links = {
        TRANSITIONS: step_pairs(known, batch.items, last, batch.targets[batch.own_targets()]),
        WORDS: word_pairs(known, batch.items, last),
    }
    bonuses = [seen]
    for name, found in links.items():
        pairs = found if candidates is None else csr_array(found[:, candidates])
        row = np.repeat(np.arange(len(last)), np.diff(pairs.indptr))
        arrays = (torch.from_numpy(one).to(device) for one in (row, pairs.indices.astype(np.int64), pairs.data))
        bonuses.append(losses.Bonus(model.floor[name], *arrays))
    texts, weights = torch.empty(len(batch.items), 0, device=device), dict(model.floor.items())
    if "text" in weights:
        text = inputs.features["text"]
        texts = F.normalize(text.to(torch.promote_types(text.dtype, torch.float32)), dim=-1)
        texts = gather_rows(texts, len(batch.items), world)  # (n, d)
    recent_texts = text_recent(texts, torch.from_numpy(last).to(device))
    history = RECENT * recent_texts + (1 - RECENT) * text_read(texts, batch.blocks)
    popularity, typical = (torch.from_numpy(one[batch.items]).to(device) for one in (known.popularity, known.typical))
    queries, scored = products_of(weights, history, texts, of_items(0.0, popularity, typical, weights))
    scored = scored if candidates is None else scored[torch.from_numpy(candidates).to(device)]
    alike = losses.Known(torch.ones((), device=device), queries, scored)
    return losses.Extras(bonuses, alike, model.floor["cosine"] * model.config.temperature)


def pretraining_loss(
    model: "Ant",
    inputs: ItemInputs,
    batch: Batch,
    config: TrainConfig,
    world: World = ALONE,
    known: Untrained | None = None,
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
        extras = extras_of(model, inputs, batch, known, world)
        loss = softmax_over_items(model, hidden, fused, batch, extras, candidates_only(known, batch, config))
    else:
        extras = extras_of(model, inputs, batch, known, world, batch.targets)
        next_items = fused.index_select(0, targets)
        users = torch.from_numpy(batch.users).to(fused.device)
        loss = losses.in_batch(hidden, next_items, targets, temperature, first, count, extras, users)
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

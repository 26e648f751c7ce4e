"""The losses of a step in a fixed shape (core/gpu/packing.py): those of losses.py, with weights instead of exact sizes.

Nothing here waits for a GPU, and no shape depends on data, so that a step can be recorded once and replayed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from antpipe.core.catalogue import ItemInputs
from antpipe.core.floor import COSINE, products_of, text_recent
from antpipe.core.gpu.floor import DeviceKnown, links_of
from antpipe.core.gpu.packing import WHOLE, Shape
from antpipe.core.losses import Known
from antpipe.core.model import Ant
from antpipe.core.untrained import RECENT, TEXT, of_items
from antpipe.settings.training import TrainConfig

SCORES_AT_ONCE = 1 << 28  # 1 GB in fp32; gradients take as much again


@dataclass(frozen=True)
class Step:
    """The arrays of a PackedBatch on the device. weight: (P,) 1 / targets for real targets, 0 for padding; mask:
    (B, 1, L, L) which positions attend to which; items, log_inclusion: (n,), None if all items of the catalogue are;
    last: (P, LAST) indices into the items, None for a model without a floor; links: at least the number of those
    of these items."""

    inputs: Tensor
    places: Tensor
    mask: Tensor
    positions: Tensor
    targets: Tensor
    users: Tensor
    weight: Tensor
    items: Tensor | None
    log_inclusion: Tensor | None
    last: Tensor | None = None
    links: int = 0


def step_of(numbers: Tensor, shape: Shape) -> Step:
    """numbers: (shape.numbers(),) int64, as in PackedBatch."""
    part = shape.split(numbers)
    windows, whole = part["windows"], shape.items == WHOLE
    mask = (windows[:, :, None] == windows[:, None, :]).tril()[:, None]
    real = torch.arange(shape.targets, device=numbers.device) < part["counts"]
    return Step(
        part["inputs"],
        part["places"],
        mask,
        part["positions"],
        part["targets"],
        part["users"],
        real / part["counts"],
        None if whole else part["items"],
        None if whole else part["log_inclusion"].view(torch.float64).float(),
        part["last"] if shape.links else None,
        shape.links,
    )


@dataclass(frozen=True)
class Added:
    """What is added to the cosines of P positions and n candidates.

    dense: learned scalars, each times numbers (P, n). texts: as in losses.py. cosine: the weight of the cosines
    themselves, 1 if None.
    """

    dense: Sequence[tuple[Tensor, Tensor]] = ()
    texts: Known | None = None
    cosine: Tensor | None = None


def static_loss(
    model: Ant,
    inputs: ItemInputs,
    step: Step,
    config: TrainConfig,
    *,
    pretraining: bool,
    known: DeviceKnown | None = None,
) -> Tensor:
    """`target_loss` or `pretraining_loss` of training/loop.py for one process, without the reference's quirks.

    known: for a model with a floor, or if items that do not occur in training are no negatives.
    """
    vectors = model.items(inputs.features, inputs.ids, inputs.present)
    fused, temperature = vectors.fused.float(), model.config.temperature  # gradients of an item are added in float32
    read = fused.index_select(0, step.inputs.flatten()).view(*step.inputs.shape, -1)  # (B, L, D)
    hidden = model.encode_packed(read, step.places, step.mask).flatten(0, 1).index_select(0, step.positions)  # (P, D)
    own = torch.arange(len(step.targets), device=fused.device)
    in_batch = pretraining and not config.pretrain_drawn
    if in_batch:
        real = step.weight > 0
        alike = (step.targets[:, None] == step.targets) | (step.users[:, None] == step.users)
        hide = alike | ~real  # (P, P), other rows that are not negatives
        hide.fill_diagonal_(False)
        candidates, labels, offset = fused.index_select(0, step.targets), own, None
    else:
        candidates, labels, offset, hide = fused, step.targets, step.log_inclusion, None
        if offset is None and known is not None and not config.unsold_negatives:  # else it says so already
            offset = torch.where(known.new, torch.inf, 0.0)
    added = added_to(model, inputs, step, known, step.targets if in_batch else None)
    loss = weighted_cross_entropy(hidden, candidates, labels, step.weight, temperature, offset, hide, added)
    if not (pretraining and "image" in vectors.parts and "text" in vectors.parts and config.image_text_weight):
        return loss
    texts, images = (vectors.parts[name].index_select(0, step.targets) for name in ("text", "image"))
    paired = (step.weight > 0) & inputs.present["image"].index_select(0, step.targets)
    weight = paired / paired.sum().clamp(min=1)
    padding = torch.where(step.weight > 0, 0.0, torch.inf)
    # The own text of a padded row is hidden too, but the first row's is not, so its loss is finite times zero.
    labels = torch.where(step.weight > 0, own, 0)
    return loss + config.image_text_weight * weighted_cross_entropy(images, texts, labels, weight, temperature, padding)


def added_to(model: Ant, inputs: ItemInputs, step: Step, known: DeviceKnown | None, candidates: Tensor | None) -> Added:
    """`extras_of` of training/loop.py. candidates: (P,) indices into the step's items; None for all of these."""

    def of_candidates(of_items: Tensor, axis: int) -> Tensor:
        return of_items if candidates is None else of_items.index_select(axis, candidates)

    if model.history_score is None:
        return Added()
    n = len(inputs.ids)
    history = (model.history_score, of_candidates(in_history(step, n), 1))
    if model.floor is None or known is None or step.last is None:
        return Added([history])
    last, targets, columns = step.last, step.targets, None
    if step.items is not None:  # indices of the step's items as global rows, and back
        last = torch.where(last >= 0, step.items[last.clamp(min=0)], -1)
        targets = step.items.index_select(0, targets)
        columns = torch.full((known.items(),), n, device=last.device)
        columns = columns.scatter_reduce(0, step.items, torch.arange(n, device=last.device), "amin")  # not of padding
    links = links_of(known, last, step.links, dict(model.floor.items()), targets, columns, n)
    texts, weights, one = links.new_empty(n, 0), dict(model.floor.items()), torch.ones((), device=last.device)
    if TEXT in weights:
        text = inputs.features["text"]
        texts = F.normalize(text.to(torch.promote_types(text.dtype, torch.float32)), dim=-1)  # (n, d)
    read = RECENT * text_recent(texts, step.last) + (1 - RECENT) * text_read(texts, step)
    popularity, typical = known.popularity, known.typical
    if step.items is not None:
        popularity, typical = popularity.index_select(0, step.items), typical.index_select(0, step.items)
    queries, scored = products_of(weights, read, texts, of_items(0.0, popularity, typical, weights))
    alike = Known(one, queries, of_candidates(scored, 0))
    return Added([history, (one, of_candidates(links, 1))], alike, model.floor[COSINE] * model.config.temperature)


def text_read(texts: Tensor, step: Step) -> Tensor:
    """The mean text of all items that each target's position has read, (P, d). texts: (n, d) unit vectors."""
    share = step.mask[:, 0].to(texts.dtype)  # (B, L, L)
    share = share / share.sum(-1, keepdim=True)
    read = texts.index_select(0, step.inputs.flatten()).view(*step.inputs.shape, -1)  # (B, L, d)
    return (share @ read).flatten(0, 1).index_select(0, step.positions)


def in_history(step: Step, n: int) -> Tensor:
    """(P, n): 1 for the items that a target's position has read, its own item included; else 0."""
    row, column = step.positions // step.inputs.shape[1], step.positions % step.inputs.shape[1]
    read = step.mask[row, 0, column]  # (P, L)
    items = torch.where(read, step.inputs[row], n)
    marks = torch.zeros(len(row), n + 1, device=items.device)
    return marks.scatter_(1, items, 1.0)[:, :n]


def weighted_cross_entropy(
    queries: Tensor,
    candidates: Tensor,
    labels: Tensor,
    weight: Tensor,
    temperature: float,
    offset: Tensor | None = None,
    hide: Tensor | None = None,
    added: Added | None = None,
) -> Tensor:
    """Sum over rows of weight times -log softmax((cosine and what is added to it) / temperature - offset)[label].

    queries: (P, D); candidates: (n, D); labels, weight: (P,); offset: (n,), infinite for no candidate; hide: (P, n),
    True for no candidate of that row. A label is a candidate.
    """
    added = added or Added()
    queries, table = F.normalize(queries, dim=-1) / temperature, F.normalize(candidates, dim=-1)
    queries = queries if added.cosine is None else queries * added.cosine

    def part(begin: int, end: int) -> Tensor:
        scores = (queries[begin:end] @ table.T).float()
        if offset is not None:
            scores = scores - offset
        for score, numbers in added.dense:
            scores = scores + numbers[begin:end] * (score / temperature)
        if added.texts is not None:
            alike = added.texts.queries[begin:end] @ added.texts.candidates.T
            scores = scores + alike.float() * (added.texts.score / temperature)
        if hide is not None:
            scores = scores.masked_fill(hide[begin:end], -torch.inf)
        each = F.cross_entropy(scores, labels[begin:end], reduction="none")
        return (each * weight[begin:end]).sum()

    size = max(1, SCORES_AT_ONCE // len(table))
    if len(queries) <= size:
        return part(0, len(queries))
    blocks = range(0, len(queries), size)  # whose scores are computed again for the gradient, to hold one at a time
    parts = [
        checkpoint(part, begin, min(begin + size, len(queries)), use_reentrant=False, preserve_rng_state=False)
        for begin in blocks
    ]
    return torch.stack(parts).sum()

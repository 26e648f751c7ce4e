"""The losses of a step in a fixed shape (core/gpu/packing.py): those of losses.py, with weights instead of exact sizes.

Nothing here waits for a GPU, and no shape depends on data, so that a step can be recorded once and replayed.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from antpipe.core.catalogue import ItemInputs
from antpipe.core.gpu.packing import WHOLE, Shape
from antpipe.core.model import Ant
from antpipe.settings.training import TrainConfig

SCORES_AT_ONCE = 1 << 28  # 1 GB in fp32; gradients take as much again


@dataclass(frozen=True)
class Step:
    """The arrays of a PackedBatch on the device. weight: (P,) 1 / number of targets for real ones, 0 for padding; mask:
    (B, 1, L, L) which positions attend to which; items, log_inclusion: (n,), None if the step reads all items."""

    inputs: Tensor
    places: Tensor
    mask: Tensor
    positions: Tensor
    targets: Tensor
    users: Tensor
    weight: Tensor
    items: Tensor | None
    log_inclusion: Tensor | None


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
    )


def static_loss(
    model: Ant,
    inputs: ItemInputs,
    step: Step,
    config: TrainConfig,
    *,
    pretraining: bool,
    new: Tensor | None = None,
) -> Tensor:
    """`target_loss` or `pretraining_loss` of training/step_loss.py for one process, without the reference's quirks.

    new: (N,) True for items that are not negatives, because they do not occur in training; None if all may be.
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
        if offset is None and new is not None:  # otherwise `offset` excludes them already
            offset = torch.where(new, torch.inf, 0.0)
    bonus = bonus_of(model, step, len(inputs.ids), step.targets if in_batch else None)
    loss = weighted_cross_entropy(hidden, candidates, labels, step.weight, temperature, offset, hide, bonus)
    if not (pretraining and "image" in vectors.parts and "text" in vectors.parts and config.image_text_weight):
        return loss
    texts, images = (vectors.parts[name].index_select(0, step.targets) for name in ("text", "image"))
    paired = (step.weight > 0) & inputs.present["image"].index_select(0, step.targets)
    weight = paired / paired.sum().clamp(min=1)
    padding = torch.where(step.weight > 0, 0.0, torch.inf)
    # A padded row's own text is hidden, so its label is the first row's text: its loss is finite, and has weight zero.
    labels = torch.where(step.weight > 0, own, 0)
    return loss + config.image_text_weight * weighted_cross_entropy(images, texts, labels, weight, temperature, padding)


def bonus_of(model: Ant, step: Step, n: int, candidates: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """`bonus_of` of training/step_loss.py: the score, and where it is added, (P, n of the step's items).

    candidates: (P,) indices of the scored items; None for all items of the step.
    """
    if model.history_score is None or model.floor is not None:
        return None
    read = in_history(step, n)
    return model.history_score, read if candidates is None else read.index_select(1, candidates)


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
    bonus: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Sum over rows of weight times -log softmax((cosine + bonus) / temperature - offset)[label].

    queries: (P, D); candidates: (n, D); labels, weight: (P,); offset: (n,), infinite to exclude a candidate; hide:
    (P, n), True to exclude it for that row; bonus: a score, and (P, n), 1 where it is added. Labels are not excluded.
    """
    queries, table = F.normalize(queries, dim=-1) / temperature, F.normalize(candidates, dim=-1)

    def part(begin: int, end: int) -> Tensor:
        scores = (queries[begin:end] @ table.T).float()
        if offset is not None:
            scores = scores - offset
        if bonus is not None:
            score, there = bonus
            scores = scores + there[begin:end] * (score / temperature)
        if hide is not None:
            scores = scores.masked_fill(hide[begin:end], -torch.inf)
        each = F.cross_entropy(scores, labels[begin:end], reduction="none")
        return (each * weight[begin:end]).sum()

    size = max(1, SCORES_AT_ONCE // len(table))
    if len(queries) <= size:
        return part(0, len(queries))
    blocks = range(0, len(queries), size)  # recomputed for the gradient, to hold the scores of one at a time
    parts = [
        checkpoint(part, begin, min(begin + size, len(queries)), use_reentrant=False, preserve_rng_state=False)
        for begin in blocks
    ]
    return torch.stack(parts).sum()

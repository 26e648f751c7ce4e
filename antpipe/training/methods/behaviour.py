"""Behaviours of shoppers, after hesitation and negative transfer in multi-behaviour recommendation (arXiv 2511.05808).

A purchase with a low rating, or one that was not verified, is a weak positive: as a target it has less weight, and as
an input its vector passes a gate that damps it. A purchase that is both gets the product of the factors.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from antpipe.core import losses
from antpipe.core.batches import Batch, Block, Windows, blocks_of
from antpipe.core.catalogue import ItemInputs
from antpipe.core.losses import Bonus
from antpipe.settings.training import TrainConfig
from antpipe.training.methods.method import Method
from antpipe.training.methods.weak_positives import Marks, factors
from antpipe.training.parallel import World
from antpipe.training.step_loss import Flags, bonus_of, candidates_only, hidden_states

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant


def behaviour(windows: Windows, marks: Marks) -> Method:
    """The method. windows: those that are trained on; marks: (sum of lengths,) of their items."""
    import torch

    there, numbers = np.unique(np.append(0, marks), return_inverse=True)  # the marks that occur, from 0
    marked = replace(windows, items=numbers[1:])  # the same windows of marks

    def loss(
        model: "Ant", inputs: ItemInputs, batch: Batch, config: TrainConfig, _: World, new: Flags | None
    ) -> "torch.Tensor":
        assert batch.windows is not None
        read, of_targets = blocks_of(marked, batch.windows)
        items = model.items(inputs.features, inputs.ids, inputs.present).fused
        gates = factors(config.low_rated_gate, config.unverified_gate)[there]
        twins = torch.cat([float(gate) * items for gate in gates])  # as they are read: an item, and its damped twins
        hidden = hidden_states(model, twins, replace(batch, blocks=with_twins(batch.blocks, read, len(items))))
        weights = factors(config.low_rated_weight, config.unverified_weight)[there][of_targets]
        if not weights.any():
            return hidden.sum() * 0.0
        bonus, offset = bonus_of(model, batch), candidates_only(new, batch)
        sampled = None if offset is None else torch.from_numpy(offset).to(items.device)
        targets = torch.from_numpy(batch.targets).to(items.device)
        total = torch.zeros((), device=items.device)
        for weight in np.unique(weights[weights > 0]):
            rows = torch.from_numpy(np.flatnonzero(weights == weight)).to(items.device)
            mine = targets.index_select(0, rows), model.config.temperature, sampled, len(targets)
            some = None if bonus is None else bonus_of_rows(bonus, rows, len(targets))
            one = losses.full_softmax(hidden.index_select(0, rows), items, *mine, some)
            total = total + float(weight) * one
        return total * float(len(weights) / weights.sum())

    return Method(loss)


def with_twins(blocks: Sequence[Block], marks: Sequence[Block], n: int) -> tuple[Block, ...]:
    """Blocks that read the twins of marked items: offset by n for mark 1, by 2 n for mark 2 and so on."""
    return tuple(
        replace(block, inputs=block.inputs + n * mark.inputs) for block, mark in zip(blocks, marks, strict=True)
    )


def bonus_of_rows(bonus: Bonus, rows: "torch.Tensor", count: int) -> Bonus:
    """The bonus of some of `count` positions. rows: their indices, ascending."""
    import torch

    place = torch.full((count,), -1, device=rows.device)
    place[rows] = torch.arange(len(rows), device=rows.device)
    kept = (place[bonus.rows] >= 0).nonzero()[:, 0]
    return Bonus(bonus.score, place[bonus.rows[kept]], bonus.columns[kept])

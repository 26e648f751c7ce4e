"""Behaviours of shoppers, after hesitation and negative transfer in multi-behaviour recommendation (arXiv 2511.05808).

A purchase with a low rating, or one that was not verified, is a weak positive: as a target it has less weight, and as
an item that is read its vector passes a gate that damps it. A purchase that is both has the product of the factors.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from antpipe.core import losses
from antpipe.core.batches import Batch, Block, Windows, blocks_of
from antpipe.core.catalogue import ItemInputs
from antpipe.core.losses import Bonus, Extras
from antpipe.core.untrained import Untrained
from antpipe.settings.training import TrainConfig
from antpipe.training.methods.method import Method
from antpipe.training.methods.weak_positives import Marks, factors
from antpipe.training.parallel import World
from antpipe.training.step_loss import candidates_only, extras_of, hidden_states

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant


def behaviour(windows: Windows, marks: Marks) -> Method:
    """The method. windows: those that are trained on; marks: (sum of lengths,) of their items."""
    import torch

    there, numbers = np.unique(np.append(0, marks), return_inverse=True)  # the marks that occur, from 0
    marked = replace(windows, items=numbers[1:])  # the same windows of marks

    def loss(
        model: "Ant", inputs: ItemInputs, batch: Batch, config: TrainConfig, _: World, known: Untrained | None
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
        extras, offset = extras_of(model, inputs, batch, known), candidates_only(known, batch, config)
        sampled = None if offset is None else torch.from_numpy(offset).to(items.device)
        targets = torch.from_numpy(batch.targets).to(items.device)
        total = torch.zeros((), device=items.device)
        for weight in np.unique(weights[weights > 0]):
            rows = torch.from_numpy(np.flatnonzero(weights == weight)).to(items.device)
            mine = targets.index_select(0, rows), model.config.temperature, sampled, len(targets)
            one = losses.full_softmax(
                hidden.index_select(0, rows), items, *mine, extras_of_rows(extras, rows, len(targets))
            )
            total = total + float(weight) * one
        return total * float(len(weights) / weights.sum())

    return Method(loss)


def with_twins(blocks: Sequence[Block], marks: Sequence[Block], n: int) -> tuple[Block, ...]:
    """Blocks that read the twins of marked items: n items further for mark 1, 2 n for mark 2 and so on."""
    return tuple(
        replace(block, inputs=block.inputs + n * mark.inputs) for block, mark in zip(blocks, marks, strict=True)
    )


def extras_of_rows(extras: Extras, rows: "torch.Tensor", count: int) -> Extras:
    """What is added to the cosines of some of `count` positions, by their numbers (ascending)."""
    import torch

    place = torch.full((count,), -1, device=rows.device)
    place[rows] = torch.arange(len(rows), device=rows.device)

    def some(bonus: Bonus) -> Bonus:
        kept = (place[bonus.rows] >= 0).nonzero()[:, 0]
        values = None if bonus.values is None else bonus.values[kept]
        return Bonus(bonus.score, place[bonus.rows[kept]], bonus.columns[kept], values)

    known = extras.known
    texts = None if known is None else replace(known, queries=known.queries.index_select(0, rows))
    return Extras([some(bonus) for bonus in extras.bonuses], texts, extras.cosine)

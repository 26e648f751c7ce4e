"""Full ranking on a GPU: the ranks of ranking.py, by counting the items that score higher than the target.

All scores of a block of examples are one matrix product, and one more for the texts of a model with a floor. Items
that float32 cannot tell from the target are scored again in float64, so ranks are as exact as on a CPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from antpipe.core import ranking
from antpipe.core.batches import Examples
from antpipe.core.catalogue import Catalogue, DeviceFeatures, Ints
from antpipe.core.floor import COSINE, link_counts, weights_of
from antpipe.core.gpu.floor import MOST_SHARES, DeviceKnown, links_at, links_of
from antpipe.core.ranking import DEPTH, Ranks
from antpipe.core.scoring import catalogue_vectors, score_of_history
from antpipe.core.untrained import DECAY, LAST, RECENT, TEXT, Untrained, of_items

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant

POSITIONS_AT_ONCE = 1 << 17  # per pass of the encoder; 128 MB per layer at width 256
SCORES_AT_ONCE = 1 << 27  # 512 MB, plus three masks of a quarter of that; with a floor, two arrays of half the size
EXACT_AT_ONCE = 1 << 25  # numbers in float64, 256 MB
PAIRS_AT_ONCE = 1 << 22  # of an example and an item that float32 cannot tell from its target
LINKS_AT_ONCE = 1 << 23  # of the last items of examples; about 60 bytes each


@dataclass(frozen=True)
class ExampleBlock:
    """Examples of similar history length, padded at the end, on a device.

    rows: their indices (b,); inputs: (b, L) the items read, padded with 0; last: (b,) column of the last one; history:
    (b, H) all items of the history, padded with the number of items; targets: (b,); recent: (b, LAST) the last items,
    the latest first, -1 if there are no more; links: at least the number of links of all `recent` items (0: a model
    without a floor).
    """

    rows: Ints
    links: int
    inputs: "torch.Tensor"
    last: "torch.Tensor"
    history: "torch.Tensor"
    targets: "torch.Tensor"
    recent: "torch.Tensor"


@dataclass(frozen=True)
class Floor:
    """What the floor of a model adds to the scores of a domain's items, and its weights in units of a cosine."""

    known: DeviceKnown
    weights: Mapping[str, float]

    @cached_property
    def of_items(self) -> "torch.Tensor":
        """(N,) the part of each item's score that does not depend on the history."""
        known = self.known
        added: torch.Tensor = of_items(known.new, known.popularity, known.typical, self.weights)
        return added.float()


def example_blocks(
    part: Examples, n: int, device: "torch.device", block_size: int = 0, known: Untrained | None = None
) -> list[ExampleBlock]:
    """All examples over n items, in blocks of at most block_size examples (0: as many as fit).

    known: that of the domain, for a model with a floor.
    """
    import torch

    history = part.end - part.start
    order = np.argsort(history, kind="stable")
    most = SCORES_AT_ONCE // (1 if known is None else 2)
    length, blocks, begin = np.minimum(history, part.max_len)[order], [], 0
    longest = history[order]
    place, real = part.end[order, None] - 1 - np.arange(LAST), np.arange(LAST) < longest[:, None]
    recent = np.where(real, part.items[np.maximum(place, 0)], -1).astype(np.int64)  # (Q, LAST)
    links = np.zeros(len(order), np.int64) if known is None else link_counts(known, recent)
    while begin < len(order):
        count = np.arange(1, len(order) - begin + 1)
        fits = (count * length[begin:] <= POSITIONS_AT_ONCE) & (count * np.maximum(n, longest[begin:]) <= most)
        fits &= np.cumsum(links[begin:]) <= LINKS_AT_ONCE
        size = min(max(1, int(fits.sum())), block_size or len(order))
        rows = order[begin : begin + size]
        column = np.arange(longest[begin + size - 1])
        there = column < history[rows, None]  # (b, H)
        whole = part.items[np.where(there, part.start[rows, None] + column, 0)].astype(np.int64)
        read = np.minimum(history[rows], part.max_len)
        column = np.arange(length[begin + size - 1])
        real = column < read[:, None]  # (b, L)
        inputs = part.items[np.where(real, (part.end[rows] - read)[:, None] + column, 0)].astype(np.int64)
        some = slice(begin, begin + size)
        arrays = (np.where(real, inputs, 0), read - 1, np.where(there, whole, n), part.targets()[rows], recent[some])
        tensors = [torch.from_numpy(array).to(device) for array in arrays]
        blocks.append(ExampleBlock(rows, int(links[some].sum()), *tensors))
        begin += size
    return blocks


def rank_blocks(
    model: "Ant",
    items: "torch.Tensor",
    blocks: Sequence[ExampleBlock],
    history_score: float,
    floor: Floor | None = None,
) -> Ranks:
    """The same ranks as `rank_examples`. items: (N, D) unnormalised vectors of a domain's items.

    Raises DataError if a vector is not finite.
    """
    import torch
    import torch.nn.functional as F

    found, finite = [], np.isfinite([history_score, *(floor.weights.values() if floor else ())]).all()
    with torch.inference_mode():
        unit = F.normalize(items.float(), dim=-1)
        finite &= bool(unit.isfinite().all())
        for block in blocks:
            hidden = model.encode(items[block.inputs])  # padding comes last, so causal attention does not see it
            hidden = hidden[torch.arange(len(hidden), device=hidden.device), block.last]
            queries = F.normalize(hidden.float(), dim=-1)
            finite &= bool(queries.isfinite().all())
            found.append(count_ranks(queries, unit, block, history_score, floor))
    ranking.require_finite(finite)
    return in_order(found, blocks)


def in_order(found: "Sequence[torch.Tensor]", blocks: Sequence[ExampleBlock]) -> Ranks:
    """The ranks of all blocks, each (3, b) as `count_ranks` finds them, in the order of the examples."""
    import torch

    together = torch.cat(list(found), 1).cpu().numpy()  # (3, Q)
    order = np.concatenate([block.rows for block in blocks])
    ranks = np.empty_like(together)
    ranks[:, order] = together
    seen = ranks[2] > 0
    return Ranks({"all": ranks[0], "unseen": np.where(seen, np.inf, ranks[1])}, seen)


@dataclass(frozen=True)
class Scores:
    """The scores of b examples: inner products of queries (b, E) and items (N, E), times weights in units of a cosine,
    plus `bonus` where `marked` (b, N) is True, plus a floor's words and transitions after `recent` (b, LAST) and what
    it adds to items."""

    products: "Sequence[tuple[float, torch.Tensor, torch.Tensor]]"  # weights are in the queries already
    marked: "torch.Tensor | None"
    bonus: float
    recent: "torch.Tensor"
    floor: Floor | None

    def rough(self, links: int) -> "torch.Tensor":
        """All scores (b, N) in float32. links: at least the number of links of the last items."""
        (_, queries, items), *others = self.products
        scores = queries @ items.T
        for _, more, table in others:
            scores.addmm_(more, table.T)
        if self.marked is not None:
            scores += self.marked * self.bonus
        if self.floor is not None:
            scores += self.floor.of_items
            scores += links_of(self.floor.known, self.recent, links, self.floor.weights)
        return scores

    def exact(self, row: "torch.Tensor", item: "torch.Tensor") -> "torch.Tensor":
        """Scores (p,) of single pairs in float64."""
        (_, queries, items), *others = self.products
        scores = _exact(queries, items, row, item)
        for _, more, table in others:
            scores = scores + _exact(more, table, row, item)
        if self.marked is not None:
            scores = scores + self.marked[row, item].double() * self.bonus
        if self.floor is not None:
            scores = scores + self.floor.of_items[item].double()
            scores = scores + links_at(self.floor.known, self.recent, row, item, self.floor.weights)
        return scores

    def tolerance(self) -> float:
        """The error bound of ranking.py for each product, plus the rounding of added terms, of sums and of limits."""
        most = abs(self.bonus) + sum(abs(weight) for weight, *_ in self.products)
        if self.floor is not None:
            known, weights = self.floor.known, self.floor.weights
            most += float(self.floor.of_items.abs().max())
            most += sum(abs(weights[name]) * MOST_SHARES * value for name, value in known.largest.items())
        products = sum((queries.shape[1] + 2) * abs(weight) for weight, queries, _ in self.products)
        return (products + (4 if self.floor is None else 16) * most) * 2.0**-24


def scores_of(
    queries: "torch.Tensor", items: "torch.Tensor", block: ExampleBlock, bonus: float, floor: Floor | None
) -> Scores:
    """How the examples of a block score all items. queries (b, D), items (N, D): unit vectors."""
    import torch

    marked, n = None, len(items)
    if bonus:
        column = torch.arange(block.inputs.shape[1], device=queries.device)
        marked = _marks(torch.where(column <= block.last[:, None], block.inputs, n), n)
    if floor is None:
        return Scores([(1.0, queries, items)], marked, bonus, block.recent, None)
    weight, texts = floor.weights[COSINE], floor.known.texts
    products = [(weight, queries * weight, items)]
    if TEXT in floor.weights:
        weight = floor.weights[TEXT]
        products.append((weight, _mean_texts(texts, block, weight), texts))
    return Scores(products, marked, bonus, block.recent, floor)


def _mean_texts(texts: "torch.Tensor", block: ExampleBlock, weight: float) -> "torch.Tensor":
    """`text_queries` (b, d) times a weight, computed in float64, rounded to float32."""
    import torch

    back = block.last[:, None] - torch.arange(block.inputs.shape[1], device=texts.device)  # (b, L) from the end
    there = back >= 0
    latest = torch.where(there & (back < LAST), DECAY ** back.double(), 0.0)
    share = RECENT * latest / latest.sum(1, keepdim=True) + (1 - RECENT) * there / there.sum(1, keepdim=True)
    size = max(1, EXACT_AT_ONCE // (block.inputs.shape[1] * texts.shape[1]))
    parts = []
    for begin in range(0, len(share), size):
        some = slice(begin, begin + size)
        mean = torch.einsum("bk,bkd->bd", share[some], texts[block.inputs[some]].double())
        parts.append((mean * weight).float())
    return torch.cat(parts)


def count_ranks(
    queries: "torch.Tensor", items: "torch.Tensor", block: ExampleBlock, bonus: float, floor: Floor | None = None
) -> "torch.Tensor":
    """Ranks under `all` and `unseen`, and whether the target is in the history: (3, b) float64.

    queries (b, D), items (N, D): unit vectors. bonus: for the items that the model reads.
    """
    import torch

    b, n = len(queries), len(items)
    own = torch.arange(b, device=queries.device)
    hidden = _marks(block.history, n)  # (b, n)
    of = scores_of(queries, items, block, bonus, floor)
    scores, goal, tolerance = of.rough(block.links), of.exact(own, block.targets), of.tolerance()
    better = scores > (goal + tolerance).float()[:, None]
    near = (scores >= (goal - tolerance).float()[:, None]) & ~better
    better[own, block.targets] = False
    near[own, block.targets] = False
    above = torch.stack([better.sum(1), (better & ~hidden).sum(1)]).double()  # (2, b)
    equal = torch.zeros_like(above)
    pairs = int(near.sum())
    size = max(1, b * PAIRS_AT_ONCE // max(PAIRS_AT_ONCE, pairs))
    for start in range(0, b, size) if pairs else ():
        row, item = near[start : start + size].nonzero(as_tuple=True)
        row = row + start
        score = of.exact(row, item)
        visible = torch.stack([torch.ones_like(row), ~hidden[row, item]]).double()
        above.index_add_(1, row, visible * (score > goal[row]))
        equal.index_add_(1, row, visible * (score == goal[row]))
    ranks = torch.where(above < DEPTH, 1 + above + equal / 2, torch.inf)
    return torch.cat([ranks, hidden[own, block.targets].double()[None]])


def _marks(items: "torch.Tensor", n: int) -> "torch.Tensor":
    """(b, n) bool, True at the items (b, H) of each row; n marks nothing."""
    import torch

    marks = torch.zeros(len(items), n + 1, dtype=torch.bool, device=items.device)
    return marks.scatter_(1, items, True)[:, :n]


def _exact(queries: "torch.Tensor", items: "torch.Tensor", row: "torch.Tensor", item: "torch.Tensor") -> "torch.Tensor":
    """Inner products (p,) in float64 of queries[row] and items[item]."""
    import torch

    size = max(1, EXACT_AT_ONCE // queries.shape[1])
    parts: list[Any] = [
        (queries[row[start : start + size]].double() * items[item[start : start + size]].double()).sum(1)
        for start in range(0, len(row), size)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=queries.device)


def evaluate_on_device(
    model: "Ant",
    catalogue: Catalogue,
    domain: str,
    device: "torch.device",
    blocks: Sequence[ExampleBlock],
    features: DeviceFeatures | None = None,
    known: DeviceKnown | None = None,
) -> Ranks:
    """Ranks of one domain's examples. features: those of the catalogue, if they are on the device. known: that of the
    domain, for a model with a floor."""
    was_training = model.training
    model.eval()
    items = catalogue_vectors(model, catalogue, domain, device, features=features)
    floor = None if known is None else Floor(known, weights_of(model))
    ranks = rank_blocks(model, items, blocks, score_of_history(model), floor)
    model.train(was_training)
    return ranks

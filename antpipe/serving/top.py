"""The best items after many histories at once, exactly, with bounded memory.

A block of histories is multiplied with the offered items, what the run adds to some scores is added, hidden items are
taken out, and the largest scores of each row are found in float32. These candidates, a few more than are asked for, are
scored again in float64. If an item beyond them could be as good, everything that could be is scored again too. So the
result depends neither on how histories are grouped into blocks nor on the number of threads; ties go to the item that
comes first in the catalogue. On a GPU, the product and the candidates are computed there, also in float32.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from antpipe.core.batches import Examples
from antpipe.core.catalogue import Ints
from antpipe.core.ranking import Doubles, Floats, PairScores, exact_scores, require_finite
from antpipe.core.untrained import history_matrix
from antpipe.evaluation.vectors import OpenRun
from antpipe.serving.offer import Offer

if TYPE_CHECKING:
    import torch

HISTORIES_AT_ONCE = 256
ITEMS_AT_ONCE = 1 << 16  # with HISTORIES_AT_ONCE, 64 MB of scores
GROUP = 32  # items per group, whose largest score is taken first
MORE = 6  # candidates beyond those asked for


@dataclass(frozen=True)
class Top:
    """The best items of Q histories. rows: (Q, k) of the catalogue, best first, -1 if fewer are left; scores: (Q, k)
    in float64, -inf there."""

    rows: Ints
    scores: Doubles


def top_items(
    opened: OpenRun, part: Examples, offer: Offer, k: int, *, include_seen: bool = False, queries: Floats | None = None
) -> Top:
    """The k best offered items after each history, without the items of that history unless include_seen.

    queries: `opened.after(part)`, if already computed. Returns as many columns as there are offered items if these are
    fewer than k. Raises DataError if the model computes vectors that are not finite.
    """
    queries, added = opened.after(part) if queries is None else queries, opened.added(part)
    require_finite(np.isfinite(queries).all())
    k = min(k, len(offer.rows))
    rows, scores = np.empty((len(part), k), np.int64), np.empty((len(part), k))
    buffer = _score_buffer(min(len(part), HISTORIES_AT_ONCE), len(offer.rows), opened.device)
    for start in range(0, len(part), HISTORIES_AT_ONCE):
        block = np.arange(start, min(start + HISTORIES_AT_ONCE, len(part)))
        hidden = np.empty(0, np.int64) if include_seen else _keys_of_history(part.some(block), len(opened.items))
        rows[block], scores[block] = _Block(queries[block], offer, added(block), hidden).best(k, buffer[: len(block)])
    return Top(rows, scores)


def _score_buffer(histories: int, items: int, device: str) -> "torch.Tensor":
    """Room for the scores of one block of histories and one tile of items, in whole groups."""
    import torch

    return torch.empty(histories, -(-min(items, ITEMS_AT_ONCE) // GROUP) * GROUP, device=device)


def _keys_of_history(part: Examples, n: int) -> Ints:
    """Sorted keys, history * n + item, of the items in each history."""
    matrix = history_matrix(part, n)
    matrix.sort_indices()
    keys: Ints = np.repeat(np.arange(len(part)), np.diff(matrix.indptr)) * n + matrix.indices
    return keys


class _Block:
    """Some queries (B, E) and what is added to or hidden from their scores; keys are query * N + item."""

    def __init__(self, queries: Floats, offer: Offer, added: PairScores, hidden: Ints) -> None:
        self.queries, self.offer, self.added, self.hidden = queries, offer, added, hidden
        self.added_at, offered = self._places(added.keys)
        self.added_scores = added.scores[offered].astype(np.float32)
        self.hidden_at, _ = self._places(hidden)
        longest = float(np.sqrt(np.einsum("qd,qd->q", queries, queries).max()))
        # Bounds the error of a float32 inner product (as in core/ranking.py), and of adding to it.
        self.tolerance = (queries.shape[1] + 4) * 2.0**-24 * 1.001 * longest * offer.longest
        self.tolerance += 2.0**-22 * float(np.abs(added.scores).max(initial=0.0))

    def _places(self, keys: Ints) -> tuple[tuple[Ints, Ints], NDArray[np.bool_]]:
        """Query and column of the keys whose item is offered, and which keys these are."""
        n = len(self.offer.column)
        query = keys // n
        column = self.offer.column[keys - query * n]
        offered = column >= 0
        return (query[offered], column[offered]), offered

    def best(self, k: int, buffer: "torch.Tensor") -> tuple[Ints, Doubles]:
        """Catalogue rows and scores (B, k). buffer: of _score_buffer, B rows."""
        depth = min(k + MORE, len(self.offer.rows))
        found, columns = self._candidates(depth, buffer)
        rows, scores = self._exact(np.arange(len(self.queries)), columns, found > -np.inf)
        if depth < len(self.offer.rows):
            last = found[:, -1]  # -inf if fewer than `depth` are left, all of which are then candidates
            for query in np.flatnonzero((last > -np.inf) & (scores[:, k - 1] <= last + self.tolerance)).tolist():
                rows[query, :k], scores[query, :k] = self._among_all(query, scores[query, k - 1], k)
        return rows[:, :k], scores[:, :k]

    def _candidates(self, depth: int, buffer: "torch.Tensor") -> tuple[Floats, Ints]:
        """The `depth` largest float32 scores of each query, in descending order, and their columns (B, depth)."""
        import torch

        b, m, device = len(self.queries), len(self.offer.rows), buffer.device
        queries, items = torch.from_numpy(self.queries).to(device), self.offer.on(device)
        scores, columns = torch.empty(b, 0, device=device), torch.empty(b, 0, dtype=torch.int64, device=device)
        for start in range(0, m, ITEMS_AT_ONCE):
            stop = min(start + ITEMS_AT_ONCE, m)
            tile = buffer[:, : stop - start]
            torch.mm(queries, items[start:stop].T, out=tile)
            buffer[:, stop - start :] = -torch.inf
            self._adjust(tile, slice(0, b), start, stop)
            largest, at = _largest(buffer, min(depth, stop - start))
            at = torch.where(largest > -torch.inf, at, 0)  # not a column beyond the tile
            scores, columns = torch.cat([scores, largest], 1), torch.cat([columns, at + start], 1)
        largest, at = torch.topk(scores, depth)
        return largest.cpu().numpy(), columns.gather(1, at).cpu().numpy()

    def _adjust(self, scores: "torch.Tensor", queries: slice, start: int, stop: int) -> None:
        """Add to and hide from the scores (b, stop - start) of these queries and columns."""
        import torch

        flat = scores.as_strided(((len(scores) - 1) * scores.stride(0) + scores.shape[1],), (1,))
        for (query, column), more in ((self.added_at, self.added_scores), (self.hidden_at, None)):
            first, last = np.searchsorted(query, (queries.start, queries.stop))  # keys are sorted
            kept: slice | Ints = slice(first, last)
            if stop - start < len(self.offer.rows):
                kept = first + np.flatnonzero((column[kept] >= start) & (column[kept] < stop))
            places = (query[kept] - queries.start) * scores.stride(0) + column[kept] - start
            at = torch.from_numpy(places).to(flat.device)
            if more is None:
                flat.index_fill_(0, at, -torch.inf)
            else:
                flat.scatter_add_(0, at, torch.from_numpy(more[kept]).to(flat.device))

    def _exact(self, queries: Ints, columns: Ints, real: NDArray[np.bool_]) -> tuple[Ints, Doubles]:
        """Catalogue rows of columns (b, c) of these queries by float64 scores, best first, those not `real` last."""
        of = np.repeat(queries, columns.shape[1])
        scores = exact_scores(self.queries, self.offer.vectors, of, columns.ravel()).reshape(columns.shape)
        rows = self.offer.rows[columns]
        scores += self.added.at(queries[:, None] * len(self.offer.column) + rows)
        scores, rows = np.where(real, scores, -np.inf), np.where(real, rows, -1)
        order = np.lexsort((rows, -scores))
        return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)

    def _among_all(self, query: int, least: float, k: int) -> tuple[Ints, Doubles]:
        """The k best of everything whose float32 score is not clearly below `least`."""
        import torch

        scores = np.empty((1, len(self.offer.rows)), np.float32)
        np.matmul(self.queries[query : query + 1], self.offer.vectors.T, out=scores)
        self._adjust(torch.from_numpy(scores), slice(query, query + 1), 0, scores.shape[1])
        near = np.flatnonzero(scores[0] >= least - 2 * self.tolerance)[None]
        rows, exact = self._exact(np.array([query]), near, np.ones(near.shape, np.bool_))
        return rows[0, :k], exact[0, :k]


def _largest(scores: "torch.Tensor", depth: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """The `depth` largest scores of each row (B, P), P a multiple of GROUP, and their columns.

    They lie in the `depth` groups with the largest maxima, so only those are searched.
    """
    import torch

    groups = scores.shape[1] // GROUP
    if groups <= 2 * depth:
        largest, columns = torch.topk(scores, depth)
        return largest, columns
    _, chosen = torch.topk(scores.view(-1, GROUP, groups).amax(1), depth, sorted=False)
    columns = (chosen[:, :, None] + torch.arange(0, scores.shape[1], groups, device=scores.device)).flatten(1)
    largest, at = torch.topk(scores.gather(1, columns), depth)
    return largest, columns.gather(1, at)

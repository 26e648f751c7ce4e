"""Full ranking over a catalogue: FAISS top-k, exact ranks with ties counted half, and their metrics.

Two protocols, never mixed: `all` ranks every item; `unseen` leaves out what is in the user's history (a target
that is in its own history then counts as a miss).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from antpipe.data import Catalogue, Examples, history_blocks, item_inputs
from antpipe.errors import DataError

if TYPE_CHECKING:
    import torch

    from antpipe.model import Ant

CUTOFFS = (10, 20, 50)
DEPTH = max(CUTOFFS)  # ranks beyond it are not told apart: no metric reads them
PROTOCOLS = ("all", "unseen")
# Most that a score of FAISS (float32) differs from the same score in float64, both of unit vectors.
TOLERANCE = 4e-6
SCORED_AT_ONCE = 1 << 24  # numbers (128 MB in float64)
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Ranks:
    """Rank of each example's target by protocol, (Q,) float64: 1 is best, a tie adds a half, infinite beyond
    DEPTH. seen: (Q,) True where the target is in its user's history."""

    by_protocol: dict[str, NDArray[np.float64]]
    seen: NDArray[np.bool_]


def catalogue_vectors(
    model: "Ant", catalogue: Catalogue, domain: str, device: "torch.device", size: int = 2048
) -> "torch.Tensor":
    """Vectors (N, D) of a domain's items, `size` at a time. The model must be in evaluation mode."""
    import torch

    rows = catalogue.rows(domain)
    kind = model.positions.weight.dtype
    out = torch.empty(len(rows), model.config.width, dtype=kind, device=device)
    with torch.inference_mode():
        for start in range(0, len(rows), size):
            inputs = item_inputs(catalogue, model.widths, rows[start : start + size], device)
            out[start : start + size] = model.items(inputs.features, inputs.ids, inputs.present).fused
    return out


def history_vectors(model: "Ant", items: "torch.Tensor", part: Examples, size: int = 1024) -> "torch.Tensor":
    """What the model expects after each history: (Q, D). items: (N, D) vectors of the domain's catalogue."""
    import torch

    out = torch.empty(len(part), items.shape[1], dtype=items.dtype, device=items.device)
    with torch.inference_mode():
        for rows, inputs, last in history_blocks(part, size):
            hidden = model.encode(items[torch.from_numpy(inputs).to(items.device)])  # (B, L, D)
            out[torch.from_numpy(rows).to(items.device)] = hidden[
                torch.arange(len(rows), device=items.device), torch.from_numpy(last).to(items.device)
            ]
    return out


def unit_rows(vectors: "torch.Tensor", size: int = 8192) -> Floats:
    """Rows scaled to length 1, as a float32 array on the CPU; `vectors` is used up: the array may take its place."""
    import torch
    import torch.nn.functional as F

    rows = vectors.detach().float().cpu()
    with torch.inference_mode():
        for start in range(0, len(rows), size):  # in place: a large catalogue is there only once
            part = rows[start : start + size]
            part.copy_(F.normalize(part, dim=-1))
    array: Floats = rows.numpy()
    return array


def nearest(queries: Floats, items: Floats, k: int) -> tuple[Floats, NDArray[np.int64]]:
    """The k items of the largest inner products, found exactly by FAISS: scores (Q, k) and rows (Q, k)."""
    import faiss

    scores, rows = faiss.knn(queries, items, k, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, rows


def rank_examples(queries: Floats, items: Floats, part: Examples, size: int = 256) -> Ranks:
    """Ranks of the targets under both protocols. queries: (Q, D), items: (N, D), unit vectors.

    FAISS proposes candidates: DEPTH, plus as many as a history may take away, plus the target. They are scored
    again in float64, so that ranks depend neither on the size of blocks nor on the number of threads. Raises DataError
    for vectors that are not finite: nothing compares with them, so every target would come out first.
    """
    if not (np.isfinite(queries).all() and np.isfinite(items).all()):
        raise DataError(
            "the model gives vectors that are not finite: its training diverged, or its features are damaged",
            "antpipe train … --lr 1e-4 --force",
        )
    ranks = {name: np.full(len(part), np.inf) for name in PROTOCOLS}
    seen = np.zeros(len(part), np.bool_)
    targets = part.targets()
    for begin in range(0, len(part), size):
        rows = np.arange(begin, min(begin + size, len(part)))
        keys = _history_keys(part, rows, len(items))
        longest = int(np.bincount(keys // len(items)).max())
        _, candidates = nearest(queries[rows], items, min(len(items), DEPTH + longest + 1))  # (B, k)
        block, unsure = _rank_block(queries[rows], items, candidates, targets[rows], keys)
        for q in np.flatnonzero(unsure):  # near ties reach beyond the candidates: score the whole catalogue
            everything = np.arange(len(items))[None]
            own = keys[keys // len(items) == q] % len(items)
            block[:, q, None], _ = _rank_block(queries[rows[q], None], items, everything, targets[rows[q], None], own)
        seen[rows] = np.isin(np.arange(len(rows)) * len(items) + targets[rows], keys)
        ranks["all"][rows] = block[0]
        ranks["unseen"][rows] = np.where(seen[rows], np.inf, block[1])
    return Ranks(ranks, seen)


def _history_keys(part: Examples, rows: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Sorted distinct pairs (place in rows, item of its history), each as place * n + item."""
    count = part.end[rows] - part.start[rows]
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    history = part.items[np.repeat(part.start[rows], count) + within].astype(np.int64)
    return np.unique(np.repeat(np.arange(len(rows)), count) * n + history)


def _rank_block(
    queries: Floats, items: Floats, candidates: NDArray[np.int64], targets: NDArray[np.int64], keys: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Ranks (2, B) among candidates (B, k), for `all` and for `unseen`, and where these candidates do not
    suffice (B,). An item is better or equal by its float64 score; equal rows of `items` have equal scores."""
    scores = _exact_scores(queries, items, candidates)
    goal = _exact_scores(queries, items, targets[:, None])
    hidden = np.isin(np.arange(len(queries))[:, None] * len(items) + candidates, keys)
    all_items = candidates != targets[:, None]
    complete = (candidates.shape[1] == len(items)) | (goal[:, 0] > scores.min(1) + 2 * TOLERANCE)
    ranks, unsure = [], np.zeros(len(queries), np.bool_)
    for allowed in (all_items, all_items & ~hidden):
        better = ((scores > goal) & allowed).sum(1)
        equal = ((scores == goal) & allowed).sum(1)
        ranks.append(np.where(better < DEPTH, 1 + better + equal / 2, np.inf))
        unsure |= ~complete & (((scores > goal + TOLERANCE) & allowed).sum(1) < DEPTH)
    return np.stack(ranks), unsure


def _exact_scores(queries: Floats, items: Floats, candidates: NDArray[np.int64]) -> NDArray[np.float64]:
    """Inner products (B, k) in float64 of queries (B, D) and items[candidates], a bounded number at a time: k grows
    with the longest history, and is N where the whole catalogue is scored."""
    scores = np.empty(candidates.shape)
    columns = max(1, SCORED_AT_ONCE // queries.shape[1])
    rows = max(1, columns // candidates.shape[1])
    for row in range(0, len(scores), rows):
        query = queries[row : row + rows].astype(np.float64)
        for column in range(0, candidates.shape[1], columns):
            some = candidates[row : row + rows, column : column + columns]
            found = np.einsum("bkd,bd->bk", items[some].astype(np.float64), query)
            scores[row : row + rows, column : column + columns] = found
    return scores


def metrics(ranks: NDArray[np.float64]) -> dict[str, float]:
    """Recall, NDCG and MRR at each cutoff, means over examples with one target each."""
    values = {}
    for k in CUTOFFS:
        hit = ranks <= k
        found = ranks[hit]
        values[f"recall@{k}"] = float(hit.mean())
        values[f"ndcg@{k}"] = float((1 / np.log2(found + 1)).sum() / len(ranks))
        values[f"mrr@{k}"] = float((1 / found).sum() / len(ranks))
    return values


def evaluate(model: "Ant", catalogue: Catalogue, domain: str, part: Examples, device: "torch.device") -> Ranks:
    """Ranks of one domain's examples by a model; the catalogue holds that domain, alone or among others."""
    was_training = model.training
    model.eval()
    items = catalogue_vectors(model, catalogue, domain, device)
    queries = history_vectors(model, items, part)
    model.train(was_training)
    return rank_examples(unit_rows(queries), unit_rows(items), part)


def summary(ranks: Ranks) -> dict[str, Any]:
    """Metrics by protocol, the number of positions and the share of targets that are in their own history."""
    protocols: Mapping[str, Any] = {name: metrics(values) for name, values in ranks.by_protocol.items()}
    return {"positions": len(ranks.seen), "target_in_history": float(ranks.seen.mean()), "protocols": dict(protocols)}

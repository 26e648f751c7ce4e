"""How a model scores examples: vectors of items and histories, what its floor adds, and the re-ranking of the best."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from antpipe.core.batches import Examples, history_blocks
from antpipe.core.catalogue import Catalogue, DeviceFeatures, Ints, item_inputs
from antpipe.core.floor import added_pairs, items_with_floor, queries_with_floor, weights_of
from antpipe.core.ranking import Floats, Pairs, PairScores, Ranks, Search, rank_examples, rerank_examples
from antpipe.core.reranker import Rerank, reranking
from antpipe.core.untrained import Untrained

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant

# Minimum number of items or histories per forward pass; smaller batches are padded by repetition. For a few rows, BLAS
# sums products in an order that depends on the number of threads; with MKL, from 12 rows on the result of a row is
# always the same (widths 64 and 256).
LEAST_ROWS = 16


def catalogue_vectors(
    model: "Ant",
    catalogue: Catalogue,
    domain: str,
    device: "torch.device",
    size: int = 2048,
    features: DeviceFeatures | None = None,
) -> "torch.Tensor":
    """Vectors (N, D) of a domain's items, computed `size` at a time. The model must be in evaluation mode.

    features: those of the catalogue, if they are on the device.
    """
    import torch

    rows = catalogue.rows(domain)
    kind = model.positions.weight.dtype
    out = torch.empty(len(rows), model.config.width, dtype=kind, device=device)
    with torch.inference_mode():
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            read = np.resize(some, max(LEAST_ROWS, len(some)))
            if features is None:
                inputs = item_inputs(catalogue, model.widths, read, device)
            else:
                inputs = features.inputs(torch.from_numpy(read).to(device))
            out[start : start + size] = model.items(inputs.features, inputs.ids, inputs.present).fused[: len(some)]
    return out


def history_vectors(model: "Ant", items: "torch.Tensor", part: Examples, size: int = 1024) -> "torch.Tensor":
    """The vector expected after each history, (Q, D). items: (N, D) unnormalised vectors of the domain's items."""
    import torch

    out = torch.empty(len(part), items.shape[1], dtype=items.dtype, device=items.device)
    with torch.inference_mode():
        for rows, inputs in history_blocks(part, size):
            repeated = np.resize(inputs, (max(LEAST_ROWS, len(rows)), inputs.shape[1]))
            read = items[torch.from_numpy(repeated).to(items.device)]  # (B, L, D)
            out[torch.from_numpy(rows).to(items.device)] = model.encode_last(read)[: len(rows)]
    return out


def unit_rows(vectors: "torch.Tensor", size: int = 8192) -> Floats:
    """Rows scaled to unit length, as a float32 array on the CPU. May overwrite `vectors` and share its memory."""
    import torch
    import torch.nn.functional as F

    rows = vectors.detach().float().cpu()
    with torch.inference_mode():
        for start in range(0, len(rows), size):  # in place, to hold a large catalogue only once
            part = rows[start : start + size]
            part.copy_(F.normalize(part, dim=-1))
    array: Floats = rows.numpy()
    return array


def floor_pairs(known: Untrained, part: Examples, weights: Mapping[str, float]) -> Pairs:
    """What the words, transitions and history of a floor add (core/floor.py)."""
    n = len(known.new)

    def pairs(rows: Ints) -> PairScores:
        found = added_pairs(known, part.some(rows), weights)
        found.sort_indices()
        keys = np.repeat(np.arange(len(rows)), np.diff(found.indptr)) * n + found.indices
        return PairScores(found.data.astype(np.float64), keys)

    return pairs


def unit_vectors(
    model: "Ant",
    catalogue: Catalogue,
    domain: str,
    part: Examples,
    device: "torch.device",
    features: DeviceFeatures | None = None,
) -> tuple[Floats, Floats]:
    """Unit vectors expected after each history (Q, D), and of the domain's items (N, D). features: those of the
    catalogue, if they are on the device."""
    was_training = model.training
    model.eval()
    items = catalogue_vectors(model, catalogue, domain, device, features=features)
    queries = history_vectors(model, items, part)
    model.train(was_training)
    return unit_rows(queries), unit_rows(items)


def score_of_history(model: "Ant") -> float:
    """The score bonus of items in the history that the model reads; 0 if the model learns none."""
    return 0.0 if model.history_score is None else model.history_score.item()


@dataclass(frozen=True)
class Scoring:
    """What the scores of examples are made of: inner products of queries (Q, E) and items (N, E), plus pairs, or a
    bonus for the items in the history. rerank: re-scores the best items. width: D, that of the trained vectors."""

    queries: Floats
    items: Floats
    history_score: float = 0.0
    pairs: Pairs | None = None
    rerank: Rerank | None = None
    width: int = 0

    def ranks(self, part: Examples, block_size: int = 0, search: Search | None = None) -> Ranks:
        if self.rerank is not None and self.pairs is not None:
            return rerank_examples(self.queries, self.items, part, self.pairs, self.rerank, self.width)
        return rank_examples(self.queries, self.items, part, block_size, search, self.history_score, self.pairs)


def scoring(
    model: "Ant",
    catalogue: Catalogue,
    domain: str,
    part: Examples,
    device: "torch.device",
    known: Untrained | None = None,
) -> Scoring:
    """How a model scores one domain's examples. The catalogue holds that domain, alone or with others. known: that of
    the domain, for a model with a floor."""
    queries, items = unit_vectors(model, catalogue, domain, part, device)
    if known is None:
        return Scoring(queries, items, score_of_history(model))
    return Scoring(
        queries_with_floor(model, queries, known, part),
        items_with_floor(model, items, known),
        pairs=floor_pairs(known, part, weights_of(model)),
        rerank=reranking(model, known),
        width=model.config.width,
    )

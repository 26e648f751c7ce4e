"""What only the authors' ANT (github.com/ninglab/ANT) does, to compare antpipe with it; docstrings give our choice.

Rows of their tables and columns of their scores count from 1, row 0 is the padding. Quirks of their losses are in
core/losses.py (`reference_…`), the one of their re-learning in core/stages.py (REFERENCE_EXCEPTIONS).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from antpipe.core.model import Ant

MASKED = -1e4  # the score of items that must not be recommended


def with_padding(model: "Ant", ids: "Tensor") -> "Ant":
    """A transductive model whose item ids count from 1; ids: (items + 1, D), row 0 is the padding."""
    import torch

    model.ids = torch.nn.Embedding.from_pretrained(ids, freeze=False)
    return model


def image_means(slots: NDArray[Any]) -> NDArray[np.float64]:
    """slots: (n, S, d), zeros where an item has fewer than S pictures. Returns (n, d).

    A slot counts if its half-precision sum is not zero, and 1e-8 is added to the count: an item whose only picture
    sums to zero gets 10^8 times its vector. antpipe averages the pictures that exist (features/embed_image.py).
    """
    half = slots.astype(np.float16)
    count = (half.sum(axis=-1) != 0).sum(axis=-1) + 1e-8
    means: NDArray[np.float64] = half.sum(axis=1) / count[:, None]
    return means


def domain_offsets(largest: Sequence[int]) -> list[int]:
    """The offset of each domain's ids. largest: the largest id (from 0) in each domain's training split.

    If the last items of a domain are in no training sequence, the features of all later domains are shifted. antpipe
    adds up the sizes of the catalogues (core/catalogue.py).
    """
    return [sum(largest[:place]) + place for place in range(len(largest))]


def masked_scores(scores: "Tensor", sequences: "Tensor") -> "Tensor":
    """scores: (B, N + 1); sequences: (B, L) ids from 1, padded with 0. Returns the scores that are ranked.

    Items of the sequence are masked, and the padding only if the sequence has some: after a full sequence, row 0 stays
    a candidate. antpipe has no such row (core/ranking.py, protocol `unseen`).
    """
    return scores.scatter(1, sequences, MASKED)


def recall_and_ndcg(ranked: "Tensor", labels: "Tensor", k: int) -> tuple[float, float]:
    """ranked: (B, n) ids, best last; labels: (B,). Recall@k and NDCG@k, means over B.

    Ties stay in the order of the sort; antpipe counts them half (core/ranking.py).
    """
    places = (ranked.flip(1)[:, :k] == labels[:, None]).nonzero()[:, 1]  # (hits,), from 0
    return len(places) / len(labels), float((1 / (places + 2).double().log2()).sum()) / len(labels)

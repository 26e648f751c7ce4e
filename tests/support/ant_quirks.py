"""What only the authors' ANT (github.com/ninglab/ANT) does, for comparing with it; antpipe's own choice is beside it.

Rows of their tables and columns of their scores count from 1, row 0 is the padding. Quirks of their losses are in
losses.py (`reference_…`), that of their re-learning in transfer.py (REFERENCE_EXCEPTIONS).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

MASKED = -1e4  # the score of what is not to be recommended


def image_means(slots: NDArray[Any]) -> NDArray[np.float64]:
    """slots: (n, S, d), zeros where an item has fewer than S pictures. Returns (n, d).

    A slot counts where its half-precision sum is not zero, and 1e-8 is added to the count: an item whose only picture
    sums to zero gets 10^8 times its vector. antpipe averages the pictures there are (embed_image.py).
    """
    half = slots.astype(np.float16)
    count = (half.sum(axis=-1) != 0).sum(axis=-1) + 1e-8
    means: NDArray[np.float64] = half.sum(axis=1) / count[:, None]
    return means


def domain_offsets(largest: Sequence[int]) -> list[int]:
    """What is added to the ids of each domain. largest: the largest id (from 0) seen in each one's training split.

    A domain whose last items are in no training sequence shifts all later ones against their features. antpipe adds
    up the sizes of the catalogues (data.py).
    """
    return [sum(largest[:place]) + place for place in range(len(largest))]


def masked_scores(scores: "Tensor", sequences: "Tensor") -> "Tensor":
    """scores: (B, N + 1); sequences: (B, L) ids from 1, padded with 0. Returns the scores that are ranked.

    What is in the sequence is masked, the padding only where the sequence has some: after a full one, row 0 stays a
    candidate. antpipe has no such row (ranking.py, protocol `unseen`).
    """
    return scores.scatter(1, sequences, MASKED)


def recall_and_ndcg(ranked: "Tensor", labels: "Tensor", k: int) -> tuple[float, float]:
    """ranked: (B, n) ids, the best last; labels: (B,). Recall@k and NDCG@k, means over B.

    Ties fall as the sort left them; antpipe counts them half (ranking.py).
    """
    places = (ranked.flip(1)[:, :k] == labels[:, None]).nonzero()[:, 1]  # (hits,), from 0
    return len(places) / len(labels), float((1 / (places + 2).double().log2()).sum()) / len(labels)

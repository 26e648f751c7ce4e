"""Re-ranking for diversity: maximal marginal relevance (Carbonell, Goldstein, SIGIR 1998).

    next = argmax over the pool of (1 - share) * relevance(i) - share * max over those chosen of cos(i, chosen)

The pool is the best POOL * k items of a history, relevance is their score scaled to 0..1 within the pool, and cosines
are those of the run's item vectors.
"""

import numpy as np
from numpy.typing import NDArray

from antpipe.core.catalogue import Ints
from antpipe.core.ranking import Doubles
from antpipe.evaluation.vectors import OpenRun
from antpipe.serving.top import Top

POOL = 5
HISTORIES_AT_ONCE = 64


def pool_size(k: int, share: float) -> int:
    """How many of the best items are needed to choose k of them."""
    return POOL * k if share else k


def diversified(opened: OpenRun, pool: Top, k: int, share: float) -> Top:
    """The k items of each pool (Q, P) that are chosen, in the order of choice, with the scores that they had."""
    if not share:
        return Top(pool.rows[:, :k], pool.scores[:, :k])
    chosen = np.empty((len(pool.rows), min(k, pool.rows.shape[1])), np.int64)
    for start in range(0, len(chosen), HISTORIES_AT_ONCE):
        block = slice(start, start + HISTORIES_AT_ONCE)
        chosen[block] = _choose(opened, Top(pool.rows[block], pool.scores[block]), chosen.shape[1], share)
    return Top(np.take_along_axis(pool.rows, chosen, 1), np.take_along_axis(pool.scores, chosen, 1))


def _choose(opened: OpenRun, pool: Top, k: int, share: float) -> Ints:
    """Places (B, k) in the pools (B, P)."""
    real = pool.rows >= 0
    vectors = opened.encoded.numpy()[np.maximum(pool.rows, 0)]  # (B, P, D)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=2, keepdims=True), 1e-12)
    worth: Doubles = (1 - share) * _scaled(pool.scores, real)
    nearest = np.zeros(real.shape)  # the largest cosine to one that is chosen
    left, row = real.copy(), np.arange(len(real))
    chosen = np.empty((len(real), k), np.int64)
    for place in range(k):
        value = np.where(left, worth - share * nearest, -np.inf)
        # When no item is left, the places without an item follow, in order.
        best = np.where(left.any(1), value.argmax(1), place)
        chosen[:, place] = best
        left[row, best] = False
        cosines = np.einsum("bpd,bd->bp", vectors, vectors[row, best])
        nearest = cosines if not place else np.maximum(nearest, cosines)
    return chosen


def _scaled(scores: Doubles, real: NDArray[np.bool_]) -> Doubles:
    """Scores (B, P) of those that are real, scaled to 0..1 in each row; best first, so the first is 1."""
    last = np.where(real, scores, np.inf).min(1, keepdims=True)
    first = scores[:, :1]
    with np.errstate(invalid="ignore"):  # a row without any item
        wide = np.where(first > last, first - last, 1.0)
        return np.where(real, (np.where(real, scores, 0.0) - last) / wide, 0.0)

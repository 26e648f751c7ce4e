"""Re-ranking: the POOL best items of a history are scored again by a network that shops have taught.

    score(h, j) = score of the model + weight * temperature * network(features of h and j)

FEATURES describe how texts, words and transitions lead from the items of a history to an item, how often items occur,
and where an item stands by the scores of the model's floor, without what trained vectors add. They mean the same in
every shop, so what is learned on one shop (training/rehearsal.py) holds for another: the network is the only part of a
model that knows neither items nor their vectors. Items beyond the pool follow it in their old order.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from antpipe.core.batches import Examples
from antpipe.core.untrained import DECAY, LAST, Doubles, Floats, Ints, Untrained
from antpipe.runtime.arrays import within_groups

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from antpipe.core.model import Ant

RERANKER_FORM = 2  # increment when the features, or how the network learns from them, change
POOL = 200
TOP = 10  # the scores of this many items show how sure the model is
EXAMPLES_AT_ONCE = 128
DECIMALS = 5  # of cosines and scores, so that identical items tie whatever the order of summation
FEWER_DECIMALS = 4  # of differences of scores, likewise
WAYS = ("last", "second", "recent", "largest", "mean")  # from the items of a history to an item
FEATURES = (
    *(f"{name} {way}" for name in ("text", "words", "transitions") for way in WAYS),
    "typical",
    "counts last",
    "counts recent",
    "times in history",
    "is last",
    "lately in history",
    "new",
    "popularity",
    "word neighbours",
    "length of history",
    "transitions of last",
    "interactions of shop",
    "below best",
    "best",
    "lead over tenth",
    "rank",
)


@dataclass(frozen=True)
class Histories:
    """The items read from the histories of Q examples (H in all): for each, its example, the item, and how many items
    come after it. length: (Q,) items read per example."""

    example: Ints
    item: Ints
    back: Ints
    length: Ints


def read_histories(part: Examples) -> Histories:
    """The last max_len items of each history, the latest first."""
    length = np.minimum(part.end - part.start, part.max_len).astype(np.int64)
    back = within_groups(length).astype(np.int64)
    item = part.items[np.repeat(part.end - 1, length) - back].astype(np.int64)
    return Histories(np.repeat(np.arange(len(part)), length), item, back, length)


def features_of(known: Untrained, part: Examples, rows: Ints, logits: Doubles) -> Floats:
    """FEATURES (Q, C, F) of the items in each pool, given by row (Q, C), best first, -1 for none.

    logits: (Q, C) their scores, divided by the temperature.
    """
    read, pool = read_histories(part), np.maximum(rows, 0)
    last = part.items[part.end - 1]
    links = known.steps[last].sum(1) if len(known.steps.data) else np.zeros(len(part))
    of_example = (
        np.log(np.maximum(read.length, 1)),
        np.log1p(np.asarray(links).ravel()),
        np.full(len(part), np.log1p(known.sold.sum())),
    )
    best = logits[:, :1]
    found = [
        text_ways(known.texts, read, pool),
        link_ways(known.words, read, pool),
        link_ways(known.steps, read, pool),
        known.typical[pool][..., None],
        np.log1p(link_ways(known.counts, read, pool)[..., [0]]),
        _recent_counts(known.counts, read, pool)[..., None],
        _places(read, pool),
        known.new[pool][..., None],
        known.popularity[pool][..., None],
        np.log1p(np.diff(known.words.indptr))[pool][..., None],
        *(np.broadcast_to(one[:, None, None], (*pool.shape, 1)) for one in of_example),
        (logits - best)[..., None],
        np.broadcast_to(best[..., None], (*pool.shape, 1)),
        np.broadcast_to((best - logits[:, [min(TOP, logits.shape[1]) - 1]])[..., None], (*pool.shape, 1)),
        np.log1p(_ranks(logits))[..., None],
    ]
    features = np.concatenate(found, 2, dtype=np.float32)
    features[rows < 0] = 0.0
    return features


def text_ways(texts: Floats, read: Histories, pool: Ints) -> Floats:
    """Cosines (Q, C, 5) of the texts in each pool with the last text of the history, the one before, the last LAST
    texts weighted by DECAY, the most similar text, and all texts on average. Zeros without texts."""
    examples, width = len(pool), int(read.length.max(initial=1))
    if not texts.shape[1]:
        return np.zeros((*pool.shape, len(WAYS)), np.float32)
    history = np.zeros((examples, width, texts.shape[1]), np.float32)
    history[read.example, read.back] = texts[read.item]
    there = np.arange(width) < read.length[:, None]  # (Q, L)
    cosines = np.matmul(history, texts[pool].transpose(0, 2, 1)).round(DECIMALS)  # (Q, L, C)
    recent = np.where(np.arange(width) < LAST, DECAY ** np.arange(width), 0.0) * there
    shares = [recent / recent.sum(1, keepdims=True), there / read.length[:, None]]
    means = [np.einsum("ql,qlc->qc", share.astype(np.float32), cosines) for share in shares]
    second = cosines[:, 1] if width > 1 else np.zeros_like(cosines[:, 0])
    largest = np.where(there[..., None], cosines, -np.inf).max(1)
    return np.stack([cosines[:, 0], second, means[0], largest, means[1]], 2)


def link_ways(links: "csr_array", read: Histories, pool: Ints) -> Floats:
    """The entries of a sparse matrix (N, N) from the items of each history to those of its pool, (Q, C, 5): from the
    last item, the one before, the sum over the last LAST items weighted by DECAY, the largest, and the mean."""
    example, back, slot, value = _linked(links, read, pool)
    size = pool.size
    recent = np.where(back < LAST, DECAY**back, 0.0)
    ways = np.zeros((size, len(WAYS)), np.float32)
    for column, weight in ((0, back == 0), (1, back == 1), (2, recent), (4, 1 / read.length[example])):
        ways[:, column] = np.bincount(slot, value * weight, size)
    np.maximum.at(ways[:, 3], slot, value.astype(np.float32))
    return ways.reshape(*pool.shape, len(WAYS))


def _recent_counts(counts: "csr_array", read: Histories, pool: Ints) -> Floats:
    """(Q, C): the sum of log1p(c) over the last items, weighted by DECAY, without inherited counts."""
    _, back, slot, value = _linked(counts, read, pool)
    weight = np.where(back < LAST, DECAY**back, 0.0)
    return np.bincount(slot, np.log1p(value) * weight, pool.size).astype(np.float32).reshape(pool.shape)


def _linked(links: "csr_array", read: Histories, pool: Ints) -> tuple[Ints, Ints, Ints, Doubles]:
    """The E entries of a matrix that lead from an item of a history to one of its pool: the example, how many items of
    the history come after that item, the place in the flat pool, and the value."""
    n = links.shape[1]
    begin = links.indptr[read.item].astype(np.int64)
    count = links.indptr[read.item + 1] - begin
    entry = np.repeat(begin, count) + within_groups(count)
    key = np.repeat(read.example, count) * n + links.indices[entry]
    wanted = (np.arange(len(pool))[:, None] * n + pool).ravel()
    order = np.argsort(wanted, kind="stable")
    place = np.minimum(np.searchsorted(wanted, key, sorter=order), len(wanted) - 1)
    hit = np.flatnonzero(wanted[order[place]] == key)
    owner = np.repeat(np.arange(len(read.item)), count)[hit]
    return read.example[owner], read.back[owner], order[place[hit]], links.data[entry[hit]]


def _ranks(logits: Doubles) -> Ints:
    """(Q, C): how many scores of the row are higher. Rows are in descending order; equal scores have the same rank."""
    lower = np.diff(logits, axis=1, prepend=np.inf) < 0
    ranks: Ints = np.maximum.accumulate(np.where(lower, np.arange(logits.shape[1]), 0), axis=1)
    return ranks


def _places(read: Histories, pool: Ints) -> Floats:
    """(Q, C, 3): how often an item is in the history, whether it is the last, and 1 / (1 + items after it), else 0."""
    width = int(read.length.max(initial=1))
    history = np.full((len(pool), width), -1)
    history[read.example, read.back] = read.item
    same = history[:, :, None] == pool[:, None]  # (Q, L, C)
    lately = np.where(same.any(1), 1 / (1 + same.argmax(1)), 0.0)
    return np.stack([same.sum(1), same[:, 0], lately], 2, dtype=np.float32)


# Examples, rows (Q, C) of their pools, scores (Q, C), and what trained vectors add to them (Q, C) -> new scores (Q, C).
Rerank = Callable[[Examples, Ints, Doubles, Doubles], Doubles]


def reranks(model: "Ant") -> bool:
    """Whether a model uses a re-ranker."""
    return model.reranker is not None and bool(model.reranker.weight.detach())


def reranking(model: "Ant", known: Untrained | None) -> Rerank | None:
    """The function with which a model re-scores pools; None if it does not. known: that of the domain, with texts."""
    if model.reranker is None or known is None or not reranks(model):
        return None
    reranker, temperature = copy.deepcopy(model.reranker).cpu().double(), model.config.temperature

    def of_some(part: Examples, rows: Ints, scores: Doubles, vectors: Doubles) -> Doubles:
        import torch

        floor = np.where(vectors.any(1, keepdims=True), (scores - vectors).round(FEWER_DECIMALS), scores)
        floor = np.where(rows >= 0, floor, -np.inf)
        order = np.argsort(-floor, axis=1, kind="stable")
        rows, floor = np.take_along_axis(rows, order, 1), np.take_along_axis(floor, order, 1)
        logits = _filled(rows, floor) / temperature
        with torch.inference_mode():
            more = reranker(torch.from_numpy(features_of(known, part, rows, logits)).double()).numpy()
        found = np.empty_like(logits)
        np.put_along_axis(found, order, logits + more, 1)
        return (found + vectors / temperature).round(DECIMALS) * temperature

    def rerank(part: Examples, rows: Ints, scores: Doubles, vectors: Doubles) -> Doubles:
        found = np.full(scores.shape, -np.inf)
        for begin in range(0, len(part), EXAMPLES_AT_ONCE):
            some = slice(begin, begin + EXAMPLES_AT_ONCE)
            found[some] = of_some(part.some(some), rows[some], scores[some], vectors[some])
        return np.where(rows >= 0, found, -np.inf)

    return rerank


def _filled(rows: Ints, scores: Doubles) -> Doubles:
    """Scores (Q, C); the places of a pool without an item get the pool's lowest score, or 0 in an empty pool."""
    last = np.where(rows >= 0, scores, np.inf).min(1, keepdims=True)
    return np.where(rows >= 0, scores, np.where(np.isfinite(last), last, 0.0))


def best_of(scores: "Floats | Doubles", size: int) -> tuple[Ints, NDArray[np.float64]]:
    """Rows (Q, size) and scores of the best items by scores (Q, N), best first; -1 and -inf for scores of -inf."""
    size = min(size, scores.shape[1])
    place = scores.shape[1] - size
    least: Any = np.partition(scores, place, 1)[:, place : place + 1]
    above, tied = scores > least, scores == least
    kept = above | (tied & (tied.cumsum(1) <= size - above.sum(1, keepdims=True)))  # of equal ones, the first
    found = np.nonzero(kept)[1].reshape(len(scores), size)
    values = np.take_along_axis(scores, found, 1).astype(np.float64)
    order = np.argsort(-values, axis=1, kind="stable")
    rows, values = np.take_along_axis(found, order, 1), np.take_along_axis(values, order, 1)
    return np.where(np.isneginf(values), -1, rows), values

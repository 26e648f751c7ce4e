"""Full ranking over a catalogue: FAISS top-k, exact ranks with ties counted half, and their metrics.

There are two protocols. `all` ranks every item; `unseen` leaves out the items of the user's history, so a target in
its own history is a miss.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antpipe.core.batches import Examples
from antpipe.core.catalogue import Ints
from antpipe.core.reranker import POOL, Rerank, best_of
from antpipe.errors import DataError
from antpipe.runtime.arrays import within_groups

CUTOFFS = (10, 20, 50)
DEPTH = max(CUTOFFS)  # ranks beyond it become infinite: no metric needs them
PROTOCOLS = ("all", "unseen")
SCORED_AT_ONCE = 1 << 22  # numbers (32 MB in float64)
SPARSE = 500  # BLAS multiplies this many pairs of vectors in the time that one takes when picked out
CANDIDATES_AT_ONCE = 1 << 21  # per block of examples; a block takes about 40 bytes per candidate
LARGEST_BLOCK = 4096  # examples; FAISS multiplies this many queries at once
PAIRED_BLOCK = 512  # examples, if scores are added to many items of each
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Found = tuple[Floats, Ints]
# Queries (B, D) and k -> scores (B, k), best first, and item rows (B, k), -1 if fewer were found.
Search = Callable[[Floats, int], Found]


@dataclass(frozen=True)
class Ranks:
    """Rank of each example's target by protocol, (Q,) float64: 1 is best, a tie adds one half, infinite beyond DEPTH.

    seen: (Q,) True if the target is in its user's history.
    """

    by_protocol: dict[str, Doubles]
    seen: NDArray[np.bool_]


def nearest(queries: Floats, items: Floats, k: int) -> Found:
    """The k items with the largest inner products, by exact FAISS search: scores (Q, k) and item rows (Q, k)."""
    import faiss

    scores, rows = faiss.knn(queries, items, k, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, rows


@dataclass(frozen=True)
class PairScores:
    """Scores (S,) added to some items, at the sorted unique keys (S,), where a key is row * n + item."""

    scores: Doubles
    keys: Ints

    def at(self, keys: Ints) -> Doubles:
        """The score added at each key, 0 for none, in the shape of `keys`."""
        if not len(self.keys):
            return np.zeros(keys.shape)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, self.scores[place], 0.0)


def among(keys: Ints, found: Ints) -> NDArray[np.bool_]:
    """Whether each key is one of `found` (S,), which is sorted; in the shape of `keys`."""
    if not len(found):
        return np.zeros(keys.shape, np.bool_)
    there: NDArray[np.bool_] = found[np.searchsorted(found[:-1], keys)] == keys
    return there


Pairs = Callable[[Ints], PairScores]  # numbers of examples (B,) -> what is added to their scores


def history_pairs(part: Examples, n: int, score: float) -> Pairs:
    """`score` for each of the last max_len items of a history, among n items."""

    def pairs(rows: Ints) -> PairScores:
        keys = _history_keys(part, rows, n, part.max_len if score else 0)
        return PairScores(np.full(len(keys), score), keys)

    return pairs


def rank_examples(
    queries: Floats,
    items: Floats,
    part: Examples,
    block_size: int = 0,
    search: Search | None = None,
    history_score: float = 0.0,
    pairs: Pairs | None = None,
) -> Ranks:
    """Ranks of the targets under both protocols. queries: (Q, D), items: (N, D), unit vectors (or any, with pairs).

    FAISS proposes candidates: DEPTH, plus the length of the history, plus the target. If float32 cannot separate an
    item from the target, both are scored again in float64, so ranks depend neither on the block size nor on the number
    of threads. block_size: examples at a time (0: as many as CANDIDATES_AT_ONCE allows). search: replaces the exact
    search; ranks are then among the candidates it finds, and a target it does not find is a miss. history_score: added
    to the scores of the last max_len items of a history, which then become candidates too. pairs: other scores to add
    instead; their items become candidates likewise.

    Raises DataError if a vector is not finite: no comparison with it is true, so every target would rank first.
    """
    require_finite(np.isfinite(queries).all() and np.isfinite(items).all() and np.isfinite(history_score))
    ranks = {name: np.full(len(part), np.inf) for name in PROTOCOLS}
    seen = np.zeros(len(part), np.bool_)
    targets = part.targets()
    length = 1.0 if pairs is None else _longest(queries) * _longest(items)
    added_to = pairs or history_pairs(part, len(items), history_score)
    for rows, k in _blocks(part, len(items), block_size or (PAIRED_BLOCK if pairs else 0)):
        keys = _history_keys(part, rows, len(items))
        added = added_to(rows)
        own = np.arange(len(rows)) * len(items) + targets[rows]
        found = search(queries[rows], k) if search else nearest(queries[rows], items, k)
        block, enough = _rank_block(queries[rows], items, found, targets[rows], keys, added, length)
        if search:
            block[:, ~((found[1] == targets[rows, None]).any(1) | np.isin(own, added.keys))] = np.inf
        else:
            _rank_among_all(block, np.flatnonzero(~enough), queries[rows], items, targets[rows], keys, added, length)
        seen[rows] = np.isin(own, keys)
        ranks["all"][rows] = block[0]
        ranks["unseen"][rows] = np.where(seen[rows], np.inf, block[1])
    return Ranks(ranks, seen)


def rerank_examples(
    queries: Floats, items: Floats, part: Examples, pairs: Pairs, rerank: Rerank, width: int = 0
) -> Ranks:
    """Ranks of the targets after re-ranking the POOL best items: of all, and of those outside the history.

    width: number of leading columns of queries and items that hold the trained vectors.
    A target beyond the pool is beyond DEPTH. Scores are summed in float64 and rounded, so that identical items tie.
    """
    require_finite(np.isfinite(queries).all() and np.isfinite(items).all())
    ranks, seen = np.full((len(PROTOCOLS), len(part)), np.inf), np.zeros(len(part), np.bool_)
    n, targets, wide = len(items), part.targets(), items.T.astype(np.float64)
    size = max(1, min(PAIRED_BLOCK, SCORED_AT_ONCE // n))
    for begin in range(0, len(part), size):
        rows = np.arange(begin, min(begin + size, len(part)))
        some, added, keys = part.some(rows), pairs(rows), _history_keys(part, rows, n)
        scores = queries[rows].astype(np.float64) @ wide
        scores.ravel()[added.keys] += added.scores
        scores = scores.astype(np.float32)
        seen[rows] = among(np.arange(len(rows)) * n + targets[rows], keys)
        for number in range(len(PROTOCOLS)):
            if number:
                scores.ravel()[keys] = -np.inf
            found, values = best_of(scores, POOL)
            vectors = share_of_vectors(queries[rows], items, found, width)
            values = rerank(some, found, values, vectors)
            own = (found == targets[rows, None]) & ~(seen[rows, None] & bool(number))
            goal = np.where(own, values, np.inf).min(1, keepdims=True)  # infinite if the target is not there
            place = 1 + (values > goal).sum(1) + ((values == goal) & ~own).sum(1) / 2
            there = own.any(1) & ((values > goal).sum(1) < DEPTH)
            ranks[number, rows] = np.where(there, place, np.inf)
    return Ranks(dict(zip(PROTOCOLS, ranks, strict=True)), seen)


def share_of_vectors(queries: Floats, items: Floats, rows: Ints, width: int) -> Doubles:
    """(Q, C): what the first `width` columns of queries (Q, E) and items (N, E) add to the scores of rows (Q, C), -1
    for none."""
    if not width or not queries[:, :width].any():
        return np.zeros(rows.shape)
    query = np.repeat(np.arange(len(rows)), rows.shape[1])
    return exact_scores(queries[:, :width], items[:, :width], query, np.maximum(rows, 0).ravel()).reshape(rows.shape)


def require_finite(finite: "bool | np.bool_") -> None:
    if not finite:
        raise DataError(
            "the model computes vectors that are not finite: train it with a lower --lr, or check its features"
        )


def _blocks(part: Examples, n: int, block_size: int) -> Iterator[tuple[Ints, int]]:
    """Examples in blocks of similar history length, and the number of candidates (of n items) that each block needs."""
    length = part.end - part.start
    order = np.argsort(length, kind="stable")
    most = block_size or LARGEST_BLOCK
    begin = 0
    while begin < len(order):
        rows = order[begin : begin + most]
        k = min(n, DEPTH + int(length[rows[-1]]) + 1)
        if not block_size and len(rows) * k > CANDIDATES_AT_ONCE:
            rows = rows[: max(1, CANDIDATES_AT_ONCE // k)]
        yield rows, k
        begin += len(rows)


def _history_keys(part: Examples, rows: Ints, n: int, most: int | None = None) -> Ints:
    """Sorted unique keys i * n + item for the items in the history of rows[i], or in its last `most` items."""
    count = part.end[rows] - part.start[rows]
    count = count if most is None else np.minimum(count, most)
    within = within_groups(count)
    history = part.items[np.repeat(part.end[rows] - count, count) + within].astype(np.int64)
    return np.unique(np.repeat(np.arange(len(rows)), count) * n + history)


def _longest(vectors: Floats) -> float:
    return float(np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64).max(initial=0.0)))


def _with_added(queries: Floats, items: Floats, found: Found, added: PairScores) -> tuple[Doubles, Ints]:
    """Scores, with what is added, and candidates, (B, k + H) each; -1 marks the absence of a candidate.

    The k candidates found keep their columns, except items to which something is added; those follow in H columns.
    Inner products are at least as accurate as float32.
    """
    query, item = np.divmod(added.keys, len(items))
    count = np.bincount(query, minlength=len(queries))
    within = within_groups(count)
    rows = np.full((len(queries), int(count.max(initial=0))), -1)
    scores = np.full(rows.shape, -np.inf)
    rows[query, within] = item
    scores[query, within] = products(queries, items, query, item) + added.scores
    again = among(np.arange(len(queries))[:, None] * len(items) + found[1], added.keys)
    return np.hstack([found[0], scores]), np.hstack([np.where(again, -1, found[1]), rows])


def _rank_block(
    queries: Floats,
    items: Floats,
    found: Found,
    targets: Ints,
    keys: Ints,
    added: PairScores,
    length: float = 1.0,
) -> tuple[Doubles, NDArray[np.bool_]]:
    """Ranks (2, B) among the candidates found, for `all` and `unseen`, and whether these candidates suffice (B,).

    Items are compared by float64 scores; equal rows of `items` have equal scores. length: at least the product of the
    lengths of any query and item.
    """
    scores: NDArray[Any]
    (scores, candidates), n = found, len(items)
    query = np.arange(len(queries))
    # An item outside the candidates scores at most as high as the worst candidate, unless something is added to it.
    least, whole = scores[:, -1], candidates.shape[1] == n
    if len(added.keys):
        scores, candidates = _with_added(queries, items, found, added)
    # Error bound of a float32 inner product, for any order of summation (Higham, Accuracy and Stability of Numerical
    # Algorithms, 2002, section 3.1).
    tolerance = (queries.shape[1] + 2) * 2.0**-24 * length
    goal = exact_scores(queries, items, query, targets) + added.at(query * n + targets)
    other = (candidates != targets[:, None]) & (candidates >= 0)
    better = other & (scores > goal[:, None] + tolerance)
    row, column = np.nonzero(other & ~better & (scores >= goal[:, None] - tolerance))  # too close for float32
    near = exact_scores(queries, items, row, candidates[row, column]) + added.at(row * n + candidates[row, column])
    better[row, column] = near > goal[row]
    equal = np.zeros_like(better)
    equal[row, column] = near == goal[row]
    visible = ~among(query[:, None] * n + candidates, keys)
    complete = whole | (goal > least + tolerance)
    ranks, enough = [], np.ones(len(queries), np.bool_)
    for allowed in (np.ones_like(visible), visible):
        above = (better & allowed).sum(1)
        ranks.append(np.where(above < DEPTH, 1 + above + (equal & allowed).sum(1) / 2, np.inf))
        enough &= complete | (above >= DEPTH)
    return np.stack(ranks), enough


def _rank_among_all(
    block: Doubles,
    rows: Ints,
    queries: Floats,
    items: Floats,
    targets: Ints,
    keys: Ints,
    added: PairScores,
    length: float = 1.0,
) -> None:
    """Recompute the ranks block[:, rows] over the whole catalogue: near ties reach beyond their candidates."""
    n = len(items)
    for some in np.array_split(rows, -(-len(rows) * n // CANDIDATES_AT_ONCE) or 1) if len(rows) else ():
        everything = np.broadcast_to(np.arange(n), (len(some), n))
        scores = queries[some] @ items.T
        mine = np.isin(added.keys // n, some)
        own = PairScores(added.scores[mine], _keys_of(added.keys, some, n))
        hidden = _keys_of(keys, some, n)
        block[:, some], _ = _rank_block(queries[some], items, (scores, everything), targets[some], hidden, own, length)


def _keys_of(keys: Ints, rows: Ints, n: int) -> Ints:
    """The keys of these rows (ascending), renumbered from 0."""
    own = keys[np.isin(keys // n, rows)]
    return np.searchsorted(rows, own // n) * n + own % n


def products(queries: Floats, items: Floats, row: Ints, item: Ints) -> "Floats | Doubles":
    """Inner products (p,) of queries[row] and items[item], where row ascends: exact, or in float32 if there are so many
    pairs that it is faster to multiply everything."""
    if len(row) * SPARSE < len(queries) * len(items):
        return exact_scores(queries, items, row, item)
    found, size = np.empty(len(row), np.float32), max(1, SCORED_AT_ONCE // len(items))
    for begin in range(0, len(queries), size):
        some = slice(*np.searchsorted(row, [begin, begin + size]))
        found[some] = (queries[begin : begin + size] @ items.T)[row[some] - begin, item[some]]
    return found


def exact_scores(queries: Floats, items: Floats, row: Ints, item: Ints) -> Doubles:
    """Inner products (p,) in float64 of queries[row] and items[item], in blocks of bounded size."""
    scores = np.empty(len(row))
    step = max(1, SCORED_AT_ONCE // queries.shape[1])
    for start in range(0, len(row), step):
        some = slice(start, start + step)
        left, right = queries[row[some]].astype(np.float64), items[item[some]].astype(np.float64)
        scores[some] = np.einsum("pd,pd->p", left, right)
    return scores


def metrics(ranks: Doubles) -> dict[str, float]:
    """Recall, NDCG and MRR at each cutoff: means over examples with one target each."""
    values = {}
    for k in CUTOFFS:
        hit = ranks <= k
        found = ranks[hit]
        values[f"recall@{k}"] = float(hit.mean())
        values[f"ndcg@{k}"] = float((1 / np.log2(found + 1)).sum() / len(ranks))
        values[f"mrr@{k}"] = float((1 / found).sum() / len(ranks))
    return values


def summary(ranks: Ranks) -> dict[str, Any]:
    """Metrics by protocol, the number of positions, and the share of targets in their own history."""
    protocols: Mapping[str, Any] = {name: metrics(values) for name, values in ranks.by_protocol.items()}
    return {"positions": len(ranks.seen), "target_in_history": float(ranks.seen.mean()), "protocols": dict(protocols)}

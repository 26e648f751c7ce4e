"""The best items of a run, re-ranked if it has a re-ranker (core/reranker.py)."""

import numpy as np

from antpipe.core.batches import Examples
from antpipe.core.catalogue import Ints
from antpipe.core.ranking import Doubles
from antpipe.core.reranker import POOL
from antpipe.evaluation.vectors import OpenRun
from antpipe.serving.offer import Offer
from antpipe.serving.top import Top, top_items


def reranked_items(opened: OpenRun, part: Examples, offer: Offer, k: int, *, include_seen: bool = False) -> Top:
    """Like `top_items`, but the POOL best offered items are re-scored, if the run has a re-ranker. Items beyond the
    pool follow in their old order, with scores not above the pool's last."""
    rerank = opened.rerank
    if rerank is None:
        return top_items(opened, part, offer, k, include_seen=include_seen)
    queries = opened.after(part)
    found = top_items(opened, part, offer, max(k, POOL), include_seen=include_seen, queries=queries)
    pool = _in_order(found.rows[:, :POOL], found.scores[:, :POOL].astype(np.float32).astype(np.float64))  # as evaluated
    again = rerank(part, pool.rows, pool.scores, opened.of_vectors(queries, pool.rows))
    pool = _in_order(pool.rows, again)
    rest = np.minimum(found.scores[:, POOL:], pool.scores[:, -1:])
    return Top(np.hstack([pool.rows, found.rows[:, POOL:]])[:, :k], np.hstack([pool.scores, rest])[:, :k])


def _in_order(rows: Ints, scores: Doubles) -> Top:
    """Best first; equal scores in the order of rows."""
    order = np.lexsort((rows, -scores), 1)
    return Top(np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1))

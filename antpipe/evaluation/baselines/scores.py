"""What all baselines share: ranks from dense scores."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antpipe.core.batches import Examples
from antpipe.core.ranking import DEPTH, Ranks
from antpipe.core.untrained import history_matrix

Scores = NDArray[np.floating[Any]]
Scorer = Callable[[Examples], Scores]  # examples -> scores (Q, N) of all items
AT_ONCE = 1 << 23  # scores (64 MB)


def rank_scores(score: Scorer, part: Examples, items: int) -> Ranks:
    """Ranks of the targets among N items; a tie counts half, as in ranking.rank_examples."""
    ranks = {protocol: np.full(len(part), np.inf) for protocol in ("all", "unseen")}
    seen = np.zeros(len(part), np.bool_)
    size = max(1, AT_ONCE // items)
    for begin in range(0, len(part), size):
        rows = slice(begin, begin + size)
        block = part.some(rows)
        targets, scores = block.targets(), score(block)  # (B,), (B, N)
        goal = scores[np.arange(len(block)), targets][:, None]
        hidden = history_matrix(block, items)
        seen[rows] = hidden[np.arange(len(block)), targets] > 0
        better, equal = scores > goal, scores == goal
        equal[np.arange(len(block)), targets] = False  # the target itself
        for protocol, left_out in (("all", None), ("unseen", hidden)):
            above, beside = (
                one.sum(1, dtype=np.int32) - (0 if left_out is None else left_out.multiply(one).sum(1))
                for one in (better, equal)
            )
            ranks[protocol][rows] = np.where(above < DEPTH, 1 + above + beside / 2, np.inf)
    ranks["unseen"][seen] = np.inf
    return Ranks(ranks, seen)

"""What all baselines share: training data, histories, and ranks from dense scores."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from antpipe.core.batches import Examples
from antpipe.core.catalogue import Ints
from antpipe.core.ranking import DEPTH, Ranks
from antpipe.runtime.arrays import within_groups
from antpipe.store.files import Sequences

Scores = NDArray[np.float64]
Scorer = Callable[[Examples], Scores]  # examples -> scores (Q, N) of all items
AT_ONCE = 1 << 23  # scores (64 MB)


def training_items(sequences: Sequences) -> tuple[Ints, Ints]:
    """Items of all training parts, user by user in order of time, and the row of the user of each."""
    lengths = np.diff(sequences.offsets)
    row = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(len(sequences.items)) - sequences.offsets[:-1][row]
    training = within < sequences.train_end[row]
    return sequences.items[training].astype(np.int64), row[training]


def history_matrix(part: Examples, items: int) -> "csr_array":
    """(Q, N): 1 if the item is in the history of the example."""
    count = part.end - part.start
    within = within_groups(count)
    history = part.items[np.repeat(part.start, count) + within]
    matrix = csr_array((np.ones(len(history)), (np.repeat(np.arange(len(part)), count), history)), (len(part), items))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def rank_scores(score: Scorer, part: Examples, items: int) -> Ranks:
    """Ranks of the targets among N items; a tie counts half, as in ranking.rank_examples."""
    ranks = {protocol: np.full(len(part), np.inf) for protocol in ("all", "unseen")}
    seen = np.zeros(len(part), np.bool_)
    size = max(1, AT_ONCE // items)
    for begin in range(0, len(part), size):
        rows = slice(begin, begin + size)
        block = Examples(part.user[rows], part.items, part.start[rows], part.end[rows], part.max_len)
        targets, scores = block.targets(), score(block)  # (B,), (B, N)
        goal = scores[np.arange(len(block)), targets][:, None]
        hidden = history_matrix(block, items)
        seen[rows] = hidden[np.arange(len(block)), targets] > 0
        better, equal = scores > goal, scores == goal
        equal[np.arange(len(block)), targets] = False  # the target itself
        for protocol, left_out in (("all", None), ("unseen", hidden)):
            above, beside = (
                one.sum(1) - (0 if left_out is None else left_out.multiply(one).sum(1)) for one in (better, equal)
            )
            ranks[protocol][rows] = np.where(above < DEPTH, 1 + above + beside / 2, np.inf)
    ranks["unseen"][seen] = np.inf
    return Ranks(ranks, seen)

"""Popularity: the most frequent items of training, for everyone."""

import numpy as np

from antpipe.core.batches import Examples
from antpipe.core.transitions import training_items
from antpipe.evaluation.baselines.scores import Scorer, Scores
from antpipe.store.files import Sequences


def popularity(sequences: Sequences, items: int) -> Scorer:
    """Score of an item: how often it occurs in training parts. items: size N of the catalogue."""
    counts = np.bincount(training_items(sequences)[0], minlength=items).astype(np.float64)

    def score(part: Examples) -> Scores:
        return np.broadcast_to(counts, (len(part), items))

    return score

"""First-order Markov chain: the items that followed the last item in training."""

import numpy as np

from antpipe.core.batches import Examples
from antpipe.core.transitions import training_items, transitions
from antpipe.evaluation.baselines.scores import Scorer, Scores
from antpipe.store.files import Sequences


def markov(sequences: Sequences, items: int) -> Scorer:
    """Score of item j after a history that ends in i: how often j came right after i in training, then popularity.

    Dividing by the number of successors of i would give the probability, and the same order.
    """
    follows = transitions(sequences, items)
    popular = np.bincount(training_items(sequences)[0], minlength=items)
    below_one = popular / (popular.max() + 1)

    def score(part: Examples) -> Scores:
        scores: Scores = follows[part.items[part.end - 1]].toarray() + below_one
        return scores

    return score

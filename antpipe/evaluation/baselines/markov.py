"""First-order Markov chain: the items that followed the last item in training."""

import numpy as np
from scipy.sparse import csr_array

from antpipe.core.batches import Examples
from antpipe.evaluation.baselines.scores import Scorer, Scores, training_items
from antpipe.store.files import Sequences


def markov(sequences: Sequences, items: int) -> Scorer:
    """Score of item j after a history that ends in i: how often j came right after i in training, then popularity.

    Dividing by the number of successors of i would give the probability, and the same order.
    """
    item, row = training_items(sequences)
    within = row[1:] == row[:-1]
    pairs = (item[:-1][within], item[1:][within])
    follows = csr_array((np.ones(len(pairs[0])), pairs), shape=(items, items))  # duplicate pairs are summed
    popular = np.bincount(item, minlength=items)
    below_one = popular / (popular.max() + 1)

    def score(part: Examples) -> Scores:
        scores: Scores = follows[part.items[part.end - 1]].toarray() + below_one
        return scores

    return score

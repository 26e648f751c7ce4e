"""First-order Markov chain: what followed the last item in training."""

import numpy as np
from scipy.sparse import csr_array

from antpipe.core.batches import Examples
from antpipe.evaluation.baselines.scores import Floats, Scorer, training_items
from antpipe.store.files import Sequences


def markov(sequences: Sequences, items: int) -> Scorer:
    """Score of item j after a history that ends with i: how often j came right after i in training parts; of equally
    frequent followers, and behind them, the more popular item comes first.

    Dividing by what followed i in all would give the probability and the same order.
    """
    item, row = training_items(sequences)
    within = row[1:] == row[:-1]
    pairs = (item[:-1][within], item[1:][within])
    follows = csr_array((np.ones(len(pairs[0])), pairs), shape=(items, items))  # equal pairs are added up
    popular = np.bincount(item, minlength=items)
    below_one = popular / (popular.max() + 1)

    def score(part: Examples) -> Floats:
        scores: Floats = follows[part.items[part.end - 1]].toarray() + below_one
        return scores

    return score

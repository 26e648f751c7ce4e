"""TGH: text, graph of transitions, and history, with fixed weights."""

import numpy as np
from scipy.sparse import diags_array

from antpipe.core.batches import Examples
from antpipe.core.transitions import transitions
from antpipe.core.untrained import cosines, history_matrix, unit_texts
from antpipe.evaluation.baselines.scores import Scorer, Scores
from antpipe.store.domain import Domain

GRAPH = 0.5


def tgh(domain: Domain) -> Scorer:
    """Score of item j after a history that ends in i: cos(text i, text j) + GRAPH * g(i, j) - [j is in the history].

    g(i, j) = log1p(c(i, j)) / max over j of log1p(c(i, j)), where c counts how often j came right after i in training.
    """
    texts, graph = unit_texts(domain), transitions(domain.sequences(), domain.core_rows())
    graph.data = np.log1p(graph.data)
    largest = graph.max(axis=1).toarray()
    graph = diags_array(GRAPH / np.where(largest > 0, largest, 1)).tocsr() @ graph

    def score(part: Examples) -> Scores:
        last = part.items[part.end - 1]
        added = graph[last] - history_matrix(part, len(texts))
        scores: Scores = (cosines(texts, texts[last].astype(np.float64)) + added).astype(np.float32)
        return scores

    return score

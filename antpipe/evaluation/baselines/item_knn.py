"""Item-based nearest neighbours on co-occurrence (Sarwar et al. 2001, https://doi.org/10.1145/371920.372071)."""

import numpy as np
from scipy.sparse import csr_array, diags_array

from antpipe.core.batches import Examples
from antpipe.core.transitions import training_items
from antpipe.core.untrained import history_matrix
from antpipe.evaluation.baselines.scores import Scorer, Scores
from antpipe.store.files import Sequences

NEIGHBOURS = 100  # per item; not tuned on any data


def item_knn(sequences: Sequences, items: int) -> Scorer:
    """Score of an item: the sum of its similarities to the distinct items of the history.

    The similarity of items i and j is the cosine of their sets of users in training, U_i and U_j:
    |U_i and U_j| / sqrt(|U_i| |U_j|). Each item of a history adds only to its NEIGHBOURS most similar items.
    """
    nearest = nearest_only(similarities(sequences, items), NEIGHBOURS)

    def score(part: Examples) -> Scores:
        # float32 at the end, so that sums of the same similarities in a different order tie
        scores: Scores = (history_matrix(part, items) @ nearest).toarray().astype(np.float32).astype(np.float64)
        return scores

    return score


def similarities(sequences: Sequences, items: int) -> "csr_array":
    """Cosines (N, N) of the items' sets of users, without an item's similarity to itself."""
    item, row = training_items(sequences)
    met = csr_array((np.ones(len(item)), (row, item)), shape=(len(sequences.user), items))
    met.sum_duplicates()
    met.data[:] = 1  # a set: repeats do not count
    together = (met.T @ met).tocsr()
    together.setdiag(0)
    together.eliminate_zeros()
    met_by = np.asarray(met.sum(0)).ravel()
    scale = diags_array(1 / np.sqrt(np.maximum(met_by, 1)))
    return csr_array(scale @ together @ scale)


def nearest_only(similar: "csr_array", k: int) -> "csr_array":
    """The k largest entries of each row; ties go to the lower column."""
    row = np.repeat(np.arange(similar.shape[0]), np.diff(similar.indptr))
    order = np.lexsort((similar.indices, -similar.data, row))
    place = np.arange(len(row)) - similar.indptr[row]  # sorting keeps rows together, so their starts do not change
    kept = order[place < k]
    return csr_array((similar.data[kept], (row[kept], similar.indices[kept])), shape=similar.shape)

"""Item-based nearest neighbours on co-occurrence (Sarwar et al. 2001, https://doi.org/10.1145/371920.372071)."""

import numpy as np
from scipy.sparse import csr_array, diags_array

from antpipe.core.batches import Examples
from antpipe.evaluation.baselines.scores import Floats, Scorer, history_matrix, training_items
from antpipe.store.files import Sequences

NEIGHBOURS = 100  # of each item, by similarity; chosen on no data


def item_knn(sequences: Sequences, items: int) -> Scorer:
    """Score of an item: the sum of its similarities to the distinct items of the history.

    Two items are as similar as the cosine of who met them in training, users met_i and met_j:
    |met_i and met_j| / sqrt(|met_i| |met_j|). Each item of a history speaks for its NEIGHBOURS nearest ones.
    """
    nearest = nearest_only(similarities(sequences, items), NEIGHBOURS)

    def score(part: Examples) -> Floats:
        # float32 at the end: sums of the same similarities in another order then tie, as they should
        scores: Floats = (history_matrix(part, items) @ nearest).toarray().astype(np.float32).astype(np.float64)
        return scores

    return score


def similarities(sequences: Sequences, items: int) -> "csr_array":
    """Cosines (N, N) of items by the users that met them, without an item's similarity to itself."""
    item, row = training_items(sequences)
    met = csr_array((np.ones(len(item)), (row, item)), shape=(len(sequences.user), items))
    met.sum_duplicates()
    met.data[:] = 1  # whether, not how often
    together = (met.T @ met).tocsr()
    together.setdiag(0)
    together.eliminate_zeros()
    met_by = np.asarray(met.sum(0)).ravel()
    scale = diags_array(1 / np.sqrt(np.maximum(met_by, 1)))
    return csr_array(scale @ together @ scale)


def nearest_only(similar: "csr_array", k: int) -> "csr_array":
    """The k largest entries of each row; of equal ones at the border those of the items that come first."""
    row = np.repeat(np.arange(similar.shape[0]), np.diff(similar.indptr))
    order = np.lexsort((similar.indices, -similar.data, row))
    place = np.arange(len(row)) - similar.indptr[row]  # rows stay together: their starts are as before
    kept = order[place < k]
    return csr_array((similar.data[kept], (row[kept], similar.indices[kept])), shape=similar.shape)

"""Text nearest neighbours: the items whose texts are most similar to those of the last two items of the history."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array, diags_array, issparse

from antpipe.core.batches import Examples
from antpipe.errors import DataError
from antpipe.evaluation.baselines.scores import Scorer, Scores
from antpipe.store.domain import Domain
from antpipe.store.next_command import build_command

LAST = 2  # items of the history that count


def text_nearest(domain: Domain) -> Scorer:
    """Score of an item: the cosine of its text vector (text.arrow) and the sum of those of the last two items."""
    return nearest_to_last(domain.core_feature("text").values.astype(np.float64))


def tfidf_nearest(domain: Domain) -> Scorer:
    """The same with TF-IDF vectors, which need no encoder."""
    texts = domain.table("items", ["text"])["text"][: domain.core_rows()].to_pylist()
    return nearest_to_last(tfidf([text or "" for text in texts], domain))


def tfidf(texts: Sequence[str], domain: Domain) -> "csr_array":
    """TF-IDF vectors (n, words) of n texts, of unit length. Raises DataError if no text has a word."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        return csr_array(TfidfVectorizer().fit_transform(texts))
    except ValueError:  # an empty vocabulary
        raise DataError(f"domain {domain.name}: no item has a text", build_command(domain, "items")) from None


def nearest_to_last(vectors: "csr_array | Scores") -> Scorer:
    """vectors: (N, d), one per item; rows of zeros (no text) score 0."""
    length = np.sqrt(np.asarray((vectors * vectors).sum(1)).ravel())
    unit = diags_array(1 / np.where(length > 0, length, 1)).tocsr() @ vectors
    columns = unit.T.tocsr() if issparse(unit) else unit.T

    def score(part: Examples) -> Scores:
        query = unit[part.items[part.end - 1]]
        for back in range(2, LAST + 1):
            there = (part.end - part.start >= back).astype(np.float64)
            query = query + diags_array(there).tocsr() @ unit[part.items[np.maximum(part.end - back, part.start)]]
        cosines = query @ columns
        # float32 at the end, so that equal texts tie, whatever the order of summation
        scores: Scores = (cosines.toarray() if issparse(cosines) else cosines).astype(np.float32).astype(np.float64)
        return scores

    return score

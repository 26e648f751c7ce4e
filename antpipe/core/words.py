"""Which items share words: the TF-IDF neighbours of each item's text, one of the terms of the untrained floor.

Brands, series and sizes are rare words, which a sentence encoder blurs and a shop's customers follow.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from antpipe.store.domain import Domain

# Chosen on the validation positions of 500 and 1,000 users of Beauty, Sports, Toys and Games (docs/verdict.md).
NEIGHBOURS = 50  # kept per item
MOST_ITEMS = 1000  # a word or pair of words of more items than that says nothing
ROWS_AT_ONCE = 1024


def word_neighbours(texts: Sequence[str | None]) -> "csr_array":
    """(N, N): the cosine of the TF-IDF vectors of items i and j, for the NEIGHBOURS items j closest to i.

    Words and pairs of adjacent words count, once per text, if they occur in at least two of the N texts and in at most
    MOST_ITEMS. An item is not its own neighbour; one that shares no word has none.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    n = len(texts)
    if not any(texts) or n < 2:
        return csr_array((n, n))
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, max_df=max(2, min(MOST_ITEMS, n)), binary=True)
    try:
        vectors = csr_array(vectorizer.fit_transform([text or "" for text in texts]))
    except ValueError:  # what it raises if no word is left
        return csr_array((n, n))
    parts: list[tuple[Any, Any]] = []
    counts = []
    for begin in range(0, n, ROWS_AT_ONCE):
        products = csr_array(vectors[begin : begin + ROWS_AT_ONCE] @ vectors.T)
        for row in range(products.shape[0]):
            some = slice(products.indptr[row], products.indptr[row + 1])
            items, cosines = products.indices[some], products.data[some]
            others = items != begin + row
            items, cosines = items[others], cosines[others]
            if len(items) > NEIGHBOURS:
                best = np.argpartition(-cosines, NEIGHBOURS)[:NEIGHBOURS]
                items, cosines = items[best], cosines[best]
            parts.append((items, cosines))
            counts.append(len(items))
    columns, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    found = csr_array((values, columns, np.concatenate([[0], np.cumsum(counts)])), (n, n))
    found.sort_indices()
    return found


def words_of(domain: Domain) -> "csr_array":
    """The word neighbours of a domain's items. They are kept for the process, since every run of a comparison asks."""
    return _words_of(domain.root, domain.name, domain.entry("items")["fingerprint"])


@lru_cache(maxsize=8)
def _words_of(root: Path, name: str, _state: str) -> "csr_array":
    return word_neighbours(Domain(root, name).table("items", ["text"])["text"].to_pylist())

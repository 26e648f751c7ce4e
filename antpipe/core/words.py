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


def word_neighbours(texts: Sequence[str | None], new: Sequence[str | None] = ()) -> "csr_array":
    """(N, N): the cosine of the TF-IDF vectors of items i and j, for the NEIGHBOURS items j closest to i.

    Words and pairs of adjacent words count, once per text, if they occur in at least two of the texts and in at most
    MOST_ITEMS. An item is not its own neighbour; one that shares no word has none. new: texts of items that come after
    the others and change nothing among these: words count as without them, and who is as close as the last of the
    NEIGHBOURS comes in addition.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    n, size = len(texts), len(texts) + len(new)
    if not any(texts) or n < 2:
        return csr_array((size, size))
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, max_df=max(2, min(MOST_ITEMS, n)), binary=True)
    try:
        vectorizer.fit([text or "" for text in texts])
    except ValueError:  # what it raises if no word is left
        return csr_array((size, size))
    vectors = csr_array(vectorizer.transform([text or "" for text in (*texts, *new)]))
    parts: list[tuple[Any, Any]] = []
    for begin in range(0, size, ROWS_AT_ONCE):
        products = csr_array(vectors[begin : begin + ROWS_AT_ONCE] @ vectors.T)
        for row in range(products.shape[0]):
            some = slice(products.indptr[row], products.indptr[row + 1])
            parts.append(_nearest(products.indices[some], products.data[some], begin + row, n))
    columns, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    counts = [len(items) for items, _ in parts]
    found = csr_array((values, columns, np.concatenate([[0], np.cumsum(counts)])), (size, size))
    found.sort_indices()
    return found


def _nearest(items: Any, cosines: Any, own: int, n: int) -> tuple[Any, Any]:
    """Which of the items a row shares words with are kept; those from n on are new."""
    old = (items < n) & (items != own)
    least = 0.0
    if old.sum() > NEIGHBOURS:
        best = np.flatnonzero(old)[np.argpartition(-cosines[old], NEIGHBOURS)[:NEIGHBOURS]]
        least = cosines[best].min()
        old = np.isin(np.arange(len(items)), best)
    kept = old | ((items >= n) & (items != own) & (cosines >= least))
    return items[kept], cosines[kept]


def words_of(domain: Domain, rows: int) -> "csr_array":
    """The word neighbours of a domain's first items. They are kept for the process, since every run of a comparison
    asks."""
    return _words_of(domain.root, domain.name, rows, domain.entry("items")["fingerprint"])


@lru_cache(maxsize=8)
def _words_of(root: Path, name: str, rows: int, _state: str) -> "csr_array":
    return word_neighbours(Domain(root, name).table("items", ["text"])["text"][:rows].to_pylist())

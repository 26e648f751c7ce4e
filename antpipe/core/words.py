"""Which items share words: the TF-IDF neighbours of each item's text, one of the terms of the untrained floor.

Brands, series and sizes are rare words: a sentence encoder blurs them, but a shop's customers follow them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import block_array, csr_array, vstack

from antpipe.store.domain import Domain

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

# Chosen on the validation positions of 500 and 1,000 users of Beauty, Sports, Toys and Games (docs/verdict.md).
NEIGHBOURS = 50  # kept per item
MOST_ITEMS = 1000  # a word or pair of words in the texts of more items than this is ignored
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class WordIndex:
    """An index of n texts that also finds the word neighbours of new texts.

    vectors: (n, V) TF-IDF vectors. neighbours: (n, n) as `word_neighbours` gives them. least: (n,) the cosine with the
    last of the NEIGHBOURS, 0 for a text that has no more than that.
    """

    vectorizer: "TfidfVectorizer"
    vectors: csr_array
    neighbours: csr_array
    least: NDArray[np.float64]

    def with_new(self, new: Sequence[str | None]) -> csr_array:
        """The neighbours of all texts and m new ones after them, (n + m, n + m).

        Nothing changes among the old texts: words have the weights that they have without the new texts, and a new text
        at least as close as the last of the NEIGHBOURS is added to them.
        """
        added = csr_array(self.vectorizer.transform([text or "" for text in new]))
        own = without_own(csr_array(added @ added.T))
        to_old = csr_array(added @ self.vectors.T)
        from_old = csr_array(to_old.T)
        row_of = np.repeat(np.arange(len(self.least)), np.diff(from_old.indptr))
        from_old.data[from_old.data < self.least[row_of]] = 0
        nearest, least = closest(to_old)
        row_of = np.repeat(np.arange(len(least)), np.diff(own.indptr))
        own.data[own.data < least[row_of]] = 0
        found = csr_array(block_array([[self.neighbours, from_old], [nearest, own]], format="csr"))
        found.eliminate_zeros()
        found.sort_indices()
        return found


def index_words(texts: Sequence[str | None]) -> WordIndex | None:
    """The index of some texts; None if they share no words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    n = len(texts)
    if not any(texts) or n < 2:
        return None
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, max_df=max(2, min(MOST_ITEMS, n)), binary=True)
    try:
        vectorizer.fit([text or "" for text in texts])
    except ValueError:  # raised if no word is left
        return None
    vectors = csr_array(vectorizer.transform([text or "" for text in texts]))
    parts, least = [], np.zeros(n)
    for begin in range(0, n, ROWS_AT_ONCE):
        rows = slice(begin, begin + ROWS_AT_ONCE)
        part, least[rows] = closest(without_own(csr_array(vectors[rows] @ vectors.T), begin))
        parts.append(part)
    neighbours = csr_array(vstack(parts, format="csr"))
    neighbours.sort_indices()
    return WordIndex(vectorizer, vectors, neighbours, least)


def word_neighbours(texts: Sequence[str | None], new: Sequence[str | None] = ()) -> csr_array:
    """(N, N): the cosine of the TF-IDF vectors of items i and j, for the NEIGHBOURS items j closest to i.

    Words and pairs of adjacent words count, once per text, if they occur in at least two of the texts and in at most
    MOST_ITEMS. An item is not its own neighbour; one that shares no word has none. new: texts of items that come after
    the others and change nothing among them (`WordIndex.with_new`).
    """
    return neighbours_in(index_words(texts), len(texts), new)


def neighbours_in(index: WordIndex | None, n: int, new: Sequence[str | None]) -> csr_array:
    """The same for n indexed texts; there are no neighbours without an index."""
    if index is None:
        return csr_array((n + len(new), n + len(new)))
    return index.with_new(new) if new else index.neighbours


def without_own(cosines: csr_array, begin: int = 0) -> csr_array:
    """Cosines (r, n) of the items from row `begin` on, without those of an item with itself; in place."""
    row = np.repeat(np.arange(cosines.shape[0]), np.diff(cosines.indptr))
    cosines.data[cosines.indices == row + begin] = 0
    cosines.eliminate_zeros()
    return cosines


def closest(cosines: csr_array) -> tuple[csr_array, NDArray[np.float64]]:
    """The NEIGHBOURS largest entries of each row (r, n), and the least of them (r,), 0 if a row has no more."""
    least = np.zeros(cosines.shape[0])
    kept = np.ones(cosines.nnz, np.bool_)
    for row in np.flatnonzero(np.diff(cosines.indptr) > NEIGHBOURS):
        some = slice(cosines.indptr[row], cosines.indptr[row + 1])
        best = np.argpartition(-cosines.data[some], NEIGHBOURS)[:NEIGHBOURS]
        least[row] = cosines.data[some][best].min()
        kept[some] = False
        kept[cosines.indptr[row] + best] = True
    found = cosines.copy()
    found.data[~kept] = 0
    found.eliminate_zeros()
    return found, least


def words_of(domain: Domain, rows: int) -> "csr_array":
    """The word neighbours of a domain's first `rows` items, cached for the life of the process: every run of a
    comparison needs them."""
    return _words_of(domain.root, domain.name, rows, domain.entry("items")["fingerprint"])


@lru_cache(maxsize=8)
def _words_of(root: Path, name: str, rows: int, _state: str) -> "csr_array":
    return word_neighbours(Domain(root, name).table("items", ["text"])["text"][:rows].to_pylist())

"""The untrained floor: what texts, words, transitions, history and novelty say about the next item, each with a weight.

    score(j) = text * (RECENT * mean over the last items i of cos(text i, text j)
                       + (1 - RECENT) * mean over all items i that are read of cos(text i, text j)
                       - TYPICAL * mean over all items i of the shop of cos(text i, text j))
               + words * sum over the last items i of the TF-IDF cosine of i and j (core/words.py)
               + transitions * sum over the last items i of log1p(c(i, j))
               + history * [j is in the history]
               + novelty * [j does not occur in training] + popularity * log1p(times that j occurs in training)

Text, words and transitions of the k-th last item are weighted by DECAY ** (k - 1), up to the LAST-th. A text that
resembles all texts says little, so its similarity to the shop's texts is subtracted. c(i, j) sums 1 / d over the times
that j came d <= REACH positions after i in a training part (sequential rules: Ludewig, Jannach 2018, arXiv 1803.09587),
and BACKWARD / d over the times that it came before i. Added to that is INHERITED times the mean count of the items that
share words with j, so that rarely bought items inherit from similar ones. A term is 0 if a domain has no data for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array, vstack

from antpipe.core.batches import Examples, sample
from antpipe.core.transitions import training_items, transitions
from antpipe.core.words import ROWS_AT_ONCE, closest, words_of
from antpipe.runtime.arrays import within_groups
from antpipe.settings.model import FLOOR
from antpipe.store.domain import Domain
from antpipe.store.files import Sequences

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
FORM = 2  # increment when the terms or their fit change: what was made with another form is rebuilt
# Chosen on the validation positions of Beauty, Sports, Toys and Games (docs/verdict.md).
LAST = 5
DECAY = 0.5
REACH = 5
BACKWARD = 0.5
INHERITED = 2.0
RECENT = 0.4
TYPICAL = 0.85
ITEMS_AT_ONCE = 8192  # text vectors held in float64
TEXT, WORDS, TRANSITIONS, HISTORY, NOVELTY, POPULARITY = TERMS = (
    "text",
    "words",
    "transitions",
    "history",
    "novelty",
    "popularity",
)
# How far from their usual values (FLOOR) a fit may take the weights: standard deviations of normal distributions.
SPREAD = {TEXT: 3.0, WORDS: 2.0, TRANSITIONS: 2.0, HISTORY: 4.0, NOVELTY: 2.0, POPULARITY: 1.0}
# Lower bounds: resembling or following other items must not count against an item, whatever a few positions suggest.
LEAST = {TEXT: 0.6, WORDS: 0.2, TRANSITIONS: 0.3}
MOST_POSITIONS = 2000  # read by a fit
MOST_SCORES = 1 << 27  # computed by a fit, SCORES_AT_ONCE of them at a time (16 MB per term)
SCORES_AT_ONCE = 1 << 22
BEST = 100  # best items per position that a fit compares: targets below them would appear in no list
ROUNDS = 2  # of choosing these items and fitting


@dataclass(frozen=True)
class Untrained:
    """What is known of the N items of a domain without training.

    texts: (N, d) unit vectors, zeros if an item has no text; d is 0 if there are none.
    words: (N, N) cosines of word neighbours, empty if there are no words. steps: (N, N) log1p of c, inherited counts
    included. sold: (N,) how often each item occurs in training. counts: (N, N) c without them. middle: (d,) the mean
    text of the shop; typical: (N,) its inner product with each item's text.
    """

    texts: Floats
    words: "csr_array"
    steps: "csr_array"
    sold: NDArray[np.int64]
    counts: "csr_array"
    middle: Doubles
    typical: Floats

    @cached_property
    def new(self) -> NDArray[np.bool_]:
        """(N,) True if the item does not occur in training."""
        return np.equal(self.sold, 0)

    @cached_property
    def popularity(self) -> Floats:
        """(N,) log1p of `sold`."""
        return np.log1p(self.sold).astype(np.float32)


def untrained(domain: Domain) -> Untrained:
    """What the texts and training parts of a domain tell. Raises DataError if its text features exist but are stale."""
    has_texts = "text" in domain.manifest()
    texts = unit_texts(domain) if has_texts else np.zeros((domain.core_rows(), 0), np.float32)
    return from_sequences(domain.sequences(), texts, words_of(domain, len(texts)))


def from_sequences(sequences: Sequences, texts: Floats, words: "csr_array") -> Untrained:
    """What the training parts of a domain tell about its items, which have these texts (N, d) and words (N, N)."""
    sold = np.bincount(training_items(sequences)[0], minlength=len(texts))
    return from_counts(texts, words, sold, step_counts(sequences, len(texts)))


def from_counts(texts: Floats, words: "csr_array", sold: NDArray[np.int64], counts: "csr_array") -> Untrained:
    """The same from counts: sold (N,) and counts (N, N) of `Untrained`."""
    there = texts.any(1)
    middle: Doubles = texts[there].mean(0, dtype=np.float64) if there.any() else np.zeros(texts.shape[1])
    return Untrained(
        texts, words, log_counts(counts, words, sold == 0), sold, counts, middle, typical_of(texts, middle)
    )


def typical_of(texts: Floats, middle: Doubles) -> Floats:
    """(N,): how much texts (N, d) resemble the mean text (d,). Equal texts have equal values."""
    found = np.empty(len(texts), np.float32)
    for begin in range(0, len(texts), ITEMS_AT_ONCE):
        some = slice(begin, begin + ITEMS_AT_ONCE)
        found[some] = np.einsum("nd,d->n", texts[some].astype(np.float64), middle)
    return found


def unit_texts(domain: Domain) -> Floats:
    """Text vectors (N, d) of a domain scaled to unit length; zeros remain zeros. Raises DataError if there are none."""
    return unit(domain.core_feature("text").values.astype(np.float32))


def unit(vectors: Floats) -> Floats:
    """Rows (n, d) scaled to unit length, in place; zeros remain zeros."""
    length = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    vectors /= np.where(length > 0, length, 1)[:, None]
    return vectors


def step_counts(sequences: Sequences, items: int) -> "csr_array":
    """(N, N): c, as above, without inherited counts."""
    counts = csr_array((items, items))
    for apart in range(1, REACH + 1):
        counts = counts + transitions(sequences, items, apart) / apart
    return csr_array(counts + BACKWARD * counts.T)


def log_counts(counts: "csr_array", words: "csr_array", new: NDArray[np.bool_], begin: int = 0) -> "csr_array":
    """(N, N - begin): log1p of counts (N, N) plus inherited counts, for the items from row `begin` on."""
    found = csr_array(counts[:, begin:] + INHERITED * inherited(counts, words, new, begin))
    found.data = np.log1p(found.data)
    return found


def inherited(counts: "csr_array", words: "csr_array", new: NDArray[np.bool_], begin: int = 0) -> "csr_array":
    """(N, N - begin): the mean count of each item's word neighbours, weighted by their cosines.

    Each item inherits from the NEIGHBOURS items that lead to its neighbours most often; other counts are dropped.
    """
    shares, parts = shares_of(csr_array(words[begin:]), new), [csr_array((0, len(new)))]
    leading = csr_array(counts.T)  # the items that lead to each item
    for first in range(0, shares.shape[0], ROWS_AT_ONCE):
        parts.append(closest(shares[first : first + ROWS_AT_ONCE] @ leading)[0])
    return csr_array(csr_array(vstack(parts)).T)


def shares_of(words: "csr_array", new: NDArray[np.bool_]) -> "csr_array":
    """Cosines (n, N) of n items' word neighbours scaled so that rows add up to 1.

    Neighbours that do not occur in training are left out, so adding new items changes nothing among the others.
    """
    sold = csr_array(words @ diags_array((~new).astype(np.float64)))
    sold.eliminate_zeros()
    whole = np.asarray(sold.sum(1)).ravel()
    return csr_array(diags_array(1 / np.where(whole > 0, whole, 1)) @ sold)


# -- terms of examples (Q of them) ------------------------------------------------------------------------------


def history_matrix(part: Examples, items: int) -> "csr_array":
    """(Q, N): 1 if the item is in the history of the example."""
    count = part.end - part.start
    history = part.items[np.repeat(part.start, count) + within_groups(count)]
    matrix = csr_array((np.ones(len(history)), (np.repeat(np.arange(len(part)), count), history)), (len(part), items))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def recent_matrix(part: Examples, items: int) -> "csr_array":
    """(Q, N): DECAY ** (k - 1) for the k-th last item of the history, summed if an item occurs twice."""
    count = np.minimum(part.end - part.start, LAST)
    back = within_groups(count)  # from the end
    history = part.items[np.repeat(part.end - 1, count) - back]
    return csr_array((DECAY**back, (np.repeat(np.arange(len(part)), count), history)), (len(part), items))


def text_queries(known: Untrained, part: Examples) -> Doubles:
    """(Q, d): the mean text of the last items and of all items read; its inner product with an item's text is the part
    of the text term that depends on the history."""
    count = np.minimum(part.end - part.start, part.max_len)
    back = within_groups(count)  # from the end
    read, column = np.unique(part.items[np.repeat(part.end - 1, count) - back], return_inverse=True)
    latest = np.where(back < LAST, DECAY**back, 0)
    row = np.repeat(np.arange(len(part)), count)
    whole = np.bincount(row, latest, len(part))
    share = RECENT * latest / whole[row] + (1 - RECENT) / count[row]
    queries: Doubles = csr_array((share, (row, column)), (len(part), len(read))) @ known.texts[read].astype(np.float64)
    return queries


def step_rows(known: Untrained, part: Examples) -> "csr_array":
    """(Q, N): the sum of the last items' log1p(c)."""
    return recent_matrix(part, len(known.texts)) @ known.steps


def word_rows(known: Untrained, part: Examples) -> "csr_array":
    """(Q, N): the sum of the last items' TF-IDF cosines."""
    return recent_matrix(part, len(known.texts)) @ known.words


def cosines(texts: Floats, queries: Doubles) -> Floats:
    """(Q, N) inner products in float64, rounded, so that equal texts tie whatever the order of summation."""
    found = np.empty((len(queries), len(texts)), np.float32)
    for begin in range(0, len(texts), ITEMS_AT_ONCE):
        items = slice(begin, begin + ITEMS_AT_ONCE)
        found[:, items] = queries @ texts[items].astype(np.float64).T
    return found


# -- their blend ------------------------------------------------------------------------------------------------


def blend(known: Untrained, part: Examples, weights: Mapping[str, float]) -> Floats:
    """Scores (Q, N) with weights by term. Items with the same values in all terms have equal scores."""
    scores = cosines(known.texts, text_queries(known, part)) * np.float32(weights[TEXT])
    added = weights[TRANSITIONS] * step_rows(known, part) + weights[HISTORY] * history_matrix(part, len(known.texts))
    added = added + weights[WORDS] * word_rows(known, part)
    keys = np.repeat(np.arange(len(part)), np.diff(added.indptr)) * len(known.texts) + added.indices
    scores.ravel()[keys] += added.data.astype(np.float32)
    scores += of_items(known.new, known.popularity, known.typical, weights)
    return scores


def of_items(new: Any, popularity: Any, typical: Any, weights: Mapping[str, Any]) -> Any:
    """The part of each item's score that does not depend on the history (N,), from `Untrained`, in NumPy or torch."""
    known = new * weights[NOVELTY] + popularity * weights[POPULARITY]
    return known - typical * (TYPICAL * weights[TEXT]) if TEXT in weights else known


def in_words(weights: Mapping[str, float]) -> str:
    shown = ", ".join(f"{name} {value:.2f}" for name, value in weights.items())
    return f"weights fitted to validation: {shown}"


def fit_weights(known: Untrained, valid: Examples) -> dict[str, float]:
    """The weights, as logits, with which the terms alone rank the targets of validation positions best.

    They maximise the likelihood of the targets among the BEST items, times normal priors around FLOOR: with few
    positions they stay near those values. Positions whose target is not among these items are left out, because what is
    good for them is bad for lists. At most MOST_POSITIONS are read.
    """
    part = sample(valid, max(1, min(MOST_POSITIONS, MOST_SCORES // len(known.new))))
    usual, spread = (np.array([numbers[name] for name in TERMS]) for numbers in (FLOOR, SPREAD))
    least, weights = np.array([LEAST.get(name, -np.inf) for name in TERMS]), usual
    for _ in range(ROUNDS):
        terms, target = best_terms(known, part, dict(zip(TERMS, weights.tolist(), strict=True)))
        weights = most_likely(terms, target, usual, spread, least)
    return dict(zip(TERMS, weights.tolist(), strict=True))


def most_likely(terms: Doubles, target: Ints, usual: Doubles, spread: Doubles, least: Doubles) -> Doubles:
    """The weights (t,), none below `least` (t,), that maximise the likelihood of the targets times normal priors with
    mean `usual` (t,) and standard deviation `spread` (t,). terms: (q, B, t); target: (q,) index among the B items."""
    from scipy.optimize import Bounds, minimize

    goal = terms[np.arange(len(target)), target].sum(0)

    def loss(shift: Doubles) -> tuple[float, Doubles]:
        weights = usual + shift * spread
        scores = terms @ weights
        top = scores.max(1, keepdims=True)
        shares = np.exp(scores - top)
        total = shares.sum(1, keepdims=True)
        expected = np.einsum("qn,qnt->t", shares / total, terms)
        value = float(np.log(total).sum() + top.sum() - goal @ weights + (shift**2).sum() / 2)
        return value, (expected - goal) * spread + shift

    bounds = Bounds((least - usual) / np.where(spread > 0, spread, 1))
    start = np.zeros(len(usual))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 50})
    weights: Doubles = usual + found.x * spread
    return weights


def best_terms(known: Untrained, part: Examples, weights: Mapping[str, float]) -> tuple[Doubles, Ints]:
    """The terms (q, B, 6) of the BEST items of the examples whose targets are among them, and the targets' places (q,).

    weights: those by which the best items are chosen.
    """
    n = len(known.new)
    most, size = min(BEST, n), max(1, SCORES_AT_ONCE // n)
    found, places = [np.empty((0, most, len(TERMS)))], [np.empty(0, np.int64)]
    for begin in range(0, len(part), size):
        some = part.some(slice(begin, begin + size))
        best = np.argpartition(-blend(known, some, weights), most - 1, 1)[:, :most]
        hit = best == some.targets()[:, None]
        kept = np.flatnonzero(hit.any(1))
        best, some = best[kept], some.some(kept)
        texts = cosines(known.texts, text_queries(known, some)) - TYPICAL * known.typical
        links = (word_rows(known, some), step_rows(known, some), history_matrix(some, n))
        pairs = [texts, *(one.toarray() for one in links)]
        terms = [np.take_along_axis(one, best, 1) for one in pairs] + [known.new[best], known.popularity[best]]
        found.append(np.stack(terms, 2).astype(np.float64))
        places.append(hit[kept].argmax(1))
    return np.concatenate(found), np.concatenate(places)

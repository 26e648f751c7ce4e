"""The untrained floor inside a model: what it adds to the scores of trained vectors (core/untrained.py has the terms).

    score(h, j) = cosine * cos(h, e_j) + text * <mean text of the history, less what is typical; text of j>
                  + words * words(last items, j) + transitions * steps(last items, j) + history * [j is in the history]
                  + novelty * [j does not occur in training] + popularity * log1p(times that it does)

The seven weights are tensors of the model (`Ant.floor` and `Ant.history_score`), in units of a cosine; the weight of
the cosine itself is in units of the temperature. On a target they are fitted to its validation positions: the cosine's
once there are vectors (training/worth.py), the others before training. Training steps do not read them: vectors trained
on top of a floor would learn what it lacks in training, which is not what it lacks later.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from antpipe.core.batches import Examples
from antpipe.core.catalogue import Catalogue, Ints
from antpipe.core.untrained import (
    HISTORY,
    TEXT,
    TRANSITIONS,
    WORDS,
    Untrained,
    fit_weights,
    from_counts,
    from_sequences,
    history_matrix,
    of_items,
    step_rows,
    text_queries,
    unit,
    word_rows,
)
from antpipe.store.files import Sequences

if TYPE_CHECKING:
    from antpipe.core.model import Ant

COSINE = "cosine"
TRAINING_FORM = 4  # increment when the training of vectors beside a floor, or the fit of their weight, changes


def known_in(catalogue: Catalogue, widths: Mapping[str, int], domain: str, sequences: Sequences | None) -> Untrained:
    """What is known of a domain's items without training, for a model that reads features of these widths; texts only
    if it reads them. sequences: None for a catalogue without interactions, in which every item is new."""
    rows = catalogue.rows(domain)
    texts = catalogue.gather(rows, "text", widths["text"])[0] if "text" in widths else np.zeros((len(rows), 0), "f4")
    if sequences is None:
        sold, counts = np.zeros(len(rows), np.int64), csr_array((len(rows), len(rows)))
        return from_counts(unit(texts), catalogue.words_of(domain), sold, counts)
    return from_sequences(sequences, unit(texts), catalogue.words_of(domain))


# -- in ranking -------------------------------------------------------------------------------------------------------


def weights_of(model: "Ant") -> dict[str, float]:
    """The weights of the floor's terms, in units of a cosine; a model without texts has none for them."""
    assert model.floor is not None
    assert model.history_score is not None
    found = {name: float(value.detach()) for name, value in model.floor.items()}
    found["cosine"] *= model.config.temperature
    return found | {HISTORY: float(model.history_score.detach())}


def queries_with_floor(
    model: "Ant", queries: NDArray[np.float32], known: Untrained, part: Examples
) -> NDArray[np.float32]:
    """Extend unit vectors (Q, D) to (Q, D + d + 1), so that their inner products with those of `items_with_floor` are
    the scores without words, transitions and history."""
    weights = weights_of(model)
    texts = text_queries(known, part) * weights.get(TEXT, 0.0)
    return np.hstack([queries * weights[COSINE], texts, np.ones((len(queries), 1))], dtype=np.float32)


def items_with_floor(model: "Ant", items: NDArray[np.float32], known: Untrained) -> NDArray[np.float32]:
    """Extend unit vectors (N, D) of a domain's items to (N, D + d + 1), for queries of `queries_with_floor`."""
    added = of_items(known.new, known.popularity, known.typical, weights_of(model))
    return np.hstack([items, known.texts, added[:, None]], dtype=np.float32)


def added_pairs(known: Untrained, part: Examples, weights: Mapping[str, float]) -> csr_array:
    """(Q, N): what words, transitions and the last max_len items of the history add to scores."""
    marks = history_matrix(part.as_read(), len(known.new))
    pairs = weights[TRANSITIONS] * step_rows(known, part) + weights[WORDS] * word_rows(known, part)
    return csr_array(pairs + weights[HISTORY] * marks)


def link_counts(known: Untrained, last: Ints) -> Ints:
    """The number of transitions and word neighbours of each position's last items, (p,).

    last: (p, LAST) rows, -1 for none.
    """
    counts = np.zeros(len(last), np.int64)
    for begin in (known.steps.indptr, known.words.indptr):
        counts += np.where(last >= 0, begin[last + 1] - begin[last], 0).sum(1)
    return counts


# -- its weights ------------------------------------------------------------------------------------------------------


def begin_at_floor(model: "Ant", known: Untrained, valid: Examples) -> dict[str, float]:
    """Set a target model's weights, fitted to its validation positions, and return them; zero the ids of new items.

    known: that of the target. The weight of trained vectors is unchanged; `fit_cosine` fits it once there are some.
    """
    import torch

    assert model.floor is not None
    assert model.history_score is not None
    temperature = model.config.temperature
    with torch.no_grad():
        fitted = fit_weights(known, valid)
        for name, value in fitted.items():
            place = model.history_score if name == HISTORY else model.floor.get(name)
            if place is not None:
                place.fill_(value * temperature)
        if model.ids is not None:
            model.ids.weight[torch.from_numpy(known.new)] = 0.0
    return fitted

"""The untrained floor inside a model: what it adds to the scores of trained vectors (core/untrained.py has the terms).

    score(h, j) = cosine * cos(h, e_j) + text * (mean text of the history, less what is typical; text of j)
                  + words * words(last items, j) + transitions * steps(last items, j) + history * [j is in the history]
                  + novelty * [j does not occur in training] + popularity * log1p(times that it does)

The seven weights are tensors of the model (`Ant.floor` and `Ant.history_score`), in units of a cosine; that of the
cosine itself is in units of the temperature, to learn slowly. On a target all others begin with values fitted to its
validation positions, so that a model begins at the floor. Then the weights of cosine and history are trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import block_diag, csr_array, diags_array

from antpipe.core.batches import Block, Examples
from antpipe.core.catalogue import Catalogue, Ints
from antpipe.core.untrained import (
    DECAY,
    HISTORY,
    LAST,
    REACH,
    TEXT,
    TRANSITIONS,
    WORDS,
    Untrained,
    fit_weights,
    from_counts,
    from_sequences,
    of_items,
    step_rows,
    text_queries,
    unit,
    word_rows,
)
from antpipe.runtime.arrays import within_groups
from antpipe.store.files import Sequences

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant

COSINE = "cosine"


def known_of(sequences: Sequence[Sequences], catalogue: Catalogue, widths: Mapping[str, int]) -> Untrained:
    """What the training parts of several domains tell of their items, by global row, to a model that reads features of
    these widths. Texts are read with the features of a step."""
    parts = [
        without_texts(known_in(catalogue, widths, name, part))
        for name, part in zip(catalogue.domains, sequences, strict=True)
    ]
    return Untrained(
        np.concatenate([part.texts for part in parts]),
        _side_by_side([part.words for part in parts]),
        _side_by_side([part.steps for part in parts]),
        np.concatenate([part.sold for part in parts]),
        _side_by_side([part.counts for part in parts]),
        np.empty(0),
        np.concatenate([part.typical for part in parts]),
    )


def without_texts(known: Untrained) -> Untrained:
    return replace(known, texts=known.texts[:, :0].copy(), middle=np.empty(0))


def _side_by_side(parts: Sequence[csr_array]) -> csr_array:
    """One matrix of several, each with its own rows and columns."""
    whole = block_diag(parts, format="csr")
    kind = np.int32 if whole.nnz < 2**31 else np.int64  # half the memory of what SciPy chooses
    return csr_array((whole.data, whole.indices.astype(kind), whole.indptr.astype(kind)), whole.shape)


def known_in(catalogue: Catalogue, widths: Mapping[str, int], domain: str, sequences: Sequences | None) -> Untrained:
    """The same for one domain, by its own rows, with texts if the model reads them. sequences: None for a catalogue
    without interactions, in which every item is new."""
    rows = catalogue.rows(domain)
    texts = catalogue.gather(rows, "text", widths["text"])[0] if "text" in widths else np.zeros((len(rows), 0), "f4")
    if sequences is None:
        sold, counts = np.zeros(len(rows), np.int64), csr_array((len(rows), len(rows)))
        return from_counts(unit(texts), catalogue.words_of(domain), sold, counts)
    return from_sequences(sequences, unit(texts), catalogue.words_of(domain))


# -- in a training step -----------------------------------------------------------------------------------------------


def recent(blocks: Sequence[Block]) -> Ints:
    """The last items of each position of the blocks, the latest first: (p, LAST) indices into the batch's items, -1
    where the window has no more."""
    found = [np.empty((0, LAST), np.int64)]
    for block in blocks:
        sequence, place = np.divmod(block.positions, block.inputs.shape[1])
        back = place[:, None] - np.arange(LAST)
        found.append(np.where(back >= 0, block.inputs[sequence[:, None], np.maximum(back, 0)], -1))
    return np.concatenate(found)


def step_pairs(known: Untrained, items: Ints, last: Ints, targets: Ints) -> csr_array:
    """(p, n): the transitions term of each position and item of a step, without what the position's own user adds to it
    by going from the last items to the target (in ranking, the target is not in the training part).

    items: (n,) sorted global rows of the step; last: (p, LAST) as `recent` gives them; targets: (p,) indices into
    items.
    """
    row, back = np.nonzero(last >= 0)
    counts = csr_array(known.steps[items[last[row, back]]])  # (f, N), of one last item of one position each
    counts.data = np.expm1(counts.data)
    own = np.where(back < REACH, 1 / (back + 1), 0)
    rows = csr_array(counts - diags_array(own) @ known.votes[items[targets[row]]])
    rows.data = np.log1p(np.maximum(rows.data, 0))
    share = csr_array((DECAY**back, (row, np.arange(len(row)))), (len(last), len(row)))
    return _among(csr_array(share @ rows), items)


def word_pairs(known: Untrained, items: Ints, last: Ints) -> csr_array:
    """(p, n): the words term of each position and item of a step. items and last: as in `step_pairs`."""
    row, back = np.nonzero(last >= 0)
    share = csr_array((DECAY**back, (row, items[last[row, back]])), (len(last), len(known.new)))
    return _among(share @ known.words, items)


def _among(rows: csr_array, items: Ints) -> csr_array:
    """The columns (n,) of these items, sorted global rows, of (p, N)."""
    if len(items) == rows.shape[1]:
        return rows
    place = np.full(rows.shape[1], -1, np.int32)
    place[items] = np.arange(len(items))
    column = place[rows.indices]
    here = np.flatnonzero(column >= 0)
    arrays = (rows.data[here], column[here], np.searchsorted(here, rows.indptr))
    return csr_array(arrays, (rows.shape[0], len(items)))


def link_counts(known: Untrained, last: Ints) -> Ints:
    """How many transitions and word neighbours each position's last items have, (p,).

    last: (p, LAST) global rows, -1 for none.
    """
    counts = np.zeros(len(last), np.int64)
    for begin in (known.steps.indptr, known.words.indptr):
        counts += np.where(last >= 0, begin[last + 1] - begin[last], 0).sum(1)
    return counts


def text_recent(texts: "torch.Tensor", last: "torch.Tensor") -> "torch.Tensor":
    """The mean text of each position's last items, (p, d). texts: (n, d) unit vectors; last: (p, LAST), -1 for none."""
    import torch

    share = DECAY ** torch.arange(LAST, device=texts.device) * (last >= 0)  # (p, LAST)
    share = share / share.sum(1, keepdim=True).clamp(min=1)  # 1 for the latest; padding has none
    read = texts.index_select(0, last.clamp(min=0).flatten()).view(*last.shape, texts.shape[1])
    mean: torch.Tensor = torch.einsum("pk,pkd->pd", share.to(read.dtype), read)
    return mean


def text_read(texts: "torch.Tensor", blocks: Sequence[Block]) -> "torch.Tensor":
    """The mean text of all items that each position of the blocks has read, (p, d). texts: (n, d) unit vectors."""
    import torch

    found = [texts[:0]]
    for block in blocks:
        rows, length = block.inputs.shape
        read = texts.index_select(0, torch.from_numpy(block.inputs.ravel()).to(texts.device)).view(rows, length, -1)
        means = read.cumsum(1) / torch.arange(1, length + 1, device=texts.device)[:, None]
        found.append(means.flatten(0, 1).index_select(0, torch.from_numpy(block.positions).to(texts.device)))
    return torch.cat(found)


def products_of(
    floor: Mapping[str, "torch.Tensor"], history: "torch.Tensor", texts: "torch.Tensor", added: "torch.Tensor"
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Vectors of positions (p, d + 1) and items (n, d + 1) whose inner products are what texts and `of_items` add to
    cosines.

    history: (p, d) mean texts of positions, texts: (n, d), where d is 0 without texts; added: (n,) of `of_items`.
    """
    import torch

    queries = history * floor[TEXT] if TEXT in floor else history
    ones = torch.ones(len(history), 1, device=history.device, dtype=queries.dtype)
    return torch.cat([queries, ones], 1), torch.cat([texts, added[:, None].to(texts.dtype)], 1)


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
    """Unit vectors (Q, D) as longer ones (Q, D + d + 1), whose inner products with those of `items_with_floor` are the
    scores without words, transitions and history."""
    weights = weights_of(model)
    texts = text_queries(known, part) * weights.get(TEXT, 0.0)
    return np.hstack([queries * weights[COSINE], texts, np.ones((len(queries), 1))], dtype=np.float32)


def items_with_floor(model: "Ant", items: NDArray[np.float32], known: Untrained) -> NDArray[np.float32]:
    """Unit vectors (N, D) of a domain's items as vectors (N, D + d + 1)."""
    added = of_items(known.new, known.popularity, known.typical, weights_of(model))
    return np.hstack([items, known.texts, added[:, None]], dtype=np.float32)


def added_pairs(known: Untrained, part: Examples, weights: Mapping[str, float]) -> csr_array:
    """(Q, N): what words, transitions and the last max_len items of the history add to scores."""
    n = len(known.new)
    count = np.minimum(part.end - part.start, part.max_len)
    history = part.items[np.repeat(part.end - count, count) + within_groups(count)]
    marks = csr_array((np.ones(len(history)), (np.repeat(np.arange(len(part)), count), history)), (len(part), n))
    marks.sum_duplicates()
    marks.data[:] = 1
    pairs = weights[TRANSITIONS] * step_rows(known, part) + weights[WORDS] * word_rows(known, part)
    return csr_array(pairs + weights[HISTORY] * marks)


# -- where a model begins ---------------------------------------------------------------------------------------------


def begin_at_floor(model: "Ant", known: Untrained, valid: Examples) -> dict[str, float]:
    """Give a model of a target the weights fitted to its validation positions, which are returned, and new items no id.

    known: of the target. The weight of trained vectors stays as it is: they may have come with it.
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

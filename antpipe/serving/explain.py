"""What contributes most to a score: a modality of the item, and items of the history.

**Modalities.** The score is a sum over what the item's vector is made of, so its parts are exact: `text`, `image`,
`price` and `id` by their projections, `image × text` by the product that the model adds, `history` by the bonus of
seen items. A run with a floor (core/floor.py) adds its texts to `text`, and has `words` (shared rare words),
`transitions`, `history`, `novelty` and `popularity`. They are ordered by how much more they are worth to this item than
to the average of AVERAGED items from all over the catalogue, except those of the history: what is the same for all
items explains no rank. A run with a re-ranker (core/reranker.py) has what that adds as `reranker`: the score, less the
score before the best items were re-ranked. It adds nothing to the average item, which is not among the best.

**Items of the history.** The encoder is not a sum over them, so each one is left out in turn: it is worth the score
minus the score without it (leave-one-out). The score of a run that is only a floor is a sum over the last items, so its
parts are exact; so is that of a history's only item, the whole score. Both explain the score before re-ranking.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from antpipe.core.batches import Examples
from antpipe.core.catalogue import Ints
from antpipe.core.floor import COSINE, weights_of
from antpipe.core.ranking import Doubles, exact_scores
from antpipe.core.scoring import score_of_history
from antpipe.core.untrained import (
    DECAY,
    HISTORY,
    LAST,
    NOVELTY,
    POPULARITY,
    RECENT,
    TEXT,
    TRANSITIONS,
    TYPICAL,
    WORDS,
    Untrained,
)
from antpipe.evaluation.vectors import History, OpenRun, as_examples

if TYPE_CHECKING:
    from scipy.sparse import csr_array

EXACT, LEAVE_ONE_OUT = "exact", "leave-one-out"
PRODUCT, RERANKER = "image × text", "reranker"
NAMED = 3  # items of the history that are named
AVERAGED = 64
DIGITS = 6  # adding 0.0 to a rounded number turns -0.0 into 0.0


def explain(opened: OpenRun, history: History, items: Ints, scores: Doubles | None = None) -> list[dict[str, Any]]:
    """Why each of these items (k,), by row, has its score after a history.

    scores: (at least k,) their scores, for a run with a re-ranker: `reranker` is what that adds.

    Returns a mapping per item: `modality`, the first of `modalities`, which say what each is worth to the score (what
    sets the item apart most comes first); `because`, up to NAMED items of the history that raise the score most,
    with what they are worth, largest first; and the `method` of the latter. Items for an empty history are explained by
    popularity alone.
    """
    if not len(history):
        return [{"modality": POPULARITY, "modalities": [], "because": [], "method": POPULARITY} for _ in items]
    if not len(items):
        return []
    part = as_examples([history], opened.max_len)
    others = np.unique(np.linspace(0, len(opened.items) - 1, AVERAGED).astype(np.int64))
    unseen = np.setdiff1d(others, _last(part, opened.max_len))  # average over items outside the history
    others = unseen if len(unseen) else others
    modalities = modality_shares(opened, part, np.concatenate([items, others]))
    if opened.rerank is not None and scores is not None:
        again = scores[: len(items)] - np.array(list(modalities.values())).sum(0)[: len(items)]
        modalities[RERANKER] = np.append(again, np.zeros(len(others)))
    usual = {name: float(values[len(items) :].mean()) for name, values in modalities.items()}
    read, worth, method = history_shares(opened, history, part, items)
    found = []
    for column in range(len(items)):
        shares = [(name, float(values[column])) for name, values in modalities.items()]
        shares.sort(key=lambda one: usual[one[0]] - one[1])
        because = [(opened.item_ids[row], float(worth[place, column])) for place, row in enumerate(read.tolist())]
        because = [one for one in _largest_first(because) if one[1] > 0][:NAMED]
        found.append(
            {
                "modality": shares[0][0],
                "modalities": [{"modality": name, "worth": round(value, DIGITS) + 0.0} for name, value in shares],
                "because": [{"item_id": name, "worth": round(value, DIGITS) + 0.0} for name, value in because],
                "method": method,
            }
        )
    return found


def _largest_first(named: list[tuple[str, float]]) -> list[tuple[str, float]]:
    return sorted(named, key=lambda one: -one[1])


def modality_shares(opened: OpenRun, part: Examples, items: Ints) -> dict[str, Doubles]:
    """What each modality adds to the scores of items (k,) after one history: arrays (k,) that add up to the scores."""
    width = opened.encoded.shape[1]
    expected = opened.after(part)[0].astype(np.float64)
    length = np.linalg.norm(opened.encoded[items].numpy().astype(np.float64), axis=1)
    length = np.where(length > 0, length, 1.0)
    shares = {name: vectors @ expected[:width] / length for name, vectors in parts_of(opened, items).items()}
    if opened.known is None:
        if opened.model.history_score is not None:
            shares[HISTORY] = np.isin(items, _last(part, opened.max_len)) * score_of_history(opened.model)
        return shares
    weights, known = weights_of(opened.model), opened.known
    if known.texts.shape[1]:
        own = known.texts[items] @ expected[width : width + known.texts.shape[1]]
        shares[TEXT] = shares.get(TEXT, 0.0) + own - weights[TEXT] * TYPICAL * known.typical[items]
    for name, links in ((WORDS, known.words), (TRANSITIONS, known.steps)):
        shares[name] = weights[name] * sum(share * _links(links, row, items) for row, share in _recent(part))
    shares[HISTORY] = weights[HISTORY] * np.isin(items, _last(part, opened.max_len))
    shares[NOVELTY] = weights[NOVELTY] * known.new[items]
    shares[POPULARITY] = weights[POPULARITY] * known.popularity[items]
    return shares


def parts_of(opened: OpenRun, items: Ints) -> dict[str, Doubles]:
    """The parts, (k, D) each, whose sum is the vectors of items before they are scaled to length 1."""
    import torch

    model = opened.model
    with torch.inference_mode():
        inputs = opened.inputs(items)
        found = dict(model.items(inputs.features, inputs.ids, inputs.present).parts)
        if model.config.fusion and {"text", "image"} <= found.keys():
            found[PRODUCT] = model.config.fusion * found["image"] * found["text"]
        if model.ids is not None:
            found["id"] = model.ids(inputs.ids)
    return {name: vectors.double().numpy() for name, vectors in found.items()}


def history_shares(opened: OpenRun, history: History, part: Examples, items: Ints) -> tuple[Ints, Doubles, str]:
    """The items of a history that can matter (R,), what each is worth to the scores of items (k,), and by which method.

    Returns rows (R,), latest first, worth (R, k) and the method.
    """
    read = _latest_first(_last(part, opened.max_len))
    weights: Mapping[str, float] = {} if opened.known is None else weights_of(opened.model)
    if opened.known is not None and weights[COSINE] == 0:
        return read, _floor_shares(opened.known, weights, part, read, items), EXACT
    whole = _scores(opened, part, items)
    if len(np.unique(history)) == 1:
        return read, whole, EXACT
    others = as_examples([history[history != row] for row in read.tolist()], opened.max_len)
    return read, whole - _scores(opened, others, items), LEAVE_ONE_OUT


def _scores(opened: OpenRun, part: Examples, items: Ints) -> Doubles:
    """(Q, k) scores of items after histories."""
    query, item = (axis.ravel() for axis in np.meshgrid(np.arange(len(part)), items, indexing="ij"))
    found = exact_scores(opened.after(part), opened.items, query, item)
    found += opened.added(part)(np.arange(len(part))).at(query * len(opened.items) + item)
    return found.reshape(len(part), len(items))


def _floor_shares(known: Untrained, weights: Mapping[str, float], part: Examples, read: Ints, items: Ints) -> Doubles:
    """(R, k) what each item of a history adds to the scores of a floor."""
    recent, every = _recent(part), _last(part, part.max_len)
    whole = sum(share for _, share in recent)
    worth = np.where(read[:, None] == items, weights[HISTORY], 0.0)
    texts = np.array([(1 - RECENT) * (every == row).mean() for row in read])  # the weight of each text
    for row, share in recent:
        place = np.flatnonzero(read == row)[0]
        worth[place] += weights[TRANSITIONS] * share * _links(known.steps, row, items)
        worth[place] += weights[WORDS] * share * _links(known.words, row, items)
        texts[place] += RECENT * share / whole
    cosines = known.texts[read].astype(np.float64) @ known.texts[items].astype(np.float64).T
    return worth + weights.get(TEXT, 0.0) * texts[:, None] * cosines


def _links(links: "csr_array", row: int, items: Ints) -> Doubles:
    """(k,) what a row of a sparse matrix holds for these items."""
    found: Doubles = links[[row]].toarray()[0, items].astype(np.float64)
    return found


def _last(part: Examples, most: int) -> Ints:
    """The last `most` items of a single history, or fewer, oldest first."""
    found: Ints = part.items[max(int(part.start[0]), int(part.end[0]) - most) : int(part.end[0])].astype(np.int64)
    return found


def _recent(part: Examples) -> list[tuple[int, float]]:
    """The items that a floor reads, the latest first, and how much each counts."""
    return [(row, DECAY**back) for back, row in enumerate(_last(part, LAST)[::-1].tolist())]


def _latest_first(rows: Ints) -> Ints:
    """Each item once, the latest first."""
    return np.array(list(dict.fromkeys(rows[::-1].tolist())), np.int64)

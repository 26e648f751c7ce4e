"""Items similar to one item: by the run's item vectors, by the features of one modality, or by learned ids."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from antpipe.core.catalogue import Ints
from antpipe.core.ranking import Floats
from antpipe.errors import DataError, SameCommand, UsageError
from antpipe.evaluation.vectors import OpenRun
from antpipe.serving.offer import Offer, offer_of
from antpipe.serving.recommend import DIGITS, refuse_item, titles_of

FUSED, ID = "fused", "id"
ITEMS_AT_ONCE = 1 << 14


def similar_items(
    opened: OpenRun, item: str, by: str = FUSED, k: int = 10, offer: Offer | None = None
) -> list[dict[str, Any]]:
    """The k offered items (None: all) most like an item (original id), without itself, by cosine.

    by: `fused`, the vectors of items as the sequence encoder reads them; a modality that the run reads, by its features
    as they are stored; or `id`, learned ids. Items that lack it are left out. Returns rows of rank, item_id, title and
    score, fewer than k if no more are left. Raises DataError for an unknown item or one that lacks what is compared,
    and UsageError if the run does not read it.
    """
    if k < 1:
        raise UsageError(f"--k {k}: must be at least 1")
    if item not in opened.row_of:
        refuse_item(opened, item, "--item")
    known = [FUSED, *opened.model.widths, *([ID] if opened.model.ids is not None else [])]
    if by not in known:
        why = f"{opened.run} reads no {by}; choose from {', '.join(known)}"
        raise UsageError(f"--by {by}: {why}", SameCommand({"--by": FUSED}))
    row = opened.row_of[item]
    own, there = compared(opened, np.array([row]), by)
    if not there[0]:
        why = f"item {item!r} has no {by} to compare"
        raise DataError(f"domain {opened.domain.name}: {why}", SameCommand({"--by": FUSED}))
    rows = (offer or offer_of(opened)).rows
    rows = rows[rows != row]
    scores = np.full(len(rows), -np.inf)
    for start in range(0, len(rows), ITEMS_AT_ONCE):
        block = slice(start, start + ITEMS_AT_ONCE)
        vectors, there = compared(opened, rows[block], by)
        scores[block] = np.where(there, vectors @ own[0], -np.inf)
    best = np.argsort(-scores, kind="stable")[:k]
    best = best[scores[best] > -np.inf]
    titles = titles_of(opened, rows[best])
    found = zip(rows[best].tolist(), scores[best].round(DIGITS).tolist(), strict=True)
    return [
        {"rank": rank, "item_id": opened.item_ids[row], "title": titles[row], "score": score}
        for rank, (row, score) in enumerate(found, 1)
    ]


def compared(opened: OpenRun, rows: Ints, by: str) -> tuple[Floats, NDArray[np.bool_]]:
    """Unit vectors (n, d) of what is compared, and which items have one."""
    import torch

    if by == FUSED:
        vectors = opened.encoded[rows].numpy()
    elif by == ID:
        assert opened.model.ids is not None
        with torch.inference_mode():
            vectors = opened.model.ids(opened.inputs(rows).ids).numpy()
    else:
        vectors = opened.inputs(rows).features[by].numpy()
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32), length[:, 0] > 0

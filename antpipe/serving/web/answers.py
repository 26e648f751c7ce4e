"""Requests to a held run, checked, and their answers as plain data."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from antpipe.errors import AntpipeError
from antpipe.evaluation.vectors import History
from antpipe.features.image.pictures import PictureFile
from antpipe.serving.explain import explain
from antpipe.serving.offer import offer_of
from antpipe.serving.recommend import DIGITS, NOBODY, Wishes
from antpipe.serving.similar import similar_items
from antpipe.serving.web.batching import Best, Question
from antpipe.serving.web.held import CENTS, HeldRun, Offers
from antpipe.serving.web.messages import MOST_FOUND, RecommendRequest, SimilarRequest

FEW = 200  # excluded items, at most, that are left out after the search and not before it
PICTURES = (  # how files begin, by media type
    (rb"\x89PNG\r\n\x1a\n", "image/png"),
    (rb"\xff\xd8\xff", "image/jpeg"),
    (rb"GIF8[79]a", "image/gif"),
    (rb"RIFF....WEBP", "image/webp"),
)
NEXT_FILTER = "loosen `where`, `exclude` or `only`"
NEXT_UNKNOWN = 'ask with one that is known, or with "unknown": "popularity"'


class RefusedError(Exception):
    """A request that is not answered. status: that of HTTP. what: the problem. next_step: what to do about it."""

    def __init__(self, status: int, what: str, next_step: str) -> None:
        super().__init__(what)
        self.status, self.what, self.next_step = status, what, next_step


def refused_by(error: AntpipeError, next_step: str) -> RefusedError:
    """An error of a run's functions, in the words of a request, whose fields have the names of flags."""
    return RefusedError(422, error.message.removeprefix("--"), next_step)


def require_k(k: int, most: int) -> None:
    if k > most:
        raise RefusedError(422, f"k = {k}: this service gives at most {most}", f'ask with "k": {most} or less')


def question(held: HeldRun, offers: Offers | None, asked: RecommendRequest) -> Question:
    """What to search for, with as many more items as `exclude` may remove (see left_out_later).

    Evaluates filters and describes new items, so it takes milliseconds or more if there are any. Raises RefusedError.
    """
    if asked.new_items:
        held, offers = with_new_items(held, asked), None
    history = history_of(held, asked)
    later = left_out_later(held, asked)
    if asked.only is not None:
        unknown = [item for item in asked.only if item not in held.row_of]
        if unknown:
            raise RefusedError(422, f"only: no item {unknown[0]!r}", "name items of the catalogue")
    try:
        exclude = () if later else asked.exclude
        if offers is None:  # those of the run do not have the new items
            offer = offer_of(held, asked.where, exclude, asked.only)
        else:
            offer = offers.get(asked.where, exclude, asked.only)
    except AntpipeError as error:
        raise refused_by(error, NEXT_FILTER) from None
    wishes = Wishes(asked.k + (len(asked.exclude) if later else 0), asked.include_seen, asked.diversify)
    return Question(held, history, offer, wishes)


def with_new_items(held: HeldRun, asked: RecommendRequest) -> HeldRun:
    """The run with the new items of a request. Raises RefusedError."""
    try:
        return held.with_new([item.model_dump(exclude_none=True) for item in asked.new_items])
    except AntpipeError as error:
        what = error.message.replace("--new-items", "new_items")
        raise RefusedError(422, what, "correct `new_items`, or ask without") from None


def left_out_later(held: HeldRun, asked: RecommendRequest) -> bool:
    """Whether excluded items are left out after the search: for few of them, a copy of all other vectors is not worth
    it. A re-ranker compares the best items with each other, so excluded ones must not be among them."""
    return len(asked.exclude) <= FEW and not asked.diversify and held.rerank is None


def history_of(held: HeldRun, asked: RecommendRequest) -> History:
    """The rows of the history. Raises RefusedError for unknown users and items, unless they are to be skipped."""
    strict = asked.unknown == "error"
    if (asked.user is None) == (asked.items is None):
        raise RefusedError(422, "give either `user` or `items`", 'ask with {"user": "…"} or {"items": ["…"]}')
    if asked.user is not None:
        found = held.histories.get(asked.user)
        if found is None and strict:
            raise RefusedError(404, f"no user {asked.user!r}", NEXT_UNKNOWN)
        history = NOBODY if found is None else found
    else:
        items = asked.items or []
        strangers = [item for item in items if item not in held.row_of]
        if strangers and strict:
            raise RefusedError(404, f"items: no item {strangers[0]!r}", NEXT_UNKNOWN)
        if not items and strict:
            raise RefusedError(422, "items: a history needs at least one item", NEXT_UNKNOWN)
        history = np.array([held.row_of[item] for item in items if item in held.row_of], np.int32)
    if not len(history) and not held.histories:
        raise RefusedError(422, "nothing is popular in a catalogue without interactions", "ask with known items")
    return history


def recommended(asked: RecommendRequest, searched: Question, best: Best) -> dict[str, Any]:
    """The answer. With `explain` it takes a pass of the encoder per item of the history."""
    held, history = searched.held, searched.history
    rows, scores = best.rows, best.scores
    if asked.exclude and left_out_later(held, asked):
        gone = [held.row_of[item] for item in asked.exclude if item in held.row_of]
        kept = np.flatnonzero(~np.isin(rows, gone))
        rows, scores = rows[kept], scores[kept]
    rows, scores = rows[: asked.k], scores[: asked.k]
    why = explain(held, history, rows, scores) if asked.explain else None
    notes = [] if len(history) else ["no history: the most popular items"]
    if len(rows) < asked.k:
        notes.append(f"only {len(rows)} items are left to recommend")
    return ranked(held, rows.tolist(), scores.round(DIGITS).tolist(), why, "; ".join(notes) or None)


def similar(held: HeldRun, offers: Offers, asked: SimilarRequest) -> dict[str, Any]:
    """The answer. Raises RefusedError."""
    if asked.item not in held.row_of:
        raise RefusedError(404, f"no item {asked.item!r}", "ask with an item of the catalogue")
    try:
        offer = offers.get(asked.where)
    except AntpipeError as error:
        raise refused_by(error, "loosen `where`") from None
    try:
        found = similar_items(held, asked.item, asked.by, asked.k, offer)
    except AntpipeError as error:
        raise refused_by(error, 'ask with "by": "fused"') from None
    rows = [held.row_of[one["item_id"]] for one in found]
    note = f"only {len(rows)} items can be compared" if len(rows) < asked.k else None
    return ranked(held, rows, [one["score"] for one in found], None, note)


def ranked(
    held: HeldRun,
    rows: Sequence[int],
    scores: Sequence[float],
    why: Sequence[Mapping[str, Any]] | None,
    note: str | None,
) -> dict[str, Any]:
    items = [
        card(held, row) | {"rank": rank, "score": score}
        for rank, (row, score) in enumerate(zip(rows, scores, strict=True), 1)
    ]
    if why is not None:
        items = [item | {"why": reason} for item, reason in zip(items, why, strict=True)]
    return {"items": items, "run": held.fingerprint, "note": note}


def card(held: HeldRun, row: int) -> dict[str, Any]:
    return {
        "item_id": held.item_ids[row],
        "title": held.shown[row],
        "price": held.prices[row],
        "currency": held.currencies[row],
        "picture": held.pictures[row],
    }


def search(held: HeldRun, words: str) -> dict[str, Any]:
    """The answer: items whose titles contain all of these words, in any case, the most popular first."""
    fits = pl.lit(value=True)
    for word in words.lower().split():
        fits = fits & pl.col("title").str.contains(word, literal=True)
    hits = pl.DataFrame({"title": held.folded}).select(fits.alias("hit").fill_null(value=False))
    rows = np.flatnonzero(np.broadcast_to(hits.to_series().to_numpy(), len(held.item_ids)))
    best = rows[np.argsort(-held.popularity[rows], kind="stable")][:MOST_FOUND]
    return {"items": [card(held, row) for row in best.tolist()]}


def described(held: HeldRun, item: str) -> dict[str, Any]:
    """Everything the catalogue says about an item, and how many interactions it has. Raises RefusedError."""
    if item not in held.row_of:
        raise RefusedError(404, f"no item {item!r}", "GET /items?search=… finds items by their titles")
    row = held.row_of[item]
    found = held.table.drop("image_files", strict=False).row(row, named=True)
    if found["price"] is not None:
        found["price"] = round(found["price"], CENTS)
    return found | {"interactions": int(held.popularity[row])}


def picture(held: HeldRun, item: str) -> tuple[bytes, str]:
    """The picture file of an item and its media type. The catalogue names the file, the request only the item.

    Raises RefusedError if there is none that a browser can show.
    """
    row = held.row_of.get(item)
    name = None if row is None else held.picture_files[row]
    if name is None:
        raise RefusedError(404, f"no picture of an item {item!r}", "GET /items/ID shows what there is")
    content = PictureFile(str(held.domain.path / name), None).read().content
    if content is None:
        raise RefusedError(404, f"the picture of {item!r} no longer exists", "ask again later")
    kind = next((kind for begin, kind in PICTURES if re.match(begin, content, re.DOTALL)), None)
    if kind is None:
        raise RefusedError(404, f"the picture of {item!r} has a format that browsers do not show", "use PNG or JPEG")
    return content, kind

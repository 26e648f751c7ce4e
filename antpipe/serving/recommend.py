"""What to show next: the best items for users of the store, or after items given by id.

A service opens a run once (evaluation/vectors.py, `open_for`), makes an offer of items once (offer.py), and then calls
`recommend_after` for as many histories at a time as it likes.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import polars as pl

from antpipe.core.catalogue import Ints
from antpipe.errors import DataError, UsageError
from antpipe.evaluation.vectors import History, OpenRun, as_examples, open_for
from antpipe.runtime.logs import log
from antpipe.serving.diversity import diversified, pool_size
from antpipe.serving.explain import explain
from antpipe.serving.offer import Offer, offer_of, read_ids
from antpipe.serving.reranked import reranked_items
from antpipe.serving.top import Top
from antpipe.settings.base import as_word
from antpipe.settings.serving import RecommendConfig
from antpipe.store.next_command import spell
from antpipe.store.store import Store

TITLE_WIDTH = 70  # characters shown of the text of an item without a title
DIGITS = 6  # of a score
WHY = pl.Struct(
    {
        "modality": pl.String,
        "modalities": pl.List(pl.Struct({"modality": pl.String, "worth": pl.Float64})),
        "because": pl.List(pl.Struct({"item_id": pl.String, "worth": pl.Float64})),
        "method": pl.String,
    }
)  # of explain.py
NOBODY = np.empty(0, np.int32)  # the history of someone about whom nothing is known


@dataclass(frozen=True)
class Wishes:
    """How the best of the offered items are chosen; the fields are those of RecommendConfig."""

    k: int = RecommendConfig.k
    include_seen: bool = RecommendConfig.include_seen
    diversify: float = RecommendConfig.diversify
    explain: bool = RecommendConfig.explain


def recommend(
    store: Store,
    run: Path,
    domain: str,
    *,
    user: str | None = None,
    items: Sequence[str] = (),
    k: int = 10,
    include_seen: bool = False,
) -> list[dict[str, Any]]:
    """The k best items after the whole history of `user`, or after `items`, oldest first (original ids).

    Returns rows of rank, item_id, title and score as `recommend_after`. Raises UsageError unless exactly one of user
    and items is given, and DataError naming a user or item that the domain does not have.
    """
    if (user is None) == (not items):
        raise UsageError("give either --user or --items")
    opened = open_for(store, run, domain)
    histories = user_histories(opened, [user]) if user is not None else [history_of(opened, items)]
    return recommend_after(opened, histories, k, include_seen=include_seen)[0]


def wishes_of(config: RecommendConfig) -> Wishes:
    return Wishes(config.k, config.include_seen, config.diversify, config.explain)


def offer_for(opened: OpenRun, config: RecommendConfig) -> Offer:
    """The items that these settings leave to recommend. Raises as offer_of, and as read_ids for files of ids."""
    exclude = read_ids(config.exclude, "--exclude") if config.exclude is not None else ()
    only = read_ids(config.only, "--only") if config.only is not None else None
    return offer_of(opened, config.where, exclude, only)


def recommend_after(
    opened: OpenRun,
    histories: Sequence[History],
    k: int = 10,
    *,
    include_seen: bool = False,
    offer: Offer | None = None,
    wishes: Wishes | None = None,
) -> list[list[dict[str, Any]]]:
    """The best items after each history, best first, without the items of the history unless they may come again.

    histories: item rows, oldest first; an empty one gets the most popular items. offer: the items that may be
    recommended (None: all). wishes: instead of k and include_seen. Returns a list per history with rows of rank,
    item_id, title (the start of the text if the item has none) and score (vectors.py defines it; the number of
    interactions for an empty history), with wishes.explain also `why` (explain.py). A list is shorter than k if no more
    items are left. Raises UsageError if k < 1.
    """
    wishes = wishes or Wishes(k, include_seen)
    if wishes.k < 1:
        raise UsageError(f"--k {wishes.k}: must be at least 1")
    best = best_after(opened, histories, offer or offer_of(opened), wishes)
    titles = titles_of(opened, best.rows)
    found = []
    for history, rows, scores in zip(histories, best.rows, best.scores, strict=True):
        kept = rows[rows >= 0]
        why = explain(opened, history, kept, scores) if wishes.explain else [None] * len(kept)
        found.append(
            [
                {
                    "rank": rank,
                    "item_id": opened.item_ids[item],
                    "title": titles[item],
                    "score": score,
                    **({"why": reason} if reason is not None else {}),
                }
                for rank, (item, score, reason) in enumerate(
                    zip(kept.tolist(), scores.round(DIGITS).tolist(), why, strict=False), 1
                )
            ]
        )
    return found


def best_after(opened: OpenRun, histories: Sequence[History], offer: Offer, wishes: Wishes) -> Top:
    """The best offered items after each history, (Q, k) rows and scores; -1 and -inf where no more are left."""
    lengths = np.array([len(history) for history in histories], np.int64)
    known = np.flatnonzero(lengths)
    k = min(wishes.k, len(offer.rows))
    rows, scores = np.full((len(histories), k), -1), np.full((len(histories), k), -np.inf)
    if len(known):
        part = as_examples([histories[number] for number in known.tolist()], opened.max_len)
        pool = reranked_items(opened, part, offer, pool_size(k, wishes.diversify), include_seen=wishes.include_seen)
        best = diversified(opened, pool, k, wishes.diversify)
        rows[known], scores[known] = best.rows, best.scores
    if len(known) < len(histories):
        rows[lengths == 0], scores[lengths == 0] = most_popular(opened, offer, k)
    return Top(rows, scores)


def most_popular(opened: OpenRun, offer: Offer, k: int) -> tuple[Ints, Ints]:
    """Rows (k,) of the offered items with the most interactions, and the numbers of these. Ties are in catalogue order.

    Raises DataError for a catalogue without interactions.
    """
    counts = opened.popularity[offer.rows]
    best = np.argsort(-counts, kind="stable")[:k]
    return offer.rows[best], counts[best]


def log_shortfall(histories: int, popular: int, fewer: int, k: int) -> None:
    """Log how many of some histories are empty here, and how many get fewer than k items."""
    if popular:
        log.info(f"{popular} of {histories} have no history here and get the most popular items")
    if fewer:
        log.warning(f"{fewer} of {histories} get fewer than {k} items: no more are left to recommend")


def titles_of(opened: OpenRun, rows: Ints) -> Mapping[int, str]:
    """The title of each of these items (any shape, -1 for none), by row; the start of the text if it has none."""
    wanted = np.unique(rows[rows >= 0])
    found = opened.titles[wanted]
    shown = (text_begin(text) if title is None else title for title, text in found.select("title", "text").iter_rows())
    return dict(zip(wanted.tolist(), shown, strict=True))


def text_begin(text: str | None) -> str:
    """What is shown of the text of an item without a title."""
    return textwrap.shorten(text or "", TITLE_WIDTH, placeholder=" …")


# -- histories --------------------------------------------------------------------------------------------------------


def user_histories(opened: OpenRun, users: Sequence[str], unknown: str = "error") -> list[History]:
    """The whole histories of users (original ids).

    unknown: with `popularity`, users that the domain does not have get an empty history. Otherwise raises DataError
    naming one.
    """
    if not users:
        return []
    ids = opened.domain.table("users", ["user_id"])["user_id"].to_pylist()
    numbers = {user: number for number, user in enumerate(ids)}
    strangers = [user for user in users if user not in numbers]
    if not ids:
        raise DataError(
            f"domain {opened.domain.name}: no user {users[0]!r}: it is a catalogue without interactions",
            _ask(opened, "--items", as_word((opened.item_ids[0],))),
        )
    if strangers and unknown == "error":
        raise DataError(
            f"domain {opened.domain.name}: no user {strangers[0]!r} ({len(ids)} users, such as {ids[0]!r})",
            _ask(opened, "--user", ids[0]),
        )
    sequences = opened.domain.sequences()
    rows = {user: row for row, user in enumerate(sequences.user.tolist())}
    found = []
    for user in users:
        row = rows.get(numbers.get(user, -1))
        found.append(NOBODY if row is None else sequences.items[slice(*sequences.offsets[row : row + 2])])
    return found


def history_of(opened: OpenRun, items: Sequence[str], unknown: str = "error") -> History:
    """Items (original ids) as rows.

    unknown: with `popularity`, items that the domain does not have are left out. Otherwise raises DataError naming one,
    and UsageError if there are no items.
    """
    if not items and unknown == "error":
        raise UsageError("a history needs at least one item")
    rows = opened.row_of
    strangers = [item for item in items if item not in rows]
    if strangers and unknown == "error":
        meant = next((word for word in (",".join(items), ", ".join(items)) if word in rows), None)
        known = (meant,) if meant else tuple(item for item in items if item in rows)
        refuse_item(opened, strangers[0], "--items", as_word(known or (opened.item_ids[0],)))
    return np.array([rows[item] for item in items if item in rows], np.int32)


def refuse_item(opened: OpenRun, item: str, flag: str, known: str = "") -> NoReturn:
    """Raise DataError: no such item. known: the value of the flag in the next command, if not the first item."""
    first = opened.item_ids[0]
    raise DataError(
        f"domain {opened.domain.name}: no item {item!r} ({len(opened.item_ids)} items, such as {first!r})",
        _ask(opened, flag, known or first),
    )


def _ask(opened: OpenRun, flag: str, value: str) -> str:
    """The command with a user or items that the domain has."""
    flags = ["--run", str(opened.run), flag, value]
    command = "similar" if flag == "--item" else "recommend"
    return spell(command, domains=[opened.domain.name], store=opened.domain.root, flags=flags)

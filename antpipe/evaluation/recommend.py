"""What to show next: the best items for a user of the store, or after items given by id."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from antpipe.core.ranking import nearest
from antpipe.errors import DataError, UsageError
from antpipe.evaluation.vectors import History, OpenRun, as_examples, open_for
from antpipe.store.next_command import spell
from antpipe.store.store import Store

TITLE_WIDTH = 70  # characters of the text shown for an item without a title


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


def recommend_after(
    opened: OpenRun, histories: Sequence[History], k: int = 10, *, include_seen: bool = False
) -> list[list[dict[str, Any]]]:
    """The k best items after each history, best first, without the items of the history unless include_seen.

    histories: item rows, oldest first, one or more each. Returns a list per history with rows of rank, item_id, title
    (the start of the text if the item has none) and score (vectors.py defines it). Raises UsageError if k < 1.
    """
    if k < 1:
        raise UsageError(f"--k {k}: must be at least 1")
    if not histories:
        return []
    part = as_examples(histories, opened.max_len)
    queries, added = opened.after(part), opened.added(part)
    seen = [set(history.tolist()) for history in histories]
    depth = min(len(opened.items), k + max(map(len, seen)))
    scores, found = nearest(queries, opened.items, depth)
    texts = opened.describing(["title", "text"])

    def rows(number: int) -> Iterator[dict[str, Any]]:
        scored = dict(zip(found[number].tolist(), scores[number].tolist(), strict=True))
        more = added(np.array([number]))
        dots = opened.items[more.keys] @ queries[number]
        scored |= dict(zip(more.keys.tolist(), (dots + more.scores).tolist(), strict=True))
        hidden = set() if include_seen else seen[number]
        kept = sorted((item for item in scored if item not in hidden), key=scored.__getitem__, reverse=True)
        for rank, item in enumerate(kept[:k], 1):
            text = textwrap.shorten(texts["text"][item] or "", TITLE_WIDTH, placeholder=" …")
            yield {
                "rank": rank,
                "item_id": opened.item_ids[item],
                "title": texts["title"][item] or text,
                "score": round(scored[item], 6),
            }

    return [list(rows(number)) for number in range(len(histories))]


def user_histories(opened: OpenRun, users: Sequence[str]) -> list[History]:
    """The whole histories of users (original ids). Raises DataError naming a user that the domain does not have."""
    if not users:
        return []
    ids = opened.domain.table("users", ["user_id"])["user_id"].to_pylist()
    numbers = {user: number for number, user in enumerate(ids)}
    unknown = [user for user in users if user not in numbers]
    if unknown and not ids:
        raise DataError(
            f"domain {opened.domain.name}: no user {unknown[0]!r}: it is a catalogue without interactions",
            _ask(opened, "--items", opened.item_ids[0]),
        )
    if unknown:
        raise DataError(
            f"domain {opened.domain.name}: no user {unknown[0]!r} ({len(ids)} users, such as {ids[0]!r})",
            _ask(opened, "--user", ids[0]),
        )
    sequences = opened.domain.sequences()
    rows = {user: row for row, user in enumerate(sequences.user.tolist())}
    spans = [sequences.offsets[rows[numbers[user]] :][:2] for user in users]
    return [sequences.items[start:end] for start, end in spans]


def history_of(opened: OpenRun, items: Sequence[str]) -> History:
    """Items (original ids) as rows. Raises DataError naming an item that the domain does not have."""
    if not items:
        raise UsageError("a history needs at least one item")
    rows = {item: row for row, item in enumerate(opened.item_ids)}
    unknown = [item for item in items if item not in rows]
    if unknown:
        known = [item for item in items if item in rows] or opened.item_ids[:1]
        raise DataError(
            f"domain {opened.domain.name}: no item {unknown[0]!r} ({len(rows)} items, such as {opened.item_ids[0]!r})",
            _ask(opened, "--items", ",".join(known)),
        )
    return np.array([rows[item] for item in items], np.int32)


def _ask(opened: OpenRun, flag: str, value: str) -> str:
    """The command with a user or items that the domain has."""
    flags = ["--run", str(opened.run), flag, value]
    return spell("recommend", domains=[opened.domain.name], store=opened.domain.root, flags=flags)

"""What to show next: the top-k items for a user of the store, or after items named by hand."""

import shlex
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from antpipe.core.batches import Examples
from antpipe.core.ranking import catalogue_vectors, history_vectors, nearest, score_of_history, unit_rows
from antpipe.errors import DataError, UsageError
from antpipe.store.domain import Domain
from antpipe.store.store import Store
from antpipe.training.compatibility import open_run

TITLE_WIDTH = 70  # characters shown of the text of an item without a title


def recommend(
    store: Store,
    run: Path,
    domain: str,
    *,
    user: str | None,
    items: Sequence[str],
    k: int,
    include_seen: bool,
    notice: Callable[[str], None],
) -> list[dict[str, Any]]:
    """The k best items after a history: that of `user` (original id), or `items` (original ids, the oldest first).

    Items of the history are left out unless include_seen. Returns rows of rank, item_id, title (the start of the
    text where an item has none) and score (the cosine, in [-1, 1], and what the model adds to items of the history),
    the best first. Raises DataError naming a user or item the domain does not have.
    """
    import torch

    if (user is None) == (not items):
        raise UsageError("give either --user or --items")
    if k < 1:
        raise UsageError(f"--k {k}: must be at least 1")
    place = store.domain(domain)
    ids = place.item_ids()
    ask = shlex.join(["antpipe", "recommend", "--run", str(run), "--domains", domain, "--store", str(store.root)])
    history = _user_history(place, user, ask) if user is not None else _named_items(place, ids, items, ask)
    model, described, catalogue = open_run(store, run, domain, notice)
    vectors = catalogue_vectors(model, catalogue, domain, torch.device("cpu"))
    ends = np.array([len(history)])
    part = Examples(np.zeros(1, np.int32), history, np.zeros(1, np.int64), ends, described.max_len)
    query, rows = unit_rows(history_vectors(model, vectors, part)), unit_rows(vectors)
    scores, found = nearest(query, rows, min(len(ids), k + len(set(history.tolist()))))
    scored = dict(zip(found[0].tolist(), scores[0].tolist(), strict=True))
    if added := score_of_history(model):
        read = set(history[-described.max_len :].tolist())
        scored |= {item: float(query[0] @ rows[item]) + added for item in read}
    hidden = set() if include_seen else set(history.tolist())
    kept = sorted(((i, score) for i, score in scored.items() if i not in hidden), key=lambda one: one[1], reverse=True)
    shown = place.table("items", ["title", "text"]).to_pylist()
    titles = [row["title"] or textwrap.shorten(row["text"] or "", TITLE_WIDTH, placeholder=" …") for row in shown]
    return [
        {"rank": rank, "item_id": ids[item], "title": titles[item], "score": round(score, 6)}
        for rank, (item, score) in enumerate(kept[:k], 1)
    ]


def _user_history(place: Domain, user: str, ask: str) -> "np.ndarray[Any, np.dtype[np.int32]]":
    """All items of a user in order of time. ask: the command, which for an unknown user is told with a known one."""
    users = place.table("users", ["user_id"])["user_id"].to_pylist()
    if user not in users:
        raise DataError(
            f"domain {place.name}: no user {user!r} ({len(users)} users, such as {users[0]!r})",
            f"{ask} --user {shlex.quote(users[0])}",
        )
    sequences = place.sequences()
    row = int(np.flatnonzero(sequences.user == users.index(user))[0])
    return sequences.items[sequences.offsets[row] : sequences.offsets[row + 1]]


def _named_items(
    place: Domain, ids: list[str], items: Sequence[str], ask: str
) -> "np.ndarray[Any, np.dtype[np.int32]]":
    rows = {item: row for row, item in enumerate(ids)}
    unknown = [item for item in items if item not in rows]
    if unknown:
        known = [item for item in items if item in rows] or ids[:1]
        raise DataError(
            f"domain {place.name}: no item {unknown[0]!r} ({len(ids)} items, such as {ids[0]!r})",
            f"{ask} --items {shlex.quote(','.join(known))}",
        )
    return np.array([rows[item] for item in items], np.int32)

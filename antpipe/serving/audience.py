"""For whom recommendations are made at once: all users of a domain, some of them, or histories from a file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from antpipe.core.catalogue import Ints
from antpipe.errors import DataError, SameCommand, UsageError
from antpipe.evaluation.vectors import History, OpenRun
from antpipe.serving.offer import read_ids, read_lines
from antpipe.serving.recommend import history_of, user_histories
from antpipe.settings.base import parts_of

ALL = "all"
ITEMS_FILE = "--items-file"
USERS = pl.Schema({"user_id": pl.String})
HISTORIES = pl.Schema({"user_id": pl.String, "history": pl.Int64})  # user_id: null unless the file has one


@dataclass(frozen=True)
class Audience:
    """Q histories and whose they are.

    owners: (Q) rows with the columns that name each history in the output: USERS or HISTORIES. items: item rows;
    history q is items[start[q]:end[q]], oldest first, and may be empty.
    """

    owners: pl.DataFrame
    items: NDArray[np.int32]
    start: Ints
    end: Ints

    def __len__(self) -> int:
        return len(self.start)

    def histories(self, block: slice) -> list[History]:
        """Some of the histories."""
        return [self.items[a:b] for a, b in zip(self.start[block].tolist(), self.end[block].tolist(), strict=True)]


def all_users(opened: OpenRun) -> Audience:
    """All users of a domain, in its order, each with the whole history. Raises DataError if there are none."""
    sequences = opened.domain.sequences()
    ids = opened.domain.table("users", ["user_id"])["user_id"].to_pylist()
    owners = pl.DataFrame({"user_id": [ids[user] for user in sequences.user.tolist()]}, schema=USERS)
    return Audience(owners, sequences.items, sequences.offsets[:-1], sequences.offsets[1:])


def these_users(opened: OpenRun, users: str | Path | Sequence[str], unknown: str = "error") -> Audience:
    """`all`, the users in a file (one id per line), or a list of ids, each once. unknown: as for user_histories."""
    if users == ALL:
        return all_users(opened)
    named = read_ids(Path(users), "--users") if isinstance(users, str | Path) else list(dict.fromkeys(users))
    if not named:
        raise UsageError("name users or histories to recommend for")
    return _joined(pl.DataFrame({"user_id": named}, schema=USERS), user_histories(opened, named, unknown))


def histories_in(opened: OpenRun, path: Path, unknown: str = "error") -> Audience:
    """The histories in a file, one per line, oldest item first.

    A line holds ids separated by commas (an id that contains a comma is double-quoted); in a .jsonl file it is a JSON
    list of ids, or an object with `items` and perhaps `user_id`. unknown: with `popularity`, unknown items are left
    out, and lines without any known item get an empty history; otherwise they are refused by line. Raises DataError for
    any other line.
    """
    lines = read_lines(path, ITEMS_FILE)
    while lines and not lines[-1].strip():
        lines.pop()
    users: list[str | None] = []
    histories: list[History] = []
    numbers: list[int] = []
    in_json = path.suffix.lower() == ".jsonl"
    for number, line in enumerate(lines, 1):
        if in_json and not line.strip():  # no record; an empty history is []
            continue
        where = f"{ITEMS_FILE} {path}, line {number}"
        user, items = _of_json(line, where) if in_json else (None, _of_text(line))
        if not items and unknown == "error":
            raise DataError(f"{where}: no item; a line is one history", SameCommand({"--unknown": "popularity"}))
        try:
            histories.append(history_of(opened, items, unknown))
        except DataError as error:
            raise DataError(f"{where}: {error.message}", SameCommand({"--unknown": "popularity"})) from None
        users.append(user)
        numbers.append(number)
    owners = pl.DataFrame({"user_id": users, "history": numbers}, schema=HISTORIES)
    return _joined(owners, histories)


def _of_text(line: str) -> list[str]:
    return [item.strip() for item in parts_of(line) if item.strip()]


def _of_json(line: str, where: str) -> tuple[str | None, list[str]]:
    user: Any = None
    try:
        items: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from None
    if isinstance(items, dict):
        odd = sorted(items.keys() - {"user_id", "items"})
        if odd or "items" not in items:
            raise DataError(f"{where}: an object has `items` and perhaps `user_id`, not {', '.join(odd) or 'neither'}")
        user, items = items.get("user_id"), items["items"]
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise DataError(f"{where}: items must be a list of ids in quotes")
    if user is not None and not isinstance(user, str):
        raise DataError(f"{where}: user_id must be an id in quotes")
    return user, items


def _joined(owners: pl.DataFrame, histories: Sequence[History]) -> Audience:
    end = np.cumsum([len(history) for history in histories], dtype=np.int64)
    start = np.concatenate([[0], end[:-1]]).astype(np.int64)
    return Audience(owners, np.concatenate(histories).astype(np.int32), start, end)

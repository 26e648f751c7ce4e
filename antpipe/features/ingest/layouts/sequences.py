"""Interaction files of UniSRec's layout: rows of (history, target) become whole sequences again.

NAME.train.inter, NAME.valid.inter and NAME.test.inter (github.com/RUCAIBox/UniSRec, dataset/preprocessing; MISSRec and
ANT use the same): tab-separated, header `user_id:token item_id_list:token_seq item_id:token`, items are numbers from 0,
joined by blanks. A history is cut to its last 50 items. The training rows of a user are sorted by length of history,
the longest first.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from antpipe.errors import DataError
from antpipe.features.ingest.layouts.text_files import read_fields

PARTS = ("train", "valid", "test")
HEADER = ("user_id:token", "item_id_list:token_seq", "item_id:token")


@dataclass(frozen=True)
class HistoryRows:
    """The R rows of the three files. The history of row r is items[starts[r]:starts[r + 1]].

    user, target, part (0 train, 1 valid, 2 test), line: (R,). users: the tokens that `user` numbers.
    """

    user: NDArray[np.int32]
    target: NDArray[np.int32]
    part: NDArray[np.int8]
    line: NDArray[np.int64]
    starts: NDArray[np.int64]
    items: NDArray[np.int32]
    users: list[str]
    files: Sequence[Path]

    def where(self, row: int) -> str:
        return f"{self.files[self.part[row]]}:{self.line[row]}: user {self.users[self.user[row]]!r}"


@dataclass(frozen=True)
class GivenSequences:
    """Whole sequences, one after the other. user, item, part: (T,), of each position.

    cut: how many users may have begun earlier than their longest history shows.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    part: NDArray[np.int8]
    cut: int


class MismatchError(Exception):
    """Row `row` does not continue the sequence before it; `why` completes a sentence about the user."""

    def __init__(self, row: int, why: str) -> None:
        super().__init__(why)
        self.row = row
        self.why = why


def read_history_rows(files: Sequence[Path]) -> HistoryRows:
    """files: train, valid and test. Raises DataError, with file and line, for a row that is not of the layout."""
    users: dict[str, int] = {}
    user, target, items = array("i"), array("i"), array("i")
    part, line, starts = array("b"), array("q"), array("q", [0])
    for number, path in enumerate(files):
        for at, fields in read_fields(path, HEADER):
            if not fields[0].strip():
                raise DataError(f"{path}:{at}: no user")
            try:
                items.extend(map(int, fields[1].split()))
                target.append(int(fields[2]))
            except (ValueError, OverflowError):
                raise DataError(
                    f"{path}:{at}: {fields[1][:60]!r}, {fields[2][:20]!r}: items must be numbers, as of one data set "
                    "(a merged pre-training set has 0-17: import its data sets one by one)"
                ) from None
            user.append(users.setdefault(fields[0], len(users)))
            part.append(number)
            line.append(at)
            starts.append(len(items))
    rows = HistoryRows(
        np.asarray(user, np.int32),
        np.asarray(target, np.int32),
        np.asarray(part, np.int8),
        np.asarray(line, np.int64),
        np.asarray(starts, np.int64),
        np.asarray(items, np.int32),
        list(users),
        files,
    )
    if not len(rows.user):
        raise DataError(f"{files[0]}: no rows, and none in the files of valid and test")
    return rows


def rebuild(rows: HistoryRows) -> GivenSequences:
    """The whole sequence of each user. Valid and test targets are exactly those of the files; earlier positions train.

    Raises DataError, with user and line, if a history is not what the rows before it lead to, if targets are not in the
    order of train, valid, test, or if a valid or test target has no history.
    """
    cap = int(np.diff(rows.starts).max())
    order = np.argsort(rows.user, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(rows.user[order])) + 1, len(order))
    user, item, part = array("i"), array("i"), array("b")
    start = cut = 0
    for end in ends.tolist():
        own = order[start:end].tolist()
        start = end
        items, parts, begins_later = _rebuild_user(rows, own, cap)
        user.extend([int(rows.user[own[0]])] * len(items))
        item.extend(items)
        part.extend(parts)
        cut += begins_later
    return GivenSequences(np.asarray(user, np.int32), np.asarray(item, np.int32), np.asarray(part, np.int8), cut)


def _rebuild_user(rows: HistoryRows, own: list[int], cap: int) -> tuple[list[int], list[int], bool]:
    """The sequence of one user, as `_chain` returns it. own: the rows in file order.

    Histories cut to the same length are ordered by their lines: the latest first, or else the earliest first.
    """

    def length(row: int) -> int:
        return int(rows.starts[row + 1] - rows.starts[row])

    def key(row: int) -> tuple[int, int]:
        return int(rows.part[row]), length(row)

    latest_first = list(reversed(own))
    latest_first.sort(key=key)  # stable: rows of equal length stay backwards
    try:
        return _chain(rows, latest_first, cap)
    except MismatchError as error:
        try:
            return _chain(rows, sorted(own, key=key), cap)
        except MismatchError:
            raise DataError(
                f"{rows.where(error.row)}: {error.why}; make the files again from the interactions, or ingest those"
            ) from None


def _chain(rows: HistoryRows, own: list[int], cap: int) -> tuple[list[int], list[int], bool]:
    """Items, part of each position, and whether earlier items may be missing. own: rows by length of history."""
    items: list[int] = []
    parts: list[int] = []
    begins_later = False
    for number, row in enumerate(own):
        history = rows.items[rows.starts[row] : rows.starts[row + 1]].tolist()
        part = int(rows.part[row])
        if not number:
            items, parts, begins_later = history, [0] * len(history), len(history) == cap
        elif len(history) > len(items) and history[: len(items)] == items and not any(parts):
            parts += [0] * (len(history) - len(items))  # positions that are not a target in the files
            items = history
        elif items[-len(history) :] != history or (len(history) < len(items) and len(history) < cap):
            raise MismatchError(row, "its history is not what the rows before lead to")
        if part and not history:
            raise MismatchError(row, f"a {PARTS[part]} target has no history")
        items.append(int(rows.target[row]))
        parts.append(part)
    return items, parts, begins_later

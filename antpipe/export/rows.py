"""Users and items of a domain as other layouts write them: ids that fit a line, and the positions of each part."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from antpipe.errors import DataError
from antpipe.features.ingest.layouts.sequences import HEADER, PARTS
from antpipe.store.files import Sequences

MOST_HISTORY = 50  # items of a history, as in UniSRec's files


def require_writable(ids: Sequence[str], what: str, forbidden: str, instead: str | None = None) -> None:
    """Raise DataError for an id that a text file of this layout cannot hold. what: user or item."""
    for one in ids:
        if not one.strip() or any(mark in one for mark in forbidden):
            raise DataError(
                f"the {what} id {one!r} has a blank, tab or line break, which this layout cannot hold", instead
            )


def in_one_line(text: str | None) -> str:
    """A text without tabs and line breaks."""
    return " ".join((text or "").split())


def history_rows(sequences: Sequences, part: int) -> Iterator[tuple[int, list[int], int]]:
    """(user, history, target) for each target of a part (0 train, 1 valid, 2 test): rows of a domain.

    Users come in their order, and each user's targets latest first. A history has at most MOST_HISTORY items.
    """
    for row, user in enumerate(sequences.user.tolist()):
        items = sequences.items[sequences.offsets[row] : sequences.offsets[row + 1]].tolist()
        ends = (1, int(sequences.train_end[row]), int(sequences.valid_end[row]), len(items))
        for place in range(ends[part + 1] - 1, ends[part] - 1, -1):
            yield user, items[max(0, place - MOST_HISTORY) : place], items[place]


def write_parts(
    folder: Path, name: str, sequences: Sequences, users: Sequence[str], items: Sequence[str]
) -> dict[str, int]:
    """Write NAME.train.inter, NAME.valid.inter and NAME.test.inter, with these tokens for users and items.

    Returns the number of rows of each.
    """
    counts = {}
    for number, part in enumerate(PARTS):
        counts[part] = 0
        with (folder / f"{name}.{part}.inter").open("w", encoding="utf-8", newline="\n") as stream:
            stream.write("\t".join(HEADER) + "\n")
            for user, history, target in history_rows(sequences, number):
                stream.write(f"{users[user]}\t{' '.join(items[item] for item in history)}\t{items[target]}\n")
                counts[part] += 1
    return counts

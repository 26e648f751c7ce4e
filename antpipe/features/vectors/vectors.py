"""Vectors made elsewhere, before they are joined with a catalogue."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from antpipe.errors import DataError
from antpipe.store.files import file_sha256
from antpipe.store.manifest import digest

CHUNK = 4096  # rows
Blocks = Iterator[tuple[int, NDArray[Any]]]


@dataclass(frozen=True)
class GivenVectors:
    """R vectors of `width` numbers.

    form: the format they were read as. ids: (R,) the id of each row. files: each with the number of its first row.
    blocks: gives (first row, (n, width) numbers) of successive rows. pictures: rows are pictures, of which an item may
    have several. numbered: an id may be ITEM_2, the second of ITEM. columns: the chosen ones of a table, in order.
    """

    form: str
    ids: list[str]
    width: int
    files: list[tuple[int, Path]]
    blocks: Callable[[], Blocks]
    pictures: bool = False
    numbered: bool = False
    columns: tuple[str, ...] = ()

    def where(self, row: int) -> str:
        """File and row, for messages."""
        first, path = self.files[bisect_right(self.files, row, key=lambda file: file[0]) - 1]
        return f"{path}: row {row - first}"

    def sha256(self) -> str:
        """The hash of the file, or one of the hashes of all files."""
        hashes = [file_sha256(path) for _, path in self.files]
        return hashes[0] if len(hashes) == 1 else digest(hashes)


def require_as_many(names: Path, count: int, path: Path, rows: int) -> None:
    """Raises DataError unless there are as many ids as rows."""
    if count != rows:
        raise DataError(f"{names} has {count} ids, {path} has {rows} rows: they do not belong together")

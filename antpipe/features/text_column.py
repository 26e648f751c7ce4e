"""The texts of a catalogue, read from items.parquet piece by piece: never all of them are in memory."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from antpipe.errors import IntegrityError
from antpipe.features.shards import CONTENT_BYTES, Contents, Shard, content_of

ROWS_AT_ONCE = 4096
COLUMN = "text"


@dataclass(frozen=True)
class TextColumn:
    """Reads texts. Can be sent to another process that sees the same file. mend: the command that makes it anew."""

    path: str
    mend: str

    def scan(self, rows: int) -> tuple[Contents, NDArray[np.int64]]:
        """What each of the rows holds, (N, 16), zeros where nothing is to be embedded; and its bytes, (N,)."""
        content = np.zeros((rows, CONTENT_BYTES), np.uint8)
        sizes = np.zeros(rows, np.int64)
        for start, texts in self._pieces(range(self._groups())):
            for row, text in enumerate(texts, start):
                if not is_blank(text):
                    raw = text.encode()
                    content[row] = np.frombuffer(content_of(raw), np.uint8)
                    sizes[row] = len(raw)
        return content, sizes

    def __call__(self, shard: Shard) -> list[str]:
        """The texts of a shard's rows, which are ascending."""
        return self.at(shard.rows)

    def at(self, rows: NDArray[np.int64]) -> list[str]:
        """The texts of rows, which are ascending."""
        found: list[str] = []
        for start, texts in self._pieces(self._holding(rows)):
            low, high = np.searchsorted(rows, [start, start + len(texts)])
            found += [texts[row - start] for row in rows[low:high].tolist()]
        return found

    def _groups(self) -> int:
        with pq.ParquetFile(self.path) as file:
            return int(file.num_row_groups)

    def _holding(self, rows: NDArray[np.int64]) -> list[int]:
        """The row groups that hold any of the rows."""
        with pq.ParquetFile(self.path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        groups: list[int] = np.unique(np.searchsorted(np.cumsum(sizes), rows, side="right")).tolist()
        return groups

    def _pieces(self, groups: "range | list[int]") -> Iterator[tuple[int, list[str]]]:
        """The first row and the texts of each piece of some row groups; null counts as empty."""
        with pq.ParquetFile(self.path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            starts = np.cumsum([0, *sizes])
            for group in groups:
                row = int(starts[group])
                for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[COLUMN]):
                    try:
                        texts = batch.column(COLUMN).to_pylist()
                    except UnicodeDecodeError as error:
                        raise IntegrityError(
                            f"{self.path}: a text in rows {row} to {row + len(batch) - 1} is not UTF-8: {error.reason}",
                            self.mend,
                        ) from None
                    yield row, [text or "" for text in texts]
                    row += len(batch)


def is_blank(text: str) -> bool:
    """Whether there is nothing to embed: only white space, control and format characters (Unicode: Z, Cc, Cf)."""
    return all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text)

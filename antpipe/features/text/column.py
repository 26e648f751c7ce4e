"""The texts of a catalogue, read from items.parquet piece by piece, so that they are never all in memory at once."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from antpipe.errors import DataError, IntegrityError
from antpipe.features.shards.plan import CONTENT_BYTES, Contents, Shard, content_of
from antpipe.store.files import read_stamp

ROWS_AT_ONCE = 4096
COLUMN = "text"


@dataclass(frozen=True)
class TextColumn:
    """Reads texts. It can be sent to another process that sees the same file.

    path: items.parquet. fingerprint: of the items when the work began. ingest_command: writes the file again;
    embed_command: embeds whatever items are there.
    """

    path: str
    ingest_command: str
    fingerprint: str
    embed_command: str

    def scan(self, rows: int) -> tuple[Contents, NDArray[np.int64]]:
        """A digest of each text, (N, 16), zeros if there is nothing to embed; and its length in bytes, (N,)."""
        content = np.zeros((rows, CONTENT_BYTES), np.uint8)
        sizes = np.zeros(rows, np.int64)
        for start, column in self._pieces(None):
            for row, text in enumerate(self._texts(start, column), start):
                if not is_blank(text):
                    raw = text.encode()
                    content[row] = np.frombuffer(content_of(raw), np.uint8)
                    sizes[row] = len(raw)
        return content, sizes

    def __call__(self, shard: Shard) -> list[str]:
        """The texts of a shard."""
        return self.at(shard.rows)

    def at(self, rows: NDArray[np.int64]) -> list[str]:
        """The texts of these rows, which must be ascending."""
        found: list[str] = []
        for start, column in self._pieces(rows):
            low, high = np.searchsorted(rows, [start, start + len(column)])
            if low < high:
                found += self._texts(start, column.take(pa.array(rows[low:high] - start)))
            if high == len(rows):
                break
        return found

    def _pieces(self, rows: "NDArray[np.int64] | None") -> "Iterator[tuple[int, pa.Array]]":
        """First row and column of each piece of the table, only from row groups that hold some of the rows.

        Raises DataError if items.parquet was replaced meanwhile; its texts would be paired with the wrong vectors.
        """
        with pq.ParquetFile(self.path) as file:
            stamp = read_stamp(Path(self.path))
            if stamp is None or stamp["fingerprint"] != self.fingerprint:
                raise DataError(
                    f"{self.path}: items changed while text was built from them; text is as before", self.embed_command
                )
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            starts = np.cumsum([0, *sizes])
            for group, (start, end) in enumerate(zip(starts.tolist(), starts[1:].tolist(), strict=False)):
                if rows is not None and np.searchsorted(rows, start) == np.searchsorted(rows, end):
                    continue
                row = start
                for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[COLUMN]):
                    yield row, batch.column(COLUMN)
                    row += len(batch)

    def _texts(self, start: int, column: "pa.Array") -> list[str]:
        """Null counts as empty. Raises IntegrityError if bytes are not UTF-8, which no ingest writes."""
        try:
            return [text or "" for text in column.to_pylist()]
        except UnicodeDecodeError as error:
            raise IntegrityError(
                f"{self.path}: a text in row {start} or soon after is not UTF-8: {error.reason}", self.ingest_command
            ) from None


def is_blank(text: str) -> bool:
    """Whether there is nothing to embed: only white space, control and format characters (Unicode Z, Cc, Cf)."""
    return all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text)

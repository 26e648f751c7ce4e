"""Columns of review lines on disk while they are read, so that memory does not grow with the file."""

import mmap
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from antpipe.features.ingest.ids import numbered

# Of many lines: users, items, milliseconds, ratings, hashes of the lines.
Columns = tuple[Sequence[str], Sequence[str], Sequence[int] | NDArray[np.int64], Sequence[float | None], pl.Series]
STORED = pl.Schema(
    {
        "user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "rating": pl.Float32,
        "line_hash": pl.UInt64,
    }
)  # fmt: skip


class Spill:
    """file: one without a name, so that it is gone with the process, however that ends."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.writer: pa.RecordBatchFileWriter | None = None

    def read(self, parts: Iterator[Columns]) -> int:
        """Take in all lines; returns how many there were."""
        return sum(self._write(part) for part in parts)

    def _write(self, columns: Columns) -> int:
        series = [pl.Series(name, values, kind) for (name, kind), values in zip(STORED.items(), columns, strict=True)]
        table = pl.DataFrame(series).to_arrow()
        if self.writer is None:
            self.writer = pa.ipc.new_file(self.file, table.schema)
        self.writer.write_table(table)
        return len(table)

    def table(self) -> tuple[pl.DataFrame, pl.Series, pl.Series]:
        """STORED with places in place of ids, and what ids these are: users and items by first appearance.

        Numbers and times are mapped from the file, so their memory can be taken back at any time.
        """
        if self.writer is None:
            self._write(([], [], [], [], pl.Series([], dtype=pl.UInt64)))
        assert self.writer is not None
        self.writer.close()
        self.file.flush()
        mapping = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        stored = pa.ipc.open_file(pa.py_buffer(mapping)).read_all()
        ids = {}
        for at, name in enumerate(("user_id", "item_id")):
            places, ids[name] = numbered(stored[name])
            stored = stored.set_column(at, name, places.to_arrow())
            if hasattr(mmap, "MADV_DONTNEED"):
                mapping.madvise(mmap.MADV_DONTNEED)  # the ids are not needed again
        return pl.DataFrame(stored), ids["user_id"].alias("user_id"), ids["item_id"].alias("item_id")

"""Columns of review lines on disk while they are read, so that memory does not grow with the file."""

import mmap
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from antpipe.features.ingest.ids import numbered
from antpipe.features.ingest.lines import Block, line_hashes

# The first four are COLUMNS, the last one 64 bits of each line.
STORED = pa.schema({
    "user_id": pa.large_string(), "item_id": pa.large_string(), "timestamp": pa.int64(), "rating": pa.float32(),
    "line_hash": pa.uint64(),
})  # fmt: skip
COLUMNS = pa.schema(list(STORED)[:4])
Lines = tuple[Block, list[pa.RecordBatch]]  # some lines, and COLUMNS of what they say, piece by piece


def columns(
    users: Sequence[str], items: Sequence[str], milliseconds: Sequence[int] | NDArray[np.int64],
    ratings: Sequence[float | None],
) -> pa.RecordBatch:  # fmt: skip
    """COLUMNS of what some lines say, a row a line."""
    values = (users, items, milliseconds, ratings)
    return pa.record_batch([pa.array(some, kind) for some, kind in zip(values, COLUMNS.types, strict=True)], COLUMNS)


class Spill:
    """file: one without a name, so that it is gone with the process, however that ends."""

    def __init__(self, file: IO[bytes]) -> None:
        self.writer = pa.ipc.new_file(file, STORED)
        self.file = file

    def read(self, lines: Iterator[Lines]) -> int:
        """Take in all lines; returns how many there were."""
        return sum(self._write(*some) for some in lines)

    def _write(self, block: Block, pieces: list[pa.RecordBatch]) -> int:
        known = pa.Table.from_batches(pieces, COLUMNS).combine_chunks()
        self.writer.write_table(known.append_column(STORED.field("line_hash"), line_hashes(block).to_arrow()))
        return len(block)

    def table(self) -> tuple[pl.DataFrame, pl.Series, pl.Series]:
        """STORED with places in place of ids, and what ids these are: users and items by first appearance.

        Numbers and times are mapped from the file, so their memory can be taken back at any time.
        """
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

"""Columns of review lines, kept on disk while files are read, so that memory does not grow with them."""

import mmap
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from antpipe.features.ingest.domain import INTERACTIONS, VERIFIED
from antpipe.features.ingest.ids import numbered
from antpipe.features.ingest.lines import LineBlock, block_of, line_hashes

COLUMNS = pl.Schema({**INTERACTIONS, **VERIFIED})
Lines = tuple[LineBlock, list[pl.DataFrame]]  # some lines, and their COLUMNS piece by piece


def columns(
    users: Sequence[str],
    items: Sequence[str],
    milliseconds: Sequence[int] | NDArray[np.int64],
    ratings: Sequence[float | None],
    verified: Sequence[bool | None],
) -> pl.DataFrame:
    """COLUMNS of some lines, one row per line."""
    values = (users, items, milliseconds, ratings, verified)
    # Not made by pyarrow, which would load pandas (if installed) to look at lists.
    return pl.DataFrame(
        [pl.Series(name, some, kind) for (name, kind), some in zip(COLUMNS.items(), values, strict=True)]
    )


class Spill:
    """Columns of lines in a file. file: without a name, so that it is gone with the process, however that ends."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        nothing = self._table(block_of([]), [])
        self.writer = pa.ipc.new_file(file, nothing.schema)

    def read(self, lines: Iterator[Lines]) -> int:
        """Write all lines; returns how many there were."""
        return sum(self._write(*some) for some in lines)

    def _write(self, block: LineBlock, pieces: list[pl.DataFrame]) -> int:
        self.writer.write_table(self._table(block, pieces))
        return len(block)

    def _table(self, block: LineBlock, pieces: list[pl.DataFrame]) -> pa.Table:
        known = pl.concat([COLUMNS.to_frame(), *pieces], rechunk=True)
        return known.with_columns(line_hashes(block).alias("line_hash")).to_arrow()

    def table(self) -> tuple[pl.DataFrame, pl.Series, pl.Series]:
        """COLUMNS with positions instead of ids, and `is_first` (no earlier line is the same); then the ids of users
        and of items, in the order of their first lines.

        Lines with the same 64-bit hash count as the same: among 100 million, two different ones share a hash with a
        probability below 0.001. Numbers and times are mapped from the file, so the system can reclaim their memory.
        """
        self.writer.close()
        self.file.flush()
        mapping = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        stored = pa.ipc.open_file(pa.py_buffer(mapping)).read_all()
        ids = {}
        with ThreadPoolExecutor(1) as thread:
            is_first = thread.submit(pl.Series(stored["line_hash"]).is_first_distinct)
            for at, name in enumerate(("user_id", "item_id")):
                positions, ids[name] = numbered(stored[name])
                stored = stored.set_column(at, name, positions.to_arrow())
                if hasattr(mmap, "MADV_DONTNEED"):
                    mapping.madvise(mmap.MADV_DONTNEED)  # the ids are not needed again
        table = pl.DataFrame(stored.drop_columns("line_hash")).with_columns(is_first.result().alias("is_first"))
        return table, ids["user_id"].alias("user_id"), ids["item_id"].alias("item_id")

"""The files of a store: what is in them, how they are read or mapped, and how one artefact's files are written."""

import hashlib
import io
import json
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antpipe.errors import DataError
from antpipe.runtime.files import atomic

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from _typeshed import ReadableBuffer
    from numpy.typing import NDArray

PIECE = 1 << 24  # bytes written at a time
# Rows of a Parquet row group: readers that take a table piece by piece hold one in memory.
ROW_GROUP = 65_536


@dataclass(frozen=True)
class Feature:
    """One modality of a catalogue. values: (N, d) float16, mapped from disk; present: (N,) bool."""

    values: "NDArray[np.float16]"
    present: "NDArray[np.bool_]"
    mapping: mmap.mmap | None = None

    def first(self, rows: int) -> "Feature":
        """Those of the first items, as views."""
        return Feature(self.values[:rows], self.present[:rows], self.mapping)

    def release(self) -> None:
        """Give back the memory of pages that were read; reading them again maps them again."""
        if self.mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Sequences:
    """Chronological item sequences: user u has items[offsets[u]:offsets[u + 1]].

    Counted from the start of a sequence, positions below train_end[u] are training targets, those from train_end[u]
    to valid_end[u] - 1 validation targets, and the rest test targets. Both ends are at least 1, since the first item,
    which has no history, is never a target. max_len: how many items the model looks back.
    """

    user: "NDArray[np.int32]"  # (U,)
    offsets: "NDArray[np.int64]"  # (U + 1,)
    items: "NDArray[np.int32]"  # (sum of lengths,)
    train_end: "NDArray[np.int32]"  # (U,)
    valid_end: "NDArray[np.int32]"  # (U,)
    max_len: int


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_facts(path: Path) -> dict[str, Any]:
    """Size and content hash of a file, for the manifest."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by the JSON of `value` in one step; a reader sees the old file or the new one, never a part."""
    with atomic(path, durable=True) as scratch, scratch.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, ensure_ascii=False, allow_nan=False)
        stream.write("\n")


class Sink(io.FileIO):
    """A new file that writes large buffers in pieces, and gives back the mapped memory of each piece."""

    def __init__(self, path: Path, mapped: Feature | None) -> None:
        super().__init__(path, "wb")
        self.mapped = mapped

    def write(self, buffer: "ReadableBuffer") -> int:
        view = memoryview(buffer)
        for start in range(0, len(view), PIECE):
            piece = view[start : start + PIECE]
            while piece:
                piece = piece[super().write(piece) :]
            if self.mapped is not None and len(view) > PIECE:
                self.mapped.release()
        return len(view)


class Transaction:
    """The files of one artefact while they are written.

    details: added to the manifest entry. afterwards: called once all files are in place.
    """

    def __init__(self, scratch: Path, stamp: dict[str, str]) -> None:
        self.scratch = scratch
        self.stamp = stamp
        self.details: dict[str, Any] = {}
        self.afterwards: Callable[[], None] = lambda: None

    def parquet(self, name: str, table: "pa.Table") -> None:
        import pyarrow.parquet as pq

        pq.write_table(
            table.replace_schema_metadata({"antpipe": json.dumps(self.stamp)}),
            self.scratch / name,
            compression="zstd",
            row_group_size=ROW_GROUP,
        )

    def arrow(self, name: str, batch: "pa.RecordBatch", mapped: Feature | None = None) -> None:
        """One uncompressed record batch, so that readers can map it. mapped: the feature whose values it holds."""
        import pyarrow as pa

        batch = batch.replace_schema_metadata({"antpipe": json.dumps(self.stamp)})
        with Sink(self.scratch / name, mapped) as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)

    @contextmanager
    def feature(
        self, modality: str, rows: int, width: int, content: "NDArray[np.uint8] | None" = None
    ) -> Iterator[Feature]:
        """Arrays to fill, written as MODALITY.arrow at the end of the block; a file backs them, so memory stays flat.

        Rows start as zeros with present = false. content: (rows, 16) a hash of what each row's vector is made of, kept
        so that a later run can reuse vectors. Raises DataError if a value is not finite, OSError if the disk is full.
        """
        import numpy as np
        import pyarrow as pa

        backing = self.scratch / f".{modality}.values"
        reserve(backing, max(rows * width, 1) * 2)
        with backing.open("r+b") as file:
            mapping = mmap.mmap(file.fileno(), 0)
        values = np.frombuffer(mapping, np.float16, rows * width).reshape(rows, width)
        feature = Feature(values, np.zeros(rows, np.bool_), mapping)
        yield feature
        for start in range(0, rows, 65_536):
            finite = np.isfinite(values[start : start + 65_536]).all(axis=1)
            if not finite.all():
                raise DataError(
                    f"{modality}: item {start + int(np.argmin(finite))} has a value that is not finite in float16"
                )
            feature.release()
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)
        columns = {"values": column, "present": pa.array(feature.present)}
        if content is not None:
            data = pa.py_buffer(np.ascontiguousarray(content))
            columns["content"] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), rows, [None, data])
        self.arrow(f"{modality}.arrow", pa.record_batch(columns), feature)
        backing.unlink()
        self.details |= {"rows": rows, "width": width, "present": int(feature.present.sum())}


def reserve(path: Path, size: int) -> None:
    """Create a file of zeros and allocate its space now: running out of it while the file is mapped kills the process.

    Raises OSError if there is not enough space.
    """
    with path.open("wb") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS
                os.truncate(file.fileno(), size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def read_stamp(path: Path) -> dict[str, str] | None:
    """The fingerprint and id-table hash that a file carries; None if it is missing or was not written by antpipe."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            metadata = pq.read_schema(path).metadata
        else:
            with pa.memory_map(str(path)) as source:
                metadata = pa.ipc.open_file(source).schema.metadata
    except (OSError, pa.ArrowInvalid):
        return None
    if not metadata or b"antpipe" not in metadata:
        return None
    stamp: dict[str, str] = json.loads(metadata[b"antpipe"])
    return stamp


def damage_to(path: Path, entry: Mapping[str, Any], id_table: str | None, *, content: bool = False) -> str:
    """Why a file is not the one that its manifest entry describes; '' if it is.

    id_table: the hash of the ids of the catalogue it must belong to. content: whether to read the file whole, too.
    """
    stamp = read_stamp(path)
    if stamp is None:
        return f"{path}: missing or not written by antpipe"
    if stamp["id_table"] != id_table:
        return f"{path}: made for another catalogue (its id table differs from items.parquet)"
    if stamp["fingerprint"] != entry["fingerprint"]:
        return f"{path}: not the file its manifest describes"
    if path.stat().st_size != entry["files"][path.name]["bytes"]:
        return f"{path}: its size differs from when it was written"
    if content and file_sha256(path) != entry["files"][path.name]["sha256"]:
        return f"{path}: its content differs from what was written"
    return ""


def read_parquet(path: Path, columns: list[str] | None) -> "pa.Table":
    """A table with these columns, in this order (None: all). Raises OSError or ArrowInvalid if the file is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Not pq.read_table, which loads pyarrow.dataset and with it pandas, if that is installed.
    with pq.ParquetFile(path) as file:
        unknown = set(columns or ()) - set(file.schema_arrow.names)
        if unknown:
            raise pa.ArrowInvalid(f"no column {', '.join(sorted(unknown))}")
        table = file.read(columns)
    return table if columns is None else table.select(columns)


def map_batch(path: Path) -> "tuple[pa.RecordBatch, mmap.mmap]":
    """The only record batch of an Arrow IPC file, and the mapping of which its columns are views."""
    import pyarrow as pa

    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return pa.ipc.open_file(pa.py_buffer(mapping)).get_batch(0), mapping


def map_feature(path: Path) -> Feature:
    """A modality's features, as views of the mapped file."""
    batch, mapping = map_batch(path)
    return Feature(matrix_of(batch), batch.column("present").to_numpy(zero_copy_only=False), mapping)


def map_sequences(path: Path, max_len: int) -> Sequences:
    """The sequences of all users, as views of the mapped file."""
    import numpy as np

    batch, _ = map_batch(path)
    items = batch.column("items")
    return Sequences(
        user=batch.column("user").to_numpy(),
        offsets=items.offsets.to_numpy().astype(np.int64),
        items=items.values.to_numpy(),
        train_end=batch.column("train_end").to_numpy(),
        valid_end=batch.column("valid_end").to_numpy(),
        max_len=max_len,
    )


def matrix_of(batch: "pa.RecordBatch") -> "NDArray[np.float16]":
    """(N, d) the column `values`, without a copy."""
    column = batch.column("values")
    values: NDArray[np.float16] = column.flatten().to_numpy(zero_copy_only=True)
    return values.reshape(len(column), column.type.list_size)

"""Files of the store: stamps, atomic JSON, and the writer of one artefact's files."""

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

    def release(self) -> None:
        """Give back the memory of pages that were read; they are mapped again when they are read again."""
        if self.mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Earlier:
    """A modality as it was built last, though the catalogue may have changed since.

    values: (M, d) float16, mapped; present: (M,); content: (M, 16) uint8, what each vector was made of, zeros where
    there was nothing.
    """

    values: "NDArray[np.float16]"
    present: "NDArray[np.bool_]"
    content: "NDArray[np.uint8]"


@dataclass(frozen=True)
class Sequences:
    """Chronological item sequences: user u has items[offsets[u]:offsets[u+1]].

    Counted from the start of the sequence, positions below train_end[u] are training, those from
    train_end[u] below valid_end[u] are validation targets, the others are test targets. Both ends are at least 1: the
    first item, before which there is no history, is never a target.
    """

    user: "NDArray[np.int32]"  # (U,)
    offsets: "NDArray[np.int64]"  # (U + 1,)
    items: "NDArray[np.int32]"  # (sum of lengths,)
    train_end: "NDArray[np.int32]"  # (U,)
    valid_end: "NDArray[np.int32]"  # (U,)
    max_len: int


def digest(value: Any) -> str:
    """sha256 of canonical JSON: the same for equal content, whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_facts(path: Path) -> dict[str, Any]:
    """Size and content hash of a file, for the manifest."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def content_sha256(entry: Mapping[str, Any]) -> str:
    """Of a manifest entry: what its files hold. Runs with the same fingerprint may compute differently (--force)."""
    return digest({name: facts["sha256"] for name, facts in entry.get("files", {}).items()})


def id_table_sha256(item_ids: list[str]) -> str:
    return digest(item_ids)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by the JSON of `value` in one step; a reader sees the old or the new file, never half."""
    with atomic(path, durable=True) as scratch, scratch.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, ensure_ascii=False, allow_nan=False)
        stream.write("\n")


class Sink(io.FileIO):
    """A new file that takes large buffers in pieces, and gives back the memory of each piece that was written."""

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
    """The files of one artefact while they are written. `details` is added to the manifest entry."""

    def __init__(self, scratch: Path, stamp: dict[str, str]) -> None:
        self.scratch = scratch
        self.stamp = stamp
        self.details: dict[str, Any] = {}
        self.afterwards: Callable[[], None] = lambda: None  # called once all is in place

    def parquet(self, name: str, table: "pa.Table") -> None:
        import pyarrow.parquet as pq

        pq.write_table(
            table.replace_schema_metadata({"antpipe": json.dumps(self.stamp)}),
            self.scratch / name,
            compression="zstd",
            row_group_size=ROW_GROUP,
        )

    def arrow(self, name: str, batch: "pa.RecordBatch", mapped: Feature | None = None) -> None:
        """One uncompressed record batch, so that readers can map it. mapped: where its values lie, if in a file."""
        import pyarrow as pa

        batch = batch.replace_schema_metadata({"antpipe": json.dumps(self.stamp)})
        with Sink(self.scratch / name, mapped) as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)

    @contextmanager
    def feature(
        self, modality: str, rows: int, width: int, content: "NDArray[np.uint8] | None" = None
    ) -> Iterator[Feature]:
        """Arrays to fill, backed by a file so that memory stays flat; written as MODALITY.arrow at the end.

        Rows start as zeros with present = false. Values that are not finite are refused. content: (rows, 16) what each
        row's vector is made of, kept in the file so that a later run can reuse vectors. OSError where the disk is full.
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
                    f"{modality}: item {start + int(np.argmin(finite))} got a value that is not finite in float16"
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
    """A file of zeros whose space is taken at once: a mapped file that outgrows the disk later would end the process.

    OSError where there is not enough.
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
    """The fingerprint and id-table hash a file carries; None where it is absent or not one of ours."""
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


def read_parquet(path: Path, columns: list[str] | None) -> "pa.Table":
    """A table with these columns, in this order (None: with all). OSError or ArrowInvalid where it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Not pq.read_table, which loads pyarrow.dataset, and with it pandas where that is installed.
    with pq.ParquetFile(path) as file:
        unknown = set(columns or ()) - set(file.schema_arrow.names)
        if unknown:
            raise pa.ArrowInvalid(f"no column {', '.join(sorted(unknown))}")
        table = file.read(columns)
    return table if columns is None else table.select(columns)


def map_batch(path: Path) -> "tuple[pa.RecordBatch, mmap.mmap]":
    """The one record batch of an Arrow IPC file, and the mapping that its columns are views of."""
    import pyarrow as pa

    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return pa.ipc.open_file(pa.py_buffer(mapping)).get_batch(0), mapping


def map_sequences(path: Path, max_len: int) -> Sequences:
    """Everybody's sequence, as views of the mapped file."""
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


def earlier_feature(path: Path, entry: Mapping[str, Any]) -> Earlier | None:
    """The vectors of MODALITY.arrow as its manifest entry describes it, whatever became of the catalogue.

    None where the file is not the one of the entry, or does not say what its vectors were made of.
    """
    import numpy as np

    stamp = read_stamp(path)
    if stamp is None or stamp["fingerprint"] != entry.get("fingerprint"):
        return None
    if path.stat().st_size != entry["files"][path.name]["bytes"]:
        return None
    batch, _ = map_batch(path)
    if "content" not in batch.schema.names:
        return None
    column = batch.column("values")
    values = column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), column.type.list_size)
    content = np.frombuffer(batch.column("content").buffers()[1], np.uint8)[: 16 * len(column)].reshape(-1, 16)
    return Earlier(values, batch.column("present").to_numpy(zero_copy_only=False), content)

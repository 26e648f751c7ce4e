"""Files of the store: stamps, atomic JSON, and the writer of one artefact's files."""

import hashlib
import io
import json
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antpipe.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from _typeshed import ReadableBuffer
    from numpy.typing import NDArray

PIECE = 1 << 24  # bytes written at a time


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


def id_table_sha256(item_ids: list[str]) -> str:
    return digest(item_ids)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by the JSON of `value` in one step; a reader sees the old or the new file, never half."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, ensure_ascii=False, allow_nan=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    scratch.replace(path)


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

    def parquet(self, name: str, table: "pa.Table") -> None:
        import pyarrow.parquet as pq

        pq.write_table(
            table.replace_schema_metadata({"antpipe": json.dumps(self.stamp)}),
            self.scratch / name,
            compression="zstd",
        )

    def arrow(self, name: str, batch: "pa.RecordBatch", mapped: Feature | None = None) -> None:
        """One uncompressed record batch, so that readers can map it. mapped: where its values lie, if in a file."""
        import pyarrow as pa

        batch = batch.replace_schema_metadata({"antpipe": json.dumps(self.stamp)})
        with Sink(self.scratch / name, mapped) as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)

    @contextmanager
    def feature(self, modality: str, rows: int, width: int) -> Iterator[Feature]:
        """Arrays to fill, backed by a file so that memory stays flat; written as MODALITY.arrow at the end.

        Rows start as zeros with present = false. Values that are not finite are refused.
        """
        import numpy as np
        import pyarrow as pa

        backing = self.scratch / f".{modality}.values"
        with backing.open("w+b") as file:
            file.truncate(max(rows * width, 1) * 2)
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
        batch = pa.record_batch({"values": column, "present": pa.array(feature.present)})
        self.arrow(f"{modality}.arrow", batch, feature)
        backing.unlink()
        self.details |= {"rows": rows, "width": width, "present": int(feature.present.sum())}


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


def map_batch(path: Path) -> "tuple[pa.RecordBatch, mmap.mmap]":
    """The one record batch of an Arrow IPC file, and the mapping that its columns are views of."""
    import pyarrow as pa

    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return pa.ipc.open_file(pa.py_buffer(mapping)).get_batch(0), mapping

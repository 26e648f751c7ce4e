"""The files of a store: what is in them, how they are read or mapped, and how one artefact's files are written."""

import hashlib
import io
import json
import mmap
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antpipe.errors import DataError
from antpipe.runtime.files import naming

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from _typeshed import ReadableBuffer
    from numpy.typing import NDArray

PIECE = 1 << 24  # bytes written at a time
# Rows of a Parquet row group: readers that take a table piece by piece hold one in memory.
ROW_GROUP = 65_536
STAMP = ("fingerprint", "id_table")  # keys that a file of a store carries in its schema
RACY = 0.1  # seconds within which a file could change again without a new modification time
_sound: dict[tuple[int, ...], str] = {}  # content hashes that this process computed, by what `stat` says of a file


@dataclass(frozen=True)
class Feature:
    """One modality of a catalogue. values: (N, d) float16, mapped from disk; present: (N,) bool."""

    values: "NDArray[np.float16]"
    present: "NDArray[np.bool_]"
    mapping: mmap.mmap | None = None

    def first(self, rows: int) -> "Feature":
        """The features of the first items, as views."""
        return Feature(self.values[:rows], self.present[:rows], self.mapping)

    def release(self) -> None:
        """Release the memory of pages that were read; reading them again maps them again."""
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


def known_sha256(path: Path) -> str:
    """The content hash of a file, computed once per process unless size, times or the file itself change."""
    facts = path.stat()
    key = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    if key in _sound:
        return _sound[key]
    found = file_sha256(path)
    if time.time() - max(facts.st_mtime, facts.st_ctime) > RACY:
        _sound[key] = found
    return found


class Sink(io.FileIO):
    """A new file that writes large buffers in pieces, and releases the mapped memory of each piece."""

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

        table = table.replace_schema_metadata({"antpipe": json.dumps(self.stamp)})
        with naming(self.scratch / name):
            pq.write_table(table, self.scratch / name, compression="zstd", row_group_size=ROW_GROUP)

    def arrow(self, name: str, batch: "pa.RecordBatch", mapped: Feature | None = None) -> None:
        """One uncompressed record batch, so that readers can map it. mapped: the feature whose values it holds."""
        import pyarrow as pa

        batch = batch.replace_schema_metadata({"antpipe": json.dumps(self.stamp)})
        path = self.scratch / name
        with naming(path), Sink(path, mapped) as sink, pa.ipc.new_file(sink, batch.schema) as writer:
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
    """Create a file of zeros and allocate its space now: if the disk fills up later, the mapped file kills the process.

    Raises OSError if there is not enough space.
    """
    with naming(path), path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS
            os.truncate(file.fileno(), size)


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
        stamp = json.loads((metadata or {})[b"antpipe"])
        return {name: str(stamp[name]) for name in STAMP}
    except (OSError, ValueError, LookupError, TypeError, RecursionError, pa.ArrowException):
        return None


def damage_to(path: Path, entry: Mapping[str, Any], id_table: str | None) -> str:
    """Why a file is not the one that its manifest entry describes, judged by its size and stamp; '' if it is.

    id_table: the hash of the ids of the catalogue it must belong to.
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
    return ""


def rot_in(path: Path, entry: Mapping[str, Any], *, again: bool = False) -> str:
    """Why the content of a file is not what was written, by its hash; '' if it is. again: do not use a known hash.

    Files of stores that recorded no hash pass.
    """
    recorded = entry["files"].get(path.name, {}).get("sha256")
    try:
        found = None if recorded is None else file_sha256(path) if again else known_sha256(path)
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    return "" if found == recorded else f"{path}: its content differs from what was written"


def read_parquet(path: Path, columns: list[str] | None) -> "pa.Table":
    """A table with these columns, in this order (None: all). Raises OSError or ArrowException if it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Not pq.read_table, which loads pyarrow.dataset and with it pandas, if that is installed.
    with pq.ParquetFile(path) as file:
        unknown = set(columns or ()) - set(file.schema_arrow.names)
        if unknown:
            raise pa.ArrowInvalid(f"no column {', '.join(sorted(unknown))}")
        table = file.read(columns)
    table.validate(full=True)
    return table if columns is None else table.select(columns)


def map_batch(path: Path) -> "tuple[pa.RecordBatch, mmap.mmap]":
    """The only record batch of an Arrow IPC file, and the mapping of which its columns are views."""
    import pyarrow as pa

    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return pa.ipc.open_file(pa.py_buffer(mapping)).get_batch(0), mapping


def map_feature(path: Path) -> Feature:
    """A modality's features, as views of the mapped file. Raises ValueError if they are not features."""
    import pyarrow as pa

    batch, mapping = map_batch(path)
    require_types(batch, values=pa.types.is_fixed_size_list, present=pa.types.is_boolean)
    batch.validate()
    if batch.schema.field("values").type.value_type != pa.float16() or any(column.null_count for column in batch):
        raise ValueError("its values are not float16")
    return Feature(matrix_of(batch), batch.column("present").to_numpy(zero_copy_only=False), mapping)


def map_sequences(path: Path, max_len: int, items: int) -> Sequences:
    """The sequences of all users, as views of the mapped file. items: how many there are. Raises ValueError if they
    contradict themselves."""
    import numpy as np
    import pyarrow as pa

    batch, _ = map_batch(path)
    numbers = dict.fromkeys(("user", "train_end", "valid_end"), pa.types.is_int32)
    require_types(batch, items=pa.types.is_list, **numbers)
    batch.validate(full=True)
    column = batch.column("items")
    if column.type.value_type != pa.int32() or any(column.null_count for column in batch):
        raise ValueError("it has nulls, or items that are not int32")
    found = Sequences(
        user=batch.column("user").to_numpy(),
        offsets=column.offsets.to_numpy().astype(np.int64),
        items=column.values.to_numpy(),
        train_end=batch.column("train_end").to_numpy(),
        valid_end=batch.column("valid_end").to_numpy(),
        max_len=max_len,
    )
    lengths = np.diff(found.offsets)
    ends = (found.train_end >= 1) & (found.train_end <= found.valid_end) & (found.valid_end <= lengths)
    if not ends.all():
        raise ValueError(f"the parts of user {found.user[np.argmin(ends)]} do not lie within their sequence")
    if len(found.items) and not (found.items.min() >= 0 and found.items.max() < items):
        raise ValueError(f"it names items beyond the {items} of the catalogue")
    if (found.user < 0).any() or (np.diff(found.user) <= 0).any():
        raise ValueError("its users are not in order")
    return found


def require_types(batch: "pa.RecordBatch", **types: Callable[[Any], bool]) -> None:
    """Raises ValueError unless the batch has these columns, each of a type that its test accepts."""
    for name, test in types.items():
        if name not in batch.schema.names or not test(batch.schema.field(name).type):
            raise ValueError(f"no column {name!r} of the expected type")


def matrix_of(batch: "pa.RecordBatch") -> "NDArray[np.float16]":
    """(N, d) the column `values`, without a copy."""
    column = batch.column("values")
    values: NDArray[np.float16] = column.flatten().to_numpy(zero_copy_only=True)
    return values.reshape(len(column), column.type.list_size)

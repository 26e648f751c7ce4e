"""The folder of finished shards, kept until the artefact is complete.

`.shards-ARTEFACT-KEY` survives a kill. A file appears in it whole or not at all: it is written under another name,
flushed and renamed. The key covers what the shards were made of, so a folder with another key is useless and removed.
All shards are read and written here, through a pyarrow file system.
"""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from antpipe.errors import AntpipeError, IntegrityError, UsageError
from antpipe.runtime.logs import log
from antpipe.store.documents import NewerFormatError, as_text, parse_json, refuse_newer, seal, unsealed
from antpipe.store.lock import alone
from antpipe.store.next_command import shell

# Schemes that pyarrow knows. If pyarrow refuses such an address, so do we: fsspec might take it for another place.
OF_PYARROW = ("file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
PLAN = "plan.json"
FORMAT = 1  # of shards and of the plan
INPUT = "input-"  # prefix of files that hold the contents of a shard
BEGUN = "begun-"  # prefix of files that count how often a shard was begun
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class ShardVectors:
    """What an embedder makes of the contents of a shard.

    values: (n, d) float32, or float16 if read from a file. present: (n,) bool, false if there is no vector. failures:
    (position below n, reason) of what could not be embedded. A position may occur more than once, and may still have a
    vector (if only one of an item's pictures cannot be read).
    """

    values: "NDArray[np.floating[Any]]"
    present: "NDArray[np.bool_]"
    failures: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True)
class ShardFolder:
    """A folder of shards. It can be sent to other processes, which must reach its file system too."""

    filesystem: fs.FileSystem
    path: str
    key: str

    def notes(self) -> dict[str, Any]:
        """The notes about the work in this folder; empty if there are none."""
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{PLAN}") as stream:
                notes = parse_json(stream.read(), dict[str, Any], f"{self.path}/{PLAN}", shell("rm", "-r", self.path))
        except FileNotFoundError:
            return {}
        refuse_newer(f"{self.path}/{PLAN}", notes.pop("format", None), FORMAT)
        return notes

    def note(self, notes: dict[str, Any]) -> None:
        """Keep decisions that a later run must stick to."""
        self._put(PLAN, as_text(seal({"format": FORMAT, **notes})).encode())

    def write(self, number: int, vectors: ShardVectors, rows: Rows) -> None:
        """Put a finished shard of these rows into the folder. Values are kept in float16, as in the store."""
        with np.errstate(over="ignore"):  # infinite values are refused, by item, when the artefact is written
            values = np.ascontiguousarray(vectors.values, dtype=np.float16)
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        facts = {
            "format": FORMAT,
            "key": self.key,
            "rows": _digest(rows),
            "failures": [[int(position), reason] for position, reason in vectors.failures],
        }
        facts["sha256"] = _hash_of(values, vectors.present, facts["failures"])
        batch = pa.record_batch({"values": column, "present": pa.array(vectors.present)})
        batch = batch.replace_schema_metadata({"shard": json.dumps(seal(facts))})
        self._put(_name(number), _file_of(batch))

    def read(self, number: int, rows: Rows) -> ShardVectors:
        """A finished shard. Raises IntegrityError if the file is missing, damaged or made of other rows, and
        NewerFormatError if a newer antpipe wrote it.

        The key alone does not determine the rows: they also depend on the precision that a sample settled, and so on
        what may be copied.
        """
        path = f"{self.path}/{_name(number)}"
        try:
            with self.filesystem.open_input_file(path) as source:
                reader = pa.ipc.open_file(source)
                facts = unsealed(json.loads(reader.schema.metadata[b"shard"]))
                refuse_newer(path, facts.get("format"), FORMAT)
                batch = reader.get_batch(0)
            column = batch.column("values")
            values = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
            present = batch.column("present").to_numpy(zero_copy_only=False)
            if facts["key"] != self.key:
                raise ValueError("made for another plan")
            if facts["rows"] != _digest(rows) or len(present) != len(rows):
                raise ValueError("made of other rows")
            if facts.get("sha256", own := _hash_of(values, present, facts["failures"])) != own:
                raise ValueError("its content differs from what was written")
            failures = [(int(position), str(reason)) for position, reason in facts["failures"]]
        except (OSError, pa.ArrowException, ValueError, LookupError, TypeError, AttributeError) as error:
            raise IntegrityError(f"{path}: not a shard of this work: {error}") from error
        return ShardVectors(values, present, failures)

    def finished(self, rows: Sequence[Rows]) -> list[int]:
        """Numbers of the shards that are there, in order. rows: those of each shard.

        Removes unreadable files and what an interrupted write left behind.
        """
        found = []
        for info in self.filesystem.get_file_info(fs.FileSelector(self.path)):
            number = _number(info.base_name)
            if number is not None and number < len(rows) and self.is_finished(number, rows[number]):
                found.append(number)
            elif info.base_name != PLAN and not info.base_name.startswith(INPUT):
                self._delete(info.base_name)
        return sorted(found)

    def is_finished(self, number: int, rows: Rows) -> bool:
        """Whether a readable shard of these rows is there. Raises NewerFormatError for one of a newer antpipe."""
        try:
            self.read(number, rows)
        except NewerFormatError:
            raise
        except IntegrityError:
            return False
        return True

    # -- for workers that share nothing else with the planning process ---------------------------------------

    def has_input(self, number: int, rows: Rows) -> bool:
        """Whether the contents of these rows are there; does not read them."""
        try:
            with self.filesystem.open_input_file(f"{self.path}/{_input(number)}") as source:
                return _is_of(pa.ipc.open_file(source).schema, rows)
        except (OSError, pa.ArrowInvalid):
            return False

    def write_input(self, number: int, contents: Sequence[Any], rows: Rows) -> None:
        """Put a shard's contents into the folder. contents: texts, bytes, numbers, or lists and mappings of them."""
        batch = pa.record_batch({"content": pa.array(list(contents))})
        facts = {"rows": _digest(rows), "sha256": _body_sha256(batch)}
        self._put(_input(number), _file_of(batch.replace_schema_metadata(facts)))

    def read_input(self, number: int, rows: Rows) -> list[Any]:
        """What `write_input` wrote. Raises IntegrityError if it is missing, damaged or belongs to other rows."""
        path = f"{self.path}/{_input(number)}"
        try:
            with self.filesystem.open_input_file(path) as source:
                reader = pa.ipc.open_file(source)
                if not _is_of(reader.schema, rows):
                    raise ValueError("they belong to other rows")
                batch = reader.get_batch(0)
                recorded = reader.schema.metadata.get(b"sha256")
                if recorded is not None and recorded.decode() != _body_sha256(batch):
                    raise ValueError("they differ from what was written")
                contents: list[Any] = batch.column("content").to_pylist()
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise IntegrityError(f"{path}: the contents of a shard cannot be read: {error}") from error
        return contents

    def begin(self, number: int) -> int:
        """Note that a worker begins a shard; returns how many times that happened without `end`, this one included."""
        name = f"{BEGUN}{number:06}"
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
                times = int(stream.read() or b"0") + 1
        except FileNotFoundError:
            times = 1
        self._put(name, str(times).encode())
        return times

    def end(self, number: int) -> None:
        """Forget how often a shard was begun: it is finished."""
        self._delete(f"{BEGUN}{number:06}")

    def remove(self) -> None:
        with suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.path)

    def _delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(f"{self.path}/{name}")

    def _put(self, name: str, content: "bytes | pa.Buffer") -> None:
        """Write a file that appears whole or not at all."""
        scratch = f"{self.path}/.{name}.{uuid.uuid4().hex}"
        try:
            with self.filesystem.open_output_stream(scratch) as stream:
                stream.write(content)
            if isinstance(self.filesystem, fs.LocalFileSystem):  # other file systems store what they acknowledge
                with Path(scratch).open("rb") as file:
                    os.fsync(file.fileno())
            self.filesystem.move(scratch, f"{self.path}/{name}")
        except BaseException:
            with suppress(OSError):
                self.filesystem.delete_file(scratch)
            raise


def _file_of(batch: pa.RecordBatch) -> pa.Buffer:
    """The bytes of an Arrow IPC file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _hash_of(values: NDArray[np.float16], present: NDArray[np.bool_], failures: Any) -> str:
    found = hashlib.sha256(json.dumps([values.shape, failures]).encode())
    found.update(np.ascontiguousarray(values).data)
    found.update(np.ascontiguousarray(present, np.bool_).data)
    return found.hexdigest()


def _body_sha256(batch: pa.RecordBatch) -> str:
    """A hash of what a batch holds, as Arrow writes it."""
    return hashlib.sha256(batch.replace_schema_metadata(None).serialize()).hexdigest()


def _digest(rows: Rows) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows, np.int64).tobytes()).hexdigest()


def _is_of(schema: pa.Schema, rows: Rows) -> bool:
    return (schema.metadata or {}).get(b"rows") == _digest(rows).encode()


def _name(number: int) -> str:
    return f"shard-{number:06}.arrow"


def _input(number: int) -> str:
    return f"{INPUT}{number:06}.arrow"


def _number(name: str) -> int | None:
    """The inverse of `_name`; None for other files."""
    digits = name.removeprefix("shard-").removesuffix(".arrow")
    return int(digits) if digits.isdigit() and name == _name(int(digits)) else None


def _folders(root: Path, artefact: str) -> list[Path]:
    return sorted(root.glob(f".shards-{artefact}-*"))


def open_shards(root: Path, artefact: str, key: str, at: str | None = None) -> ShardFolder:
    """The folder for shards of this key in a domain's folder, with what it already holds; removes those of other keys.

    Call it while writing the artefact, which keeps other processes out. at: a folder or address (s3://…) to keep the
    shards in instead. Other stores may use it too, so nothing is removed there, and each folder's name is distinct.
    Raises UsageError if that place cannot be written.
    """
    if at is not None:
        filesystem, base = shard_place(at)
        store = hashlib.sha256(os.fsencode(root.resolve().parent)).hexdigest()[:8]
        folder = ShardFolder(filesystem, f"{base.rstrip('/')}/{root.name}-{artefact}-{store}-{key[:12]}", key)
        try:
            filesystem.create_dir(folder.path, recursive=True)
        except (OSError, pa.ArrowInvalid) as error:
            raise UsageError(f"--shards {at}: cannot be written: {error}") from error
        return folder
    root = root.absolute()  # other processes have other working directories
    path = root / f".shards-{artefact}-{key[:12]}"
    for other in _folders(root, artefact):
        if other != path:
            local().delete_dir(str(other))
    path.mkdir(parents=True, exist_ok=True)
    return ShardFolder(local(), str(path), key)


def remove_shards(folder: ShardFolder) -> None:
    """Remove the folder once the artefact is in place. A failure costs nothing, so it is only reported."""
    try:
        folder.remove()
    except OSError as error:
        log.warning(f"{folder.path} is no longer needed but cannot be removed: {error}; you may delete it")


def sweep(root: Path, artefact: str) -> None:
    """Remove shards left by a kill after the artefact was complete, unless the artefact is being written."""
    if _folders(root, artefact):
        with suppress(AntpipeError), alone(root, artefact):
            for folder in _folders(root, artefact):
                local().delete_dir(str(folder))


def shard_place(address: str) -> tuple[fs.FileSystem, str]:
    """File system and path of a local folder or an address, found by pyarrow (schemes in OF_PYARROW) or fsspec.

    Raises UsageError if the address is invalid, needs a missing library, or holds a secret, which would show up in
    messages and be sent to workers.
    """
    if re.search(r"://[^/@]*:(?!\d+/)[^@]*@", address):
        raise UsageError(
            "--shards: the address holds a user's secret (KEY:SECRET@); leave it out: libraries find credentials in "
            "the environment of each machine (docs/scale.md)"
        )
    if "://" not in address and "::" not in address:
        return local(), str(Path(address).expanduser().resolve())
    try:
        if address.partition("://")[0] in OF_PYARROW:
            filesystem, path = fs.FileSystem.from_uri(address)
        else:
            import fsspec

            other, path = fsspec.core.url_to_fs(address)
            filesystem = fs.PyFileSystem(fs.FSSpecHandler(other))
    except (ImportError, OSError, ValueError, pa.ArrowNotImplementedError) as error:  # ArrowInvalid is a ValueError
        raise UsageError(f"--shards {address}: {error}") from error
    return filesystem, path


def local() -> fs.FileSystem:
    return fs.LocalFileSystem()

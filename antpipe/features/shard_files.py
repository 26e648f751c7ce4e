"""Finished shards of an embedding, kept on disk until the artefact is complete.

The folder `.shards-ARTEFACT-KEY` survives a kill. A file appears in it whole or not at all: it is written under
another name, flushed and renamed. The key says what the shards were made of, so a folder with another key is of no use
to anybody and is removed. All reading and writing of shards is here, through a pyarrow file system.
"""

import json
import os
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

from antpipe.errors import AntpipeError, IntegrityError
from antpipe.store import alone

PLAN = "plan.json"


@dataclass(frozen=True)
class Vectors:
    """What an embedder makes of the contents of a shard.

    values: (n, d) float32; float16 where they were read from a file. present: (n,) bool, false where there is no
    vector. failures: (position below n, why) of what could not be embedded; a position may come more than once or
    have a vector all the same (of several pictures, one cannot be read).
    """

    values: "NDArray[np.floating[Any]]"
    present: "NDArray[np.bool_]"
    failures: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True)
class ShardFolder:
    """A folder of shards. It can be sent to other processes; its file system must be one they reach, too."""

    filesystem: fs.FileSystem
    path: str
    key: str

    def notes(self) -> dict[str, Any]:
        """What was noted about the work here; empty where nothing was."""
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{PLAN}") as stream:
                notes: dict[str, Any] = json.loads(stream.read())
        except FileNotFoundError:
            return {}
        return notes

    def note(self, notes: dict[str, Any]) -> None:
        """Keep decisions that a later run must go on with."""
        self._put(PLAN, json.dumps(notes, indent=1).encode())

    def write(self, number: int, vectors: Vectors) -> None:
        """Put a finished shard into the folder. Values are kept in float16, as the store keeps them."""
        with np.errstate(over="ignore"):  # infinite values are refused, by item, where the artefact is written
            values = np.ascontiguousarray(vectors.values, dtype=np.float16)
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        facts = {"key": self.key, "failures": [[int(position), why] for position, why in vectors.failures]}
        batch = pa.record_batch({"values": column, "present": pa.array(vectors.present)})
        batch = batch.replace_schema_metadata({"shard": json.dumps(facts)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        self._put(_name(number), sink.getvalue())

    def read(self, number: int) -> Vectors:
        """A finished shard. IntegrityError where the file is damaged."""
        path = f"{self.path}/{_name(number)}"
        try:
            with self.filesystem.open_input_file(path) as source:
                reader = pa.ipc.open_file(source)
                facts = json.loads(reader.schema.metadata[b"shard"])
                batch = reader.get_batch(0)
            column = batch.column("values")
            values = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
            present = batch.column("present").to_numpy(zero_copy_only=False)
            if facts["key"] != self.key:
                raise ValueError("made for another plan")
        except (OSError, pa.ArrowInvalid, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{path}: not a shard of this work: {error}") from error
        return Vectors(values, present, [(position, why) for position, why in facts["failures"]])

    def finished(self, sizes: Sequence[int]) -> list[int]:
        """Numbers of the shards that are there, in order. sizes: how many contents each shard has.

        Files that cannot be read are removed, and so is what an interrupted writing left.
        """
        found = []
        for info in self.filesystem.get_file_info(fs.FileSelector(self.path)):
            number = _number(info.base_name)
            if number is not None and number < len(sizes) and self._is_sound(number, sizes[number]):
                found.append(number)
            elif info.base_name != PLAN:
                self.filesystem.delete_file(info.path)
        return sorted(found)

    def _is_sound(self, number: int, size: int) -> bool:
        try:
            return len(self.read(number).present) == size
        except IntegrityError:
            return False

    def remove(self) -> None:
        with suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.path)

    def _put(self, name: str, content: "bytes | pa.Buffer") -> None:
        """A file that appears whole."""
        scratch = f"{self.path}/.{name}.{uuid.uuid4().hex}"
        try:
            with self.filesystem.open_output_stream(scratch) as stream:
                stream.write(content)
            if isinstance(self.filesystem, fs.LocalFileSystem):  # others keep what they have acknowledged
                with Path(scratch).open("rb") as file:
                    os.fsync(file.fileno())
            self.filesystem.move(scratch, f"{self.path}/{name}")
        except BaseException:
            with suppress(OSError):
                self.filesystem.delete_file(scratch)
            raise


def _name(number: int) -> str:
    return f"shard-{number:06}.arrow"


def _number(name: str) -> int | None:
    """The inverse of `_name`; None for other files."""
    digits = name.removeprefix("shard-").removesuffix(".arrow")
    return int(digits) if digits.isdigit() and name == _name(int(digits)) else None


def _folders(root: Path, artefact: str) -> list[Path]:
    return sorted(root.glob(f".shards-{artefact}-*"))


def open_shards(root: Path, artefact: str, key: str) -> ShardFolder:
    """The folder for shards of this key in a domain's folder, with what is in it; those of other keys are removed.

    To be called while the artefact is being written, which keeps other processes away.
    """
    path = root / f".shards-{artefact}-{key[:12]}"
    for other in _folders(root, artefact):
        if other != path:
            local().delete_dir(str(other))
    path.mkdir(parents=True, exist_ok=True)
    return ShardFolder(local(), str(path), key)


def sweep(root: Path, artefact: str) -> None:
    """Remove shards that a kill left behind after the artefact was complete; nothing where it is being written."""
    if _folders(root, artefact):
        with suppress(AntpipeError), alone(root, artefact):
            for folder in _folders(root, artefact):
                local().delete_dir(str(folder))


def local() -> fs.FileSystem:
    return fs.LocalFileSystem()

"""Vectors made elsewhere, as files hold them: which row is whose, and the rows piece by piece.

`.npy` beside a file of ids; Parquet (vector_tables.py); UniSRec's and MISSRec's `.feat1CLS`, `.feat3CLS` with
item2index (layout_features.py); folders of clip-retrieval (layout_clip_retrieval.py). Nothing goes by the order of
rows alone.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antpipe.errors import DataError, UsageError
from antpipe.features.import_unisrec import read_index
from antpipe.features.ingest.layouts.features import KINDS, FeatureFile, FeatureKind, read_chunks
from antpipe.features.ingest.layouts.sequences import read_lines
from antpipe.store.files import digest, file_sha256

CHUNK = 4096
Blocks = Iterator[tuple[int, NDArray[Any]]]


@dataclass(frozen=True)
class Vectors:
    """R vectors of `width` numbers, before they are joined to a catalogue.

    form: what they were read as. ids: (R,) whose each row is. files: each with its first row. blocks: gives
    (first row, (n, width) numbers) of successive rows. pictures: rows are pictures, of which an item may have several.
    numbered: an id may be ITEM_2, the second of ITEM. columns: those that were chosen of a table, in order.
    """

    form: str
    ids: list[str]
    width: int
    files: list[tuple[int, Path]]
    blocks: Callable[[], Blocks]
    pictures: bool = False
    numbered: bool = False
    columns: tuple[str, ...] = ()

    def where(self, row: int) -> str:
        """The place of a row, for messages."""
        first, path = self.files[bisect_right(self.files, row, key=lambda file: file[0]) - 1]
        return f"{path}: row {row - first}"

    def sha256(self) -> str:
        """Of the content of all files; of one file, its own."""
        hashes = [file_sha256(path) for _, path in self.files]
        return hashes[0] if len(hashes) == 1 else digest(hashes)


def open_vectors(path: Path, modality: str, ids: Path | None, columns: Sequence[str]) -> Vectors:
    """What `path` holds. ids: the file of ids, where vectors do not come with them. columns: ROLE=COLUMN, see --map.

    Raises DataError for files that are missing, damaged or contradict each other, UsageError for flags that do not
    belong to this kind of file.
    """
    if not path.exists():
        raise DataError(f"--path {path}: no such file or folder")
    kind = next((kind for kind in KINDS if path.name.endswith(kind.suffix)), None)
    if path.suffix == ".npy" or kind:
        if columns:
            raise UsageError(f"--map {','.join(columns)}: {path.name} has no columns; name the file of ids with --ids")
        return open_feature(path, kind, modality, ids) if kind else open_npy(path, ids)
    if ids is not None:
        raise UsageError(f"--ids {ids}: the ids of {path.name} are in a column; name it with --map id=COLUMN")
    if path.is_dir() and any((path / name).is_dir() for name in ("img_emb", "text_emb")):
        from antpipe.features.vectors.clip_retrieval import open_clip_retrieval

        return open_clip_retrieval(path, modality, columns)
    parts = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not parts or parts[0].suffix != ".parquet":
        raise DataError(
            f"--path {path}: no vectors that are known: .npy, .parquet (or a folder of them), .feat1CLS, .feat3CLS, or "
            "a folder of clip-retrieval with img_emb/ or text_emb/"
        )
    from antpipe.features.vectors.tables import open_tables

    return open_tables(parts, columns)


def open_npy(path: Path, ids: Path | None) -> Vectors:
    """One array (R, d), and the file that says whose its rows are."""
    if ids is None:
        raise UsageError(
            f"{path}: --ids is missing: vectors are joined by the ids of items, never by their order",
            "add --ids FILE: one id a line, a JSON list, an .npy of strings, or an item2index",
        )
    rows, width = npy_shape(path)
    names = read_ids(ids)
    require_as_many(ids, len(names), path, rows)
    return Vectors("npy", names, width, [(0, path)], lambda: npy_blocks(path))


def npy_shape(path: Path) -> tuple[int, int]:
    """(rows, width) of an array of numbers; DataError for anything else."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: no array that can be mapped: {error}") from None
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not array.size:
        raise DataError(f"{path}: rows of numbers are expected, there is {array.dtype} of shape {array.shape}")
    return array.shape[0], array.shape[1]


def npy_blocks(path: Path, first: int = 0) -> Blocks:
    """first: the number of the first row. The file is mapped anew for each piece, so that memory stays flat."""
    rows, _ = npy_shape(path)
    for start in range(0, rows, CHUNK):
        yield first + start, np.array(np.load(path, mmap_mode="r")[start : start + CHUNK])


def open_feature(path: Path, kind: FeatureKind, modality: str, ids: Path | None) -> Vectors:
    """A feature file of plain numbers, whose rows are numbered by NAME.item2index beside it."""
    if kind.modality != modality:
        raise UsageError(f"--modality {modality}: {path.name} holds features of {kind.modality}")
    index = ids or path.with_name(path.name.removesuffix(kind.suffix) + ".item2index")
    if not index.is_file():
        raise DataError(f"{index}: missing: without it, nobody knows whose the rows are", "name it with --ids FILE")
    names = read_ids(index)
    size, one = path.stat().st_size, np.dtype(kind.number).itemsize * kind.slots * len(names)
    if size % one or not size:
        raise DataError(f"{path}: {size} bytes are no rows of equal width for the {len(names)} ids of {index}")
    file = FeatureFile(path, kind, len(names), size // one, "")
    form = f"{kind.suffix} of {np.dtype(kind.number)}"
    return Vectors(form, names, file.width, [(0, path)], lambda: ((start, v) for start, v, _ in read_chunks(file)))


def read_ids(path: Path) -> list[str]:
    """Ids in the order of the rows: .npy of strings or integers, a .json list, an item2index, else one a line."""
    if path.suffix == ".item2index":
        return read_index(path)
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
            if array.ndim != 1 or array.dtype.kind not in "USiu":
                raise DataError(f"{path}: ids are expected, there is {array.dtype} of shape {array.shape}")
            return [one.decode() if isinstance(one, bytes) else str(one) for one in array.tolist()]
        if path.suffix == ".json":
            ids = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(ids, list) or not all(isinstance(one, str | int) for one in ids):
                raise DataError(f"{path}: a list of ids is expected")
            return [str(one) for one in ids]
    except (OSError, ValueError, EOFError) as error:  # ValueError: of NumPy, of JSON, of UTF-8
        raise DataError(f"{path}: no ids that can be read: {error}") from None
    lines = list(read_lines(path))
    gap = next((at for number, (at, _) in enumerate(lines, 1) if at != number), None)
    if gap:
        raise DataError(f"{path}:{gap - 1}: an empty line among the ids: which row it stands for cannot be told")
    return [text.strip() for _, text in lines]


def require_as_many(names: Path, count: int, path: Path, rows: int) -> None:
    if count != rows:
        raise DataError(f"{names} has {count} ids, {path} has {rows} rows: they do not belong together")

"""Arrays of vectors: `.npy` beside a file of ids; `.feat1CLS` and `.feat3CLS` with the item2index of their data set."""

import json
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from antpipe.errors import DataError, UsageError
from antpipe.features.ingest.layouts.features import FeatureFile, FeatureKind, read_chunks
from antpipe.features.ingest.layouts.text_files import numbered_lines, read_index
from antpipe.features.vectors.vectors import CHUNK, Blocks, GivenVectors, require_as_many

# What reading a damaged file can raise. NumPy reads the header of an array as Python.
DAMAGED = (OSError, ValueError, EOFError, SyntaxError, TokenError, RecursionError, OverflowError, MemoryError)


def open_npy(path: Path, ids: Path | None) -> GivenVectors:
    """One array (R, d), and the file with the id of each row."""
    if ids is None:
        raise UsageError(
            f"{path}: --ids is missing: vectors are joined by the ids of items, never by their order; add --ids FILE: "
            "one id per line, a JSON list, an .npy of strings, or an item2index"
        )
    rows, width = npy_shape(path)
    names = read_ids(ids)
    require_as_many(ids, len(names), path, rows)
    return GivenVectors("npy", names, width, [(0, path)], lambda: npy_blocks(path))


def npy_shape(path: Path) -> tuple[int, int]:
    """(rows, width) of an array of numbers. Raises DataError for anything else."""
    try:
        array = only_array(path)
    except DAMAGED as error:
        raise DataError(f"{path}: not an array that can be mapped: {error}") from None
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not array.size:
        raise DataError(f"{path}: expected rows of numbers, found {array.dtype} of shape {array.shape}")
    return array.shape[0], array.shape[1]


def only_array(path: Path) -> "np.memmap[Any, Any]":
    """The one array of a file, mapped. Raises ValueError for an archive of arrays or if something follows the array,
    and any of DAMAGED."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.memmap):
        raise ValueError("an archive of arrays (.npz)")
    if more := path.stat().st_size - array.offset - array.nbytes:
        raise ValueError(f"{more} bytes follow the array, as if np.save had written into the file several times")
    return array


def npy_blocks(path: Path, first: int = 0) -> Blocks:
    """first: the number of the first row. The file is mapped again for each piece, so that memory stays flat."""
    rows, _ = npy_shape(path)
    for start in range(0, rows, CHUNK):
        yield first + start, np.array(np.load(path, mmap_mode="r")[start : start + CHUNK])


def open_feature(path: Path, kind: FeatureKind, modality: str, ids: Path | None) -> GivenVectors:
    """A feature file of plain numbers, whose rows are numbered by NAME.item2index beside it."""
    if kind.modality != modality:
        raise UsageError(f"--modality {modality}: {path.name} holds features of {kind.modality}")
    index = ids or path.with_name(path.name.removesuffix(kind.suffix) + ".item2index")
    if not index.is_file():
        raise DataError(f"{index}: missing; without it, the ids of the rows are unknown; name it with --ids FILE")
    names = read_ids(index)
    size, one = path.stat().st_size, np.dtype(kind.number).itemsize * kind.slots * len(names)
    if size % one or not size:
        raise DataError(f"{path}: {size} bytes are not rows of equal width for the {len(names)} ids of {index}")
    file = FeatureFile(path, kind, len(names), size // one, "")
    form = f"{kind.suffix} of {np.dtype(kind.number)}"
    return GivenVectors(form, names, file.width, [(0, path)], lambda: ((start, v) for start, v, _ in read_chunks(file)))


def read_ids(path: Path) -> list[str]:
    """Ids in the order of the rows: an .npy of strings or integers, a .json list, an item2index, else one per line."""
    if path.suffix == ".item2index":
        return read_index(path)
    try:
        if path.suffix == ".npy":
            array = only_array(path)
            if array.ndim != 1 or array.dtype.kind not in "USiu":
                raise DataError(f"{path}: expected ids, found {array.dtype} of shape {array.shape}")
            return [one.decode() if isinstance(one, bytes) else str(one) for one in array.tolist()]
        if path.suffix == ".json":
            ids = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(ids, list) or not all(isinstance(one, str | int) for one in ids):
                raise DataError(f"{path}: expected a list of ids")
            return [str(one) for one in ids]
    except DAMAGED as error:
        raise DataError(f"{path}: the ids cannot be read: {error}") from None
    lines = list(numbered_lines(path))
    gap = next((at for number, (at, _) in enumerate(lines, 1) if at != number), None)
    if gap:
        raise DataError(f"{path}:{gap - 1}: an empty line among the ids: it is unclear which row it stands for")
    return [text.strip() for _, text in lines]

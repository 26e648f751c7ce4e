"""Files of vectors made elsewhere, of any format.

Arrays beside a file of ids and the feature files of UniSRec and MISSRec (arrays.py), Parquet (tables.py), folders of
clip-retrieval (clip_retrieval.py). Rows always have ids; nothing is joined by the order of rows alone.
"""

from collections.abc import Sequence
from pathlib import Path

from antpipe.errors import DataError, UsageError
from antpipe.features.ingest.layouts.features import KINDS
from antpipe.features.vectors.arrays import open_feature, open_npy
from antpipe.features.vectors.clip_retrieval import open_clip_retrieval
from antpipe.features.vectors.tables import open_tables
from antpipe.features.vectors.vectors import GivenVectors


def open_vectors(path: Path, modality: str, ids: Path | None, columns: Sequence[str]) -> GivenVectors:
    """The vectors in a file or folder. ids: the file of ids, for vectors that come without. columns: --map.

    Raises DataError for files that are missing, damaged or contradict each other, UsageError for flags that do not fit
    this kind of file.
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
        return open_clip_retrieval(path, modality, columns)
    parts = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not parts or parts[0].suffix != ".parquet":
        raise DataError(
            f"--path {path}: unknown format; known are .npy, .parquet (or a folder of them), .feat1CLS, .feat3CLS, and "
            "folders of clip-retrieval with img_emb/ or text_emb/"
        )
    return open_tables(parts, columns)

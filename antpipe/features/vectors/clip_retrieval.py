"""What `clip-retrieval inference` writes (github.com/rom1504/clip-retrieval, clip_inference/writer.py).

img_emb/img_emb_N.npy and text_emb/text_emb_N.npy, one row per sample, and metadata/metadata_N.parquet, whose rows are
those of the arrays of the same N: `image_path` if pictures were embedded (a path, or the key of a WebDataset),
`caption` if texts were, and whatever columns the samples' own metadata have.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from antpipe.errors import DataError, UsageError
from antpipe.features.vectors.arrays import npy_blocks, npy_shape
from antpipe.features.vectors.tables import parse_roles, read_schema, read_strings
from antpipe.features.vectors.vectors import Blocks, GivenVectors, require_as_many

FOLDERS = {"image": "img_emb", "text": "text_emb"}
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif"}
PATHS = "image_path"


def open_clip_retrieval(path: Path, modality: str, columns: Sequence[str]) -> GivenVectors:
    """The vectors of one modality. An item may have several pictures.

    An id is the name of the picture without folder and suffix (ITEM_2 is the second picture of ITEM), or the value of
    the column `--map id=COLUMN`.
    """
    roles = parse_roles(columns)
    if "vector" in roles:
        raise UsageError(f"--map vector={roles['vector']}: the vectors of clip-retrieval are not in a column")
    kind = FOLDERS[modality]
    parts = sorted((path / kind).glob(f"{kind}_*.npy"), key=lambda part: (len(part.stem), part.stem))
    if not parts:
        raise DataError(f"{path / kind}: no {kind}_0.npy here: clip-retrieval did not embed {modality}s")
    files: list[tuple[int, Path]] = []
    ids: list[str] = []
    widths: dict[str, int] = {}
    for part in parts:
        metadata = path / "metadata" / f"metadata_{part.stem.removeprefix(f'{kind}_')}.parquet"
        names = _ids(metadata, roles.get("id"))
        rows, widths[part.name] = npy_shape(part)
        require_as_many(metadata, len(names), part, rows)
        files.append((len(ids), part))
        ids += names
    if len(set(widths.values())) > 1:
        widths_there = ", ".join(f"{name} has {width} columns" for name, width in widths.items())
        raise DataError(f"{path / kind}: parts of different width: {widths_there}")

    def blocks() -> Blocks:
        for first, part in files:
            yield from npy_blocks(part, first)

    return GivenVectors(
        f"clip-retrieval, id={roles.get('id', PATHS)}",
        ids,
        widths[parts[0].name],
        files,
        blocks,
        pictures=modality == "image",
        numbered="id" not in roles,
    )


def _ids(metadata: Path, column: str | None) -> list[str]:
    if not metadata.is_file():
        raise DataError(f"{metadata}: missing; without it, the ids of the rows are unknown")
    there = read_schema(metadata).names
    if (column or PATHS) not in there:
        raise DataError(
            f"{metadata}: no column {column or PATHS!r}; there: {', '.join(there)}; name it with --map id=COLUMN"
        )
    names = read_strings(metadata, column or PATHS)
    return names if column else [picture_name(name) for name in names]


def picture_name(path: str) -> str:
    """`a/b/B0012.jpg` -> `B0012`; a name without the suffix of a picture stays whole (`B00.12`)."""
    name = PurePosixPath(path.replace("\\", "/"))
    return name.stem if name.suffix.lower() in SUFFIXES else name.name

"""Feature files of processed data sets: rows of plain numbers in the order of the items, without a header.

NAME.feat1CLS (UniSRec, MISSRec): float32, texts. NAME.feat3CLS (MISSRec): float32, pictures. NAME_text_0.feat float32,
NAME_img_0_4.feat float64 with four pictures per item, NAME_price_0.feat float64 (ANT, github.com/ninglab/ANT,
dataset/Dataset.py). An item without the feature has a row of zeros; there is no row for padding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antpipe.errors import DataError
from antpipe.features.ingest.advice import SettingsError
from antpipe.store.artefacts import StageResult
from antpipe.store.domain import Domain
from antpipe.store.files import file_sha256

CHUNK = 2048
LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class FeatureKind:
    """What a suffix says about a file. slots: vectors per item; those that are not all zeros are averaged."""

    suffix: str
    modality: str
    number: type[np.floating[Any]]
    slots: int = 1


KINDS = (
    FeatureKind(".feat1CLS", "text", np.float32),
    FeatureKind("_text_0.feat", "text", np.float32),
    FeatureKind(".feat3CLS", "image", np.float32),
    FeatureKind("_img_0_4.feat", "image", np.float64, slots=4),
    FeatureKind("_price_0.feat", "price", np.float64),
)
# Texts with words dropped at random: UniSRec's augmentation in pre-training, which ANT does not have.
UNUSED = ".feat2CLS"


@dataclass(frozen=True)
class FeatureFile:
    """A file of `rows` rows with `slots` vectors of `width` numbers each."""

    path: Path
    kind: FeatureKind
    rows: int
    width: int
    sha256: str


def find_features(folder: Path, name: str) -> list[tuple[Path, FeatureKind]]:
    """The feature files of a data set, one per modality: the first of KINDS."""
    found: dict[str, tuple[Path, FeatureKind]] = {}
    for kind in KINDS:
        path = folder / f"{name}{kind.suffix}"
        if path.is_file():
            found.setdefault(kind.modality, (path, kind))
    return list(found.values())


def rows_of_text(features: list[tuple[Path, FeatureKind]], width: int) -> int | None:
    """How many items the text features cover if they are `width` wide; None if there are no text features."""
    for path, kind in features:
        if kind.modality == "text":
            return path.stat().st_size // (np.dtype(kind.number).itemsize * width)
    return None


def check_feature(path: Path, kind: FeatureKind, rows: int, text_width: int) -> FeatureFile:
    """A file, checked to fit `rows` items and float16. The width of texts must be as given, others follow from sizes.

    Raises DataError if it does not fit.
    """
    size, one = path.stat().st_size, np.dtype(kind.number).itemsize * kind.slots * rows
    width = size // one
    if size % one or not width:
        raise DataError(
            f"{path}: {size} bytes are not {np.dtype(kind.number)} rows of equal width for {rows} items: it was made "
            "for another catalogue"
        )
    if kind.modality == "text" and width != text_width:
        raise SettingsError(
            f"{path}: {size} bytes for {rows} items are rows of {width} numbers, --feature-width says {text_width}",
            {"feature_width": width},
        )
    file = FeatureFile(path, kind, rows, width, file_sha256(path))
    for start, values, _ in read_chunks(file):
        bad = ~(np.abs(values) <= LARGEST).all(axis=1)
        if bad.any():
            raise DataError(f"{path}: row {start + int(np.argmax(bad))} holds a number that is not finite in float16")
    return file


def read_chunks(file: FeatureFile) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.bool_]]]:
    """(first row, values (n, width), present (n,)) of successive rows."""
    shape = (file.rows, file.kind.slots, file.width)
    mapped = np.memmap(file.path, file.kind.number, "r", shape=shape)
    for start in range(0, file.rows, CHUNK):
        slots = np.asarray(mapped[start : start + CHUNK], np.float64)
        filled = (slots != 0).any(axis=2)
        values = slots.sum(axis=1) / np.maximum(filled.sum(axis=1), 1)[:, None]
        yield start, values, filled.any(axis=1)


def feature_parameters(file: FeatureFile, encoder: str | None) -> dict[str, Any]:
    """What the fingerprint of the artefact covers. encoder: what made the features; None: name and hash of the file."""
    revision = "as told" if encoder else file.sha256
    return {"encoder": encoder or file.path.name, "revision": revision, "file": file.sha256}


def write_feature(domain: Domain, file: FeatureFile, encoder: str | None) -> StageResult:
    """Write MODALITY.arrow of a domain whose items are the rows of the file, in the same order."""
    modality, parameters = file.kind.modality, feature_parameters(file, encoder)
    with domain.writing(modality, parameters) as out:
        with out.feature(modality, file.rows, file.width) as feature:
            for start, values, present in read_chunks(file):
                feature.values[start : start + len(values)] = values
                feature.present[start : start + len(values)] = present
            count = int(feature.present.sum())
        figures = {
            "items": file.rows,
            "present": count,
            "coverage": round(count / file.rows, 4),
            "width": file.width,
            "encoder": parameters["encoder"],
            "file": file.path.name,
        }
        out.details |= {
            "encoder": {"name": parameters["encoder"], "revision": parameters["revision"], "source": "import"},
            "figures": figures,
            "came_with_items": True,
        }
    return StageResult(domain.name, modality, "built", figures)

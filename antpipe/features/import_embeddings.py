"""import embeddings: vectors made elsewhere become the text or image features of a domain, joined by items' ids."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from antpipe.errors import DataError, PartialError
from antpipe.features.vectors.vectors import CHUNK, Vectors, open_vectors
from antpipe.settings.base import flags_of
from antpipe.settings.ingest import EmbeddingsConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.domain import Domain
from antpipe.store.files import Feature, digest
from antpipe.store.store import Store

FORMAT = "import embeddings"
EXAMPLES = 20
Ints = NDArray[np.int64]


@dataclass
class Joined:
    """What became of the rows. target: (R,) the item each row is of, -1 where it is none. zeros: rows without any
    number but 0, which stand for no vector. repeated: rows that an item has a second time, and equal."""

    target: Ints
    zeros: list[int] = field(default_factory=list)
    repeated: int = 0


def import_embeddings(
    store: Store,
    domain: str,
    path: Path,
    modality: str,
    config: EmbeddingsConfig,
    *,
    force: bool = False,
    announce: Callable[[str], None],
) -> StageResult:
    """Write MODALITY.arrow, as embed-text or embed-image would, of vectors in files (see `open_vectors`).

    An item without a row, or with one of zeros, is zeros and not present; rows of ids that are no items are left out.
    Both are counted, and listed in MODALITY_unmatched.parquet. Several rows of an item must be equal, unless they are
    pictures, whose mean is taken. announce: is told of what did not match.
    Raises DataError for files that are damaged or contradict themselves, numbers that are not finite in float16 and
    files without any item of the domain; PartialError, with the artefact written, below `min_coverage`.
    """
    place = store.domain(domain)
    vectors = open_vectors(path, modality, config.ids, config.map)
    sha256 = vectors.sha256()
    encoder = {
        "name": config.encoder or path.name,
        "revision": "as told" if config.encoder else sha256,
        "source": "import",
    }
    parameters = {
        "format": FORMAT,
        "encoder": encoder["name"],
        "revision": encoder["revision"],
        "form": vectors.form,
        "vectors": sha256,
        "ids": digest(vectors.ids),
    }
    parameters |= {"columns": digest(vectors.columns)} if vectors.columns else {}
    if not force and place.is_fresh(modality, parameters):
        result = StageResult(domain, modality, "fresh", place.entry(modality)["figures"])
    else:
        details = {
            "encoder": encoder,
            "stage": f"{FORMAT} --modality {modality}",
            "flags": ["--path", str(path), *flags_of(config)],
            "came_from": {"path": str(path.resolve()), "form": vectors.form, "rows": len(vectors.ids)},
        }
        result = StageResult(domain, modality, "built", _write(place, modality, vectors, parameters, details, announce))
    _require_coverage(place, result, config.min_coverage)
    return result


def join(vectors: Vectors, item_ids: Sequence[str]) -> Ints:
    """(R,) the item of each row, -1 where its id is none. Where ids are numbered, ITEM_2 is one of ITEM, unless there
    is an item ITEM_2."""
    row_of = {item_id: row for row, item_id in enumerate(item_ids)}
    target = np.fromiter((row_of.get(one, -1) for one in vectors.ids), np.int64, len(vectors.ids))
    if vectors.numbered:
        for row in np.flatnonzero(target < 0):
            found = re.fullmatch(r"(.+)_[0-9]+", vectors.ids[row], re.DOTALL)
            target[row] = row_of.get(found[1], -1) if found else -1
    return target


def _write(
    place: Domain,
    modality: str,
    vectors: Vectors,
    parameters: Mapping[str, Any],
    details: Mapping[str, Any],
    announce: Callable[[str], None],
) -> dict[str, Any]:
    with place.writing(modality, parameters) as out:
        item_ids = place.item_ids()
        joined = Joined(join(vectors, item_ids))
        if not (joined.target >= 0).any():
            raise DataError(
                f"domain {place.name}: none of the {len(vectors.ids)} ids of {vectors.files[0][1]} (such as "
                f"{vectors.ids[0]!r}) is one of its {len(item_ids)} items (such as {item_ids[0]!r})",
                "repeat the command with the ids these items have: --ids FILE, or of a table --map id=COLUMN",
            )
        with out.feature(modality, len(item_ids), vectors.width) as feature:
            if vectors.pictures:
                _fill_means(feature, vectors, joined, out.scratch / ".sums")
            else:
                _fill(feature, vectors, joined)
            present = feature.present.copy()
        if not present.any():
            raise DataError(
                f"{vectors.files[0][1]}: every vector of an item of {place.name} is zeros",
                "repeat the command with other vectors: --path FILE, or of a table --map vector=COLUMN",
            )
        unmatched = _unmatched(joined, present, vectors.ids, item_ids)
        figures = {
            "items": len(item_ids),
            "present": int(present.sum()),
            "coverage": round(float(present.mean()), 4),
            "rows": len(vectors.ids),
            **{why: len(ids) for why, ids in unmatched.items()},
            "repeated": joined.repeated,
            "width": vectors.width,
            "encoder": parameters["encoder"],
        }
        if any(unmatched.values()):
            out.parquet(_name(modality), _table(unmatched))
        out.details |= {
            **details,
            "figures": figures,
            "unmatched": {why: ids[:EXAMPLES] for why, ids in unmatched.items()},
        }
    for why, ids in unmatched.items():
        if ids:
            told = {"missing": "items without a row", "zeros": "items whose row is zeros", "extra": "ids of no item"}
            shown = ", ".join(ids[:3]) + (" …" if len(ids) > 3 else "")
            announce(f"{place.name}: {len(ids)} {told[why]} ({shown}); all in {place.path / _name(modality)}")
    return figures


def _checked(vectors: Vectors, joined: Joined) -> Iterator[tuple[Ints, Ints, NDArray[Any]]]:
    """(places in the file (n,), items (n,), vectors (n, d)) of rows that count. DataError where one is not finite."""
    for start, values in vectors.blocks():
        target = joined.target[start : start + len(values)]
        ours = np.flatnonzero(target >= 0)
        with np.errstate(over="ignore"):
            half = values[ours].astype(np.float16)
        bad = ~np.isfinite(half).all(axis=1)
        if bad.any():
            row = start + int(ours[np.argmax(bad)])
            raise DataError(f"{vectors.where(row)} ({vectors.ids[row]}) holds a number that is not finite in float16")
        filled = half.any(axis=1)
        joined.zeros += (start + ours[~filled]).tolist()
        ours = ours[filled]
        yield start + ours, target[ours], values[ours]


def _fill(feature: Feature, vectors: Vectors, joined: Joined) -> None:
    """Each item's row; a further one must be equal."""
    for places, items, values in _checked(vectors, joined):
        half = values.astype(np.float16)
        _, first = np.unique(items, return_index=True)
        first = first[~feature.present[items[first]]]
        feature.values[items[first]] = half[first]
        feature.present[items[first]] = True
        joined.repeated += len(items) - len(first)
        other = (feature.values[items] != half).any(axis=1)
        if other.any():
            row = int(places[np.argmax(other)])
            before = int(np.argmax(joined.target == joined.target[row]))
            raise DataError(
                f"{vectors.where(row)}: {vectors.ids[row]} has another vector than in row {before}: which one counts "
                "cannot be told"
            )
        feature.release()


def _fill_means(feature: Feature, vectors: Vectors, joined: Joined, waiting: Path) -> None:
    """The mean of each item's rows. waiting: a file for the sums of items with several, so that memory stays flat."""
    counts = np.bincount(joined.target[joined.target >= 0], minlength=len(feature.present))
    several = np.flatnonzero(counts > 1)
    place_of = np.zeros(len(counts), np.int64)
    place_of[several] = np.arange(len(several))
    sums = np.memmap(waiting, np.float32, "w+", shape=(max(len(several), 1), vectors.width))
    met = np.zeros(max(len(several), 1), np.int64)
    for _, items, values in _checked(vectors, joined):
        alone = counts[items] == 1
        feature.values[items[alone]] = values[alone]
        feature.present[items[alone]] = True
        at = place_of[items[~alone]]
        np.add.at(sums, at, values[~alone].astype(np.float32))
        np.add.at(met, at, 1)
        feature.release()
    for start in range(0, len(several), CHUNK):
        part = slice(start, start + CHUNK)
        feature.values[several[part]] = sums[part] / np.maximum(met[part], 1)[: len(several[part]), None]
        feature.present[several[part]] = met[part][: len(several[part])] > 0
    del sums
    waiting.unlink()


def _unmatched(
    joined: Joined, present: NDArray[np.bool_], ids: Sequence[str], item_ids: Sequence[str]
) -> dict[str, list[str]]:
    """Ids by why they came to nothing: items without a row, with zeros, and rows of no item (each id once)."""
    zeros = {int(item) for item in joined.target[joined.zeros] if not present[item]}
    return {
        "missing": [item_ids[row] for row in np.flatnonzero(~present).tolist() if row not in zeros],
        "zeros": [item_ids[row] for row in sorted(zeros)],
        "extra": list(dict.fromkeys(ids[row] for row in np.flatnonzero(joined.target < 0).tolist())),
    }


def _name(modality: str) -> str:
    return f"{modality}_unmatched.parquet"


def _table(unmatched: Mapping[str, Sequence[str]]) -> pa.Table:
    rows = [(one, why) for why, ids in unmatched.items() for one in ids]
    columns = (pa.array(column, pa.string()) for column in zip(*rows, strict=True))
    return pa.table(dict(zip(("id", "why"), columns, strict=True)))


def _require_coverage(place: Domain, result: StageResult, least: float) -> None:
    figures = result.figures
    if figures["present"] < least * figures["items"]:
        raise PartialError(
            f"domain {place.name}: {result.artefact}.arrow is written, but only {figures['present']} of "
            f"{figures['items']} items ({figures['coverage']:.1%}) have a vector; --min-coverage asks for {least:.1%}",
            place.command(result.artefact),
        )

"""Stage `import embeddings`: vectors made elsewhere become text or image features of a domain, joined by item id."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from antpipe.errors import DataError, PartialError
from antpipe.features.ingest.advice import advised, flags_with
from antpipe.features.ingest.ids import inexact_id, is_inexact_text
from antpipe.features.replacing import require_same_import
from antpipe.features.vectors.formats import open_vectors
from antpipe.features.vectors.vectors import CHUNK, GivenVectors
from antpipe.runtime.logs import log
from antpipe.settings.base import flags_of
from antpipe.settings.ingest import EmbeddingsConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.domain import Domain
from antpipe.store.files import Feature
from antpipe.store.manifest import digest
from antpipe.store.next_command import build_command, spell
from antpipe.store.store import Store

FORMAT = "import embeddings"
EXAMPLES = 20
UNMATCHED = {
    "missing": "items without a row",
    "zeros": "items with a row of zeros",
    "extra": "ids that are not an item",
}
Ints = NDArray[np.int64]


@dataclass
class Joined:
    """What became of the rows.

    target: (R,) the item of each row, -1 if its id is not an item. zeros: rows of zeros, which stand for no vector.
    repeated: how many rows repeat the vector of an item.
    """

    target: Ints
    zeros: list[int] = field(default_factory=list)
    repeated: int = 0


def import_embeddings(
    store: Store, domain: str, path: Path, modality: str, config: EmbeddingsConfig, *, force: bool = False
) -> StageResult:
    """Write MODALITY.arrow, as embed-text or embed-image would, from vectors in files (see `open_vectors`).

    An item without a row, or with one of zeros, is zeros and not present; rows whose id is not an item are left out.
    Both are counted, and listed in MODALITY_unmatched.parquet. If an item has several rows, they must be equal, unless
    they are pictures: then their mean is taken.
    Raises DataError for files that are damaged or contradict themselves, numbers that are not finite in float16, and
    files without any item of the domain; UsageError if something else made the existing vectors (unless `force`);
    PartialError, with the artefact written, below `min_coverage`.
    """
    target, stage = store.domain(domain), f"{FORMAT} --modality {modality}"

    def command(better: Mapping[str, Any]) -> str:
        return spell(stage, domains=[domain], store=store.root, flags=["--path", path, *flags_with(better, config)])

    with advised(FORMAT, command):
        vectors = open_vectors(path, modality, config.ids, config.map)
        for row, one in enumerate(vectors.ids):
            if is_inexact_text(one):
                raise inexact_id(vectors.where(row), None, one)
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
        if not force and target.is_fresh(modality, parameters):
            result = StageResult(domain, modality, "fresh", target.entry(modality)["figures"])
        else:
            if not force:
                require_same_import(target, modality, parameters, command({}))
            details = {
                "encoder": encoder,
                "stage": stage,
                "flags": ["--path", str(path), *flags_of(config)],
                "came_from": {"path": str(path.resolve()), "form": vectors.form, "rows": len(vectors.ids)},
            }
            result = StageResult(domain, modality, "built", _write(target, modality, vectors, parameters, details))
    _require_coverage(target, result, config.min_coverage)
    return result


def join(vectors: GivenVectors, item_ids: Sequence[str]) -> Ints:
    """(R,) the item of each row, -1 if its id is not an item.

    If ids are numbered, ITEM_2 stands for ITEM, unless there is an item ITEM_2.
    """
    row_of = {item_id: row for row, item_id in enumerate(item_ids)}
    target = np.fromiter((row_of.get(one, -1) for one in vectors.ids), np.int64, len(vectors.ids))
    if vectors.numbered:
        for row in np.flatnonzero(target < 0):
            found = re.fullmatch(r"(.+)_[0-9]+", vectors.ids[row], re.DOTALL)
            target[row] = row_of.get(found[1], -1) if found else -1
    return target


def _write(
    domain: Domain,
    modality: str,
    vectors: GivenVectors,
    parameters: Mapping[str, Any],
    details: Mapping[str, Any],
) -> dict[str, Any]:
    with domain.writing(modality, parameters) as out:
        item_ids = domain.item_ids()
        joined = Joined(join(vectors, item_ids))
        if not (joined.target >= 0).any():
            raise DataError(
                f"domain {domain.name}: none of the {len(vectors.ids)} ids of {vectors.files[0][1]} (such as "
                f"{vectors.ids[0]!r}) is one of its {len(item_ids)} items (such as {item_ids[0]!r}); name the ids of "
                "these items with --ids FILE, or those of a table with --map id=COLUMN"
            )
        with out.feature(modality, len(item_ids), vectors.width) as feature:
            if vectors.pictures:
                _fill_means(feature, vectors, joined, out.scratch / ".sums")
            else:
                _fill(feature, vectors, joined)
            present = feature.present.copy()
        if not present.any():
            raise DataError(
                f"{vectors.files[0][1]}: every vector of an item of {domain.name} is zeros; name other vectors with "
                "--path FILE, or those of a table with --map vector=COLUMN"
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
            shown = ", ".join(ids[:3]) + (" …" if len(ids) > 3 else "")
            log.warning(
                f"{domain.name}: {UNMATCHED[why]}: {len(ids)} ({shown}); all in {domain.path / _name(modality)}"
            )
    return figures


def _checked(vectors: GivenVectors, joined: Joined) -> Iterator[tuple[Ints, Ints, NDArray[Any]]]:
    """(rows of the file (n,), items (n,), vectors (n, d)) of rows that count. Raises DataError if one is not finite."""
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


def _fill(feature: Feature, vectors: GivenVectors, joined: Joined) -> None:
    """Each item gets its row; further rows of it must be equal."""
    for rows, items, values in _checked(vectors, joined):
        half = values.astype(np.float16)
        _, first = np.unique(items, return_index=True)
        first = first[~feature.present[items[first]]]
        feature.values[items[first]] = half[first]
        feature.present[items[first]] = True
        joined.repeated += len(items) - len(first)
        other = (feature.values[items] != half).any(axis=1)
        if other.any():
            row = int(rows[np.argmax(other)])
            before = int(np.argmax(joined.target == joined.target[row]))
            raise DataError(
                f"{vectors.where(row)}: {vectors.ids[row]} has another vector than in row {before}, so it is unclear "
                "which one counts"
            )
        feature.release()


def _fill_means(feature: Feature, vectors: GivenVectors, joined: Joined, waiting: Path) -> None:
    """Each item gets the mean of its rows. waiting: a file for the sums of items with several, to keep memory flat."""
    counts = np.bincount(joined.target[joined.target >= 0], minlength=len(feature.present))
    several = np.flatnonzero(counts > 1)
    slot_of = np.zeros(len(counts), np.int64)
    slot_of[several] = np.arange(len(several))
    sums = np.memmap(waiting, np.float32, "w+", shape=(max(len(several), 1), vectors.width))
    met = np.zeros(max(len(several), 1), np.int64)
    for _, items, values in _checked(vectors, joined):
        alone = counts[items] == 1
        feature.values[items[alone]] = values[alone]
        feature.present[items[alone]] = True
        at = slot_of[items[~alone]]
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
    """The ids of UNMATCHED: items without a row, items with zeros, and ids that are not an item (each once)."""
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


def _require_coverage(domain: Domain, result: StageResult, least: float) -> None:
    figures = result.figures
    if figures["present"] < least * figures["items"]:
        raise PartialError(
            f"domain {domain.name}: {result.artefact}.arrow is written, but only {figures['present']} of "
            f"{figures['items']} items ({figures['coverage']:.1%}) have a vector; --min-coverage asks for {least:.1%}",
            build_command(domain, result.artefact),
        )

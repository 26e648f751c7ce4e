"""Stage `import unisrec`: processed data sets of UniSRec, MISSRec and ANT, with their own split and numbering.

A folder with NAME.train.inter, NAME.valid.inter, NAME.test.inter (ingest/layouts/sequences.py) and perhaps
NAME.item2index and NAME.user2index (original id, tab, number; some have a header), NAME.text (item, tab, text) and
feature files (ingest/layouts/features.py). Row i of the domain is the item with the number i.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from antpipe.errors import DataError
from antpipe.features.ingest.advice import advised, flags_with
from antpipe.features.ingest.domain import REJECTS, completed, log_order, write_domain
from antpipe.features.ingest.layouts.features import (
    UNUSED,
    FeatureFile,
    FeatureKind,
    check_feature,
    feature_parameters,
    find_features,
    rows_of_text,
    write_feature,
)
from antpipe.features.ingest.layouts.sequences import (
    PARTS,
    GivenSequences,
    HistoryRows,
    read_history_rows,
    rebuild,
)
from antpipe.features.ingest.layouts.text_files import numbered_lines, read_index
from antpipe.features.ingest.stage import require_same_source
from antpipe.features.ingest.text import clean_html
from antpipe.features.replacing import require_own_vectors
from antpipe.runtime.arrays import within_groups
from antpipe.runtime.logs import log
from antpipe.settings.base import flags_of
from antpipe.settings.ingest import LayoutConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.domain import Domain
from antpipe.store.files import file_sha256
from antpipe.store.next_command import spell
from antpipe.store.order import order_of
from antpipe.store.store import Store

FORMAT = "import unisrec"
MOST_UNMET = 1000  # highest number per distinct item: one wrong digit must not make a catalogue of billions


@dataclass(frozen=True)
class Layout:
    """The files of one data set. others: those that are there, by suffix."""

    folder: Path
    name: str
    inter: tuple[Path, ...]
    others: dict[str, Path]
    features: list[tuple[Path, FeatureKind]]


def import_unisrec(
    store: Store, domain: str, path: Path, config: LayoutConfig, *, force: bool = False
) -> list[StageResult]:
    """Write a data set of this layout as a domain: items, interactions with the given split, and its features.

    Valid and test targets are exactly those of the files. Raises DataError, naming file and line, for anything that is
    not of the layout, histories that contradict each other, indices with gaps, feature files of another size, and
    (unless `force`) a domain of this name from another source; UsageError, unless `force`, if something else made the
    features that are there. The store is then as it was.
    """

    def command(better: Mapping[str, Any]) -> str:
        return spell(FORMAT, domains=[domain], store=store.root, flags=["--path", path, *flags_with(better, config)])

    target = store.new_domain(domain)
    with advised(FORMAT, command):
        layout = find_layout(path, domain)
        parameters = _parameters(layout, config)
        if not force:
            fresh = _fresh(target, layout, config, parameters)
            if fresh:
                return fresh
            require_same_source(target, parameters, str(layout.folder.resolve()), command({}))
            if target.is_fresh("items", parameters):
                require_own_vectors(target, [kind.modality for _, kind in layout.features], command({}))
        rows = read_history_rows(layout.inter)
        ids = item_ids(layout, rows, config)
        sequences = rebuild(rows)
        features = [check_feature(file, kind, len(ids), config.feature_width) for file, kind in layout.features]
        items = completed(pl.DataFrame({"item_id": ids, "text": read_texts(layout, ids)}))
        interactions = _interactions(layout, rows, sequences, ids)
    if (layout.folder / f"{layout.name}{UNUSED}").exists():
        log.info(f"{layout.name}{UNUSED}: not read, it holds the same texts with words left out")
    if sequences.cut:
        log.warning(f"{layout.name}: {sequences.cut} user(s) may have begun earlier than the longest history shows")
    report = _report(layout, rows, sequences)
    statistics = write_domain(
        target,
        parameters=parameters,
        items=items,
        interactions=interactions,
        rejects=REJECTS.to_frame(),
        report=report,
        flags=["--path", str(path), *flags_of(config)],
        keep_order=True,
    )
    built = StageResult(domain, "items", "built", statistics | report["targets"])
    return [built, *(write_feature(target, file, config.encoder) for file in features)]


def find_layout(path: Path, domain: str) -> Layout:
    """The files of a folder, or of the folder DOMAIN in it. Raises DataError unless there is exactly one data set."""
    suffix = f".{PARTS[0]}.inter"
    folder = path if any(path.glob(f"*{suffix}")) else path / domain
    if not path.is_dir():
        raise DataError(f"--path {path}: no such folder")
    names = sorted(file.name.removesuffix(suffix) for file in folder.glob(f"*{suffix}"))
    if domain in names:
        names = [domain]
    if len(names) != 1:
        raise DataError(f"{folder}: expected one file NAME{suffix}; there: {', '.join(names) or 'none'}")
    [name] = names
    inter = tuple(folder / f"{name}.{part}.inter" for part in PARTS)
    for file in inter:
        if not file.is_file():
            raise DataError(f"{file}: missing; a data set of this layout has {', '.join(one.name for one in inter)}")
    known = {suffix: folder / f"{name}.{suffix}" for suffix in ("item2index", "user2index", "text")}
    others = {suffix: file for suffix, file in known.items() if file.is_file()}
    return Layout(folder, name, inter, others, find_features(folder, name))


def item_ids(layout: Layout, rows: HistoryRows, config: LayoutConfig) -> list[str]:
    """The N original ids in the order of their numbers; the numbers themselves if there is no item2index.

    Raises DataError if a row names an item beyond them.
    """
    met = np.concatenate([rows.items, rows.target])
    highest = int(met.max())
    if "item2index" in layout.others:
        ids = read_index(layout.others["item2index"])
    else:
        count = rows_of_text(layout.features, config.feature_width) or highest + 1
        if count > MOST_UNMET * len(np.unique(met)) + MOST_UNMET:
            first = int(np.argmax(np.maximum(rows.target, _highest_of_histories(rows))))
            raise DataError(
                f"{rows.where(first)}: an item has the number {highest}, but only {len(np.unique(met))} items are met; "
                f"without {layout.name}.item2index, that is not the numbering of a catalogue"
            )
        ids = [str(number) for number in range(count)]
    if highest >= len(ids) or met.min() < 0:
        wrong = (rows.target >= len(ids)) | (rows.target < 0)
        first = int(np.argmax(wrong)) if wrong.any() else _row_of_bad_history(rows, len(ids))
        raise DataError(f"{rows.where(first)}: an item is not one of the numbers 0 to {len(ids) - 1}")
    return ids


def _highest_of_histories(rows: HistoryRows) -> NDArray[np.int32]:
    """(R,) the highest item of each row's history, -1 if it has none."""
    highest = np.full(len(rows.target), -1, np.int32)
    filled = np.flatnonzero(np.diff(rows.starts))
    highest[filled] = np.maximum.reduceat(rows.items, rows.starts[filled]) if len(filled) else -1
    return highest


def _parameters(layout: Layout, config: LayoutConfig) -> dict[str, Any]:
    """What the fingerprint of the items covers; of feature files, only sizes, which may tell the number of items."""
    return {
        "format": FORMAT,
        "files": [file_sha256(file) for file in (*layout.inter, *layout.others.values())],
        "features": [[file.name, file.stat().st_size] for file, _ in layout.features],
        "feature_width": config.feature_width,
    }


def _row_of_bad_history(rows: HistoryRows, count: int) -> int:
    at = int(np.argmax((rows.items >= count) | (rows.items < 0)))
    return int(np.searchsorted(rows.starts, at, side="right")) - 1


def read_texts(layout: Layout, ids: list[str]) -> list[str]:
    """N clean texts, '' for items without. The file names items by their original ids, or by their numbers."""
    texts = [""] * len(ids)
    path = layout.others.get("text")
    if path is None:
        return texts
    row_of = {item_id: row for row, item_id in enumerate(ids)}
    for at, line in numbered_lines(path):
        item, tab, text = line.partition("\t")
        row = row_of.get(item)
        if row is None and at == 1 and (item.endswith(":token") or item == "item_id"):
            continue  # a header
        if not tab or row is None:
            raise DataError(f"{path}:{at}: {line[:80]!r} is not an item of {layout.name}, a tab and its text")
        texts[row] = texts[row] or clean_html(text)
    return texts


def _interactions(layout: Layout, rows: HistoryRows, sequences: GivenSequences, ids: list[str]) -> pl.DataFrame:
    """INTERACTIONS with the given split. Timestamps are positions. Users that have numbers are in that order."""
    names = np.asarray(rows.users, object)
    order = np.arange(len(names))
    if "user2index" in layout.others:
        originals = read_index(layout.others["user2index"])
        for number, token in enumerate(rows.users):
            if not token.isdecimal() or int(token) >= len(originals):
                first = int(np.argmax(rows.user == number))
                raise DataError(f"{rows.where(first)}: not a number of {layout.others['user2index'].name}")
            names[number] = originals[int(token)]
        if len(set(names)) < len(names):
            raise DataError(f"{layout.inter[0]}: the number of a user is written in two ways (01 and 1)")
    if all(token.isdecimal() for token in rows.users):
        order = np.asarray([int(token) for token in rows.users])
    starts = np.flatnonzero(np.diff(sequences.user, prepend=-1))
    position = within_groups(np.diff(np.append(starts, len(sequences.user))))
    frame = pl.DataFrame(
        {
            "order": order[sequences.user],
            "user_id": pl.Series(names.tolist(), dtype=pl.String).gather(sequences.user),
            "item_id": pl.Series(ids, dtype=pl.String).gather(sequences.item),
            "timestamp": position,
            "split": sequences.part,
        }
    )
    return frame.sort("order", "timestamp").with_columns(pl.lit(None, dtype=pl.Float32).alias("rating"))


def _report(layout: Layout, rows: HistoryRows, sequences: GivenSequences) -> dict[str, Any]:
    first = np.diff(sequences.user, prepend=-1) != 0
    targets = {part: int(((sequences.part == number) & ~first).sum()) for number, part in enumerate(PARTS)}
    lines = {path.name: int((rows.part == number).sum()) for number, path in enumerate(layout.inter)}
    return {
        "folder": str(layout.folder.resolve()),
        "time_unit": "order",
        "lines": lines,
        "targets": targets,
        "users_cut": sequences.cut,
    }


def _fresh(target: Domain, layout: Layout, config: LayoutConfig, parameters: dict[str, Any]) -> list[StageResult]:
    """The results of an import that is there already; empty if anything is missing or differs."""
    if not target.is_fresh("items", parameters):
        return []
    entry = target.entry("items")
    results = [StageResult(target.name, "items", "fresh", entry["statistics"] | entry["report"]["targets"])]
    for path, kind in layout.features:
        file = FeatureFile(path, kind, 0, 0, file_sha256(path))
        if not target.is_fresh(kind.modality, feature_parameters(file, config.encoder)):
            return []
        results.append(StageResult(target.name, kind.modality, "fresh", target.entry(kind.modality)["figures"]))
    log_order(target, order_of(target))
    return results

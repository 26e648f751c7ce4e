"""Import of processed data sets of UniSRec, MISSRec and ANT, with their own split and numbering.

A folder with NAME.train.inter, NAME.valid.inter, NAME.test.inter (layout_sequences.py) and, where they are there,
NAME.item2index and NAME.user2index (original id, tab, number; some have a header), NAME.text (item, tab, text) and
feature files (layout_features.py). Row i of the domain is the item with the number i.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from antpipe.errors import DataError
from antpipe.features.ingest.domain import ITEMS, REJECTS, require_same_source, write_domain
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
    read_lines,
    rebuild,
)
from antpipe.features.ingest.text import clean_html
from antpipe.runtime.arrays import within_groups
from antpipe.settings.base import flags_of
from antpipe.settings.ingest import LayoutConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.domain import Domain
from antpipe.store.files import file_sha256
from antpipe.store.store import Store

FORMAT = "import unisrec"
MOST_UNMET = 1000  # numbers for each item met: one wrong digit must not make a catalogue of billions


@dataclass(frozen=True)
class Layout:
    """The files of one data set. others: by suffix, as far as they are there."""

    folder: Path
    name: str
    inter: tuple[Path, ...]
    others: dict[str, Path]
    features: list[tuple[Path, FeatureKind]]


def import_unisrec(
    store: Store,
    domain: str,
    path: Path,
    config: LayoutConfig,
    *,
    force: bool = False,
    announce: Callable[[str], None],
) -> list[StageResult]:
    """Write a data set of this layout as a domain: items, interactions with the given split, and its features.

    Targets of valid and test are exactly those of the files. Raises DataError, naming file and line, for anything
    that is not of the layout, histories that contradict each other, indices with gaps, feature files of another
    size, and a domain of this name from another source (unless `force`). The store is then as it was.
    """
    target = store.new_domain(domain)
    layout = find_layout(path, domain)
    command = ["antpipe", *FORMAT.split(), "--path", str(path), "--domains", domain, "--store", str(store.root)]
    parameters = _parameters(layout, config)
    if not force:
        fresh = _fresh(target, layout, config, parameters)
        if fresh:
            return fresh
        require_same_source(target, parameters, str(layout.folder.resolve()), shlex.join([*command, *flags_of(config)]))
    if (layout.folder / f"{layout.name}{UNUSED}").exists():
        announce(f"{layout.name}{UNUSED}: not read, it holds the same texts with words left out")
    rows = read_history_rows(layout.inter)
    ids = item_ids(layout, rows, config)
    sequences = rebuild(rows)
    features = [check_feature(file, kind, len(ids), config.feature_width) for file, kind in layout.features]
    report = _report(layout, rows, sequences)
    if sequences.cut:
        announce(f"{layout.name}: {sequences.cut} user(s) may have begun earlier than the longest history shows")
    statistics = write_domain(
        target,
        parameters=parameters,
        items=_items(ids, read_texts(layout, ids)),
        interactions=_interactions(layout, rows, sequences, ids),
        rejects=REJECTS.to_frame(),
        report=report,
        flags=["--path", str(path), *flags_of(config)],
        keep_order=True,
    )
    built = StageResult(domain, "items", "built", statistics | report["targets"])
    return [built, *(write_feature(target, file, config.encoder) for file in features)]


def find_layout(path: Path, domain: str) -> Layout:
    """The files of a folder, or of the folder DOMAIN in it. DataError where there is not exactly one data set."""
    suffix = f".{PARTS[0]}.inter"
    folder = path if any(path.glob(f"*{suffix}")) else path / domain
    if not path.is_dir():
        raise DataError(f"--path {path}: no such folder")
    names = sorted(file.name.removesuffix(suffix) for file in folder.glob(f"*{suffix}"))
    if domain in names:
        names = [domain]
    if len(names) != 1:
        raise DataError(f"{folder}: one file NAME{suffix} is expected; there: {', '.join(names) or 'none'}")
    [name] = names
    inter = tuple(folder / f"{name}.{part}.inter" for part in PARTS)
    for file in inter:
        if not file.is_file():
            raise DataError(f"{file}: missing; a data set of this layout has {', '.join(one.name for one in inter)}")
    known = {suffix: folder / f"{name}.{suffix}" for suffix in ("item2index", "user2index", "text")}
    others = {suffix: file for suffix, file in known.items() if file.is_file()}
    return Layout(folder, name, inter, others, find_features(folder, name))


def item_ids(layout: Layout, rows: HistoryRows, config: LayoutConfig) -> list[str]:
    """N original ids in the order of their numbers; the numbers themselves where there is no item2index.

    DataError where a row names an item beyond them.
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
                f"{rows.where(first)}: an item has the number {highest}, but only {len(np.unique(met))} items are met: "
                f"that is no numbering of a catalogue, unless {layout.name}.item2index shows it"
            )
        ids = [str(number) for number in range(count)]
    if highest >= len(ids) or met.min() < 0:
        wrong = (rows.target >= len(ids)) | (rows.target < 0)
        first = int(np.argmax(wrong)) if wrong.any() else _row_of_bad_history(rows, len(ids))
        raise DataError(f"{rows.where(first)}: an item is not one of the numbers 0 to {len(ids) - 1}")
    return ids


def _highest_of_histories(rows: HistoryRows) -> NDArray[np.int32]:
    """(R,) the highest item of each row's history, -1 where it has none."""
    highest = np.full(len(rows.target), -1, np.int32)
    filled = np.flatnonzero(np.diff(rows.starts))
    highest[filled] = np.maximum.reduceat(rows.items, rows.starts[filled]) if len(filled) else -1
    return highest


def _parameters(layout: Layout, config: LayoutConfig) -> dict[str, Any]:
    """What the fingerprint of the items covers. Of feature files only the sizes: they may tell how many items are."""
    return {
        "format": FORMAT,
        "files": [file_sha256(file) for file in (*layout.inter, *layout.others.values())],
        "features": [[file.name, file.stat().st_size] for file, _ in layout.features],
        "feature_width": config.feature_width,
    }


def _row_of_bad_history(rows: HistoryRows, count: int) -> int:
    place = int(np.argmax((rows.items >= count) | (rows.items < 0)))
    return int(np.searchsorted(rows.starts, place, side="right")) - 1


def read_index(path: Path) -> list[str]:
    """Original ids by number: lines of id, tab, number. DataError unless the numbers are 0 to N - 1, each once, and
    the ids are different."""
    numbers: dict[int, str] = {}
    ids: set[str] = set()
    for at, text in read_lines(path):
        name, _, number = text.rpartition("\t")
        if at == 1 and not number.isdecimal():
            continue  # a header
        if not name.strip() or not number.isdecimal():
            raise DataError(f"{path}:{at}: {text[:80]!r} is not an id, a tab and a number")
        if int(number) in numbers or name in ids:
            raise DataError(f"{path}:{at}: {name!r} or its number {number} is there twice")
        numbers[int(number)] = name
        ids.add(name)
    missing = next((number for number in range(len(numbers)) if number not in numbers), None)
    if missing is not None or not numbers:
        raise DataError(f"{path}: {len(numbers)} ids, but none has the number {missing or 0}")
    return [numbers[number] for number in range(len(numbers))]


def read_texts(layout: Layout, ids: list[str]) -> list[str]:
    """N clean texts, empty where the file has none. Items go by their original id, or by their number."""
    texts = [""] * len(ids)
    path = layout.others.get("text")
    if path is None:
        return texts
    row_of = {item_id: row for row, item_id in enumerate(ids)}
    for at, line in read_lines(path):
        item, tab, text = line.partition("\t")
        row = row_of.get(item)
        if row is None and at == 1 and (item.endswith(":token") or item == "item_id"):
            continue  # a header
        if not tab or row is None:
            raise DataError(f"{path}:{at}: {line[:80]!r} is not an item of {layout.name}, a tab and its text")
        texts[row] = texts[row] or clean_html(text)
    return texts


def _items(ids: list[str], texts: list[str]) -> pl.DataFrame:
    frame = pl.DataFrame({"item_id": ids, "text": texts})
    empty = [pl.lit([], dtype=ITEMS[name]).alias(name) for name in ("category", "image_urls", "image_files")]
    missing = [pl.lit(None, dtype=ITEMS[name]).alias(name) for name in ("title", "price", "currency")]
    return frame.with_columns(*empty, *missing)


def _interactions(layout: Layout, rows: HistoryRows, sequences: GivenSequences, ids: list[str]) -> pl.DataFrame:
    """INTERACTIONS and the given split; a timestamp is a position. Users with a number go in its order."""
    names = np.asarray(rows.users, object)
    places = np.arange(len(names))
    if "user2index" in layout.others:
        originals = read_index(layout.others["user2index"])
        for number, token in enumerate(rows.users):
            if not token.isdecimal() or int(token) >= len(originals):
                first = int(np.argmax(rows.user == number))
                raise DataError(f"{rows.where(first)}: not a number of {layout.others['user2index'].name}")
            names[number] = originals[int(token)]
        if len(set(names)) < len(names):
            raise DataError(f"{layout.inter[0]}: users are written in two ways (01 and 1)")
    if all(token.isdecimal() for token in rows.users):
        places = np.asarray([int(token) for token in rows.users])
    starts = np.flatnonzero(np.diff(sequences.user, prepend=-1))
    position = within_groups(np.diff(np.append(starts, len(sequences.user))))
    frame = pl.DataFrame(
        {
            "place": places[sequences.user],
            "user_id": pl.Series(names.tolist(), dtype=pl.String).gather(sequences.user),
            "item_id": pl.Series(ids, dtype=pl.String).gather(sequences.item),
            "timestamp": position,
            "split": sequences.part,
        }
    )
    return frame.sort("place", "timestamp").with_columns(pl.lit(None, dtype=pl.Float32).alias("rating"))


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
    """The results of an import that is there already; empty where anything is missing or another."""
    if not target.is_fresh("items", parameters):
        return []
    entry = target.entry("items")
    results = [StageResult(target.name, "items", "fresh", entry["statistics"] | entry["report"]["targets"])]
    for path, kind in layout.features:
        file = FeatureFile(path, kind, 0, 0, file_sha256(path))
        if not target.is_fresh(kind.modality, feature_parameters(file, config.encoder)):
            return []
        results.append(StageResult(target.name, kind.modality, "fresh", target.entry(kind.modality)["figures"]))
    return results

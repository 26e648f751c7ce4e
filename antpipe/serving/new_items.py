"""Products that the store does not have yet, described by the encoders of a domain and offered among its items.

`read_new_items` reads a file as `ingest table` would; `describe_new_items` makes the features that a run reads;
`with_new_items` adds them to an opened run. Nothing is written to the store, and the opened run stays as it is.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.sparse import csr_array, hstack

from antpipe.core.catalogue import Catalogue
from antpipe.core.floor import items_with_floor
from antpipe.core.scoring import catalogue_vectors, unit_rows
from antpipe.core.untrained import Floats, Untrained, log_counts, typical_of, unit
from antpipe.core.words import neighbours_in
from antpipe.errors import DataError, SameCommand
from antpipe.evaluation.served import with_ids
from antpipe.evaluation.vectors import OpenRun
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.table.columns import ITEM_ROLES, Columns, choose_columns
from antpipe.features.ingest.table.files import open_table, read_rows
from antpipe.features.ingest.table.rows import read_items
from antpipe.features.ingest.table.values import to_id
from antpipe.features.recorded import Describer, describe_with, describers_like
from antpipe.features.subset import drawn_from
from antpipe.settings.ingest import IngestConfig, TableConfig
from antpipe.store.domain import Domain
from antpipe.store.files import Feature
from antpipe.store.store import Store
from antpipe.training import checkpoint

NEW = "new items"  # stands for them among the domains of a catalogue
JSON = (".json", ".jsonl", ".ndjson")
EXAMPLES = 3
WITHOUT = SameCommand(without=("--new-items",))


@dataclass(frozen=True)
class NewItems:
    """rows: n items with the columns of ITEMS. features: (n, d) by modality, as a run reads them."""

    rows: pl.DataFrame
    features: dict[str, Feature]


def read_new_items(path: Path, domain: Domain) -> pl.DataFrame:
    """The items of a CSV, Parquet, Arrow, JSON or JSON Lines file, with the columns of ITEMS, in file order.

    Columns are found by the names that they had when the domain was ingested, else by their usual names. Texts are made
    of the same parts as the domain's, and categories are split at the same separator. Paths of pictures are relative to
    the folder of the file. Raises DataError for a file that cannot be read, a malformed row, or an id that occurs
    twice.
    """
    reads, made = path, None
    with tempfile.TemporaryDirectory(prefix="antpipe-items-") as folder:
        try:
            if path.suffix.lower() in JSON and path.is_file():
                reads = made = _as_parquet(path, Path(folder) / f"{path.stem}.parquet")
            return _read(reads, domain, path.resolve().parent)
        except DataError as error:
            message = error.message.removeprefix(f"{path}: ").removeprefix(f"{made}: ").removeprefix(f"{made}:")
            raise DataError(f"--new-items {path}: {message}", WITHOUT) from None


def rows_of_new_items(items: Sequence[Mapping[str, Any]], domain: Domain) -> pl.DataFrame:
    """The same for items given as names and values, without pictures. Raises DataError as `read_new_items`."""
    with tempfile.TemporaryDirectory(prefix="antpipe-items-") as folder:
        path = Path(folder) / "items.json"
        path.write_text(json.dumps([dict(item) for item in items]), encoding="utf-8")
        try:
            return read_new_items(path, domain)
        except DataError as error:
            raise DataError(error.message.replace(f"--new-items {path}", "--new-items")) from None


def describe_new_items(store: Store, opened: OpenRun, rows: pl.DataFrame) -> NewItems:
    """The features of new items that an opened run reads. rows: with the columns of ITEMS.

    Raises DataError, naming items, if the domain has one of these ids or if one has nothing that the run reads, and if
    the encoders of the domain are not available.
    """
    require_new(opened, rows, opened.domain.item_ids())
    return described_by(opened, rows, describers_for(store, opened))


def describers_for(store: Store, opened: OpenRun, *, pictures: bool = True) -> dict[str, Describer]:
    """What makes the features of new items that an opened run reads (features/recorded.py). pictures: False leaves them
    out, so that no encoder of pictures is needed."""
    whitened = checkpoint.describe(opened.run).whitened()
    reads = [name for name in opened.model.widths if pictures or name != "image"]
    return describers_like(store, opened.domain.name, reads, whitened)


def require_new(opened: OpenRun, rows: pl.DataFrame, ids: Sequence[str]) -> None:
    """Raises DataError if one of the rows is an item that the run, or a catalogue with these ids, has."""
    known = sorted({*ids, *opened.item_ids} & set(rows["item_id"]))
    if known:
        raise DataError(
            f"--new-items: {opened.domain.name} has {_some(known)} already; ingest the changed catalogue instead",
            WITHOUT,
        )


def described_by(opened: OpenRun, rows: pl.DataFrame, describers: Mapping[str, Describer]) -> NewItems:
    """New items with the features that describers make. Raises DataError, naming items, if one has nothing that the run
    reads."""
    features = describe_with(describers, rows)
    words = opened.reads_words
    told = (rows["text"].fill_null("") != "").to_numpy()
    there = told if words else np.zeros(len(rows), np.bool_)
    for feature in features.values():
        there |= feature.present
    if not there.all():
        bare = rows["item_id"].filter(pl.Series(~there)).to_list()
        what = (
            " or ".join([*features, *(["words"] if words else [])])
            or "nothing: it knows items by their ids only, or their vectors were imported"
        )
        raise DataError(f"--new-items: {_some(bare)}: nothing to go by; this run reads {what}", WITHOUT)
    return NewItems(rows, features)


def with_new_items(opened: OpenRun, new: NewItems) -> OpenRun:
    """A copy of an opened run that also offers new items, in rows after those of its domain. They have no learned id,
    the novelty and popularity of an item that nobody bought, and the transitions of items that share their words."""
    import torch

    before, n = len(opened.items), len(new.rows)
    catalogue = _joined(opened.catalogue, new)
    model = opened.model
    if model.ids is not None:
        model = with_ids(model, np.append(np.arange(before), np.full(n, -1)))
    encoded = catalogue_vectors(model, catalogue, NEW, torch.device("cpu"))
    width, known = encoded.shape[1], opened.known
    items = np.vstack([opened.items[:, :width], unit_rows(encoded.clone())])
    if known is not None:
        texts = unit(catalogue.gather(catalogue.rows(NEW), "text", known.texts.shape[1])[0])
        words = neighbours_in(opened.word_index, before, new.rows["text"].to_list())
        known = with_rows(known, texts, words)
        items = items_with_floor(model, items, known)
    return replace(
        opened,
        item_ids=[*opened.item_ids, *new.rows["item_id"]],
        model=model,
        encoded=torch.cat([opened.encoded, encoded]),
        items=items,
        catalogue=catalogue,
        known=known,
        extra=new.rows if opened.extra is None else pl.concat([opened.extra, new.rows]),
    )


def with_rows(known: Untrained, texts: Floats, words: csr_array) -> Untrained:
    """What is known of N items and n new ones after them, which have these texts (n, d). words: (N + n, N + n). Nothing
    changes among the N items."""
    before, sold = len(known.sold), np.append(known.sold, np.zeros(len(texts), np.int64))
    steps, counts = known.steps.copy(), known.counts.copy()
    steps.resize((len(sold), before))
    counts.resize((len(sold), len(sold)))
    steps = csr_array(hstack([steps, log_counts(counts, words, sold == 0, before)], format="csr"))
    typical = np.append(known.typical, typical_of(texts, known.middle))
    return Untrained(np.vstack([known.texts, texts]), words, steps, sold, counts, known.middle, typical)


def _joined(catalogue: Catalogue, new: NewItems) -> Catalogue:
    """A catalogue with new items as one more domain, NEW, after its own."""
    size = int(catalogue.offsets[-1]) + len(new.rows)
    features = {name: (*column, new.features.get(name)) for name, column in catalogue.features.items()}
    return replace(
        catalogue,
        domains=(*catalogue.domains, NEW),
        offsets=np.append(catalogue.offsets, size),
        features=features,
    )


def _read(path: Path, domain: Domain, pictures: Path) -> pl.DataFrame:
    """pictures: the folder where paths of pictures start."""
    made_from = _ingested_with(domain)
    table = open_table(path, None)
    roles = made_from.get("columns", {}).get("items", {})
    wanted = {role: names for role, names in roles.items() if set(names) <= set(table.columns)}
    columns = choose_columns(table, ITEM_ROLES, wanted, ("item",))
    _require_distinct(columns)
    fields = tuple(made_from.get("text_fields", IngestConfig.text_fields))
    config = TableConfig(category_separator=made_from.get("category_separator"))
    return read_items(columns, fields, Rejects(0), config, folder=pictures).table


def _ingested_with(domain: Domain) -> dict[str, Any]:
    """The recorded parameters of a domain's ingest; for a subset, those of the domain that it was drawn from."""
    whole = Domain(domain.root, drawn_from(Store(domain.root), domain.name))
    parameters: dict[str, Any] = whole.manifest().get("items", {}).get("parameters", {})
    return parameters


def _require_distinct(columns: Columns) -> None:
    """Raises DataError if an id occurs twice: it is unclear which row describes the item."""
    names = columns.roles["item"]
    rows = read_rows(columns.table, names, Rejects(0), ids=names)
    counts = Counter(to_id(row.values[0], "item") for row in rows if row.values[0] not in (None, ""))
    twice = [item for item, count in counts.items() if count > 1]
    if twice:
        raise DataError(f"{columns.table.path}: {_some(twice)} listed more than once")


def _as_parquet(path: Path, out: Path) -> Path:
    """A JSON file as the Parquet file `out`."""
    try:
        if path.suffix.lower() == ".json":
            frame = pl.read_json(path, infer_schema_length=None)
        else:
            frame = pl.read_ndjson(path, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: not a JSON list of items, or one item per line: {reason}") from None
    frame.write_parquet(out)
    return out


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - EXAMPLES} more" if len(ids) > EXAMPLES else ""
    return f"{'item' if len(ids) == 1 else 'items'} {', '.join(map(repr, ids[:EXAMPLES]))}{more}"

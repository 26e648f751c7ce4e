"""Products that are in no store yet, described by the encoders of a domain and offered among its items.

`read_new_items` reads a file as `ingest table` would; `describe_new_items` makes the features that a run reads;
`with_new_items` adds them to an opened run. Nothing is written to the store.
"""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.sparse import csr_array

from antpipe.core.catalogue import Catalogue
from antpipe.core.floor import items_with_floor
from antpipe.core.ranking import catalogue_vectors, unit_rows
from antpipe.core.untrained import Untrained, unit
from antpipe.core.words import word_neighbours
from antpipe.errors import DataError, SameCommand
from antpipe.evaluation.served import give_ids
from antpipe.evaluation.vectors import OpenRun
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.table.columns import ITEM_ROLES, Columns, choose_columns
from antpipe.features.ingest.table.files import open_table, read_rows
from antpipe.features.ingest.table.rows import read_items
from antpipe.features.ingest.table.values import to_id
from antpipe.features.recorded import features_like
from antpipe.settings.ingest import IngestConfig, TableConfig
from antpipe.store.domain import Domain
from antpipe.store.files import Feature
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.run import words_read_by

NEW = "new items"  # their place in a catalogue, beside its domain
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

    Columns are those of the same names that made the domain, else they are found by their usual names; texts are made
    of the same parts as the domain's. Paths of pictures start at the folder of the file. Raises DataError for a file
    that cannot be read, a malformed row, or an id that is there twice.
    """
    try:
        if path.suffix.lower() not in JSON or not path.is_file():
            return _read(path, domain)
        with tempfile.TemporaryDirectory(prefix="antpipe-items-") as folder:
            return _read(_as_parquet(path, Path(folder)), domain, path.resolve().parent)
    except DataError as error:
        raise DataError(f"--new-items {path}: {error.message.removeprefix(f'{path}: ')}", WITHOUT) from None


def describe_new_items(store: Store, opened: OpenRun, rows: pl.DataFrame) -> NewItems:
    """The features of new items that an opened run reads. rows: with the columns of ITEMS.

    Raises DataError, naming items, if the domain has one of these ids or if one has nothing that the run reads, and if
    the encoders of the domain are not available.
    """
    name, reads = opened.domain.name, list(opened.model.widths)
    known = sorted({*opened.domain.item_ids(), *opened.item_ids} & set(rows["item_id"]))
    if known:
        raise DataError(
            f"--new-items: {name} has {_some(known)} already; ingest the changed catalogue instead", WITHOUT
        )
    described = checkpoint.describe(opened.run)
    features = features_like(store, name, rows, reads, described.whitened())
    words = words_read_by(described)
    there = rows["text"].is_not_null().to_numpy() if words else np.zeros(len(rows), np.bool_)
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
    """An opened run that also offers new items: rows after those of its domain. They have no learned id, no transitions
    and the novelty of an item that nobody bought."""
    import torch

    before, n = len(opened.items), len(new.rows)
    catalogue = _joined(opened.catalogue, new)
    model = opened.model
    if model.ids is not None:
        give_ids(model, np.append(np.arange(before), np.full(n, -1)))
    encoded = catalogue_vectors(model, catalogue, NEW, torch.device("cpu"))
    items, known = unit_rows(encoded.clone()), opened.known
    if known is not None:
        texts = catalogue.gather(catalogue.rows(NEW), "text", known.texts.shape[1])[0]
        nothing = csr_array((n, n))
        own = Untrained(unit(texts), nothing, nothing, np.ones(n, np.bool_))
        items = items_with_floor(model, items, own)
        steps = known.steps.copy()
        steps.resize((before + n, before + n))
        words = _words_with(opened, new)
        known = Untrained(np.vstack([known.texts, own.texts]), words, steps, np.append(known.new, own.new))
    return replace(
        opened,
        item_ids=[*opened.item_ids, *new.rows["item_id"]],
        encoded=torch.cat([opened.encoded, encoded]),
        items=np.vstack([opened.items, items]),
        catalogue=catalogue,
        known=known,
        extra=new.rows if opened.extra is None else pl.concat([opened.extra, new.rows]),
    )


def _words_with(opened: OpenRun, new: NewItems) -> csr_array:
    """The word neighbours of all items, new ones last; none if the run reads none."""
    if not words_read_by(checkpoint.describe(opened.run)):
        size = len(opened.items) + len(new.rows)
        return csr_array((size, size))
    return word_neighbours(opened.describing(["text"])["text"].to_list(), new.rows["text"].to_list())


def _joined(catalogue: Catalogue, new: NewItems) -> Catalogue:
    """A catalogue with new items as one more place after its domain."""
    size = int(catalogue.offsets[-1]) + len(new.rows)
    features = {name: (*column, new.features.get(name)) for name, column in catalogue.features.items()}
    return replace(
        catalogue,
        domains=(*catalogue.domains, NEW),
        offsets=np.append(catalogue.offsets, size),
        features=features,
    )


def _read(path: Path, domain: Domain, pictures: Path | None = None) -> pl.DataFrame:
    made_from: dict[str, Any] = domain.manifest().get("items", {}).get("parameters", {})
    table = open_table(path, None)
    roles = made_from.get("columns", {}).get("items", {})
    wanted = {role: names for role, names in roles.items() if set(names) <= set(table.columns)}
    columns = choose_columns(table, ITEM_ROLES, wanted, ("item",))
    _require_distinct(columns)
    fields = tuple(made_from.get("text_fields", IngestConfig.text_fields))
    return read_items(columns, fields, Rejects(0), TableConfig(), folder=pictures).table


def _require_distinct(columns: Columns) -> None:
    """Raises DataError if an id is there twice: which of two rows describes the item?"""
    names = columns.roles["item"]
    rows = read_rows(columns.table, names, Rejects(0), ids=names)
    counts = Counter(to_id(row.values[0], "item") for row in rows if row.values[0] not in (None, ""))
    twice = [item for item, count in counts.items() if count > 1]
    if twice:
        raise DataError(f"{columns.table.path}: {_some(twice)} is there more than once")


def _as_parquet(path: Path, folder: Path) -> Path:
    """A JSON file as Parquet, with the paths of its pictures made absolute."""
    try:
        if path.suffix.lower() == ".json":
            frame = pl.read_json(path, infer_schema_length=None)
        else:
            frame = pl.read_ndjson(path, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: not a JSON list of items, or one item per line: {reason}") from None
    out = folder / f"{path.stem}.parquet"
    frame.write_parquet(out)
    for name in choose_columns(open_table(out, None), ITEM_ROLES, {}, ("item",)).roles.get("image", []):
        if frame.schema[name] == pl.String:
            local = ~pl.col(name).str.contains("^(?i)https?://")
            absolute = pl.lit(f"{path.resolve().parent}/") + pl.col(name)
            frame = frame.with_columns(
                pl.when(local & (pl.col(name) != "")).then(absolute).otherwise(pl.col(name)).alias(name)
            )
    frame.write_parquet(out)
    return out


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - EXAMPLES} more" if len(ids) > EXAMPLES else ""
    return f"{'item' if len(ids) == 1 else 'items'} {', '.join(map(repr, ids[:EXAMPLES]))}{more}"

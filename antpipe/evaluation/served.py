"""A run opened for serving: with the whole catalogue of a domain as it is now, however it changed since training.

Evaluation judges a run on the data it was made for, so `open_run` refuses a domain that changed. Serving needs today's
catalogue: cold items and new ones are described by their content, and known items keep their learned ids.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from antpipe.core.catalogue import Catalogue, Ints
from antpipe.errors import DataError
from antpipe.evaluation.slices import training_counts
from antpipe.runtime.logs import log
from antpipe.store.store import Store
from antpipe.store.tables import read_table
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.folder import TRAIN_AGAIN, RunFolder
from antpipe.training.opening import changes, open_run, readable, seen_by, train_again, words_read_by

if TYPE_CHECKING:
    from antpipe.core.model import Ant

ITEM_COLUMNS = {"domain": "string", "item_id": "string", "trained": "bool"}


def open_served(store: Store, run: Path, domain: str) -> tuple["Ant", Checkpoint, Catalogue]:
    """A run's model, and the catalogue of one domain with all of its items.

    The rows of learned ids are those of this catalogue: zeros for an item that did not occur in training, so that only
    its content counts. Logs what changed since the run was trained. Raises DataError if the features come from other
    encoders, or if the run has learned ids and does not know to which items of a changed catalogue they belong. A run
    that knows items by their ids only serves the items and the data it was trained on.
    """
    described = checkpoint.describe(run)
    if not described.modalities and not words_read_by(described):
        return open_run(store, run, domain)
    changed = changes(store, run, described, domain)
    try:
        catalogue = readable(store, run, described, [domain], with_cold=True)
    except DataError as error:
        if not changed:
            raise
        why = f"{changed[0]} of {domain} changed since {run} was trained on it: {error.message}"
        raise DataError(why, train_again(store, run, described)) from None
    model, described = checkpoint.load(run)
    ids = store.domain(domain).item_ids()
    rows = read_items(run, described, domain)
    if rows is None and not changed and model.ids is not None:
        rows = _rows_of(store, described, domain, ids)
    if rows is None and model.ids is not None:
        raise DataError(
            f"{', '.join(changed or described.domains)} changed since {run} was trained, and the run does not say "
            "to which items its learned ids belong",
            train_again(store, run, described),
        )
    if changed:
        log.info(f"{domain} changed since {run} was trained on it ({', '.join(changed)}){_difference(rows, ids)}")
    if model.ids is not None and rows is not None:
        model = with_ids(model, np.array([rows.get(item, -1) for item in ids], np.int64))
    return model, described, catalogue


def read_items(run: Path, described: Checkpoint, domain: str) -> dict[str, int] | None:
    """The rows, in the catalogue that a run was trained on, of a domain's items by original id: -1 for an item that did
    not occur in training, whose id has only learned not to be the next item. None if the run does not say."""
    path = RunFolder(run).items(described.id_tables)
    if domain not in described.id_tables or not path.exists():
        return None
    columns = read_table(path, ITEM_COLUMNS, TRAIN_AGAIN).to_pydict().values()
    rows = enumerate(zip(*columns, strict=True))
    return {item: row if trained else -1 for row, (of, item, trained) in rows if of == domain}


def with_ids(model: "Ant", rows: Ints) -> "Ant":
    """A model that shares the weights of this one but has ids for N other items: the vectors of these rows (N,), zeros
    for -1."""
    import torch

    assert model.ids is not None
    trained = model.ids.weight.detach()
    known = torch.from_numpy(rows >= 0)
    weights = torch.zeros(len(rows), trained.shape[1], dtype=trained.dtype)
    weights[known] = trained[torch.from_numpy(rows)[known]]
    found = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    found.ids = torch.nn.Embedding(len(weights), weights.shape[1], _weight=weights)
    return found


def _rows_of(store: Store, described: Checkpoint, domain: str, ids: list[str]) -> dict[str, int] | None:
    """The same for an unchanged domain, whose items have these ids; None if the run was trained on other catalogues."""
    sizes = [store.domain(name).core_rows() for name in described.domains]
    if described.items != sum(sizes):
        return None
    place = list(described.domains).index(domain)
    counts = training_counts(seen_by(described, domain, store.domain(domain).sequences()), sizes[place])
    first = sum(sizes[:place])
    return {item: first + row if counts[row] else -1 for row, item in enumerate(ids[: sizes[place]])}


def _difference(rows: Mapping[str, int] | None, ids: list[str]) -> str:
    """How today's items differ from those of training, for a message. rows: those of training, by id."""
    if rows is None:
        return "; it serves the catalogue as it is now"
    new, gone = len(set(ids) - rows.keys()), len(rows.keys() - set(ids))
    return f"; it serves the catalogue as it is now, of {len(ids)} items: {new} new since training, {gone} gone"

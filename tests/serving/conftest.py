"""A shop of a ring of items with a run of each kind, opened once."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from antpipe.evaluation.vectors import OpenRun, open_for
from antpipe.features.build_sequences import build_sequences
from antpipe.settings.features import SequenceConfig
from antpipe.store.domain import Domain
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.request import RunRequest
from antpipe.training.run import run_stage
from tests.support.commands import run
from tests.support.reranking import train_reranked
from tests.support.trainable import MODEL, TRAINING, WIDTHS, write_feature

ITEMS, USERS = 40, 30
# By name: the stage and the model of a run.
RUNS = {
    "plain": ("scratch", MODEL),
    "strong": ("scratch", replace(MODEL, floor=True, transductive=True, history_score=True, experts=0)),
    "history": ("scratch", replace(MODEL, history_score=True)),
    "floor": ("floor", replace(MODEL, floor=True)),
}


def item_id(number: int) -> str:
    return f"i{number % ITEMS:02}"


def make_shop(folder: Path) -> Domain:
    """A shop from tables, with an extra column each of truth, number and text, and features of all three modalities."""
    items = [
        {
            "item_id": item_id(number),
            "title": f"Thing {number}" if number % 5 else "",
            "description": f"a thing with the number {number} " * 4,
            "price": number + 0.5,
            "category": "Guitars > Bass" if number % 4 == 0 else "Drums",
            "in_stock": "yes" if number % 2 else "no",
            "stock": number,
            "colour": "red" if number % 3 else "blue",
        }
        for number in range(ITEMS)
    ]
    orders = [
        {"user_id": f"u{user:02}", "item_id": item_id(user * 7 + step), "timestamp": 1_600_000_000 + 86_400 * step}
        for user in range(USERS)
        for step in range(4 + user % 4)
    ]
    pl.DataFrame(items).write_csv(folder / "items.csv")
    pl.DataFrame(orders).write_csv(folder / "orders.csv")
    done = run(
        *("ingest", "table", "--domain", "Shop", "--interactions", folder / "orders.csv", "--items"),
        *(folder / "items.csv", "--min-user", "1", "--min-item", "1", "--store", folder / "store"),
        *("--keep-column", "in_stock,stock,colour"),
    )
    assert done.code == 0, done.err
    domain = Store(folder / "store").domain("Shop")
    rng = np.random.default_rng(0)
    for modality, width in WIDTHS.items():
        write_feature(domain, modality, rng.normal(size=(ITEMS, width)))
    build_sequences(Store(folder / "store"), ["Shop"], SequenceConfig(max_len=6))
    return domain


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store of the shop, and a run of each of RUNS below `runs`."""
    folder = tmp_path_factory.mktemp("serving")
    make_shop(folder)
    store = Store(folder / "store")
    for name, (stage, model) in RUNS.items():
        run_stage(RunRequest(store, ["Shop"], stage, model, replace(TRAINING, epochs=2)), folder / "runs" / name)
    # No epoch beats the floor of this shop, so that run would be nothing but its floor.
    model, described = checkpoint.load(folder / "runs" / "strong")
    with torch.no_grad():
        model.floor["cosine"].fill_(3.0)  # type: ignore[index]
        model.floor["novelty"].fill_(0.01)  # type: ignore[index]
    checkpoint.save(folder / "runs" / "strong", model, described)
    return folder


@pytest.fixture(scope="session")
def reranked(shop: Path) -> str:
    """The name of one more run of the shop, which scores its best items again."""
    runs = shop / "runs"
    train_reranked(Store(shop / "store"), "Shop", runs / "reranked", runs / "source", learned="Shop")
    return "reranked"


@pytest.fixture(scope="session")
def opened(shop: Path) -> Callable[[str], OpenRun]:
    """Opens a run by name, once."""
    return cache(lambda name: open_for(Store(shop / "store"), shop / "runs" / name, "Shop"))

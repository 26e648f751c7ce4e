"""A shop with three runs: `plain`, evaluated, whose score is a cosine; `floored`, with ids and a floor; and `reranked`,
which scores its best items again."""

from dataclasses import replace
from pathlib import Path

import pytest

import antpipe as ant
from antpipe.training import checkpoint
from antpipe.training.request import RunRequest
from antpipe.training.run import run_stage
from tests.support.reranking import train_reranked
from tests.support.trainable import MODEL, TRAINING, make_trainable, train_quickly

WITH_ALL = replace(MODEL, layers=1, floor=True, transductive=True, learned_missing=True)


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the store `store` and of the first two runs; the domain is `Ring`."""
    folder = tmp_path_factory.mktemp("exports")
    store = ant.Store(folder / "store")
    make_trainable(store, "Ring")
    train_quickly(store, "scratch", ["Ring"], folder / "plain", epochs=1)
    run_stage(RunRequest(store, ["Ring"], "scratch", WITH_ALL, replace(TRAINING, epochs=1)), folder / "floored")
    model, described = checkpoint.load(folder / "floored")
    assert model.floor is not None
    model.floor["cosine"].data.fill_(3.0)  # what one epoch learns may not beat the floor, which is then kept
    model.floor["novelty"].data.fill_(0.2)
    checkpoint.save(folder / "floored", model, described)
    ant.Run.open(folder / "plain", store).evaluate("Ring", device="cpu")
    return folder


@pytest.fixture
def plain(shop: Path) -> ant.Run:
    return ant.Run.open(shop / "plain", shop / "store")


@pytest.fixture
def floored(shop: Path) -> ant.Run:
    return ant.Run.open(shop / "floored", shop / "store")


@pytest.fixture(scope="session")
def reranked(shop: Path) -> ant.Run:
    store = ant.Store(shop / "store")
    train_reranked(store, "Ring", shop / "reranked", shop / "source", learned="Ring")
    return ant.Run.open(shop / "reranked", store)

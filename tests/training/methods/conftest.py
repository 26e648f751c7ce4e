"""A shop with ratings, a source, and a model of the shop."""

from pathlib import Path

import pytest
import torch

from antpipe.core.model import Ant
from antpipe.store.store import Store
from antpipe.training.data import TrainingData, load_training_data
from tests.support.trainable import MODEL, TRAINING, make_trainable


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("shops") / "store")
    make_trainable(store, "Source", seed=1)
    make_trainable(store, "Target", seed=2, rate=lambda step: (5.0, 2.0, 4.0, None)[step % 4])
    make_trainable(store, "Verifying", seed=2, rate=lambda step: (5.0, 2.0, 4.0, None)[step % 4], verify=verified)
    return store


def verified(step: int) -> bool | None:
    """Whether the n-th purchase of a user is verified."""
    return (True, False, None)[step % 3]


@pytest.fixture
def data(store: Store) -> TrainingData:
    return load_training_data(store, ["Target"], TRAINING)


@pytest.fixture
def model(data: TrainingData) -> Ant:
    torch.manual_seed(0)
    return Ant(MODEL, data.catalogue.widths, max_len=10)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"

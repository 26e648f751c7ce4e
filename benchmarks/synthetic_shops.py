"""Shops of any size for timing: random features, with item popularity and history lengths like those of real shops."""

import numpy as np
from scipy.sparse import csr_array

from antpipe.core.catalogue import Catalogue
from antpipe.store.files import Feature, Sequences
from antpipe.training.data import TrainingData

WIDTHS = {"text": 768, "image": 512, "price": 64}  # like BERT, CLIP and the code of a price bin
MAX_LEN = 50


def sequences(rng: np.random.Generator, items: int, users: int, prefixes: int) -> Sequences:
    """Histories with about `prefixes` training prefixes in total; popularity falls like 1 / rank^0.8."""
    mean = prefixes / users
    train = np.clip(2 + rng.geometric(1 / max(mean, 1.01), users) - 1, 2, MAX_LEN + 1)
    lengths = train + 2  # one item each for validation and test
    weights = 1 / np.arange(1, items + 1) ** 0.8
    values = rng.choice(items, int(lengths.sum()), p=weights / weights.sum()).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    users_column = np.arange(users, dtype=np.int32)
    return Sequences(users_column, offsets, values, train.astype(np.int32), (train + 1).astype(np.int32), MAX_LEN)


def feature(rng: np.random.Generator, items: int, width: int) -> Feature:
    """Random features of about unit length, present for nine items in ten."""
    values = (rng.standard_normal((items, width), dtype=np.float32) / np.sqrt(width)).astype(np.float16)
    present = rng.random(items) < 0.9
    values[~present] = 0
    return Feature(values, present)


def words(rng: np.random.Generator, items: int) -> csr_array:
    """Random word neighbours, about five per item."""
    row, column = rng.integers(0, items, (2, 5 * items))
    pairs = csr_array((rng.random(len(row)), (row, column)), (items, items))
    pairs.data = np.minimum(pairs.data, 1.0)
    return pairs


def training_data(items: tuple[int, ...], users: int, prefixes: int, seed: int = 0) -> TrainingData:
    """Domains with these numbers of items; the users and prefixes are divided among them."""
    rng = np.random.default_rng(seed)
    names = tuple(f"shop-{number}" for number in range(len(items)))
    columns = {name: tuple(feature(rng, count, width) for count in items) for name, width in WIDTHS.items()}
    neighbours = tuple(words(rng, count) for count in items)
    catalogue = Catalogue(names, np.cumsum([0, *items]), columns, WIDTHS, dict.fromkeys(WIDTHS, "random"), neighbours)
    parts = tuple(sequences(rng, count, users // len(items), prefixes // len(items)) for count in items)
    return TrainingData(catalogue, parts, {})

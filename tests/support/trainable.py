"""Small shops one can train on in a second: random features, sequences with a simple rule."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from antpipe.features.build_sequences import build_sequences
from antpipe.settings.features import SequenceConfig
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.domain import Domain
from antpipe.store.store import Store
from antpipe.training.request import RunRequest
from antpipe.training.run import run_stage
from tests.support.shops import make_domain

WIDTHS = {"text": 12, "image": 10, "price": 6}
MODEL = ModelConfig(width=16, experts=2, item_dropout=0.0, hidden_dropout=0.1, attention_dropout=0.1)
TRAINING = TrainConfig(epochs=3, batch_size=64)


def make_trainable(
    store: Store,
    name: str,
    seed: int = 0,
    widths: dict[str, int] = WIDTHS,
    items: int = 24,
    titles: bool = True,
    by_id: bool = True,
    cold: int = 0,
    rate: Callable[[int], float | None] | None = None,
    verify: Callable[[int], bool | None] | None = None,
) -> Domain:
    """A domain whose users walk around a ring of items, with random features of the given widths.

    by_id: the ring is in the order of the ids, which `compare` doubts; or else in an order of its own. cold: further
    items, c000 and so on, outside the core, which does not depend on them. rate: the rating of a user's n-th item.
    verify: with that, whether it is a verified purchase.
    """
    rng = np.random.default_rng(seed)
    ring = np.arange(items) if by_id else np.random.default_rng(items).permutation(items)
    rows = [
        {"item_id": f"i{number:03}", "title": f"item {number}" if titles else None, "text": f"text {number}"}
        for number in range(items)
    ]
    unsold = [
        {"item_id": f"c{number:03}", "title": f"cold {number}", "text": f"new {number}"} for number in range(cold)
    ]
    walks = [(user, int(rng.integers(items)), int(rng.integers(4, 9))) for user in range(40)]
    interactions = [
        (
            f"u{user:03}",
            f"i{ring[(start + step) % items]:03}",
            1000 + step,
            *([rate(step)] if rate else []),
            *([verify(step)] if verify else []),
        )
        for user, start, n in walks
        for step in range(n)
    ]
    domain = make_domain(store, name, rows, interactions, cold=unsold)
    for number, (modality, width) in enumerate(widths.items()):
        of_cold = np.random.default_rng([seed, number]).normal(size=(cold, width))
        write_feature(domain, modality, np.vstack([rng.normal(size=(items, width)), of_cold]))
    build_sequences(store, [name], SequenceConfig(max_len=10))
    return domain


def write_feature(domain: Domain, modality: str, values: Any, encoder: str = "test") -> None:
    """A feature artefact with these values, present for all items but the first."""
    with domain.writing(modality, {"encoding": encoder, "bins": values.shape[1]}) as out:
        with out.feature(modality, *values.shape) as feature:
            feature.values[1:] = values[1:]
            feature.present[1:] = True
        out.details["encoder"] = {"name": encoder, "revision": "1"}


def train_quickly(
    store: Store, stage: str, domains: list[str], out: Path, source: Path | None = None, **more: Any
) -> Any:
    """run_stage with a small model; `more` replaces fields of the training settings."""
    checkpoint, _ = run_stage(RunRequest(store, domains, stage, MODEL, replace(TRAINING, **more), source), out)
    return checkpoint

"""Low-rated items as weak positives and damped inputs, against the formula of docs/method.md."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from antpipe.core.batches import batches, training_windows
from antpipe.core.catalogue import item_inputs
from antpipe.core.floor import known_of
from antpipe.core.model import Ant
from antpipe.errors import DataError
from antpipe.features.build_sequences import build_sequences
from antpipe.settings.features import SequenceConfig
from antpipe.store.store import Store
from antpipe.training.data import load_training_data
from antpipe.training.loop import candidates_of
from antpipe.training.methods.behaviour import behaviour
from antpipe.training.methods.consensus import scores_of
from antpipe.training.methods.method import pass_of
from antpipe.training.methods.ratings import low_rated
from antpipe.training.parallel import ALONE
from antpipe.training.step_loss import target_loss
from tests.support.trainable import MODEL, TRAINING, make_trainable

CPU = torch.device("cpu")
CONFIG = replace(TRAINING, method="behaviour", low_rated_weight=0.25, low_rated_gate=0.5)


def step(store: Store, *, floor: bool = False):  # type: ignore[no-untyped-def]
    data = load_training_data(store, ["Target"], CONFIG)
    torch.manual_seed(0)
    shape = replace(MODEL, floor=floor, hidden_dropout=0.0, attention_dropout=0.0, gate_noise=False)
    model = Ant(shape, data.catalogue.widths, max_len=10)
    windows = training_windows(data.sequences, data.catalogue.offsets)
    assert data.low is not None
    method, batch = behaviour(windows, data.low), next(batches(windows, 64, 0, 1, candidates_of(data, False, CONFIG)))
    known = known_of(data.sequences, data.catalogue) if floor else None
    inputs = item_inputs(data.catalogue, model.widths, batch.items, CPU)
    return data, model, batch, known, inputs, lambda config: method.loss(model, inputs, batch, config, ALONE, known)


def test_low_rated_is_what_is_not_above_the_middle_of_the_scale(store: Store) -> None:
    sequences = store.domain("Target").sequences()
    found = low_rated(store, ["Target"], [sequences])
    within = np.concatenate([np.arange(n) for n in np.diff(sequences.offsets)])
    assert np.array_equal(found, within % 4 == 1)  # 2 of 2, 4 and 5; a missing rating is not low


@pytest.mark.parametrize("floor", [False, True])
def test_weights_and_gate_of_1_give_the_loss_of_the_stage(store: Store, floor: bool) -> None:
    _, model, batch, known, inputs, loss = step(store, floor=floor)
    found = loss(replace(CONFIG, low_rated_weight=1.0, low_rated_gate=1.0))
    assert found.item() == pytest.approx(target_loss(model, inputs, batch, CONFIG, known=known).item(), rel=1e-6)


@pytest.mark.parametrize("floor", [False, True])
def test_a_low_rated_target_has_its_weight_in_the_mean(store: Store, floor: bool) -> None:
    _, model, batch, known, inputs, loss = step(store, floor=floor)
    made = pass_of(model, inputs, batch, known)
    every = torch.arange(len(batch.items)).expand(len(batch.targets), -1)
    each = torch.nn.functional.cross_entropy(
        scores_of(model, made, every), torch.from_numpy(batch.targets), reduction="none"
    )
    place = np.concatenate([block.positions % block.inputs.shape[1] for block in batch.blocks])
    weight = torch.from_numpy(np.where((place + 1) % 4 == 1, 0.25, 1.0))
    wanted = ((each * weight).sum() / weight.sum()).item()
    assert loss(replace(CONFIG, low_rated_gate=1.0)).item() == pytest.approx(wanted, rel=1e-5)


def test_a_low_rated_item_is_read_through_the_gate(store: Store) -> None:
    _, model, batch, _, inputs, loss = step(store)
    items = model.items(inputs.features, inputs.ids, inputs.present).fused
    total, at = 0.0, 0
    for block in batch.blocks:
        read = items[torch.from_numpy(block.inputs)]
        gate = torch.where(torch.arange(read.shape[1]) % 4 == 1, 0.5, 1.0)
        # The padding is the first item of a window, which is not low-rated in this shop; causal, so it does not matter.
        hidden = model.encode(read * gate[:, None]).flatten(0, 1)[torch.from_numpy(block.positions)]
        scores = torch.nn.functional.normalize(hidden, dim=-1) @ torch.nn.functional.normalize(items, dim=-1).T
        targets = torch.from_numpy(batch.targets[at : at + len(hidden)])
        total += torch.nn.functional.cross_entropy(scores / 0.07, targets, reduction="sum").item()
        at += len(hidden)
    assert loss(replace(CONFIG, low_rated_weight=1.0)).item() == pytest.approx(total / at, rel=1e-5)


def test_if_low_rated_targets_count_nothing_their_step_has_no_loss(store: Store) -> None:
    data, model, batch, _, inputs, _ = step(store)
    assert data.low is not None
    windows = training_windows(data.sequences, data.catalogue.offsets)
    method = behaviour(windows, np.ones_like(data.low))
    assert method.loss is not None
    found = method.loss(model, inputs, batch, replace(CONFIG, low_rated_weight=0.0), ALONE, None)
    found.backward()  # type: ignore[no-untyped-call]
    assert found.item() == 0.0


def refused(store: Store) -> DataError:
    with pytest.raises(DataError) as error:
        load_training_data(store, ["Shop"], CONFIG)
    return error.value


def test_a_shop_without_ratings_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Shop")
    error = refused(store)
    assert error.message == "--method behaviour: Shop has no ratings in training"
    assert str(error.next_command) == "the same command without --method"


def test_equal_ratings_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Shop", rate=lambda _: 4.0)
    assert refused(store).message == "--method behaviour: all ratings of Shop are 4 in training"


def test_sequences_without_some_interactions_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Shop", rate=float)
    build_sequences(store, ["Shop"], SequenceConfig(max_len=10, split="cold-items"))
    error = refused(store)
    assert "the sequences of Shop lack some of its interactions" in error.message
    assert str(error.next_command).startswith("antpipe build-sequences --domains Shop")

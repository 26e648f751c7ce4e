"""Low-rated and unverified items as weak positives and damped inputs, against the formula of docs/beyond-ant.md."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from antpipe.core.batches import batches, training_windows
from antpipe.core.catalogue import item_inputs
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
from antpipe.training.methods.weak_positives import LOW_RATED, UNVERIFIED, weak_positives
from antpipe.training.parallel import ALONE
from antpipe.training.request import RunRequest
from antpipe.training.step_loss import target_loss
from tests.support.trainable import MODEL, TRAINING, make_trainable

CPU = torch.device("cpu")
CONFIG = replace(TRAINING, method="behaviour", low_rated_weight=0.25, low_rated_gate=0.5)


def step(store: Store, name: str = "Target", *, history: bool = False):  # type: ignore[no-untyped-def]
    data = load_training_data(store, [name], CONFIG)
    torch.manual_seed(0)
    shape = replace(MODEL, history_score=history, hidden_dropout=0.0, attention_dropout=0.0, gate_noise=False)
    model = Ant(shape, data.catalogue.widths, max_len=10)
    if model.history_score is not None:
        model.history_score.detach().fill_(0.2)
    windows = training_windows(data.sequences, data.catalogue.offsets)
    assert data.marks is not None
    method, batch = behaviour(windows, data.marks), next(batches(windows, 64, 0, 1, candidates_of(data, False, CONFIG)))
    inputs = item_inputs(data.catalogue, model.widths, batch.items, CPU)
    return data, model, batch, inputs, lambda config: method.loss(model, inputs, batch, config, ALONE, None)


def test_low_rated_is_what_is_not_above_the_middle_of_the_scale(store: Store) -> None:
    sequences = store.domain("Target").sequences()
    found = weak_positives(store, ["Target"], [sequences])
    within = np.concatenate([np.arange(n) for n in np.diff(sequences.offsets)])
    assert np.array_equal(found, LOW_RATED * (within % 4 == 1))  # 2 of 2, 4 and 5; a missing rating is not low


def test_unverified_is_what_is_known_not_to_be_a_verified_purchase(store: Store) -> None:
    sequences = store.domain("Verifying").sequences()
    found = weak_positives(store, ["Verifying"], [sequences])
    within = np.concatenate([np.arange(n) for n in np.diff(sequences.offsets)])
    assert np.array_equal(found, LOW_RATED * (within % 4 == 1) + UNVERIFIED * (within % 3 == 1))


@pytest.mark.parametrize("history", [False, True])
def test_weights_and_gate_of_1_give_the_loss_of_the_stage(store: Store, history: bool) -> None:
    _, model, batch, inputs, loss = step(store, history=history)
    found = loss(replace(CONFIG, low_rated_weight=1.0, low_rated_gate=1.0))
    assert found.item() == pytest.approx(target_loss(model, inputs, batch, CONFIG).item(), rel=1e-6)


@pytest.mark.parametrize("history", [False, True])
def test_a_low_rated_target_has_its_weight_in_the_mean(store: Store, history: bool) -> None:
    _, model, batch, inputs, loss = step(store, history=history)
    made = pass_of(model, inputs, batch)
    every = torch.arange(len(batch.items)).expand(len(batch.targets), -1)
    each = torch.nn.functional.cross_entropy(
        scores_of(model, made, every), torch.from_numpy(batch.targets), reduction="none"
    )
    place = np.concatenate([block.positions % block.inputs.shape[1] for block in batch.blocks])
    weight = torch.from_numpy(np.where((place + 1) % 4 == 1, 0.25, 1.0))
    wanted = ((each * weight).sum() / weight.sum()).item()
    assert loss(replace(CONFIG, low_rated_gate=1.0)).item() == pytest.approx(wanted, rel=1e-5)


def test_the_factors_of_an_item_that_is_low_rated_and_unverified_are_multiplied(store: Store) -> None:
    _, model, batch, inputs, loss = step(store, "Verifying")
    items = model.items(inputs.features, inputs.ids, inputs.present).fused
    total = weights = at = 0.0
    for block in batch.blocks:
        place = torch.arange(block.inputs.shape[1] + 1)
        low, unverified = place % 4 == 1, place % 3 == 1
        gate = torch.where(low, 0.5, 1.0) * torch.where(unverified, 0.3, 1.0)
        weight = (torch.where(low, 0.25, 1.0) * torch.where(unverified, 0.1, 1.0))[block.positions % len(place[1:]) + 1]
        # The padding is the first item of a window, whose gate is 1; causal, so it does not matter.
        hidden = model.encode(items[torch.from_numpy(block.inputs)] * gate[:-1, None]).flatten(0, 1)
        hidden = hidden[torch.from_numpy(block.positions)]
        scores = torch.nn.functional.normalize(hidden, dim=-1) @ torch.nn.functional.normalize(items, dim=-1).T
        targets = torch.from_numpy(batch.targets[int(at) : int(at) + len(hidden)])
        each = torch.nn.functional.cross_entropy(scores / 0.07, targets, reduction="none")
        total, weights, at = total + (weight * each).sum().item(), weights + weight.sum().item(), at + len(hidden)
    found = loss(replace(CONFIG, unverified_weight=0.1, unverified_gate=0.3))
    assert found.item() == pytest.approx(total / weights, rel=1e-5)


def test_where_nothing_is_known_to_be_unverified_its_factors_change_nothing(store: Store) -> None:
    loss = step(store)[-1]
    assert loss(CONFIG).item() == loss(replace(CONFIG, unverified_weight=0.0, unverified_gate=0.0)).item()


def test_a_low_rated_item_is_read_through_the_gate(store: Store) -> None:
    _, model, batch, inputs, loss = step(store)
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
    data, model, batch, inputs, _ = step(store)
    assert data.marks is not None
    windows = training_windows(data.sequences, data.catalogue.offsets)
    method = behaviour(windows, np.ones_like(data.marks))
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
    assert error.message == (
        "--method behaviour: in training, Shop has no ratings, and does not say which purchases are verified"
    )
    assert str(error.next_command) == "the same command without --method"


def test_equal_ratings_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Shop", rate=lambda _: 4.0)
    assert "Shop has 4 for all ratings, and does not say which" in refused(store).message


def test_ratings_and_verified_purchases_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Shop", rate=lambda _: 4.0, verify=lambda step: (True, None)[step % 2])
    error = refused(store)
    assert "Shop has 4 for all ratings, and has only verified purchases" in error.message
    assert str(error.next_command) == "the same command without --method"


def test_verified_purchases_alone_are_enough(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Shop", rate=lambda _: None, verify=lambda step: step % 2 == 0)
    marks = load_training_data(store, ["Shop"], CONFIG).marks
    assert marks is not None
    assert set(marks) == {0, UNVERIFIED}


def test_a_run_that_reads_verified_purchases_is_another_one(store: Store, tmp_path: Path) -> None:
    place = Store(Path(shutil.copytree(store.root, tmp_path / "store")))
    request = RunRequest(place, ["Verifying"], "scratch", MODEL, CONFIG)
    before = request.fingerprint(), replace(request, training=TRAINING).fingerprint()
    domain = place.domain("Verifying")
    entry = domain.entry("items")
    rows = domain.table("interactions").drop_columns("verified")
    tables = {name: domain.table(name) for name in ("items", "users", "rejects")} | {"interactions": rows}
    with domain.writing("items", entry["parameters"], id_table=entry["id_table"]) as out:
        for name, table in tables.items():
            out.parquet(f"{name}.parquet", table)
        out.details |= {key: entry[key] for key in ("rows", "statistics", "report", "flags")}
    assert request.fingerprint() != before[0]
    assert replace(request, training=TRAINING).fingerprint() == before[1]


def test_sequences_without_some_interactions_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Shop", rate=float)
    build_sequences(store, ["Shop"], SequenceConfig(max_len=10, split="cold-items"))
    error = refused(store)
    assert "the sequences of Shop lack some of its interactions" in error.message
    assert str(error.next_command).startswith("antpipe build-sequences --domains Shop")

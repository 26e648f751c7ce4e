"""The training loop: what happens each epoch, and which weights it ends with."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from antpipe.core.batches import Batch, Block, Candidates, batches, training_windows
from antpipe.core.catalogue import ItemInputs, item_inputs
from antpipe.core.losses import REFERENCE_EPS, cosine_scores
from antpipe.core.model import Ant
from antpipe.core.scoring import scoring
from antpipe.errors import DataError
from antpipe.features.build_sequences import build_sequences
from antpipe.settings.features import SequenceConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.store import Store
from antpipe.training import loop, step_loss, validation, worth
from antpipe.training.data import TrainingData, load_training_data
from antpipe.training.loop import fit
from antpipe.training.state import Position
from antpipe.training.step_loss import pretraining_loss
from tests.support.shops import make_domain
from tests.support.trainable import MODEL, TRAINING, make_trainable, write_feature

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path: Path) -> TrainingData:
    store = Store(tmp_path / "store")
    make_trainable(store, "Shop", seed=1)
    return load_training_data(store, ["Shop"], TRAINING)


@pytest.fixture
def model(data: TrainingData) -> Ant:
    torch.manual_seed(0)
    return Ant(MODEL, data.catalogue.widths, max_len=10)


def weights_of(model: Ant) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def run(model: Ant, data: TrainingData, config: TrainConfig = TRAINING, pretraining: bool = False) -> Position:
    return fit(model, data, config, pretraining=pretraining, device=CPU)


def scripted(values: list[float]) -> Callable[..., dict[str, float]]:
    """A validation that finds these figures in turn."""
    left = iter(values)
    return lambda *_: dict.fromkeys((worth.SELECTION, worth.TIE_BREAK), next(left))


@pytest.mark.parametrize(("pretraining", "factor"), [(True, 0.5), (False, 0.25)])
def test_the_learning_rate_falls_by_its_factor_each_epoch(
    model: Ant, data: TrainingData, pretraining: bool, factor: float
) -> None:
    config = replace(TRAINING, lr=0.01, pretrain_lr_decay=0.5, lr_decay=0.25)
    rows = run(model, data, config, pretraining).rows
    assert [row["lr"] for row in rows] == pytest.approx([0.01, 0.01 * factor, 0.01 * factor**2])


def test_the_model_ends_with_the_weights_of_its_best_epoch(
    model: Ant, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, after = scripted([0.1, 0.5, 0.3]), list[dict[str, torch.Tensor]]()

    def validate(*_: Any) -> dict[str, float]:
        after.append(weights_of(model))
        return found()

    monkeypatch.setattr(validation, "validate", validate)
    at = run(model, data)
    assert (at.best_epoch, at.best) == (2, {worth.SELECTION: 0.5, worth.TIE_BREAK: 0.5})
    final = weights_of(model)
    assert all(torch.equal(final[name], after[1][name]) for name in final)
    assert not torch.equal(final["positions.weight"], after[2]["positions.weight"])


def test_of_epochs_with_equal_recall_that_with_the_best_ndcg_is_kept(
    model: Ant, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    ndcg = iter([0.4, 0.7, 0.6])
    monkeypatch.setattr(validation, "validate", lambda *_: {worth.SELECTION: 1.0, worth.TIE_BREAK: next(ndcg)})
    assert run(model, data).best_epoch == 2


def test_of_epochs_with_equal_recall_and_ndcg_that_with_the_least_loss_is_kept(
    model: Ant, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "validate", lambda *_: {worth.SELECTION: 1.0, worth.TIE_BREAK: 1.0})
    at = run(model, data, replace(TRAINING, lr=0.01))
    losses = [row["loss"] for row in at.rows]
    assert at.best_epoch == 1 + losses.index(min(losses))
    assert at.best_epoch > 1


def test_each_epoch_has_an_order_of_its_own_given_by_the_seed(
    model: Ant, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[list[int]] = []

    def listed(*arguments: Any) -> Iterator[Batch]:
        made = list(batches(*arguments))
        orders.append([int(target) for batch in made for target in batch.targets])
        yield from made

    monkeypatch.setattr(loop, "batches", listed)
    for seed in (0, 0, 1):
        run(model, data, replace(TRAINING, epochs=2, seed=seed))
    assert orders[:2] == orders[2:4]
    assert orders[0] != orders[1]
    assert orders[0] != orders[4]


def test_every_step_draws_dropout_whatever_the_mode_before(
    model: Ant, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[bool] = []

    def watched(network: Ant, *rest: Any) -> torch.Tensor:
        modes.append(network.training)
        return original(network, *rest)

    original = loop.target_loss
    monkeypatch.setattr(loop, "target_loss", watched)
    run(model.eval(), data)
    assert modes
    assert all(modes)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_draws_no_dropout_and_leaves_the_mode_as_it_was(
    model: Ant, data: TrainingData, training: bool
) -> None:
    model.train(training)
    part = data.validation["Shop"]
    found = [scoring(model, data.catalogue, "Shop", part, CPU).ranks(part).by_protocol["all"] for _ in range(2)]
    assert found[0].tolist() == found[1].tolist()
    assert model.training is training


def test_pretraining_adds_the_weighted_image_text_loss(model: Ant, data: TrainingData) -> None:
    model.eval()
    windows = training_windows(data.sequences, data.catalogue.offsets)
    batch = next(batches(windows, 1000, seed=0, epoch=1, candidates=Candidates(len(data.catalogue), 0)))
    inputs = item_inputs(data.catalogue, model.widths, batch.items, CPU)
    none, one, two = (
        pretraining_loss(model, inputs, batch, replace(TRAINING, image_text_weight=weight)).item()
        for weight in (0.0, 1.0, 2.0)
    )
    assert one > none
    assert two - one == pytest.approx(one - none, rel=1e-4)


@pytest.mark.parametrize("reference", [False, True])
def test_own_next_items_are_negatives_of_pretraining_only_in_reference(
    model: Ant, data: TrainingData, reference: bool
) -> None:
    model.eval()
    windows = training_windows(data.sequences, data.catalogue.offsets)
    batch = next(batches(windows, 1000, seed=0, epoch=1, candidates=Candidates(len(data.catalogue), 0)))
    inputs = item_inputs(data.catalogue, model.widths, batch.items, CPU)
    config = replace(TRAINING, reference=reference, image_text_weight=0.0)
    items = model.items(inputs.features, inputs.ids, inputs.present).fused
    hidden = step_loss.hidden_states(model, items, batch)
    scores = cosine_scores(hidden, items[torch.from_numpy(batch.targets)]).detach().double() / MODEL.temperature
    expected = 0.0
    for i, row in enumerate(scores):
        negatives = batch.targets != batch.targets[i]
        if not reference:
            negatives &= batch.users != batch.users[i]
        share = 1 / (1 + float((row[negatives] - row[i]).exp().sum()))
        expected -= math.log(share + (REFERENCE_EPS if reference else 0)) / len(scores)
    assert len(set(batch.users.tolist())) == 40
    assert pretraining_loss(model, inputs, batch, config).item() == pytest.approx(expected, rel=1e-5)


def test_pretraining_is_refused_if_no_batch_can_hold_two_users(model: Ant, data: TrainingData) -> None:
    with pytest.raises(DataError, match="with --batch-size 1 no batch has two users"):
        run(model, data, replace(TRAINING, batch_size=1), pretraining=True)


def test_one_user_is_enough_for_pretraining_only_with_drawn_negatives(tmp_path: Path) -> None:
    store = Store(tmp_path / "one")
    rows = [{"item_id": f"i{number}", "title": f"item {number}"} for number in range(9)]
    domain = make_domain(store, "One", rows, [("u", f"i{number}", number) for number in range(9)])
    write_feature(domain, "text", np.random.default_rng(0).normal(size=(9, 12)))
    build_sequences(store, ["One"], SequenceConfig(max_len=3))
    data = load_training_data(store, ["One"], TRAINING)
    model = Ant(MODEL, data.catalogue.widths, max_len=3)
    with pytest.raises(DataError, match="no batch has two users with training positions") as refused:
        run(model, data, pretraining=True)
    assert str(refused.value.next_command) == "the same command with --pretrain-drawn 1000"
    assert run(model, data, replace(TRAINING, pretrain_drawn=1000), pretraining=True).rows[0]["loss"] > 0


@pytest.mark.parametrize("pretraining", [True, False])
def test_gradients_are_bit_equal_each_time_with_several_threads(pretraining: bool) -> None:
    """Large enough for torch to share a sum among threads, with items that occur often."""
    generator = torch.Generator().manual_seed(0)
    config = replace(MODEL, width=128, experts=0, hidden_dropout=0.0, attention_dropout=0.0)
    model = Ant(config, {"text": 12}, max_len=10)
    blocks = (Block(torch.randint(0, 20, (200, 10), generator=generator).numpy(), np.arange(2000)),)
    targets = torch.randint(0, 20, (2000,), generator=generator).numpy()
    batch = Batch(np.arange(20), blocks, targets, np.repeat(np.arange(200), 10))
    inputs = ItemInputs({"text": torch.randn(20, 12, generator=generator)}, {}, torch.arange(20))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = [gradients_of(model, inputs, batch, pretraining=pretraining) for _ in range(12)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


def gradients_of(model: Ant, inputs: ItemInputs, batch: Batch, *, pretraining: bool) -> torch.Tensor:
    model.zero_grad()
    loss = (loop.pretraining_loss if pretraining else loop.target_loss)(model, inputs, batch, TRAINING)
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

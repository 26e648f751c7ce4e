"""The softmax over a sample of the catalogue: which items are drawn, and its sums and gradients."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from antpipe.core.batches import Candidates, add_drawn, batches, make_batch, training_windows
from antpipe.core.catalogue import item_inputs
from antpipe.core.losses import cosine_scores, full_softmax
from antpipe.core.model import Ant
from antpipe.errors import UsageError
from antpipe.settings.training import TrainConfig
from antpipe.store.store import Store
from antpipe.training.data import load_training_data
from antpipe.training.loop import drawn_items
from antpipe.training.step_loss import hidden_states, pretraining_loss
from tests.core.test_batches import make_sequences
from tests.support.trainable import MODEL, make_trainable

TAU = 0.2
N, D = 60, 16
OWN = np.array([3, 10, 11, 40])


def draw(drawn: int, number: int, size: int = N) -> tuple[np.ndarray, np.ndarray]:
    items, log_inclusion = add_drawn(OWN, Candidates(size, drawn), np.random.default_rng(number))
    assert log_inclusion is not None
    return items, log_inclusion


def vectors(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_own_items_are_always_included_and_others_drawn_without_replacement() -> None:
    items, log_inclusion = draw(20, 0)
    assert len(items) == len(np.unique(items)) == len(OWN) + 20
    assert (np.sort(items) == items).all()
    own = np.isin(items, OWN)
    assert own.sum() == len(OWN)
    assert (log_inclusion[own] == 0).all()
    np.testing.assert_allclose(log_inclusion[~own], math.log(20 / (N - len(OWN))), rtol=1e-6)


def test_every_other_item_is_drawn_with_its_stated_probability() -> None:
    times = np.zeros(N)
    for number in range(4000):
        times[draw(14, number)[0]] += 1
    probability = 14 / (N - len(OWN))  # 0.25: a standard error of 0.007 over 4,000 draws
    others = np.setdiff1d(np.arange(N), OWN)
    assert np.abs(times[others] / 4000 - probability).max() < 5 * math.sqrt(probability * (1 - probability) / 4000)


def test_a_sample_as_large_as_the_rest_is_the_whole_catalogue() -> None:
    items, log_inclusion = add_drawn(OWN, Candidates(N, N - len(OWN)), np.random.default_rng(0))
    assert items.tolist() == list(range(N))
    assert log_inclusion is None


def test_the_corrected_sum_is_an_unbiased_estimate_of_the_full_sum() -> None:
    hidden, catalogue = vectors(1, 1), vectors(N, 2)
    weights = (torch.nn.functional.normalize(catalogue) @ torch.nn.functional.normalize(hidden).T / TAU).exp()[:, 0]
    sums = []
    for number in range(4000):
        items, log_inclusion = draw(14, number)
        sums.append(float((weights[items] / torch.from_numpy(log_inclusion).exp()).sum()))
    error = np.std(sums) / math.sqrt(len(sums))
    assert abs(np.mean(sums) - float(weights.sum())) < 4 * error


def test_the_gradient_equals_that_of_the_full_softmax_within_sampling_error() -> None:
    """With 600 of 3,000 items drawn, the bias of the logarithm, of order 1 / drawn, is below the sampling error."""
    catalogue, targets = vectors(3000, 2), torch.tensor([3, 10, 11, 40, 3, 10])
    hidden = (
        catalogue[targets] + vectors(6, 1)
    ).requires_grad_()  # close to their targets, so that these have a noticeable share
    (full,) = torch.autograd.grad(full_softmax(hidden, catalogue, targets, TAU), hidden)
    draws, uncorrected = [], []
    for number in range(400):
        items, log_inclusion = draw(600, number, size=3000)
        places = torch.from_numpy(np.searchsorted(items, targets.numpy()))
        table = catalogue[torch.from_numpy(items)]
        sampled = full_softmax(hidden, table, places, TAU, log_inclusion=torch.from_numpy(log_inclusion))
        draws.append(torch.autograd.grad(sampled, hidden)[0])
        uncorrected.append(torch.autograd.grad(full_softmax(hidden, table, places, TAU), hidden)[0])
    errors = torch.stack(draws).std(0) / math.sqrt(len(draws))
    worst = ((torch.stack(draws).mean(0) - full).abs() / errors).max()
    assert worst < 4.5  # the largest of 30 standard normal deviations
    without = ((torch.stack(uncorrected).mean(0) - full).abs() / errors).max()
    assert without > 10  # so the test would see a missing correction


def test_each_step_draws_different_items_and_each_run_the_same() -> None:
    windows = training_windows([make_sequences([9, 7, 12, 5, 8], 6)], np.array([0, 41]))
    first, second = ([batch.items.tolist() for batch in batches(windows, 4, 0, 1, Candidates(41, 8))] for _ in range(2))
    assert first == second
    other = [batch.items.tolist() for batch in batches(windows, 4, 0, 2, Candidates(41, 8))]
    assert first != other


@pytest.mark.parametrize(("size", "pretraining", "drawn"), [(100, False, 100), (101, False, 7), (101, True, 0)])
def test_only_targets_above_the_stated_size_are_sampled(size: int, pretraining: bool, drawn: int) -> None:
    assert drawn_items(size, pretraining, TrainConfig(sampled_above=100, drawn=7)) == drawn


def test_pre_training_draws_the_requested_number() -> None:
    drawn = [drawn_items(100, True, TrainConfig(pretrain_drawn=drawn)) for drawn in (0, 7, 1000)]
    assert drawn == [0, 7, 100]


def test_pre_training_with_all_items_drawn_is_the_full_softmax(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make_trainable(store, "Shop", widths={"text": 6})
    data = load_training_data(store, ["Shop"], TrainConfig(modalities=("text",)))
    windows, size = training_windows(data.sequences, data.catalogue.offsets), len(data.catalogue)
    model = Ant(replace(MODEL, hidden_dropout=0, attention_dropout=0, gate_noise=False), {"text": 6}, max_len=10)
    batch = make_batch(windows, np.arange(5), Candidates(size, size), np.random.default_rng(0))
    inputs = item_inputs(data.catalogue, {"text": 6}, batch.items, device=torch.device("cpu"), precision="fp32")
    drawn = pretraining_loss(model, inputs, batch, TrainConfig(pretrain_drawn=size))
    items = model.items(inputs.features).fused
    hidden = hidden_states(model, items, batch)
    expected = torch.nn.functional.cross_entropy(
        cosine_scores(hidden, items) / MODEL.temperature, torch.from_numpy(batch.targets)
    )
    assert drawn.item() == pytest.approx(expected.item(), rel=1e-5)
    assert pretraining_loss(model, inputs, batch, TrainConfig()).item() < drawn.item()  # fewer negatives


def test_reference_with_drawn_negatives_is_refused() -> None:
    with pytest.raises(UsageError, match="--pretrain-drawn 5: --reference"):
        TrainConfig(reference=True, pretrain_drawn=5)

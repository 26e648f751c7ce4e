"""Balanced modalities, against the formula of docs/method.md."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from antpipe.core.batches import batches, training_windows
from antpipe.core.catalogue import item_inputs
from antpipe.core.model import Ant
from antpipe.training.data import TrainingData
from antpipe.training.loop import candidates_of, fit
from antpipe.training.methods.balance import balance, smooth_maximum, weight_after
from antpipe.training.parallel import ALONE
from antpipe.training.step_loss import hidden_states, softmax_over_items, target_loss
from tests.support.trainable import MODEL, TRAINING

CPU = torch.device("cpu")
CONFIG = replace(TRAINING, method="balance", balance_weight=2.0, balance_epochs=4)


def test_the_smooth_maximum_lies_between_mean_and_maximum() -> None:
    values = torch.tensor([1.0, 2.0, 4.0])
    assert smooth_maximum(values, 0.5).item() == pytest.approx(0.5 * np.log(np.mean(np.exp([2.0, 4.0, 8.0]))))
    assert smooth_maximum(values, 1e4).item() == pytest.approx(7 / 3, rel=1e-3)
    assert smooth_maximum(values, 1e-3).item() == pytest.approx(4.0, rel=1e-2)


def test_the_weight_is_0_in_the_first_epoch_and_grows_by_equal_steps() -> None:
    assert [weight_after(epochs, CONFIG) for epochs in range(6)] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]


def test_the_gradient_is_that_of_the_loss_and_the_smooth_maximum_of_losses_over_their_first(data: TrainingData) -> None:
    torch.manual_seed(0)
    shape = replace(MODEL, hidden_dropout=0.0, attention_dropout=0.0, gate_noise=False)
    model = Ant(shape, data.catalogue.widths, max_len=10)
    windows = training_windows(data.sequences, data.catalogue.offsets)
    batch = next(batches(windows, 64, 0, 1, candidates_of(data, False, CONFIG)))
    inputs = item_inputs(data.catalogue, model.widths, batch.items, CPU)
    method = balance(model)
    assert method.loss is not None

    def alone(name: str) -> torch.Tensor:
        items = model.items(inputs.features, inputs.ids, inputs.present).parts[name]
        return softmax_over_items(model, hidden_states(model, items, batch), items, batch, None, None)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        trained = [one for name, one in model.named_parameters() if not name.endswith("w_noise")]  # without noise
        return torch.cat([one.flatten() for one in torch.autograd.grad(loss, trained)])

    whole, first = target_loss(model, inputs, batch, CONFIG), torch.stack([alone(name) for name in model.widths])
    in_first = method.loss(model, inputs, batch, CONFIG, ALONE, None)
    assert torch.equal(gradient(in_first), gradient(whole))
    assert method.figures() == pytest.approx(
        dict(zip(["loss_text", "loss_image", "loss_price"], first.tolist(), strict=True))
    )
    with torch.no_grad():
        model.positions.weight.add_(torch.randn(10, 16))
    ratios = torch.stack([alone(name) for name in model.widths]) / first.detach()
    mu = CONFIG.balance_temperature
    wanted = target_loss(model, inputs, batch, CONFIG) + 0.5 * mu * (ratios / mu).exp().mean().log()
    found = method.loss(model, inputs, batch, CONFIG, ALONE, None)
    torch.testing.assert_close(gradient(found), gradient(wanted), rtol=1e-4, atol=1e-6)
    assert found.item() == pytest.approx(target_loss(model, inputs, batch, CONFIG).item())


def test_the_losses_of_modalities_stand_in_the_rows_of_the_epochs(data: TrainingData, model: Ant) -> None:
    rows = fit(model, data, CONFIG, pretraining=False, device=CPU).rows
    assert all({"loss_text", "loss_image", "loss_price"} <= row.keys() for row in rows)
    assert len({row["loss_text"] for row in rows}) == len(rows)

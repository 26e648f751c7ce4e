"""Negatives of several sources and consensus distillation, against the formulas of docs/method.md."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from antpipe.core.batches import Block, batches, training_windows
from antpipe.core.catalogue import item_inputs
from antpipe.core.losses import cosine_scores
from antpipe.core.model import Ant
from antpipe.settings.training import TrainConfig
from antpipe.training.data import TrainingData
from antpipe.training.loop import candidates_of
from antpipe.training.methods.checks import pool_of
from antpipe.training.methods.consensus import (
    choose,
    consensus,
    distillation,
    draw,
    peer_of,
    ranked_above,
    scores_of,
    windows_read,
)
from antpipe.training.methods.method import pass_of
from antpipe.training.parallel import ALONE
from antpipe.training.step_loss import target_loss
from tests.support.trainable import MODEL, TRAINING

CPU = torch.device("cpu")
CONFIG = replace(TRAINING, method="consensus", peer_candidates=9)


def first_batch(data: TrainingData, config: TrainConfig = CONFIG):  # type: ignore[no-untyped-def]
    windows = training_windows(data.sequences, data.catalogue.offsets)
    return next(batches(windows, 64, 0, 1, candidates_of(data, False, config)))


def test_drawn_items_are_all_items_of_the_pool_but_those_seen() -> None:
    pool, seen = torch.tensor([1, 2, 4, 5, 7, 8, 9]), torch.tensor([[4, 9, 4], [1, 2, 5]])
    drawn = draw(pool, seen, 600)
    assert set(drawn[0].tolist()) == {1, 2, 5, 7, 8}
    assert set(drawn[1].tolist()) == {4, 7, 8, 9}
    _, counts = drawn[0].unique(return_counts=True)
    assert counts.min() > 80  # 120 expected, standard deviation 10


def test_the_windows_read_are_whole_rows_and_nothing_else() -> None:
    blocks = (Block(np.array([[3, 4], [5, 5]]), np.array([0, 3])), Block(np.array([[6, 7, 8]]), np.array([1])))
    assert [set(row) for row in windows_read(blocks).tolist()] == [{3, 4}, {5}, {6, 7, 8}]


def test_each_negative_is_among_the_highest_of_its_ranking() -> None:
    own = torch.tensor([[9.0, 1.0, 2.0, 3.0, 0.0]])
    other = torch.tensor([[9.0, 1.0, 2.0, 0.0, 2.5]])
    # d = 0, 0, 3, 2.5. self: 1 2 6 2.5; peer: 1 2 3 5; teacher: 1 2 4.5 3.75
    assert choose(own, other, 1).tolist() == [[3], [4], [3]]
    several = torch.cat([choose(own, other, 2) for _ in range(40)], 1)
    assert [set(row) for row in several.tolist()] == [{3, 4}, {3, 4}, {3, 4}]


def test_the_ranking_loss_is_a_weighted_sum_of_bpr() -> None:
    scores = torch.tensor([[2.0, 1.0, 3.0], [0.0, 1.0, -1.0]])
    negatives = torch.tensor([[1, 1], [2, 2], [2, 1]])

    def bpr(*margins: float) -> float:
        return sum(-math.log(1 / (1 + math.exp(-one))) for one in margins) / len(margins)

    wanted = bpr(1, -1) + 0.5 * bpr(-1, 1) + 3 * bpr(-1, -1)
    assert ranked_above(scores, negatives, (1.0, 0.5, 3.0)).item() == pytest.approx(wanted, rel=1e-5)


def test_the_soft_targets_cost_tau_squared_times_the_divergence_from_the_teacher() -> None:
    scores, teacher, tau = np.array([[2.0, 1.0, 0.0]]), np.array([[0.0, 1.0, 3.0]]), 10.0
    p, q = (np.exp(one / tau) / np.exp(one / tau).sum() for one in (teacher, scores))
    found = distillation(torch.from_numpy(scores), torch.from_numpy(teacher), tau)
    assert found.item() == pytest.approx(tau**2 * (p * np.log(p / q)).sum())


@pytest.mark.parametrize("history", [False, True])
def test_scores_of_chosen_items_are_those_of_the_softmax(data: TrainingData, history: bool) -> None:
    """Minus log softmax of the scores of all items is the loss of a step."""
    torch.manual_seed(0)
    shape = replace(MODEL, history_score=history, hidden_dropout=0.0, attention_dropout=0.0)
    model = Ant(shape, data.catalogue.widths, 10)
    if model.history_score is not None:
        model.history_score.detach().fill_(0.2)
    batch = first_batch(data)
    inputs = item_inputs(data.catalogue, model.widths, batch.items, CPU)
    with torch.no_grad():
        made = pass_of(model.eval(), inputs, batch)
        every = torch.arange(len(batch.items)).expand(len(batch.targets), -1)
        scores = scores_of(model, made, every)
        wanted = target_loss(model, inputs, batch, CONFIG)
    own = torch.nn.functional.cross_entropy(scores, torch.from_numpy(batch.targets))
    assert own.item() == pytest.approx(wanted.item(), rel=1e-5)
    if not history:
        torch.testing.assert_close(scores, cosine_scores(made.hidden, made.items) / model.config.temperature)


def test_the_peer_has_other_first_values_and_the_layers_asked_for(model: Ant) -> None:
    before = torch.get_rng_state()
    peer = peer_of(model, replace(CONFIG, peer_layers=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert (len(model.encoder), len(peer.encoder)) == (2, 1)
    assert not torch.equal(peer.positions.weight, model.positions.weight)
    again = peer_of(model, replace(CONFIG, peer_layers=1))
    assert torch.equal(peer.positions.weight, again.positions.weight)


@pytest.mark.parametrize("method", ["consensus", "distil"])
def test_both_are_trained_and_the_loss_reported_is_that_of_self(data: TrainingData, model: Ant, method: str) -> None:
    config = replace(CONFIG, method=method)
    made = consensus(model, pool_of(data, config), config, CPU)
    batch = first_batch(data)
    inputs = item_inputs(data.catalogue, model.widths, batch.items, CPU)
    assert made.loss is not None
    losses = []
    for weight in (1.0, 0.0):
        torch.manual_seed(5)
        losses.append(made.loss(model, inputs, batch, replace(config, distil_weight=weight), ALONE, None))
    losses[0].backward()
    assert all(one.grad is not None for one in (*model.parameters(), *made.parameters))
    if method == "distil":  # without soft targets it is the stage's own loss
        torch.manual_seed(5)
        assert losses[1].item() == target_loss(model, inputs, batch, config).item()
    assert losses[0] > losses[1]


def test_items_that_do_not_occur_in_training_are_drawn_only_if_they_are_negatives(data: TrainingData) -> None:
    none = replace(data.sequences[0], train_end=np.minimum(data.sequences[0].train_end, 2))
    few = replace(data, sequences=(none,))
    assert len(pool_of(few, replace(CONFIG, unsold_negatives=False))) <= len(pool_of(few, CONFIG)) == 24
    seen = {int(item) for start in none.offsets[:-1] for item in none.items[start : start + 2]}
    assert set(pool_of(few, replace(CONFIG, unsold_negatives=False)).tolist()) == seen

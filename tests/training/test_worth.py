"""The weight of trained vectors beside a floor, against a dense search for it, and what it is fitted to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from antpipe.core.floor import begin_at_floor, known_in, weights_of
from antpipe.core.model import Ant
from antpipe.core.scoring import scoring, unit_vectors
from antpipe.core.untrained import blend
from antpipe.store.store import Store
from antpipe.training import worth
from antpipe.training.data import TrainingData, load_training_data
from antpipe.training.step_loss import pretraining_loss, target_loss
from antpipe.training.validation import validating
from antpipe.training.worth import fit_cosine, log_likelihood, pools_of, weighing
from tests.support.interruptions import CONFIG, two_shops
from tests.support.trainable import MODEL
from tests.training.methods.test_consensus import first_batch

CPU = torch.device("cpu")
Doubles = NDArray[np.float64]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    store: Store = two_shops(tmp_path_factory.mktemp("shops"))
    return load_training_data(store, ["Target"], CONFIG)


def model_of(data: TrainingData, *, floor: bool = True) -> Ant:
    torch.manual_seed(0)
    shape = replace(MODEL, floor=floor, hidden_dropout=0.0, attention_dropout=0.0, gate_noise=False)
    return Ant(shape, data.catalogue.widths, 10)


def drawn(seed: int, strength: float, queries: int = 400) -> tuple[Doubles, Doubles, NDArray[np.int64]]:
    """Logits, cosines, and targets drawn from the softmax of logits + strength * cosines."""
    rng = np.random.default_rng(seed)
    logits, cosines = rng.normal(size=(queries, 9)), rng.uniform(-1, 1, (queries, 9))
    chances = np.exp(logits + strength * cosines)
    return logits, cosines, np.array([rng.choice(9, p=one / one.sum()) for one in chances])


def test_the_weight_maximises_likelihood_and_prior() -> None:
    logits, cosines, place = drawn(0, 3.0)
    found, gain = fit_cosine(logits, cosines, place)
    tried = np.arange(0, 8, 0.001)
    values = [log_likelihood(logits + one * cosines, place) - (one / worth.SPREAD) ** 2 / 2 for one in tried]
    assert found == pytest.approx(tried[int(np.argmax(values))], abs=0.01)
    before, after = (log_likelihood(logits + one * cosines, place) for one in (0.0, found))
    assert gain == pytest.approx(after - before)
    assert gain > 50


def test_vectors_that_point_away_from_targets_have_no_weight() -> None:
    logits, cosines, place = drawn(1, -3.0)
    assert fit_cosine(logits, cosines, place) == (0.0, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_vectors_that_tell_nothing_gain_less_than_they_have_to(seed: int) -> None:
    assert fit_cosine(*drawn(seed, 0.0))[1] < worth.LEAST_GAIN / 2


def test_log_likelihood_is_that_of_the_softmax() -> None:
    scores, place = np.array([[0.0, 1.0, 2.0], [5.0, 5.0, -60.0]]), np.array([2, 0])
    by_hand = np.log(np.exp(2) / (1 + np.exp(1) + np.exp(2))) + np.log(0.5)
    assert log_likelihood(scores, place) == pytest.approx(by_hand)


def test_pools_are_the_best_items_of_the_floor_alone(data: TrainingData) -> None:
    model, valid = model_of(data), data.validation["Target"]
    known = known_in(data.catalogue, model.widths, "Target", data.sequences[0])
    fitted = begin_at_floor(model, known, valid) | {"transitions": 0.0}  # which find every target of this shop
    assert model.floor is not None
    model.floor["transitions"].fill_(0.0)
    pools = pools_of(model, known, valid, reranked=False, size=4)
    scores = blend(known, valid, fitted)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :4]
    hit = (best == valid.targets()[:, None]).any(1)
    assert 0 < hit.sum() < len(valid)
    assert pools.part.targets().tolist() == valid.targets()[hit].tolist()
    assert [set(one) for one in pools.rows.tolist()] == [set(one) for one in best[hit].tolist()]
    assert pools.logits == pytest.approx(np.take_along_axis(scores[hit], pools.rows, 1), rel=1e-5)
    assert (pools.rows[np.arange(len(pools.place)), pools.place] == pools.part.targets()).all()


def test_pools_of_a_reranked_floor_are_the_best_items_by_its_scores(
    data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is replaced by one that gives row r of 24 items the score 7 r modulo 24."""
    monkeypatch.setattr(worth, "reranking", lambda *_: lambda _part, rows, _scores, vectors: vectors + rows * 7 % 24)
    model, valid = model_of(data), data.validation["Target"]
    known = known_in(data.catalogue, model.widths, "Target", data.sequences[0])
    found, best = pools_of(model, known, valid, reranked=True, size=4), [17, 10, 3, 20]
    hit = np.isin(valid.targets(), best)
    assert hit.any()
    assert found.rows.tolist() == [best] * hit.sum()
    assert found.logits[0] == pytest.approx(np.array([23, 22, 21, 20]) / model.config.temperature)
    assert found.part.targets().tolist() == valid.targets()[hit].tolist()
    assert [best[place] for place in found.place] == found.part.targets().tolist()


def test_a_model_gets_the_weight_of_its_own_vectors(data: TrainingData) -> None:
    model = model_of(data)
    known = known_in(data.catalogue, model.widths, "Target", data.sequences[0])
    begin_at_floor(model, known, data.validation["Target"])
    gain = weighing(model, data, validating(model, data, CPU, lambda: None))()
    pools = pools_of(model, known, data.validation["Target"], reranked=False)
    queries, items = unit_vectors(model, data.catalogue, "Target", pools.part, CPU)
    cosines = np.einsum("qd,qcd->qc", queries.astype(np.float64), items[pools.rows].astype(np.float64))
    wanted = fit_cosine(pools.logits, cosines, pools.place)
    assert gain == pytest.approx(wanted[1], abs=1e-6)
    assert weights_of(model)["cosine"] == pytest.approx(wanted[0] * model.config.temperature, abs=1e-6)


@pytest.mark.parametrize("loss_of", [target_loss, pretraining_loss])
def test_a_step_is_the_same_with_and_without_a_floor(data: TrainingData, loss_of) -> None:  # type: ignore[no-untyped-def]
    from antpipe.core.catalogue import item_inputs

    batch, losses = first_batch(data), []
    for floor in (True, False):
        model = model_of(data, floor=floor)
        loss = loss_of(model, item_inputs(data.catalogue, model.widths, batch.items, CPU), batch, CONFIG)
        loss.backward()
        losses.append(loss.item())
        weights = [*(model.floor or {}).values(), model.history_score] if model.floor is not None else []
        assert all(weight is not None and weight.grad is None and not weight.requires_grad for weight in weights)
    assert losses[0] == losses[1]


def test_pools_are_those_of_ranking_if_a_history_is_longer_than_what_is_read(data: TrainingData) -> None:
    """Only the last max_len items of a history have the history weight."""
    model = model_of(data)
    valid = replace(data.validation["Target"], max_len=2)
    assert (valid.end - valid.start > 2).any()
    known = known_in(data.catalogue, model.widths, "Target", data.sequences[0])
    begin_at_floor(model, known, valid)
    assert model.floor is not None
    model.floor["cosine"].detach().zero_()
    pools = pools_of(model, known, valid, reranked=False)
    scored = scoring(model, data.catalogue, "Target", pools.part, CPU, known)
    assert scored.pairs is not None
    added = scored.pairs(np.arange(len(pools.part)))
    scores = scored.queries.astype(np.float64) @ scored.items.T.astype(np.float64)
    scores.ravel()[added.keys] += added.scores
    wanted = np.take_along_axis(scores, pools.rows, 1) / model.config.temperature
    assert pools.logits == pytest.approx(wanted, abs=1e-4)

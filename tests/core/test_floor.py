"""The floor inside a model: each term in ranking against dense maths written out, and where its weights begin."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import csr_array

from antpipe.core import ranking
from antpipe.core.batches import Examples, examples
from antpipe.core.floor import begin_at_floor, weights_of
from antpipe.core.model import Ant
from antpipe.core.ranking import PairScores, rank_examples
from antpipe.core.scoring import scoring
from antpipe.core.untrained import (
    BACKWARD,
    DECAY,
    INHERITED,
    LAST,
    LEAST,
    REACH,
    RECENT,
    SPREAD,
    TERMS,
    TYPICAL,
    Untrained,
    fit_weights,
    from_sequences,
    unit,
)
from antpipe.settings.model import FLOOR, ModelConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.files import Sequences
from antpipe.training.loop import sized

N, WIDTH, MAX_LEN = 30, 5, 8


def shop(seed: int = 0, users: int = 12) -> Sequences:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 12, users)
    items = np.concatenate([rng.choice(N - 4, length, replace=False) for length in lengths]).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Sequences(np.arange(users, dtype=np.int32), offsets, items, lengths - 2, lengths - 1, MAX_LEN)


def counts_of(sequences: Sequences) -> NDArray[np.float64]:
    """c(i, j) counted by hand."""
    found = np.zeros((N, N))
    for start, train in zip(sequences.offsets, sequences.train_end, strict=False):
        for place in range(train):
            for apart in range(1, min(REACH, place) + 1):
                before, after = sequences.items[start + place - apart], sequences.items[start + place]
                found[before, after] += 1 / apart
                found[after, before] += BACKWARD / apart
    return found


def words(n: int = N) -> csr_array:
    rng = np.random.default_rng(4)
    return csr_array(rng.random((n, n)) * (rng.random((n, n)) < 0.3))


def shares(sequences: Sequences) -> NDArray[np.float64]:
    """(N, N): what the sold word neighbours of each item count in what it inherits."""
    found = words().toarray() * ~known_of(sequences).new
    return found / np.where(found.any(1), found.sum(1), 1)[:, None]


def known_of(sequences: Sequences) -> Untrained:
    return from_sequences(sequences, unit(texts()), words())


def test_transitions_add_up_what_came_within_reach_in_training() -> None:
    sequences = shop()
    known = known_of(sequences)
    counts = counts_of(sequences)
    assert known.counts.toarray() == pytest.approx(counts)
    assert known.steps.toarray() == pytest.approx(np.log1p(counts + INHERITED * counts @ shares(sequences).T))


def test_new_items_are_those_that_no_training_part_has() -> None:
    sequences = shop()
    there = {
        int(item)
        for start, end in zip(sequences.offsets, sequences.train_end, strict=False)
        for item in sequences.items[start : start + end]
    }
    assert np.flatnonzero(~known_of(sequences).new).tolist() == sorted(there)


def model_of(seed: int = 0, **own: Any) -> Ant:
    torch.manual_seed(seed)
    config = ModelConfig(
        width=8, experts=0, layers=1, floor=True, item_dropout=0, hidden_dropout=0, attention_dropout=0, temperature=0.1
    )
    model = Ant(replace(config, **own), {"text": WIDTH}, MAX_LEN, N).double()
    with torch.no_grad():
        for number, parameter in enumerate([*model.floor.values(), model.history_score]):  # type: ignore[union-attr]
            parameter.fill_(0.1 * (number + 1))
    return model


def texts(seed: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(N, WIDTH)).astype(np.float32)


def dense_scores(model: Ant, sequences: Sequences, row: int, place: int) -> torch.Tensor:
    """Scores of all items for the item at `place` of a sequence, by the formula of the module."""
    start = sequences.offsets[row]
    first = max(0, place - MAX_LEN)
    history = torch.from_numpy(sequences.items[start + first : start + place].astype(np.int64))
    features = torch.from_numpy(texts()).double()
    vectors = model.items({"text": features}, torch.arange(N) if model.ids is not None else None).fused
    hidden = model.encode(vectors[history][None])[0, -1]
    counts = counts_of(sequences)
    floor, last = model.floor, history.flip(0)[:LAST]
    share_of = shares(sequences)
    share = torch.tensor([DECAY**k for k in range(len(last))], dtype=torch.float64)
    normed = F.normalize(features, dim=-1)
    text = RECENT * (share[:, None] * normed[last]).sum(0) / share.sum() + (1 - RECENT) * normed[history].mean(0)
    text = text - TYPICAL * normed.mean(0)
    parts = [
        sequences.items[first : first + end] for first, end in zip(sequences.offsets, sequences.train_end, strict=False)
    ]
    popularity = torch.from_numpy(np.log1p(np.bincount(np.concatenate(parts), minlength=N)))
    steps = torch.zeros(N, dtype=torch.float64)
    for back, item in enumerate(last.tolist()):
        here = counts[item]
        steps += share[back] * torch.from_numpy(np.log1p(here + INHERITED * share_of @ here))
    common = share @ torch.from_numpy(words().toarray()[last.numpy()])
    seen = torch.zeros(N, dtype=torch.float64)
    seen[history] = 1
    cosine = model.config.temperature * floor["cosine"] * F.cosine_similarity(hidden[None], vectors)  # type: ignore[index]
    scores = cosine + floor["text"] * (normed @ text)  # type: ignore[index]
    scores = scores + floor["words"] * common + floor["transitions"] * steps  # type: ignore[index]
    return scores + model.history_score * seen + floor["popularity"] * popularity  # type: ignore[operator,index]


class OneDomain:
    """A catalogue of one domain with texts, as far as ranking reads it."""

    domains = ("Shop",)
    widths = {"text": WIDTH}  # noqa: RUF012

    def words_of(self, _: str) -> csr_array:
        return words()

    def rows(self, _: str) -> NDArray[np.int64]:
        return np.arange(N)

    def gather(self, rows: Any, *_: object) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return texts()[rows], np.ones(len(rows), np.bool_)


@pytest.mark.parametrize("block_size", [0, 3])
def test_ranks_are_those_of_the_dense_scores(block_size: int) -> None:
    sequences, model = shop(5, users=20), model_of().float().eval()
    known = known_of(sequences)
    part = examples(sequences, "test")
    device = torch.device("cpu")
    ranks = scoring(model, OneDomain(), "Shop", part, device, known).ranks(part, block_size)  # type: ignore[arg-type]
    exact, weights = model.double(), weights_of(model)
    for number, row in enumerate(np.repeat(np.arange(20), 1)):
        place = int(sequences.valid_end[row])
        scores = dense_scores(exact, sequences, row, place).detach().numpy()
        scores += weights["novelty"] * known.new
        target = int(sequences.items[sequences.offsets[row] + place])
        expected = 1 + (scores > scores[target] + 1e-5).sum()
        assert ranks.by_protocol["all"][number] == expected
        unseen = np.setdiff1d(np.arange(N), sequences.items[sequences.offsets[row] : sequences.offsets[row] + place])
        assert ranks.by_protocol["unseen"][number] == 1 + (scores[unseen] > scores[target] + 1e-5).sum()


@pytest.mark.parametrize("seed", range(5))
def test_ranks_do_not_depend_on_whether_pairs_are_multiplied_together(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    n, users = 40, 9
    items = rng.normal(size=(6, 4)).astype(np.float32)[rng.integers(0, 6, n)]  # whole groups of items tie exactly
    queries, keys = rng.normal(size=(users, 4)).astype(np.float32), np.flatnonzero(rng.random(users * n) < 0.3)
    walks = rng.integers(0, n, 2 * users).astype(np.int32)
    part = Examples(np.arange(users, dtype=np.int32), walks, 2 * np.arange(users), 2 * np.arange(users) + 1, MAX_LEN)
    added = PairScores(rng.integers(1, 3, len(keys)) / 2, keys)
    found, together = [], []
    for sparse in (0, 10**9):  # one by one; everything at once
        monkeypatch.setattr(ranking, "SPARSE", sparse)
        row, item = np.divmod(keys, n)
        together.append(ranking.products(queries, items, row, item))
        some = rank_examples(queries, items, part, users, pairs=lambda rows: added_to(added, rows, n))
        found.append(some.by_protocol)
    assert together[0].dtype == np.float64
    assert together[1].dtype == np.float32
    assert together[1] == pytest.approx(together[0], abs=1e-5)
    assert all(np.array_equal(found[0][protocol], found[1][protocol]) for protocol in found[0])


def added_to(added: PairScores, rows: NDArray[np.int64], n: int) -> PairScores:
    """What is added to these rows, numbered from 0."""
    keys = (np.arange(len(rows))[:, None] * n + np.arange(n)).ravel()
    scores = added.at((rows[:, None] * n + np.arange(n)).ravel())
    return PairScores(scores[scores != 0], keys[scores != 0])


def test_a_target_that_only_pairs_bring_up_is_ranked_first() -> None:
    """Far outside the candidates by inner product, first by what transitions add."""
    rng = np.random.default_rng(0)
    items = rng.normal(size=(500, 4)).astype(np.float32)
    queries = np.array([[1.0, 0, 0, 0]], np.float32)
    worst = int((items @ queries[0]).argmin())
    part = Examples(np.array([0], np.int32), np.array([7, worst], np.int32), np.array([0]), np.array([1]), MAX_LEN)
    ranks = rank_examples(
        queries, items, part, pairs=lambda _: PairScores(np.array([50.0]), np.array([worst], np.int64))
    )
    assert ranks.by_protocol["all"].tolist() == [1]


def test_fitted_weights_maximise_likelihood_and_prior() -> None:
    """Against scipy's minimiser on the dense loss, written out, without its gradient."""
    from scipy.optimize import minimize

    sequences = shop(2, users=40)
    known = known_of(sequences)
    part, zero = examples(sequences, "valid"), model_of()
    rows = []
    with torch.no_grad():
        for name in TERMS:
            for other in TERMS:
                place = zero.history_score if other == "history" else zero.floor[other]  # type: ignore[index]
                place.fill_(float(other == name))  # type: ignore[union-attr]
            zero.floor["cosine"].fill_(0)  # type: ignore[index]
            dense = [dense_scores(zero, sequences, row, int(sequences.train_end[row])) for row in range(40)]
            new = known.new * float(name == "novelty")
            rows.append(np.stack([scores.numpy() + new for scores in dense]))
    terms, target = np.stack(rows, -1), part.targets()  # (Q, N, 6)

    def loss(shift: NDArray[np.float64]) -> float:
        weights = [FLOOR[name] + change * SPREAD[name] for name, change in zip(TERMS, shift, strict=True)]
        scores = terms @ np.array(weights)
        chosen = scores[np.arange(len(target)), target]
        return float((np.log(np.exp(scores).sum(1)) - chosen).sum() + (shift**2).sum() / 2)

    least = [((LEAST.get(name, -np.inf) - FLOOR[name]) / SPREAD[name], None) for name in TERMS]
    options = {"xatol": 1e-5, "fatol": 1e-8, "maxiter": 20_000}
    best = minimize(loss, np.zeros(6), method="Nelder-Mead", bounds=least, options=options)
    expected = {name: FLOOR[name] + change * SPREAD[name] for name, change in zip(TERMS, best.x, strict=True)}
    assert fit_weights(known, part) == pytest.approx(expected, abs=0.02)


def test_without_validation_positions_the_weights_are_the_usual_ones() -> None:
    known = known_of(shop())
    none = Examples(*(np.empty(0, np.int32),) * 4, MAX_LEN)  # type: ignore[arg-type]
    assert fit_weights(known, none) == {name: FLOOR[name] for name in TERMS}


def test_a_model_begins_with_fitted_weights_and_gives_new_items_no_id() -> None:
    sequences, model = shop(2, users=40), model_of(transductive=True)
    known, valid = from_sequences(sequences, unit(texts()), words()), examples(sequences, "valid")
    before = weights_of(model)["cosine"]
    begin_at_floor(model, known, valid)
    fitted = {name: value * model.config.temperature for name, value in fit_weights(known, valid).items()}
    assert weights_of(model) == pytest.approx({"cosine": before, **fitted})
    assert known.new.any()
    assert not model.ids.weight[known.new].any()  # type: ignore[union-attr]
    assert model.ids.weight[~known.new].any()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("positions", "batch", "passes"), [(1000, 128, 4), (6400, 400, 2), (16_384, 1024, 2), (200_000, 1024, 1)]
)
def test_small_shops_have_smaller_batches_and_several_passes_per_epoch(positions: int, batch: int, passes: int) -> None:
    config, times = sized(TrainConfig(batch_size=1024, smallest_batch=128, least_steps=32, lr=0.004), positions)
    assert (config.batch_size, times) == (batch, passes)
    assert config.lr == pytest.approx(0.004 * np.sqrt(batch / 1024))


def test_nothing_is_sized_unless_it_is_asked_for() -> None:
    config = TrainConfig(batch_size=1024)
    assert sized(config, 300) == (config, 1)

"""The learned score of items in the history: in losses, batches, ranking, training and recommend."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from antpipe.core import losses
from antpipe.core.batches import Block, examples, history_pairs, pairs_among
from antpipe.core.catalogue import load_catalogue
from antpipe.core.losses import Bonus, cosine_scores, full_softmax, in_batch
from antpipe.core.ranking import Found, rank_examples
from antpipe.core.scoring import score_of_history, scoring
from antpipe.errors import DataError, UsageError
from antpipe.evaluation.evaluate import evaluate_run
from antpipe.features.build_sequences import build_sequences
from antpipe.serving.recommend import recommend
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.settings.features import SequenceConfig
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.request import RunRequest
from antpipe.training.run import run_stage
from tests.core.test_ranking import make_examples, unit
from tests.support.shops import make_domain
from tests.support.trainable import MODEL, TRAINING, make_trainable, train_quickly, write_feature

TAU = 0.07
P, N, D = 37, 23, 6
LEARNING = replace(MODEL, history_score=True)


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    made = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return made.requires_grad_()


def some_pairs(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs sorted by row; row 3 and the last row have none."""
    chosen = torch.rand(rows, columns, generator=torch.Generator().manual_seed(7)) < 0.2
    chosen[[3, -1]] = False
    row, column = chosen.nonzero(as_tuple=True)
    return row, column


@pytest.mark.parametrize("numbers", [1, 5 * N, 10**9], ids=["row by row", "five rows", "all rows"])
def test_a_bonus_has_the_loss_and_gradients_of_added_scores(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "SCORES_AT_ONCE", numbers)
    hidden, catalogue, targets = vectors(P, D), vectors(N, D, seed=1), torch.arange(P) % N
    score = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    pairs = some_pairs(P, N)
    added = torch.zeros(P, N, dtype=torch.float64).index_put(pairs, score.expand(len(pairs[0])))
    plain = F.cross_entropy((cosine_scores(hidden, catalogue) + added) / TAU, targets)
    ours = full_softmax(hidden, catalogue, targets, TAU, bonus=Bonus(score, *pairs))
    assert math.isclose(ours.item(), plain.item(), rel_tol=1e-12)
    inputs = (hidden, catalogue, score)
    for mine, theirs in zip(torch.autograd.grad(2 * ours, inputs), torch.autograd.grad(2 * plain, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_in_batch_a_bonus_leaves_other_positions_of_the_same_item_and_user_out() -> None:
    hidden, items, targets = vectors(P, D), vectors(P, D, seed=1), torch.arange(P) % 5
    score = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    rows, columns = pairs_among((np.array([0, 2, 2]), np.array([4, 0, 2])), targets.numpy())
    bonus = Bonus(score, torch.from_numpy(rows), torch.from_numpy(columns))
    added = torch.zeros(P, P, dtype=torch.float64).index_put((bonus.rows, bonus.columns), score.expand(len(rows)))
    users = torch.arange(P) // 3  # position 2 is of the same user as position 0, whose item is in its history
    same = ((targets[:, None] == targets) | (users[:, None] == users)).fill_diagonal_(False)
    scores = ((cosine_scores(hidden, items) + added) / TAU).masked_fill(same, -torch.inf)
    plain = F.cross_entropy(scores, torch.arange(P))
    ours = in_batch(hidden, items, targets, TAU, bonus=bonus, users=users)
    assert math.isclose(ours.item(), plain.item(), rel_tol=1e-12)
    inputs = (hidden, items, score)
    for mine, theirs in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(plain, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_pairs_are_each_position_with_each_item_up_to_it_once() -> None:
    blocks = [
        Block(inputs=np.array([[5, 2, 5], [1, 0, 0]]), positions=np.array([0, 1, 2, 3])),  # the second has one item
        Block(inputs=np.array([[7, 7, 3, 4]]), positions=np.array([2, 3])),  # a target at its last two places
    ]
    rows, items = history_pairs(blocks, 8)
    assert list(zip(rows.tolist(), items.tolist(), strict=True)) == [
        (0, 5),
        (1, 2),
        (1, 5),
        (2, 2),
        (2, 5),
        (3, 1),
        (4, 3),
        (4, 7),
        (5, 3),
        (5, 4),
        (5, 7),
    ]
    assert [part.tolist() for part in history_pairs([], 8)] == [[], []]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), unique=True), st.lists(st.integers(0, 5)))
def test_pairs_among_candidates_are_all_columns_of_the_item(pairs: list[tuple[int, int]], of: list[int]) -> None:
    ordered = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    rows, columns = pairs_among((ordered[:, 0], ordered[:, 1]), np.array(of, np.int64))
    assert (np.diff(rows) >= 0).all()
    expected = {(row, place) for row, item in pairs for place, there in enumerate(of) if there == item}
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == sorted(expected)


def test_items_with_a_raised_score_are_candidates_of_an_approximate_search_too() -> None:
    items = unit(np.array([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]))

    def search(queries: np.ndarray, k: int) -> Found:
        return np.full((len(queries), k), 0.99, np.float32), np.zeros((len(queries), k), np.int64)

    part = make_examples([[3], [2]], [3, 1])
    ranks = rank_examples(items[[0, 0]], items, part, search=search, history_score=0.5)
    assert ranks.by_protocol["all"].tolist() == [1.0, np.inf]


def make_shop(store: Store, *, again: bool) -> None:
    """30 users with five steps each: always the same item, or always the next one on a ring of 20."""
    rows = [{"item_id": f"i{number:03}", "title": f"item {number}"} for number in range(20)]
    interactions = [
        (f"u{user:03}", f"i{(7 * user + (0 if again else step)) % 20:03}", 1000 + step)
        for user in range(30)
        for step in range(5)
    ]
    domain = make_domain(store, "Shop", rows, interactions)
    write_feature(domain, "text", np.random.default_rng(0).normal(size=(20, 12)))
    build_sequences(store, ["Shop"], SequenceConfig(max_len=10))


def train(
    store: Store, out: Path, stage: str = "scratch", domains: tuple[str, ...] = ("Shop",), **more: object
) -> None:
    run_stage(RunRequest(store, domains, stage, LEARNING, replace(TRAINING, lr=0.01, **more)), out)


@pytest.mark.parametrize("again", [True, False])
def test_training_learns_whether_users_repeat_items(tmp_path: Path, again: bool) -> None:
    store = Store(tmp_path / "store")
    make_shop(store, again=again)
    train(store, tmp_path / "run", epochs=30, eval_every=30)
    model, _ = checkpoint.load(tmp_path / "run")
    score = score_of_history(model)
    assert score > 0.1 if again else score < -0.1


@pytest.mark.parametrize(("score", "place"), [(3.0, 0), (-3.0, 19)])
def test_recommend_adds_the_score_to_items_in_the_history(tmp_path: Path, score: float, place: int) -> None:
    store = Store(tmp_path / "store")
    make_shop(store, again=False)
    train(store, tmp_path / "run", epochs=1)
    model, described = checkpoint.load(tmp_path / "run")
    assert model.history_score is not None
    model.history_score.data.fill_(score)
    checkpoint.save(tmp_path / "run", model, described)
    rows = recommend(store, tmp_path / "run", "Shop", items=["i007", "i007"], k=20, include_seen=True)
    assert len({row["item_id"] for row in rows}) == 20
    assert rows[place]["item_id"] == "i007"
    assert abs(rows[place]["score"] - score) <= 1
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)


def test_validation_and_evaluation_use_the_score(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_shop(store, again=True)  # each target is the only item of its history
    train(store, tmp_path / "run", epochs=2)
    model, described = checkpoint.load(tmp_path / "run")
    found = evaluate_run(store, tmp_path / "run", "Shop", EvaluateConfig(split="valid"))
    assert found["protocols"]["all"] == described.metrics
    catalogue = load_catalogue(store, ["Shop"], ["text"])
    part = examples(store.domain("Shop").sequences(), "valid")
    assert model.history_score is not None
    for score, rank in ((3.0, 1.0), (-3.0, 20.0)):
        model.history_score.data.fill_(score)
        ranks = scoring(model, catalogue, "Shop", part, torch.device("cpu")).ranks(part)
        assert set(ranks.by_protocol["all"].tolist()) == {rank}


def test_a_source_without_the_score_is_refused_with_the_flag_that_turns_it_off(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for name in ("Source", "Ring"):
        make_trainable(store, name)
    train_quickly(store, "pretrain", ["Source"], tmp_path / "source")
    with pytest.raises(DataError, match="without --history-score") as caught:
        RunRequest(store, ["Ring"], "finetune", LEARNING, TRAINING, tmp_path / "source").plan()
    assert str(caught.value.next_command) == "the same command with --no-history-score"


@pytest.mark.parametrize("drawn", [0, 5])
def test_the_score_is_learned_from_sources_and_kept_on_the_target(tmp_path: Path, drawn: int) -> None:
    store = Store(tmp_path / "store")
    for seed, name in enumerate(["One", "Two", "Ring"]):
        make_trainable(store, name, seed=seed)
    train(store, tmp_path / "source", "pretrain", ("One", "Two"), epochs=20, eval_every=20, pretrain_drawn=drawn)
    learned = score_of_history(checkpoint.load(tmp_path / "source")[0])
    assert learned < -0.1
    still = replace(TRAINING, lr=0.0, epochs=1)
    run_stage(RunRequest(store, ["Ring"], "relearn", LEARNING, still, tmp_path / "source"), tmp_path / "run")
    assert score_of_history(checkpoint.load(tmp_path / "run")[0]) == learned


def test_the_score_is_refused_with_reference(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Shop")
    with pytest.raises(UsageError, match="adds nothing to scores"):
        train(store, tmp_path / "run", reference=True)
    assert not (tmp_path / "run").exists()

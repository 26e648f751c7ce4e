"""What pre-training learns of small shops drawn from its domains, and what a target learns of itself; and runs."""

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from antpipe.core import reranker as reranking
from antpipe.core import stages
from antpipe.core.batches import examples
from antpipe.core.catalogue import Catalogue
from antpipe.core.model import Ant
from antpipe.core.reranker import FEATURES, POOL
from antpipe.core.reranker_network import Reranker
from antpipe.errors import DataError, Interrupted, SameCommand, UsageError
from antpipe.evaluation.evaluate import evaluate_run
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.settings.model import ModelConfig
from antpipe.store.files import Sequences
from antpipe.store.store import Store
from antpipe.training import checkpoint, rehearsal, request, validation, worth
from antpipe.training import run as running
from antpipe.training.data import TrainingData
from antpipe.training.folder import RunFolder
from antpipe.training.rehearsal import (
    Lessons,
    Source,
    draw,
    fold,
    gathered,
    learn,
    lessons_of,
    own_lessons,
    rehearse_itself,
    shop_lessons,
    standard,
    unfold,
)
from antpipe.training.request import RunRequest
from antpipe.training.run import run_and_refit, run_stage
from antpipe.training.state import Paused
from tests.support.commands import run
from tests.support.trainable import MODEL, TRAINING, make_trainable

WITH_RERANKER = replace(MODEL, floor=True, reranker=True)


def walks(users: int = 400, n: int = 60, seed: int = 0) -> Source:
    """Users walk along a ring, one or two items at a time; each item has a text of its own."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 9, users)
    steps = [np.cumsum(np.append(rng.integers(n), rng.integers(1, 3, length - 1))) % n for length in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ends = ((lengths - 2).astype(np.int32), (lengths - 1).astype(np.int32))
    sequences = Sequences(np.arange(users, dtype=np.int32), offsets, np.concatenate(steps).astype(np.int32), *ends, 10)
    texts = rng.normal(size=(n, 4)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    return Source(sequences, texts, [f"brand{row // 5} thing" for row in range(n)])


# -- shops that are drawn ---------------------------------------------------------------------------------------------


def test_a_drawn_shop_has_some_users_with_all_their_items() -> None:
    sequences = walks().sequences
    shop, later, rows = draw(sequences, 50, seed=1)
    chosen = np.sort(np.random.default_rng(1).permutation(400)[:50])
    for number, user in enumerate(chosen.tolist()):
        whole = sequences.items[slice(*sequences.offsets[user : user + 2])]
        assert rows[shop.items[slice(*shop.offsets[number : number + 2])]].tolist() == whole.tolist()
    assert (later.items == shop.items).all()


def test_a_drawn_shop_is_fitted_to_the_last_training_position_and_judged_by_the_next() -> None:
    sequences = walks().sequences
    shop, later, rows = draw(sequences, 400, seed=1)
    lengths = np.diff(sequences.offsets)
    last = sequences.offsets[1:]
    assert rows[examples(shop, "valid").targets()].tolist() == sequences.items[last - 3][lengths > 3].tolist()
    assert rows[examples(later, "valid").targets()].tolist() == sequences.items[last - 2].tolist()


def test_no_lesson_has_a_test_target() -> None:
    """Other test items, and nothing else, change no lesson."""
    source = walks()
    ends = source.sequences.offsets[1:] - 1
    items = source.sequences.items.copy()
    items[ends] = items[ends][::-1]
    other = replace(source, sequences=replace(source.sequences, items=items))
    for mine, theirs in zip(shop_lessons(source, 400, 1), shop_lessons(other, 400, 1), strict=True):
        assert (mine.features == theirs.features).all()
        assert (mine.place == theirs.place).all()


def test_lessons_are_positions_whose_target_is_in_the_pool() -> None:
    found = gathered(lessons_of(walks(), seed=0, quota=10_000))
    assert found.features.shape == (len(found.place), POOL, len(FEATURES))
    assert len(found.place) == 400  # each of 200 users twice: the pool holds all 60 items
    beyond = found.features[:, 60:, FEATURES.index("below best")]
    assert np.isneginf(beyond).all()
    assert (found.place < 60).all()


def test_a_source_gives_at_most_its_share_of_positions() -> None:
    assert len(gathered(lessons_of(walks(), seed=0, quota=150)).place) == 150


@pytest.mark.parametrize(("users", "sizes"), [(3, [1]), (900, [450]), (1000, [500]), (4100, [500, 1000, 2000])])
def test_shops_have_at_most_half_of_the_users(users: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def lessons(_: Source, size: int, __: int) -> Iterator[Lessons]:
        asked.append(size)
        yield Lessons(np.zeros((1, POOL, len(FEATURES)), np.float16), np.zeros(1, np.int64))

    monkeypatch.setattr(rehearsal, "shop_lessons", lessons)
    gathered(lessons_of(Source(walks(users).sequences, np.zeros((60, 0), np.float32), None), 0, 1000))
    assert sorted(set(asked)) == sizes
    assert [asked.count(size) for size in sizes] == [rehearsal.SHOPS.get(size, 1) for size in sizes]


def test_a_user_without_a_history_teaches_nothing() -> None:
    source = walks(40)
    none = replace(source.sequences, train_end=np.zeros(40, np.int32), valid_end=np.ones(40, np.int32))
    assert not sum(len(one.place) for one in shop_lessons(replace(source, sequences=none), 20, 0))


def test_a_target_teaches_by_the_positions_that_are_last_in_training() -> None:
    source = walks()
    sequences, n = source.sequences, len(source.texts)
    found = list(own_lessons(sequences, source.texts, csr_array((n, n))))
    assert sum(len(one.place) for one in found) == (np.diff(sequences.offsets) > 3).sum()  # the pool holds all items
    other = sequences.items.copy()
    for end in (sequences.valid_end, sequences.train_end):  # test and validation
        other[sequences.offsets[:-1] + end] = 0
    again = list(own_lessons(replace(sequences, items=other), source.texts, csr_array((n, n))))
    assert all((one.features == two.features).all() for one, two in zip(found, again, strict=True))
    assert all((one.place == two.place).all() for one, two in zip(found, again, strict=True))


def test_the_floor_that_a_target_teaches_with_does_not_know_these_positions() -> None:
    """Users walk 0 -> 1 -> 2 -> validation -> test: from 1 on, nothing was counted yet."""
    users, n = 30, 40
    items = np.tile([0, 1, 2, 3, 4], users).astype(np.int32)
    ends = (np.full(users, 3, np.int32), np.full(users, 4, np.int32))
    sequences = Sequences(np.arange(users, dtype=np.int32), np.arange(users + 1) * 5, items, *ends, 10)
    (found,) = own_lessons(sequences, np.zeros((n, 0), np.float32), csr_array((n, n)))
    own = found.features[np.arange(users), found.place]
    assert not own[:, FEATURES.index("counts last")].any()
    assert own[:, FEATURES.index("new")].all()


def test_a_large_target_teaches_by_some_of_its_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "MOST_SCORES", 60 * 50)
    source = walks()
    assert len(gathered(own_lessons(source.sequences, source.texts, csr_array((60, 60)))).place) == 50


# -- what is learned --------------------------------------------------------------------------------------------------


def marked(positions: int = 600, seed: int = 0) -> Lessons:
    """Pools whose scores say nothing; the target is the only new item."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(positions, POOL, len(FEATURES))).astype(np.float16)
    features[..., FEATURES.index("below best")] = 0
    features[..., FEATURES.index("new")] = 0
    place = rng.integers(0, POOL, positions)
    features[np.arange(positions), place, FEATURES.index("new")] = 1
    return Lessons(features, place)


def test_what_sets_targets_apart_is_learned() -> None:
    reranker = Reranker()
    before, after = learn(reranker, marked(1200), 0)
    assert before == pytest.approx(np.log(POOL), rel=1e-3)
    assert after < before
    unseen = marked(seed=2)
    scores = reranker(torch.from_numpy(unseen.features.astype(np.float32))).numpy()
    assert (scores.argmax(1) == unseen.place).mean() > 0.95


def test_a_learned_network_reads_features_as_they_are() -> None:
    """Standardised in training, and the first layer takes that over."""
    lessons = marked()
    shifted = Lessons((lessons.features * 4 + 3).astype(np.float16), lessons.place)
    plain, other = Reranker(), Reranker()
    for reranker, read in ((plain, lessons), (other, shifted)):
        torch.manual_seed(0)
        learn(reranker, read, 0)
    scores = [
        one(torch.from_numpy(read.features[:5].astype(np.float32))).numpy()
        for one, read in ((plain, lessons), (other, shifted))
    ]
    assert np.corrcoef(scores[0].ravel(), scores[1].ravel())[0, 1] > 0.9


def test_a_network_that_has_learned_begins_with_that() -> None:
    reranker, lessons = Reranker(), marked(1200)
    learn(reranker, lessons, 0)
    read = torch.from_numpy(marked(seed=2).features[:5].astype(np.float32))
    before = reranker(read)
    middle, spread, _ = standard(lessons.features)
    unfold(reranker, middle, spread)
    fold(reranker, middle, spread)
    assert torch.allclose(reranker(read), before, atol=1e-4)
    first, after = learn(reranker, marked(64, seed=3), 0, epochs=1)
    assert first == pytest.approx(np.log(POOL), rel=1e-3)
    assert after < 4


def test_features_that_are_all_alike_are_read_no_further_than_before() -> None:
    """Nothing can be learned of them, and a shop in which they vary must not be ranked by chance."""
    column, lessons = FEATURES.index("interactions of shop"), marked()
    lessons.features[..., column] = 7
    reranker = Reranker()
    learn(reranker, lessons, 0)
    assert not reranker.first.weight[:, column].any()
    with torch.no_grad():
        reranker.first.weight[:, column] = 0.25
    learn(reranker, lessons, 0)
    assert torch.allclose(reranker.first.weight[:, column], torch.tensor(0.25), atol=1e-3)


def test_what_is_alike_at_many_positions_is_not_taken_to_vary() -> None:
    features = np.zeros((2000, POOL, len(FEATURES)), np.float16)
    features[...] = 12.146
    features[::2, :, 0] = 12.25
    _, spread, varies = standard(features)
    assert varies.tolist() == [1.0] + [0.0] * (len(FEATURES) - 1)
    assert spread[1:].tolist() == [1.0] * (len(FEATURES) - 1)


def test_places_without_an_item_count_for_no_mean_and_no_spread() -> None:
    features = np.zeros((50, POOL, len(FEATURES)), np.float16)
    features[:, :30] = 4.5
    features[:, 30:, FEATURES.index("below best")] = -np.inf
    middle, _, varies = standard(features)
    assert middle.tolist() == [4.5] * len(FEATURES)
    assert not varies.any()


def test_places_without_an_item_teach_nothing() -> None:
    lessons = marked()
    features = lessons.features.copy()
    features[lessons.place < 100, 100:] = 0
    features[lessons.place < 100, 100:, FEATURES.index("below best")] = -np.inf
    reranker = Reranker()
    _, after = learn(reranker, Lessons(features, lessons.place), 0)
    assert np.isfinite(after)
    assert all(torch.isfinite(one).all() for one in reranker.parameters())


def test_a_learned_network_is_used_and_not_trained_further() -> None:
    reranker = Reranker()
    learn(reranker, marked(), 0)
    assert reranker.learned()
    assert float(reranker.weight) == 1.0
    assert not any(one.requires_grad for one in reranker.parameters())


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("rehearsal") / "store")
    for seed, name in enumerate(("Shop", "Source", "Other")):
        make_trainable(store, name, seed=seed, items=24 + seed, by_id=False)
    make_trainable(store, "Bare", seed=4, widths={}, by_id=False)
    return store


def learning_from_few(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rehearsal, "LEAST_POSITIONS", 10)
    patch.setattr(rehearsal, "ALONE_POSITIONS", 10)


@pytest.fixture(scope="module")
def pretrained(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned from the few positions of its domains."""
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    with pytest.MonkeyPatch.context() as patch:
        learning_from_few(patch)
        asked = RunRequest(store, ("Source", "Other"), "pretrain", WITH_RERANKER, TRAINING)
        run_stage(asked, out)
    return out


def weights(out: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.load_weights(out, checkpoint.describe(out))
    return {name: tensor for name, tensor in found.items() if name.startswith("reranker.")}


def start(store: Store, out: Path, source: Path | None, stage: str, domain: str = "Shop") -> checkpoint.Checkpoint:
    model = replace(WITH_RERANKER, transductive=True)
    return run_stage(RunRequest(store, (domain,), stage, model, TRAINING, source), out)[0]


def judging(monkeypatch: pytest.MonkeyPatch, found: list[float]) -> None:
    """Set what validations find, in turn."""
    turns = iter(found)
    monkeypatch.setattr(validation, "validate", lambda *_: both(next(turns)))


def both(figure: float) -> dict[str, float]:
    return {worth.SELECTION: figure, worth.TIE_BREAK: figure}


def test_the_same_seed_learns_the_same(store: Store, pretrained: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        learning_from_few(patch)
        run_stage(RunRequest(store, ("Source", "Other"), "pretrain", WITH_RERANKER, TRAINING), tmp_path)
    again = weights(tmp_path)
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights(pretrained).items())


def test_domains_with_too_few_positions_teach_nothing(store: Store, tmp_path: Path, messages: list[str]) -> None:
    run_stage(RunRequest(store, ("Source", "Other"), "pretrain", WITH_RERANKER, TRAINING), tmp_path / "pre")
    assert any(
        "Source, Other: 80 positions of small shops are too few to learn re-ranking from" in one for one in messages
    )
    assert not weights(tmp_path / "pre")["reranker.weight"]
    start(store, tmp_path / "rerank", tmp_path / "pre", "rerank")
    assert not weights(tmp_path / "rerank")["reranker.weight"]
    assert any("Shop: 40 positions of its own are too few to learn re-ranking from" in one for one in messages)


@pytest.mark.parametrize(("again", "used"), [(0.4, 1.0), (0.3, 1.0), (0.299, 1.0), (0.1, 0.0)])
def test_a_floor_is_re_ranked_unless_it_is_better_alone_beyond_chance(
    store: Store, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: float, used: float
) -> None:
    judging(monkeypatch, [0.3, again])
    done = start(store, tmp_path, pretrained, "rerank")
    assert float(weights(tmp_path)["reranker.weight"]) == used
    assert done.metrics == both(again if used else 0.3)


@pytest.mark.parametrize(("again", "used"), [((0.3, 0.2), 1.0), ((0.3, 0.1), 0.0), ((0.299, 0.9), 0.0)])
def test_a_shop_larger_than_those_that_taught_is_re_ranked_only_if_that_is_as_good(
    store: Store,
    pretrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    again: tuple[float, float],
    used: float,
) -> None:
    monkeypatch.setattr(worth, "SHOPS", {10: 1})
    turns = iter([(0.3, 0.2), again])
    monkeypatch.setattr(
        validation, "validate", lambda *_: dict(zip((worth.SELECTION, worth.TIE_BREAK), next(turns), strict=True))
    )
    start(store, tmp_path, pretrained, "rerank")
    assert float(weights(tmp_path)["reranker.weight"]) == used


@pytest.mark.parametrize(
    ("floor", "last", "used", "best"),
    [
        ([0.3, 0.35], 0.2, 1.0, 0),  # vectors lower what the re-ranked floor has, beyond chance
        ([0.3, 0.35], 0.36, 1.0, 2),
        ([0.3, 0.1], 0.36, 0.0, 2),  # the floor is better as it is, and so vectors are added to that
    ],
)
def test_vectors_are_added_to_the_floor_re_ranked_or_not_and_have_to_beat_it(
    store: Store,
    pretrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    floor: list[float],
    last: float,
    used: float,
    best: int,
) -> None:
    monkeypatch.setattr(worth, "fit_cosine", lambda *_: (2.0, 99.0))
    judging(monkeypatch, [*floor, 0.1, 0.9, 0.1, last])
    done = start(store, tmp_path, pretrained, "finetune")
    assert done.best_epoch == best
    assert float(weights(tmp_path)["reranker.weight"]) == used
    assert done.metrics == both(last if best else max(floor))
    row = RunFolder(tmp_path).read_rows()[0]
    assert (row["start_recall@10"], row["floor_recall@10"], row["reranked"]) == (floor[0], max(floor), used)


@pytest.mark.parametrize("stage", ["rerank", "finetune", "relearn"])
def test_a_target_takes_the_network_of_the_run_it_starts_from(
    store: Store, pretrained: Path, tmp_path: Path, stage: str
) -> None:
    start(store, tmp_path, pretrained, stage)
    mine, theirs = weights(tmp_path), weights(pretrained)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs if name != "reranker.weight")


def test_a_re_ranked_floor_is_the_floor_with_other_lists(store: Store, pretrained: Path, tmp_path: Path) -> None:
    for stage, source in (("floor", None), ("rerank", pretrained)):
        start(store, tmp_path / stage, source, stage)
    ours = checkpoint.load_weights(tmp_path / "rerank", checkpoint.describe(tmp_path / "rerank"))
    assert ours["reranker.weight"] == 1.0
    floor = checkpoint.load_weights(tmp_path / "floor", checkpoint.describe(tmp_path / "floor"))
    assert all(torch.equal(tensor, ours[name]) for name, tensor in floor.items() if "floor" in name)
    config = EvaluateConfig(split="valid", device="cpu")
    figures = [evaluate_run(store, tmp_path / stage, "Shop", config)["protocols"] for stage in ("floor", "rerank")]
    assert figures[1]["all"].items() >= checkpoint.describe(tmp_path / "rerank").metrics.items()


@pytest.mark.parametrize("stage", ["scratch", "rerank-scratch"])
def test_a_run_that_starts_from_nothing_learns_from_its_target_alone(
    store: Store, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning_from_few(monkeypatch)
    start(store, tmp_path, None, stage)
    assert weights(tmp_path)["reranker.last.weight"].any()


@pytest.mark.parametrize(("before", "learns"), [(False, False), (True, True)])
def test_a_target_alone_has_to_teach_more(before: bool, learns: bool, messages: list[str]) -> None:
    """400 positions."""
    shape = ModelConfig(width=8, heads=1, layers=1, experts=0, transductive=True, floor=True, reranker=True)
    model, catalogue = Ant(shape, {}, 10, items=60), Catalogue(("Shop",), np.array([0, 60]), {}, {}, {})
    reranker = model.reranker
    assert reranker is not None
    if before:
        learn(reranker, marked(), 0)
    values = rehearse_itself(model, TrainingData(catalogue, (walks().sequences,), {}), 0)
    assert bool((values["last.weight"] - reranker.last.weight).any()) == learns
    assert any("too few" in one for one in messages) != learns


@pytest.mark.parametrize("stage", ["rerank", "finetune", "relearn"])
def test_a_target_with_enough_positions_teaches_what_it_takes_over(
    store: Store, pretrained: Path, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning_from_few(monkeypatch)
    start(store, tmp_path / "here", pretrained, stage)
    start(store, tmp_path / "alone", None, "rerank-scratch")
    mine, before, alone = weights(tmp_path / "here"), weights(pretrained), weights(tmp_path / "alone")
    moved = (mine["reranker.last.weight"] - before["reranker.last.weight"]).norm()
    assert 0 < moved < (mine["reranker.last.weight"] - alone["reranker.last.weight"]).norm()


def test_a_stage_of_ones_own_may_take_it_over_as_it_is(
    store: Store, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning_from_few(monkeypatch)
    model, own = replace(WITH_RERANKER, transductive=True), {"mine": {"like": "finetune", "reranker": "freeze"}}
    run_stage(RunRequest(store, ("Shop",), "mine", model, TRAINING, pretrained, own), tmp_path)
    mine, theirs = weights(tmp_path), weights(pretrained)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs if name != "reranker.weight")


def test_a_stage_whose_steps_would_train_nothing_is_refused_even_if_a_re_ranker_learns(
    store: Store, pretrained: Path, tmp_path: Path
) -> None:
    groups = dict.fromkeys(stages.GROUPS, "freeze") | {"ids": "reset", "reranker": "keep"}
    model = replace(WITH_RERANKER, transductive=False)
    with pytest.raises(UsageError, match="freezes every parameter"):
        run_stage(RunRequest(store, ("Shop",), "mine", model, TRAINING, pretrained, {"mine": groups}), tmp_path)


def test_ctrl_c_while_a_target_teaches_says_how_to_continue(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rehearsal, "own_lessons", interrupted)
    with pytest.raises(Interrupted, match="nothing is kept yet") as caught:
        start(store, tmp_path, None, "rerank-scratch")
    assert "--resume" in str(caught.value.next_command)


@pytest.mark.parametrize("stage", ["floor", "rerank-scratch"])
def test_ctrl_c_in_a_stage_without_steps_ends_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    without = running.without_training

    def pressed(*given: Any, **more: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return without(*given, **more)

    monkeypatch.setattr(running, "without_training", pressed)
    with pytest.raises(Interrupted, match="nothing is kept yet"):
        start(store, tmp_path, None, stage)
    assert not RunFolder(tmp_path).is_finished()


def test_what_a_target_has_taught_is_not_learned_again_by_a_resumed_run(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning_from_few(monkeypatch)
    model = replace(WITH_RERANKER, transductive=True)
    asked = RunRequest(store, ("Shop",), "scratch", model, replace(TRAINING, epochs=2))
    run_stage(asked, tmp_path / "whole")
    with pytest.raises(Paused):
        run_stage(asked, tmp_path / "paused", pause_after=1)
    monkeypatch.setattr(rehearsal, "learn", None)
    run_stage(asked, tmp_path / "paused", resume=True)
    mine, whole = weights(tmp_path / "paused"), weights(tmp_path / "whole")
    assert all(torch.equal(mine[name], tensor) for name, tensor in whole.items())


def test_a_refit_re_ranks_as_the_run_it_belongs_to(
    store: Store, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning_from_few(monkeypatch)
    judging(monkeypatch, [0.3, 0.35, 0.2, 0.9, 0.1, 0.36])
    model = replace(WITH_RERANKER, transductive=True)
    run_and_refit(RunRequest(store, ("Shop",), "finetune", model, TRAINING, pretrained), tmp_path)
    refitted, first = weights(RunFolder(tmp_path).refit), weights(tmp_path)
    assert float(refitted["reranker.weight"]) == 1.0
    assert all(torch.equal(refitted[name], tensor) for name, tensor in first.items())


def test_another_way_to_learn_makes_another_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> list[str]:
        models = (WITH_RERANKER, replace(WITH_RERANKER, reranker=False))
        return [RunRequest(store, ("Source",), "pretrain", model, TRAINING).fingerprint() for model in models]

    before = made()
    monkeypatch.setattr(request, "RERANKER_FORM", reranking.RERANKER_FORM + 1)
    assert [one == other for one, other in zip(before, made(), strict=True)] == [False, True]


def test_a_source_without_a_re_ranker_is_refused_with_what_helps(store: Store, tmp_path: Path) -> None:
    run_stage(RunRequest(store, ("Source",), "pretrain", replace(MODEL, floor=True), TRAINING), tmp_path / "pre")
    with pytest.raises(DataError, match="was trained without --reranker") as caught:
        start(store, tmp_path / "finetune", tmp_path / "pre", "finetune")
    assert caught.value.next_command == SameCommand({"--no-reranker": None}, ("--reranker",))
    with pytest.raises(DataError, match="was trained without --reranker") as caught:
        start(store, tmp_path / "rerank", tmp_path / "pre", "rerank")
    assert "--stage pretrain" in str(caught.value.next_command)


def test_an_approximate_index_is_refused_for_a_run_that_re_ranks(
    store: Store, pretrained: Path, tmp_path: Path
) -> None:
    start(store, tmp_path, pretrained, "rerank")
    with pytest.raises(UsageError, match="has a re-ranker"):
        evaluate_run(store, tmp_path, "Shop", EvaluateConfig(split="valid", device="cpu", index="hnsw"))


def test_compare_judges_the_re_ranked_floor_as_a_transfer(store: Store, pretrained: Path, tmp_path: Path) -> None:
    words = ["--preset", "strong", "--width", "16", "--epochs", "1", "--seeds", "2", "--store", store.root]
    asked = ["--target", "Shop", "--from", pretrained, "--arms", "floor,rerank,scratch", "--out", tmp_path, *words]
    found = run("compare", *asked)
    assert found.code == 0, found.err
    arms = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))["targets"]["Shop"]["arms"]
    assert arms["rerank"]["verdict"]
    assert not arms["floor"]["verdict"]


def test_settings_that_a_preset_gives_go_without_a_floor(store: Store, tmp_path: Path) -> None:
    words = ["--preset", "strong", "--no-floor", "--width", "16", "--epochs", "1"]
    found = run("train", "--stage", "pretrain", "--domains", "Source", "--store", store.root, "--out", tmp_path, *words)
    assert found.code == 0, found.err
    assert not checkpoint.describe(tmp_path).model_config().reranker

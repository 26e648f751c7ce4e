"""Figures beyond accuracy, against computation by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import antpipe as ant
from antpipe.core.batches import examples
from antpipe.evaluation.beyond import Lists, best_of_run, best_of_scores, distances, gini
from antpipe.evaluation.vectors import open_for
from antpipe.serving.recommend import recommend_after
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.store.store import Store
from tests.support.commands import run
from tests.support.reranking import train_reranked
from tests.support.trainable import make_trainable, train_quickly

NONE = -1


def padded(*lists: list[int]) -> np.ndarray:
    return np.array([[*some, *[NONE] * (50 - len(some))] for some in lists])


def test_the_figures_are_those_computed_by_hand() -> None:
    vectors = np.array([[1, 0], [0, 1], [1, 0], [0, 0]], np.float32)
    lists = Lists(4, np.array([3, 1, 0, 0]), vectors)
    lists.add("all", padded([0, 1], [0, 2]))
    found = lists.figures("all")
    assert found["coverage@10"] == 3 / 4
    # recommended 2, 1, 1 and 0 times: sorted 0 1 1 2, weights -3 -1 1 3
    assert found["gini@10"] == pytest.approx((-1 + 1 + 6) / (3 * 4))
    assert found["popularity@10"] == pytest.approx(((3 + 1) / 2 + (3 + 0) / 2) / 2)
    bits = [math.log2(8 / 4), math.log2(8 / 2), math.log2(8 / 1)]  # (count + 1) / (4 interactions + 4 items)
    assert found["novelty@10"] == pytest.approx(((bits[0] + bits[1]) / 2 + (bits[0] + bits[2]) / 2) / 2)
    assert found["distance@10"] == pytest.approx((1 + 0) / 2)
    assert lists.figures("unseen")["coverage@10"] == 0


def test_each_cutoff_counts_its_own_first_items() -> None:
    lists = Lists(60, np.ones(60, int), None)
    lists.add("all", np.arange(50)[None])
    found = lists.figures("all")
    assert [found[f"coverage@{k}"] for k in (10, 20, 50)] == [10 / 60, 20 / 60, 50 / 60]
    assert "distance@10" not in found


def test_gini_is_0_if_all_items_are_recommended_alike_and_1_if_one_is() -> None:
    assert gini(np.array([7, 7, 7])) == 0
    assert gini(np.array([0, 0, 9])) == 1
    assert gini(np.array([0, 0])) == gini(np.array([5])) == 0


@given(st.lists(st.integers(0, 50), min_size=2, max_size=12).filter(any))
def test_gini_is_the_mean_difference_of_pairs(times: list[int]) -> None:
    n, mean = len(times), sum(times) / len(times)
    pairs = sum(abs(a - b) for a in times for b in times)
    assert gini(np.array(times)) == pytest.approx(pairs / (2 * n * (n - 1) * mean))


@given(st.integers(0, 2**32 - 1))
def test_distance_is_the_mean_over_pairs_that_have_vectors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(6, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[0] = 0
    chosen = rng.permutation(6)[: rng.integers(1, 6)]
    pairs = [1 - float(vectors[a] @ vectors[b]) for a in chosen for b in chosen if a < b and a and b]
    [found] = distances(vectors, np.array([[*chosen, NONE]]))
    assert found == pytest.approx(np.mean(pairs), abs=1e-5) if pairs else math.isnan(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the shop Ring, a run of it, and one that scores its best items again."""
    folder = tmp_path_factory.mktemp("beyond")
    store = Store(folder / "store")
    make_trainable(store, "Ring", items=90, by_id=False)
    train_quickly(store, "scratch", ["Ring"], folder / "run", epochs=1)
    make_trainable(store, "Source", seed=2, widths={"text": 12}, by_id=False)
    train_reranked(store, "Ring", folder / "reranked", folder / "source")
    return folder


@pytest.mark.parametrize("name", ["run", "reranked"])
def test_the_lists_of_a_run_are_those_it_recommends(folder: Path, name: str) -> None:
    store = Store(folder / "store")
    opened, part = open_for(store, folder / name, "Ring"), examples(store.domain("Ring").sequences(), "test")
    assert (opened.rerank is not None) == (name == "reranked")
    best = best_of_run(opened, part)
    histories = [part.items[a:b] for a, b in zip(part.start, part.end, strict=True)]
    for protocol, seen in (("all", True), ("unseen", False)):
        rows = recommend_after(opened, histories, 50, include_seen=seen)
        wanted = [[opened.item_ids.index(row["item_id"]) for row in some] for some in rows]
        assert best[protocol].tolist() == wanted


def test_scores_that_leave_items_out_give_shorter_lists(folder: Path) -> None:
    part = examples(Store(folder / "store").domain("Ring").sequences(), "test").some(slice(0, 1))
    history = set(part.items[part.start[0] : part.end[0]].tolist())
    best = best_of_scores(np.arange(90, dtype=float)[None], part)
    assert best["all"][0].tolist() == list(range(89, 39, -1))
    assert best["unseen"][0].tolist() == [item for item in range(89, -1, -1) if item not in history][:50]


def test_evaluate_shows_them_when_asked_and_keeps_them(folder: Path) -> None:
    words = ["evaluate", "--run", folder / "run", "--domains", "Ring", "--store", folder / "store", "--device", "cpu"]
    assert "coverage" not in run(*words).out
    shown = run(*words, "--beyond-accuracy").out
    assert "lists           coverage        gini  popularity     novelty    distance\nall@10 " in shown
    assert "distance: of the items' text vectors" in shown
    [kept] = [
        json.loads(path.read_text()) for path in (folder / "run").rglob("*.json") if '"beyond"' in path.read_text()
    ]
    assert set(kept["beyond"]["protocols"]) == {"all", "unseen"}


def test_an_approximate_index_has_no_such_figures(folder: Path) -> None:
    with pytest.raises(ant.UsageError, match="does not go with --index hnsw"):
        ant.Run.open(folder / "run", folder / "store").evaluate("Ring", index="hnsw", beyond_accuracy=True)


def test_compare_shows_them_for_trained_arms_and_baselines(folder: Path) -> None:
    words = ["compare", "--target", "Ring", "--arms", "scratch,popularity", "--seeds", "2", "--epochs", "1"]
    words += ["--width", "16", "--store", folder / "store", "--out", folder / "cmp"]
    first = run(*words)
    assert first.code == 0, first.err
    assert "beyond accuracy" not in first.out
    again = run(*words, "--beyond-accuracy")
    assert "trained" not in again.err.replace("not trained", "")  # only judged again
    table = again.out.split("Protocol unseen, beyond accuracy: mean over seeds.")[1].splitlines()
    assert table[1].split() == ["arm", "coverage@10", "gini@10", "popularity@10", "novelty@10", "distance@10"]
    cells = {line.split()[0]: [float(cell) for cell in line.split()[1:]] for line in table[2:4]}
    assert set(cells) == {"scratch", "popularity"}
    assert cells["popularity"][2] > cells["scratch"][2]  # the most popular items are the most popular ones
    assert cells["popularity"][1] > cells["scratch"][1]


def test_the_settings_default_to_off() -> None:
    assert not EvaluateConfig().beyond_accuracy

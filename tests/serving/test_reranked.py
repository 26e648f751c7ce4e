"""Runs that score their best items again: lists, reasons and filters are of the new scores."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from antpipe.core.batches import Examples, examples
from antpipe.core.ranking import DEPTH
from antpipe.core.reranker import POOL
from antpipe.evaluation.evaluate import evaluate_run
from antpipe.evaluation.ranks import read_ranks
from antpipe.evaluation.vectors import OpenRun, as_examples, open_for
from antpipe.features.build_sequences import build_sequences
from antpipe.serving import batch
from antpipe.serving.audience import these_users
from antpipe.serving.explain import RERANKER
from antpipe.serving.new_items import NewItems, with_new_items
from antpipe.serving.offer import offer_of
from antpipe.serving.recommend import Wishes, recommend_after
from antpipe.serving.reranked import reranked_items
from antpipe.serving.top import top_items
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.settings.features import SequenceConfig
from antpipe.store.files import Feature
from antpipe.store.store import Store
from tests.support.reranking import train_reranked
from tests.support.shops import make_domain
from tests.support.trainable import make_trainable, write_feature

ITEMS, BOUGHT, WIDTH = POOL + 40, POOL + 20, 12  # the last ones are alike
STAGES = ("finetune", "rerank")
HISTORY = np.array([9, 3, 4, 5, 3], np.int32)
Open = Callable[[str], OpenRun]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store of a shop that has more items than a pool, and a run by each of STAGES."""
    folder = tmp_path_factory.mktemp("reranked")
    store = Store(folder / "store")
    make_trainable(store, "Source", seed=2, widths={"text": WIDTH}, by_id=False)
    rows = [
        {"item_id": f"i{n:03}", "title": f"item {n}", "text": f"kind {n // 4} number {n}" if n < BOUGHT else "alike"}
        for n in range(ITEMS)
    ]
    visits = [
        (f"u{user:02}", f"i{(user * 11 + step * (1 + user % 3)) % BOUGHT:03}", 1000 + step)
        for user in range(60)
        for step in range(4 + user % 5)
    ]
    domain = make_domain(store, "Shop", rows, visits)
    values = np.random.default_rng(0).normal(size=(ITEMS, WIDTH))
    values[BOUGHT:] = values[BOUGHT]
    write_feature(domain, "text", values)
    build_sequences(store, ["Shop"], SequenceConfig(max_len=10))
    for stage in STAGES:
        train_reranked(store, "Shop", folder / stage, folder / "source", stage)
    return folder


@pytest.fixture(scope="module")
def opened(folder: Path) -> Open:
    """Opens the run of a stage, once."""
    return cache(lambda stage: open_for(Store(folder / "store"), folder / stage, "Shop"))


@pytest.fixture(params=STAGES)
def run(opened: Open, request: pytest.FixtureRequest) -> OpenRun:
    return opened(request.param)


def histories(run: OpenRun, split: str = "test") -> tuple[Examples, list[Any]]:
    part = examples(run.domain.sequences(), split)
    return part, [part.items[start:end] for start, end in zip(part.start, part.end, strict=True)]


def plain_order(run: OpenRun, k: int) -> list[list[int]]:
    """Rows in the order before re-ranking."""
    return top_items(run, histories(run)[0], offer_of(run), k, include_seen=True).rows.tolist()


def rows_of(run: OpenRun, found: list[dict[str, Any]]) -> list[int]:
    return [run.row_of[row["item_id"]] for row in found]


# -- the order --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("protocol", "include_seen"), [("all", True), ("unseen", False)])
def test_items_come_in_the_order_by_which_evaluate_ranks(
    folder: Path, run: OpenRun, protocol: str, include_seen: bool
) -> None:
    store = Store(folder / "store")
    evaluate_run(store, run.run, "Shop", EvaluateConfig(device="cpu"))
    ranks = read_ranks(store, run.run, "Shop", "test")[f"rank_{protocol}"].to_list()
    part, told = histories(run)
    lists = recommend_after(run, told, ITEMS, include_seen=include_seen)
    assert [rows_of(run, found) for found in lists] != plain_order(run, ITEMS)
    found = [
        rows_of(run, one).index(target) + 1 if target in rows_of(run, one) else None
        for one, target in zip(lists, part.targets().tolist(), strict=True)
    ]
    assert [rank if rank is None or rank <= DEPTH else None for rank in found] == ranks
    assert any(rank is not None for rank in ranks)


@pytest.mark.parametrize("k", [7, POOL, ITEMS])
def test_scores_never_rise_down_a_list(run: OpenRun, k: int) -> None:
    found = reranked_items(run, histories(run)[0], offer_of(run), k, include_seen=True)
    assert found.rows.shape == found.scores.shape == (len(found.rows), k)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert all(len(set(row)) == k for row in found.rows.tolist())


def test_items_beyond_the_pool_keep_their_order(run: OpenRun) -> None:
    found = reranked_items(run, histories(run)[0], offer_of(run), ITEMS, include_seen=True)
    assert found.rows[:, POOL:].tolist() == [row[POOL:] for row in plain_order(run, ITEMS)]


def test_a_shorter_list_is_the_beginning_of_a_longer_one(run: OpenRun) -> None:
    part = histories(run)[0]
    whole = reranked_items(run, part, offer_of(run), ITEMS)
    some = reranked_items(run, part, offer_of(run), 7)
    assert some.rows.tolist() == whole.rows[:, :7].tolist()
    assert some.scores.tolist() == whole.scores[:, :7].tolist()


def test_alike_items_tie_and_come_in_catalogue_order(run: OpenRun) -> None:
    offer = offer_of(run, "item_id >= 'i100'")  # few enough that all are in the pool
    assert len(offer.rows) < POOL
    found = reranked_items(run, histories(run)[0], offer, len(offer.rows), include_seen=True)
    for rows, scores in zip(found.rows, found.scores, strict=True):
        assert len(set(scores[rows >= BOUGHT])) == 1
        assert rows[rows >= BOUGHT].tolist() == list(range(BOUGHT, ITEMS))


def test_a_catalogue_smaller_than_the_pool_is_scored_again_as_a_whole(run: OpenRun) -> None:
    offer = offer_of(run, only=[f"i{n:03}" for n in range(12)])
    found = reranked_items(run, as_examples([HISTORY], run.max_len), offer, POOL)
    assert found.rows[0, -4:].tolist() == [-1] * 4  # those of the history
    assert np.isneginf(found.scores[0, -4:]).all()
    assert set(found.rows[0, :-4].tolist()) == set(range(12)) - set(HISTORY.tolist())


# -- which items ------------------------------------------------------------------------------------------------------


def test_hidden_items_stay_hidden(run: OpenRun) -> None:
    offer = offer_of(run, "item_id < 'i150'", exclude=["i010", "i011"])
    [found] = recommend_after(run, [HISTORY], ITEMS, offer=offer)
    assert set(rows_of(run, found)) == set(range(150)) - {10, 11, *HISTORY.tolist()}


def test_a_history_without_anything_left_gets_an_empty_list(run: OpenRun) -> None:
    assert recommend_after(run, [HISTORY], offer=offer_of(run, only=["i009", "i004"])) == [[]]


def test_a_diverse_list_is_chosen_among_the_best_by_the_new_scores(run: OpenRun) -> None:
    told = histories(run)[1][:8]
    best = recommend_after(run, told, 25)
    plain = recommend_after(run, told, wishes=Wishes(5, diversify=0.0))
    diverse = recommend_after(run, told, wishes=Wishes(5, diversify=0.6))
    assert diverse != plain
    for some, pool in zip(diverse, best, strict=True):
        scores = {row["item_id"]: row["score"] for row in pool}
        assert [row["score"] for row in some] == [scores[row["item_id"]] for row in some]
        assert some[0]["item_id"] == pool[0]["item_id"]


def test_new_items_take_part(opened: Open) -> None:
    before = opened("finetune")
    catalogue = before.describing(["item_id", "title", "text", "price", "currency", "category"])
    rows = catalogue[[7, 30]].with_columns(item_id=pl.Series(["new7", "new30"]))
    read = before.inputs(np.array([7, 30])).features["text"].numpy()
    run = with_new_items(before, NewItems(rows, {"text": Feature(read, np.ones(2, np.bool_))}))
    found = reranked_items(run, as_examples([HISTORY], run.max_len), offer_of(run), ITEMS, include_seen=True)
    plain = top_items(run, as_examples([HISTORY], run.max_len), offer_of(run), ITEMS, include_seen=True)
    there = set(found.rows[0, :POOL].tolist()) & {ITEMS, ITEMS + 1}
    assert there
    by_row = dict(zip(plain.rows[0].tolist(), plain.scores[0].tolist(), strict=True))
    for row in there:
        assert found.scores[0, found.rows[0] == row] != pytest.approx(by_row[row], abs=1e-6)
    bought = recommend_after(run, [np.array([3, ITEMS], np.int32)], 10)[0]  # after a new item, too
    assert len(bought) == 10
    assert "new7" not in {row["item_id"] for row in bought}


# -- reasons ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("include_seen", [True, False])
def test_what_the_modalities_add_is_the_score(run: OpenRun, include_seen: bool) -> None:
    told = [HISTORY, *histories(run)[1][:3]]
    lists = recommend_after(run, told, wishes=Wishes(ITEMS, include_seen, explain=True))
    for found in lists:
        for row in found:
            worths = {one["modality"]: one["worth"] for one in row["why"]["modalities"]}
            assert RERANKER in worths
            assert sum(worths.values()) == pytest.approx(row["score"], abs=1e-5)


def test_a_single_item_of_a_history_is_worth_the_score_before_re_ranking(opened: Open) -> None:
    run, history = opened("finetune"), HISTORY[:1]
    [found] = recommend_after(run, [history], wishes=Wishes(5, explain=True))
    plain = top_items(run, as_examples([history], run.max_len), offer_of(run), ITEMS)
    scores = dict(zip(plain.rows[0].tolist(), plain.scores[0].tolist(), strict=False))
    for row in found:
        assert [one["worth"] for one in row["why"]["because"]] == pytest.approx(
            [score for score in [scores[run.row_of[row["item_id"]]]] if score > 0], abs=1e-6
        )


# -- many at once -----------------------------------------------------------------------------------------------------


def test_a_file_holds_what_each_user_gets_alone(run: OpenRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "LARGEST_PART", 13)
    wishes, offer = Wishes(5, explain=True), offer_of(run, exclude=["i020"])
    users = these_users(run, "all", "error")
    batch.recommend_to_file(run, users, offer, wishes, tmp_path / "out.parquet")
    table = pl.read_parquet(tmp_path / "out.parquet")
    for number in (0, 17, 59):
        [alone] = recommend_after(run, users.histories(slice(number, number + 1)), offer=offer, wishes=wishes)
        mine = table.filter(pl.col("user_id") == users.owners["user_id"][number])
        assert mine["item_id"].to_list() == [row["item_id"] for row in alone]
        assert mine["score"].to_list() == pytest.approx([row["score"] for row in alone], abs=2e-6)
        assert mine["modality"].to_list() == [row["why"]["modality"] for row in alone]


def test_a_re_ranker_that_is_not_used_changes_nothing(opened: Open) -> None:
    used = opened("finetune")
    run = replace(used, model=copy.deepcopy(used.model))
    assert run.model.reranker is not None
    run.model.reranker.weight.fill_(0.0)
    part, offer = histories(run)[0], offer_of(run)
    assert reranked_items(run, part, offer, 9).scores.tolist() == top_items(run, part, offer, 9).scores.tolist()
    [found] = recommend_after(run, [HISTORY], wishes=Wishes(2, explain=True))
    assert all(one["modality"] != RERANKER for row in found for one in row["why"]["modalities"])

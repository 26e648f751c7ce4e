"""The service of a run that scores its best items again answers what recommend gives."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from starlette.testclient import TestClient

from antpipe.evaluation.vectors import OpenRun
from antpipe.serving.explain import RERANKER
from antpipe.serving.new_items import NewItems, with_new_items
from antpipe.serving.offer import offer_of
from antpipe.serving.recommend import Wishes, history_of, recommend_after, user_histories
from antpipe.serving.web.app import make_app
from antpipe.serving.web.held import HeldRun
from antpipe.settings.serving import ServeConfig
from antpipe.store.files import Feature
from tests.serving.conftest import USERS
from tests.serving.web.conftest import Loads, current_of
from tests.serving.web.test_requests import ask, same

ITEMS = ["i03", "i04", "i11"]


@pytest.fixture(scope="module")
def client(shop: Path, loaded: Loads, reranked: str) -> Iterator[TestClient]:
    with TestClient(make_app(current_of(shop, loaded(reranked)), ServeConfig())) as found:
        yield found


@pytest.fixture(scope="module")
def run(opened: Callable[[str], OpenRun], reranked: str) -> OpenRun:
    return opened(reranked)


def test_every_user_gets_what_recommend_gives(client: TestClient, run: OpenRun) -> None:
    users = [f"u{user:02}" for user in range(USERS)]
    for user, rows in zip(users, recommend_after(run, user_histories(run, users), 7), strict=True):
        same(ask(client, user=user, k=7), rows)


@pytest.mark.parametrize(
    "asked", [{}, {"where": "stock >= 8"}, {"diversify": 0.4}, {"only": [f"i{n:02}" for n in range(5, 25)]}]
)
def test_excluded_items_leave_what_recommend_gives_without_them(
    client: TestClient, run: OpenRun, asked: dict[str, Any]
) -> None:
    gone = [one["item_id"] for one in ask(client, items=ITEMS, k=3, include_seen=True, **asked)["items"]]
    wishes = Wishes(6, include_seen=True, diversify=asked.get("diversify", 0.0))
    offer = offer_of(run, asked.get("where"), gone, asked.get("only"))
    [rows] = recommend_after(run, [history_of(run, ITEMS)], offer=offer, wishes=wishes)
    same(ask(client, items=ITEMS, k=6, include_seen=True, exclude=gone, **asked), rows)


def test_its_reasons_add_up_to_the_score(client: TestClient) -> None:
    for one in ask(client, items=ITEMS, k=9, explain=True, exclude=["i05"])["items"]:
        worths = {each["modality"]: each["worth"] for each in one["why"]["modalities"]}
        assert RERANKER in worths
        assert sum(worths.values()) == pytest.approx(one["score"], abs=1e-5)


def test_new_items_are_scored_again_in_a_held_run_as_in_an_opened_one(
    held: Callable[[str], HeldRun], run: OpenRun, reranked: str
) -> None:
    rows = run.describing(["item_id", "title", "text", "price", "currency", "category"])[[7]]
    read = run.inputs(np.array([7])).features["text"].numpy()
    new = NewItems(rows.with_columns(item_id=pl.lit("new")), {"text": Feature(read, np.ones(1, np.bool_))})
    lists = [
        recommend_after(grown, [history_of(grown, [*ITEMS, "new"])], 40, include_seen=True)[0]
        for grown in (with_new_items(run, new), with_new_items(held(reranked), new))
    ]
    assert "new" in {row["item_id"] for row in lists[0]}
    assert [row["item_id"] for row in lists[0]] == [row["item_id"] for row in lists[1]]

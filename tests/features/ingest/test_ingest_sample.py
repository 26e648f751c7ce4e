"""The generated shops: the same again for equal seeds, plausible figures, texts and pictures that fit the items."""

import dataclasses
import hashlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from PIL import Image

from antpipe.cli import main
from antpipe.errors import DataError, UsageError
from antpipe.features.ingest.sample.pictures import draw_picture, drawings
from antpipe.features.ingest.sample.shoppers import rate
from antpipe.features.ingest.sample.words import describe, invent_brands, words
from antpipe.features.ingest_sample import generate_shop, ingest_sample, purchase_times, random_ids
from antpipe.settings.ingest import SampleConfig
from antpipe.store.store import Store
from tests.support.shops import make_domain

WORDS, DRAWINGS = words(), drawings()
SHOPS = WORDS.shops
TINY = SampleConfig(users=20, items=20, seed=3)
MIDDLE = SampleConfig(users=120, items=120, seed=7)
LOOK = {"style": "retro", "colour": "red", "material": "steel", "tier": "premium", "brand": "Norvik"}
by_shop = pytest.mark.parametrize("number", range(len(SHOPS)), ids=[shop.name for shop in SHOPS])


def contents(root: Path) -> dict[str, str]:
    """Hashes of all files except the manifests (they hold the time of writing), by path."""
    files = [path for path in sorted(root.rglob("*")) if path.suffix in (".parquet", ".png")]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def table(store: Store, name: str, domain: str) -> pl.DataFrame:
    frame = pl.from_arrow(store.domain(domain).table(name))
    assert isinstance(frame, pl.DataFrame)
    return frame


@pytest.fixture(scope="module")
def middle(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Read only."""
    store = Store(tmp_path_factory.mktemp("sample"))
    ingest_sample(store, MIDDLE)
    return store


# -- names that are taken ---------------------------------------------------------------------------------------------


def test_a_domain_of_the_same_name_from_another_source_is_refused_before_any_shop_is_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_domain(store, SHOPS[1].name, [{"item_id": "mine"}])
    with pytest.raises(DataError, match=f"{SHOPS[1].name} holds data from `ingest table`") as caught:
        ingest_sample(store, TINY)
    assert store.domains() == [SHOPS[1].name]
    assert store.domain(SHOPS[1].name).item_ids() == ["mine"]
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(str(caught.value.next_command))[1:])
    assert ended.value.code == 0
    assert len(store.domain(SHOPS[1].name).item_ids()) > 1


# -- the same again -------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_tables_and_pictures_to_the_byte(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        ingest_sample(Store(tmp_path / folder), TINY)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) > 16


def test_the_hash_seed_of_python_changes_nothing(tmp_path: Path) -> None:
    ingest_sample(Store(tmp_path / "here"), TINY)
    program = (
        "import sys; from pathlib import Path; from antpipe.store.store import Store;"
        "from antpipe.settings.ingest import SampleConfig; from antpipe.features.ingest_sample import ingest_sample;"
        "ingest_sample(Store(Path(sys.argv[1])), SampleConfig(users=20, items=20, seed=3))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "4711"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "there")], env=environment, check=True)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def test_another_seed_gives_other_items_and_other_histories() -> None:
    first, second = (generate_shop(dataclasses.replace(TINY, seed=seed), 0) for seed in (3, 4))
    assert set(first.item_ids).isdisjoint(second.item_ids)
    assert not np.array_equal(first.assortment.kind, second.assortment.kind)
    assert [list(items) for items in first.baskets] != [list(items) for items in second.baskets]


def test_shops_of_one_seed_are_drawn_apart() -> None:
    shops = [generate_shop(TINY, number) for number in range(len(SHOPS))]
    ids = [item for shop in shops for item in shop.item_ids]
    assert len(set(ids)) == len(ids)


def test_a_second_run_is_fresh_and_leaves_the_files_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    built = ingest_sample(store, TINY)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    fresh = ingest_sample(store, TINY)
    assert [result.status for result in built] == ["built"] * 4
    assert [result.status for result in fresh] == ["fresh"] * 4
    assert [result.figures for result in fresh] == [result.figures for result in built]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == written


def test_a_lost_shop_is_rebuilt_as_it_was_while_the_others_stay(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ingest_sample(store, TINY)
    before = contents(tmp_path)
    (tmp_path / "sample-office" / "manifest.json").unlink()
    assert [result.status for result in ingest_sample(store, TINY)] == ["fresh", "fresh", "built", "fresh"]
    assert contents(tmp_path) == before


def test_force_builds_the_same_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ingest_sample(store, TINY)
    before = contents(tmp_path)
    assert [result.status for result in ingest_sample(store, TINY, force=True)] == ["built"] * 4
    assert contents(tmp_path) == before


def test_a_changed_setting_builds_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ingest_sample(store, TINY)
    results = ingest_sample(store, dataclasses.replace(TINY, items=40))
    assert [result.status for result in results] == ["built"] * 4


# -- figures --------------------------------------------------------------------------------------------------


def test_the_target_shop_has_a_quarter_of_the_users_and_about_half_of_the_items(middle: Store) -> None:
    users = {name: table(middle, "users", name).height for name in middle.domains()}
    items = {name: table(middle, "items", name).height for name in middle.domains()}
    assert users == {"sample-outdoor": 120, "sample-kitchen": 120, "sample-office": 120, "sample-garden": 30}
    assert all(100 <= items[name] <= 120 for name in items if name != "sample-garden")
    assert 45 <= items["sample-garden"] <= 60


@pytest.mark.parametrize("domain", [shop.name for shop in SHOPS])
def test_every_user_has_five_to_sixty_interactions_and_every_item_has_one(middle: Store, domain: str) -> None:
    interactions = table(middle, "interactions", domain)
    lengths = interactions.group_by("user").len()["len"]
    assert int(lengths.min()) >= 5
    assert int(lengths.max()) <= 60
    assert 9 < float(lengths.mean()) < 16
    assert set(interactions["item"]) == set(range(table(middle, "items", domain).height))


def test_the_smallest_shops_still_have_five_interactions_per_user(tmp_path: Path) -> None:
    results = ingest_sample(Store(tmp_path), TINY)
    assert [result.figures["users"] for result in results] == [20, 20, 20, 5]
    assert results[3].figures["average_length"] == 5


def test_shops_below_the_smallest_size_are_refused() -> None:
    with pytest.raises(UsageError, match="--users 19: must be at least 20"):
        SampleConfig(users=19)


@by_shop
def test_the_store_keeps_the_order_in_which_things_were_bought(middle: Store, number: int) -> None:
    made = generate_shop(MIDDLE, number)
    items, users = (table(middle, name, made.shop.name) for name in ("items", "users"))
    stored = (
        table(middle, "interactions", made.shop.name)
        .join(items.select("item", "item_id"), on="item", maintain_order="left")
        .join(users, on="user", maintain_order="left")
        .group_by("user_id", maintain_order=True)
        .agg("item_id")
    )
    expected = {
        user: [made.item_ids[i] for i in basket] for user, basket in zip(made.user_ids, made.baskets, strict=True)
    }
    assert dict(stored.iter_rows()) == expected


def test_times_ascend_for_each_user_within_the_two_years() -> None:
    lengths = np.array([5, 60, 12])
    times = purchase_times(np.random.default_rng(0), lengths)
    for part in np.split(times, np.cumsum(lengths)[:-1]):
        assert (np.diff(part) >= 0).all()
    assert times.min() >= 1_609_459_200_000  # 2021-01-01
    assert times.max() < 1_672_531_200_000  # 2023-01-01


@by_shop
def test_ratings_are_whole_stars_and_mostly_high(number: int) -> None:
    made = generate_shop(MIDDLE, number)
    user = np.repeat(np.arange(len(made.baskets)), made.market.lengths)
    stars = rate(np.random.default_rng(0), made.market, user, np.concatenate(made.baskets))
    assert set(stars) <= {1, 2, 3, 4, 5}
    assert 4.0 < stars.mean() < 4.6


def test_about_a_tenth_of_the_items_has_no_price_and_fewer_have_no_picture(middle: Store) -> None:
    items = pl.concat([table(middle, "items", name) for name in middle.domains()])
    assert 0.05 < items["price"].is_null().mean() < 0.15
    assert 0.03 < (items["image_files"].list.len() == 0).mean() < 0.14
    assert items.filter(pl.col("price").is_null())["currency"].null_count() == items["price"].null_count()


def test_prices_end_in_99_cents_and_spread_around_the_usual_price_of_the_kind(middle: Store) -> None:
    items = table(middle, "items", "sample-office").drop_nulls("price")
    assert {round(100 * price) % 100 for price in items["price"]} == {99}
    usual = {kind.shelf: kind.price for kind in SHOPS[2].kinds}
    ratio = [price / usual[path[1]] for price, path in zip(items["price"], items["category"], strict=True)]
    assert 0.7 < float(np.median(ratio)) < 1.5
    assert min(ratio) > 0.2
    assert max(ratio) < 5


# -- ids and order --------------------------------------------------------------------------------------------


def test_ids_are_different_and_look_like_shop_ids() -> None:
    ids = random_ids(np.random.default_rng(0), "B0", 8, 500)
    assert len(set(ids)) == 500
    assert all(re.fullmatch(r"B0[0-9A-Z]{8}", item) for item in ids)


@by_shop
def test_neighbouring_rows_share_attributes_no_more_often_than_any_two_items(number: int) -> None:
    made = generate_shop(SampleConfig(), number)
    order = np.argsort(made.item_ids)
    for values in (made.assortment.kind, made.assortment.style, made.assortment.colour, made.assortment.tier):
        share = np.bincount(values) / len(values)
        chance = float((share**2).sum())
        noise = np.sqrt(chance * (1 - chance) / len(values))
        assert abs((values[order][1:] == values[order][:-1]).mean() - chance) < 4 * noise


@by_shop
def test_the_row_of_an_item_says_nothing_about_its_popularity(number: int) -> None:
    made = generate_shop(SampleConfig(), number)
    bought = np.bincount(np.concatenate(made.baskets), minlength=len(made.item_ids))[np.argsort(made.item_ids)]
    correlation = np.corrcoef(np.arange(len(bought)), np.argsort(np.argsort(bought)))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(len(bought))


# -- texts ----------------------------------------------------------------------------------------------------


def named(text: str, variants: dict[str, tuple[str, ...]]) -> set[str]:
    return {
        name
        for name, options in variants.items()
        if any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in options)
    }


@by_shop
def test_texts_name_their_own_attributes_and_never_another_value(middle: Store, number: int) -> None:
    made = generate_shop(MIDDLE, number)
    texts = dict(table(middle, "items", made.shop.name).select("item_id", "text").iter_rows())
    for variants, values, least in (
        (WORDS.styles, made.assortment.style, 0.7),
        (WORDS.colours, made.assortment.colour, 0.8),
        (WORDS.materials, made.assortment.material, 0.65),
        (WORDS.tiers, made.assortment.tier, 0.35),
    ):
        found = [
            (named(texts[item], variants), list(variants)[value])
            for item, value in zip(made.item_ids, values, strict=True)
            if item in texts
        ]
        assert all(names <= {own} for names, own in found)
        assert float(np.mean([own in names for names, own in found])) > least


@by_shop
def test_every_text_names_the_kind_of_product(middle: Store, number: int) -> None:
    made = generate_shop(MIDDLE, number)
    texts = dict(table(middle, "items", made.shop.name).select("item_id", "text").iter_rows())
    kinds = {kind.words[0]: kind.words for kind in made.shop.kinds}
    for item, kind in zip(made.item_ids, made.assortment.kind, strict=True):
        assert item not in texts or made.shop.kinds[kind].words[0] in named(texts[item], kinds)


def test_the_same_attribute_appears_in_different_words() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(describe(rng, SHOPS[1].kinds[2], LOOK)).lower() for _ in range(60)]
    for word in ("mug", "coffee cup", "retro", "vintage", "crimson", "cherry", "stainless steel", "deluxe"):
        assert 0 < sum(word in text for text in texts) < len(texts)


def test_brand_names_of_a_shop_differ() -> None:
    assert len(set(invent_brands(np.random.default_rng(0), 10))) == 10


# -- pictures -------------------------------------------------------------------------------------------------


def pixels(kind: str, style: str, colour: str, material: str, seed: int = 0) -> NDArray[np.int64]:
    picture = Image.open(io.BytesIO(draw_picture(np.random.default_rng(seed), kind, style, colour, material)))
    assert picture.format == "PNG"
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(np.int64)


def test_every_kind_can_be_drawn_and_every_drawing_is_of_a_kind() -> None:
    assert set(DRAWINGS.sketches) == {kind.words[0] for shop in SHOPS for kind in shop.kinds}
    assert (
        {colour for palette in WORDS.palettes.values() for colour in palette}
        <= set(DRAWINGS.paints)
        == set(WORDS.colours)
    )
    assert set(DRAWINGS.trims) == set(WORDS.materials)


def test_pictures_of_different_kinds_differ_in_many_pixels() -> None:
    pictures = [pixels(kind, "minimal", "red", "steel") for kind in DRAWINGS.sketches]
    assert pictures[0].shape == (96, 96, 3)
    for i, first in enumerate(pictures):
        for second in pictures[:i]:
            assert (np.abs(first - second).sum(axis=2) > 60).mean() > 0.03


def test_each_style_has_its_own_pattern() -> None:
    pictures = {pixels("mug", style, "red", "steel").tobytes() for style in WORDS.styles}
    assert len(pictures) == len(WORDS.styles)


def test_the_paint_follows_the_colour() -> None:
    for colour, paint in DRAWINGS.paints.items():
        near = (np.abs(pixels("document box", "minimal", colour, "steel") - paint).max(axis=2) <= 10).mean()
        assert near > 0.15


def test_two_pictures_of_equal_items_differ_by_their_placement() -> None:
    assert not np.array_equal(pixels("mug", "retro", "red", "steel", 0), pixels("mug", "retro", "red", "steel", 1))


def test_the_pictures_in_the_store_are_those_the_items_name(middle: Store) -> None:
    domain = middle.domain("sample-garden")
    for item, files in table(middle, "items", "sample-garden").select("item_id", "image_files").iter_rows():
        for name in files:
            assert Path(name).stem == item
            assert Image.open(domain.path / name).size == (96, 96)

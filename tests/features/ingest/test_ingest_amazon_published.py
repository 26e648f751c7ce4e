"""`ingest amazon` on the published files, and picture URLs as they are published."""

import ast
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from antpipe.features.ingest.amazon.metadata import Product, image_urls
from antpipe.settings.ingest import IngestConfig
from antpipe.store.store import Store
from tests.support.releases import EVERYTHING, ingest_release, items, publish, report, review


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# -- pictures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "thumbnail",
    [
        "https://i/I/41a%2BU._SX38_SY50_CR,0,0,38,50_.jpg",
        "https://i/I/41a%2BU._SR80,60_.jpg",
        "https://i/I/41a%2BU._SX35_SY46._CR0,0,35,46_BG85,85,85_BR-120_PKdp-play-icon-overlay__.jpg",
        "https://i/I/41a%2BU._SX35_SY46.jpg",
        "https://i/I/41a%2BU.jpg",
    ],
)
def test_a_thumbnail_url_becomes_that_of_the_full_size(thumbnail: str) -> None:
    assert image_urls(Product(asin="x", image_thumbs=[thumbnail])) == ["https://i/I/41a%2BU.jpg"]


def test_high_resolution_comes_before_thumbnails() -> None:
    product = Product(asin="x", image_url=["https://i/I/1._SS40_.jpg"], image_high=["https://i/I/big.jpg"])
    assert image_urls(product) == ["https://i/I/big.jpg"]


def test_repeated_urls_and_texts_that_are_not_urls_are_left_out() -> None:
    product = Product(asin="x", image_url=["https://i/1.jpg", "https://i/1.jpg", "", "file:///etc/passwd"])
    assert image_urls(product) == ["https://i/1.jpg"]


# -- the published files --------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_gift_cards_5_core_after_keeping_first_repeats(store: Store, real_data: Path) -> None:
    figures = ingest_release(store, real_data / "amazon2018", "Gift_Cards", IngestConfig(repeats="keep-first")).figures
    assert (figures["users"], figures["items"], figures["interactions"]) == (453, 147, 2941)
    assert report(store, "Gift_Cards")["interactions"]["lines"] == 2972
    assert figures["repeats_dropped"] == 7
    assert figures["items_without_metadata"] == 0


@pytest.mark.realdata
def test_gift_cards_keep_more_users_when_repeats_count(store: Store, real_data: Path) -> None:
    """Seven lines repeat a (user, item) with another text; without them three more users fall below five."""
    figures = ingest_release(store, real_data / "amazon2018", "Gift_Cards", IngestConfig()).figures
    assert (figures["users"], figures["items"], figures["interactions"]) == (456, 147, 2960)


@pytest.mark.realdata
def test_of_the_148_gift_cards_107_have_a_price_and_116_a_picture(store: Store, real_data: Path) -> None:
    figures = ingest_release(store, real_data / "amazon2018", "Gift_Cards", EVERYTHING).figures
    assert (figures["users"], figures["items"], figures["interactions"]) == (458, 148, 2972)
    rows = items(store.domain("Gift_Cards")).values()
    assert sum(row["price"] is not None for row in rows) == 107
    assert sum(bool(row["image_urls"]) for row in rows) == 116
    assert {row["currency"] for row in rows} == {"USD", None}


@pytest.mark.realdata
def test_magazines_have_42_duplicate_lines_and_151_described_items(store: Store, real_data: Path) -> None:
    figures = ingest_release(store, real_data / "amazon2018", "Magazine_Subscriptions", EVERYTHING).figures
    counts = report(store, "Magazine_Subscriptions")
    assert counts["interactions"] | {"sha256": ""} == {
        "file": "Magazine_Subscriptions_5.json.gz",
        "sha256": "",
        "format": "reviews of 2014/2018",
        "lines": 2375,
        "malformed": 0,
        "duplicate_lines": 42,
        "kept": 2333,
    }
    assert (figures["items"], counts["without_metadata"]["items"]) == (151, 6)
    assert (counts["items"]["lines"], counts["items"]["kept"]) == (3385, 2320)
    rows = items(store.domain("Magazine_Subscriptions")).values()
    assert all("<" not in row["text"] and "{" not in row["text"] for row in rows)
    assert sum(row["title"] is not None for row in rows) < 20
    assert all(row["price"] is None for row in rows)


@pytest.mark.realdata
@pytest.mark.parametrize("domain", ["Gift_Cards", "Magazine_Subscriptions"])
def test_both_published_shapes_of_the_2018_metadata_give_the_same_items(
    tmp_path: Path, real_data: Path, domain: str
) -> None:
    tables = []
    for shape in ("amazon2018", "amazon2018_meta_v1"):
        source = tmp_path / shape
        source.mkdir()
        (source / f"{domain}_5.json.gz").symlink_to(real_data / "amazon2018" / f"{domain}_5.json.gz")
        (source / f"meta_{domain}.json.gz").symlink_to(real_data / shape / f"meta_{domain}.json.gz")
        ingest_release(Store(tmp_path / "store" / shape), source, domain, EVERYTHING)
        tables.append(pq.read_table(tmp_path / "store" / shape / domain / "items.parquet").to_pylist())
    assert tables[0] == tables[1]


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("domain", "lines", "duplicates", "left"),
    [
        ("All_Beauty", 5269, 1027, (192, 44, 1028)),
        ("AMAZON_FASHION", 3176, 68, (381, 13, 3025)),
        ("Appliances", 2277, 2071, (3, 2, 18)),
    ],
)
def test_reviews_without_metadata_can_be_ingested(
    store: Store, real_data: Path, domain: str, lines: int, duplicates: int, left: tuple[int, int, int]
) -> None:
    config = IngestConfig(keep_without_metadata=True)
    figures = ingest_release(store, real_data / "amazon2018", domain, config).figures
    assert (figures["users"], figures["items"], figures["interactions"]) == left
    counts = report(store, domain)["interactions"]
    assert (counts["lines"], counts["duplicate_lines"]) == (lines, duplicates)


@pytest.mark.realdata
def test_lines_of_the_2014_and_2023_releases_are_read(store: Store, real_data: Path, tmp_path: Path) -> None:
    literals = (real_data / "amazon2014" / "meta_literal.json").read_bytes()
    ids = [ast.literal_eval(line.decode())["asin"] for line in literals.splitlines() if line]
    old = tmp_path / "old"
    publish(old / "Shop_5.json", *(review("a", item) for item in ids))
    (old / "meta_Shop.json").write_bytes(literals.rstrip() + b"\n")
    assert ingest_release(store, old, "Shop", EVERYTHING).figures["items"] == len(ids)
    new = tmp_path / "new"
    new.mkdir()
    (new / "Tiny.jsonl").write_bytes((real_data / "amazon2023" / "reviews_tiny.jsonl").read_bytes())
    config = IngestConfig(min_user=1, min_item=1, keep_without_metadata=True, max_rejects=2)
    assert ingest_release(store, new, "Tiny", config).figures["interactions"] == 7
    reasons = store.domain("Tiny").table("rejects")["reason"].to_pylist()
    assert [("rating" in reason, "asin" in reason) for reason in reasons] == [(True, False), (False, True)]

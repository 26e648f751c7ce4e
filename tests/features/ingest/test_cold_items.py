"""Cold items: the described items outside the k-core, which come after it and change nothing in it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from antpipe.core.catalogue import load_catalogue
from antpipe.errors import UsageError
from antpipe.evaluation.baselines.judge import BASELINES, judge_baseline
from antpipe.evaluation.evaluate import evaluate_run
from antpipe.features.ingest_table import TableSource, ingest_table, table_source
from antpipe.features.quantize_price import quantize_price
from antpipe.features.subset import subset
from antpipe.features.whiten import read_whitening, whiten
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.settings.features import PriceConfig, SubsetConfig, WhitenConfig
from antpipe.settings.ingest import IngestConfig, TableConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.figures import domain_figures, overlaps
from antpipe.store.store import Store
from tests.support.releases import ingest_release, product, publish, report, review
from tests.support.shops import make_domain
from tests.support.trainable import make_trainable, train_quickly

VISITS = "user,item,time\na,x,1500000000\na,z,1500000001\nb,x,1500000002\nb,z,1500000003\nb,y,1500000004\n"
# y was bought once, d, e and c never, n has nothing that describes it, and m is met but not described.
GOODS = "id,title,price\nx,Red scarf,5\ne,,3\nz,Blue cup,\ny,Hat,4\nd,Glove,\nn,,\nc,Shoe,7\n"
PAIRS = IngestConfig(min_user=2, min_item=2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> TableSource:
    for name, content in (("visits.csv", VISITS), ("goods.csv", GOODS)):
        (tmp_path / name).write_text(content)
    return table_source(tmp_path / "visits.csv", tmp_path / "goods.csv")


def ingest(store: Store, source: TableSource, config: IngestConfig = PAIRS, **more: bool) -> StageResult:
    return ingest_table(store, "Shop", source, config, TableConfig(), **more)


# -- which items they are ---------------------------------------------------------------------------------------------


def test_items_outside_the_core_come_after_it_by_id(store: Store, source: TableSource) -> None:
    result = ingest(store, source)
    shop = store.domain("Shop")
    assert shop.item_ids() == ["x", "z", "c", "d", "e", "y"]
    assert (shop.core_rows(), shop.rows()) == (2, 6)
    assert shop.table("items")["item"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert (result.figures["items"], result.figures["cold_items"]) == (2, 4)
    assert set(shop.table("interactions")["item"].to_pylist()) == {0, 1}


def test_an_item_that_nothing_describes_is_no_cold_item(store: Store, source: TableSource) -> None:
    ingest(store, source)
    assert "n" not in store.domain("Shop").item_ids()
    assert report(store)["cold"] == {"outside_the_core": 5, "kept": 4, "most": None}


def test_drop_cold_leaves_them_out(store: Store, source: TableSource) -> None:
    result = ingest(store, source, IngestConfig(min_user=2, min_item=2, drop_cold=True))
    assert store.domain("Shop").item_ids() == ["x", "z"]
    assert result.figures["cold_items"] == 0


def test_cold_items_keeps_the_first_of_the_file(store: Store, source: TableSource) -> None:
    ingest(store, source, IngestConfig(min_user=2, min_item=2, cold_items=2))
    assert store.domain("Shop").item_ids() == ["x", "z", "e", "y"]


def test_another_number_of_cold_items_is_another_catalogue(store: Store, source: TableSource) -> None:
    wanted = [
        PAIRS,
        IngestConfig(min_user=2, min_item=2, cold_items=2),
        IngestConfig(min_user=2, min_item=2, drop_cold=True),
    ]
    for config in wanted:
        assert [ingest(store, source, config).status for _ in range(2)] == ["built", "fresh"]


def test_a_dry_run_counts_them(store: Store, source: TableSource) -> None:
    planned = ingest(store, source, dry_run=True).figures
    assert planned == ingest(store, source).figures


def test_to_drop_them_and_to_keep_some_is_refused() -> None:
    with pytest.raises(UsageError, match="--drop-cold leaves out all cold items, --cold-items 3 keeps some"):
        IngestConfig(cold_items=3, drop_cold=True)


def test_a_store_made_without_them_stays_fresh_and_names_the_command_that_adds_them(
    store: Store, source: TableSource, messages: list[str]
) -> None:
    ingest(store, source)
    path = store.domain("Shop").path / "manifest.json"
    document = json.loads(path.read_text())
    items = document["artefacts"]["items"]
    del items["report"]["cold"], items["checksum"]  # as antpipe 0.1.0
    path.write_text(json.dumps(document))
    assert ingest(store, source).status == "fresh"
    assert any("ingested without the items outside the k-core" in line and "--force" in line for line in messages)


def test_a_metadata_file_gives_cold_items_only_when_asked(store: Store, tmp_path: Path) -> None:
    reviews = [review("a", "x", 1), review("a", "y", 2), review("b", "x", 3), review("b", "y", 4)]
    folder = tmp_path / "source"
    publish(folder / "Shop_5.json", *reviews)
    publish(folder / "meta_Shop.json", *(product(item) for item in "pxqyrx"))
    assert ingest_release(store, folder, "Shop", PAIRS).figures["cold_items"] == 0
    assert store.domain("Shop").item_ids() == ["x", "y"]
    some = IngestConfig(min_user=2, min_item=2, cold_items=2)
    assert ingest_release(store, folder, "Shop", some).figures["cold_items"] == 2
    assert store.domain("Shop").item_ids() == ["x", "y", "p", "q"]


# -- what does not depend on them -------------------------------------------------------------------------------------

PRICES = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
FAR = [500.0, 600.0, 700.0]


def priced(store: Store, name: str, cold: list[float]) -> None:
    def rows(first: str, prices: list[float]) -> list[dict[str, Any]]:
        return [
            {"item_id": f"{first}{n}", "price": price, "category": ["Shop", f"c{n % 2}"]}
            for n, price in enumerate(prices)
        ]

    others = [row | {"category": ["Elsewhere"]} for row in rows("z", cold)]
    make_domain(store, name, rows("a", PRICES), cold=others)


@pytest.mark.parametrize("scope", ["domain", "global", "category"])
def test_price_bins_are_fitted_on_the_core(store: Store, scope: str) -> None:
    for name, cold in (("plain", []), ("grown", FAR)):
        priced(store, name, cold)
        quantize_price(store, [name], PriceConfig(bins=2, scope=scope, encoding="onehot"))
    plain, grown = (store.domain(name) for name in ("plain", "grown"))
    for key in ("edges", "category_edges"):
        assert grown.entry("price").get(key) == plain.entry("price").get(key)
    assert grown.feature("price").values[:6].tolist() == plain.feature("price").values.tolist()
    assert grown.feature("price").values[6:].tolist() == [[0, 1]] * 3


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    """The shop `plain`, and `grown`, which is the same with five cold items."""
    folder = tmp_path_factory.mktemp("pair")
    store = Store(folder / "store")
    for name, cold in (("plain", 0), ("grown", 5)):
        make_trainable(store, name, cold=cold)
    return store, folder


def test_figures_and_sequences_are_those_of_the_core(pair: tuple[Store, Path]) -> None:
    plain, grown = (pair[0].domain(name) for name in ("plain", "grown"))
    assert (grown.rows(), grown.core_rows(), plain.rows()) == (29, 24, 24)
    figures = [vars(domain_figures(domain)) | {"domain": ""} for domain in (plain, grown)]
    assert figures[0] == figures[1]
    assert overlaps([plain, grown])[0].items == 24
    assert grown.entry("items")["statistics"] == plain.entry("items")["statistics"]
    assert grown.sequences().items.tolist() == plain.sequences().items.tolist()


def test_whitening_is_fitted_on_the_core(pair: tuple[Store, Path]) -> None:
    for name in ("plain", "grown"):
        whiten(pair[0], [name], "text", WhitenConfig())
    plain, grown = (read_whitening(pair[0].domain(name), "text") for name in ("plain", "grown"))
    assert np.array_equal(plain.projection, grown.projection)
    assert len(pair[0].domain("grown").feature("text-white").values) == 29


def test_a_catalogue_has_the_core_unless_all_items_are_asked_for(pair: tuple[Store, Path]) -> None:
    assert len(load_catalogue(pair[0], ["grown"], ["text"])) == 24
    assert len(load_catalogue(pair[0], ["grown"], ["text"], with_cold=True)) == 29


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "tgh"])
def test_baselines_rank_the_core(pair: tuple[Store, Path], tmp_path: Path, name: str) -> None:
    figures = [judge_baseline(pair[0], name, domain, tmp_path / domain) for domain in ("plain", "grown")]
    assert figures[0]["items"] == figures[1]["items"] == 24
    assert figures[0]["protocols"] == figures[1]["protocols"]
    assert figures[0]["slices"] == figures[1]["slices"]


def test_training_and_evaluation_give_the_same_numbers(pair: tuple[Store, Path]) -> None:
    store, folder = pair
    found = []
    for name in ("plain", "grown"):
        run = folder / "runs" / name
        trained = train_quickly(store, "scratch", [name], run, epochs=2)
        judged = evaluate_run(store, run, name, EvaluateConfig(device="cpu"))
        found.append((trained.weights_sha256, trained.metrics, judged["protocols"], judged["slices"], judged["items"]))
    assert found[0] == found[1]


def test_a_subset_has_the_core_alone(pair: tuple[Store, Path]) -> None:
    subset(pair[0], ["grown"], SubsetConfig(target_users=(10,), catalogue="whole"))
    assert pair[0].domain("grown-10-users-whole").rows() == 24

"""`quantize-price`: edges of bins, codes of bins, and the artefact."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antpipe.errors import DataError
from antpipe.features.quantize_price import categories_of, find_bins, fit_edges, onehot, quantize_price, sinusoid
from antpipe.settings.features import PriceConfig
from antpipe.store.store import Store
from tests.support.shops import make_domain

PRICES = st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=60)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def shop(store: Store, name: str, prices: list[float | None], categories: list[list[str]] | None = None) -> None:
    """Items A00, A01, … with these prices."""
    paths = categories or [[] for _ in prices]
    rows = zip(prices, paths, strict=True)
    make_domain(store, name, [{"item_id": f"A{i:02}", "price": p, "category": c} for i, (p, c) in enumerate(rows)])


def bins_in(store: Store, name: str) -> list[int | None]:
    """The bins a onehot artefact holds, None where no price is present."""
    feature = store.domain(name).feature("price")
    codes, present = feature.values, feature.present
    return [int(code.argmax()) if there else None for code, there in zip(codes, present, strict=True)]


def prices_between(edges: list[float], prices: list[float]) -> list[int]:
    return find_bins(np.array(prices), np.array(edges)).tolist()


def test_edges_split_the_catalogue_into_equal_parts() -> None:
    edges = fit_edges(np.array([8.0, 1, 7, 2, 6, 3, 5, 4]), bins=4)
    assert edges.tolist() == [3, 5, 7]


def test_a_bin_holds_its_lower_edge() -> None:
    assert prices_between([3, 5], [2.9, 3, 4.9, 5, 100]) == [0, 1, 1, 2, 2]


def test_repeated_prices_give_fewer_bins_and_none_is_empty() -> None:
    prices = np.array([1.0] * 8 + [2, 3, 4, 5])
    edges = fit_edges(prices, bins=4)
    assert edges.tolist() == [3]  # quartiles 1, 1 and 2.25: the first two would leave a bin without a price
    assert set(find_bins(prices, edges)) == {0, 1}


def test_no_more_distinct_prices_than_bins_means_one_bin_per_price() -> None:
    assert fit_edges(np.array([9.0, 1, 1, 1, 1, 1, 1, 5]), bins=4).tolist() == [5, 9]


def test_one_price_means_one_bin() -> None:
    assert fit_edges(np.array([7.0, 7, np.nan]), bins=10).tolist() == []


@given(PRICES, st.integers(2, 20))
def test_a_higher_price_never_falls_into_a_lower_bin(prices: list[float], bins: int) -> None:
    values = np.log1p(np.sort(np.array(prices)))
    found = find_bins(values, fit_edges(values, bins))
    assert (np.diff(found) >= 0).all()


@given(PRICES, st.integers(2, 20))
def test_no_bin_is_empty_and_there_are_at_most_as_many_as_asked_for(prices: list[float], bins: int) -> None:
    values = np.log1p(np.array(prices))
    edges = fit_edges(values, bins)
    assert len(edges) < bins
    assert set(find_bins(values, edges)) == set(range(len(edges) + 1))


@given(PRICES, st.integers(2, 20), st.randoms(use_true_random=False))
def test_edges_do_not_depend_on_the_order_of_items(prices: list[float], bins: int, random: object) -> None:
    shuffled = list(prices)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert fit_edges(np.array(shuffled), bins).tolist() == fit_edges(np.array(prices), bins).tolist()


@given(st.lists(st.integers(1, 10_000), min_size=40, max_size=40, unique=True), st.sampled_from([2, 4, 5, 8, 10]))
def test_bins_of_distinct_prices_are_equally_full(prices: list[int], bins: int) -> None:
    values = np.array(prices, dtype=float)
    counts = np.bincount(find_bins(values, fit_edges(values, bins)))
    assert counts.tolist() == [40 // bins] * bins


def test_sinusoid_interleaves_sine_and_cosine() -> None:
    code = sinusoid(np.array([3]), 4)[0]
    # width 4: frequencies 1 and 1/100
    assert code == pytest.approx([math.sin(3), math.cos(3), math.sin(0.03), math.cos(0.03)], abs=1e-6)


def test_sinusoid_of_the_first_bin_is_not_the_code_of_a_missing_price() -> None:
    assert sinusoid(np.array([0]), 6)[0].tolist() == [0, 1, 0, 1, 0, 1]


def test_sinusoids_of_a_hundred_bins_differ_in_half_precision() -> None:
    codes = sinusoid(np.arange(100), 64).astype(np.float16)
    assert len(np.unique(codes, axis=0)) == 100


def test_onehot_marks_the_bin() -> None:
    assert onehot(np.array([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_category_is_the_first_level_on_which_paths_differ() -> None:
    assert categories_of([["Shop", "Music", "CD"], ["Shop", "Books"], [], ["Shop"]]) == ["Music", "Books", "", ""]
    assert categories_of([["Music"], ["Books", "New"]]) == ["Music", "Books"]
    assert categories_of([["Shop", "Music"], ["Shop", "Music"]]) == ["", ""]


def test_missing_prices_are_zeros_and_not_present(store: Store) -> None:
    shop(store, "shop", [5.0, None, 20.0])
    [result] = quantize_price(store, ["shop"], PriceConfig())
    feature = store.domain("shop").feature("price")
    assert feature.values.shape == (3, 64)
    assert feature.present.tolist() == [True, False, True]
    assert not feature.values[1].any()
    assert feature.values[0] == pytest.approx(sinusoid(np.array([0]), 64)[0], abs=1e-3)
    assert feature.values[2] == pytest.approx(sinusoid(np.array([1]), 64)[0], abs=1e-3)
    assert result.status == "built"
    assert result.figures == {"items": 3, "present": 2, "coverage": 0.6667, "bins": 2, "width": 64}


def test_edges_are_kept_in_the_manifest(store: Store) -> None:
    shop(store, "shop", [1.0, 2.0, 3.0, 4.0])
    quantize_price(store, ["shop"], PriceConfig(bins=2))
    assert store.domain("shop").entry("price")["edges"] == pytest.approx([math.log(1 + 3)])


def test_equal_prices_get_equal_codes(store: Store) -> None:
    shop(store, "shop", [3.0, 1.0, 3.0, 2.0, 3.0])
    quantize_price(store, ["shop"], PriceConfig(bins=2))
    values = store.domain("shop").feature("price").values
    assert np.array_equal(values[0], values[2])
    assert np.array_equal(values[0], values[4])
    assert not np.array_equal(values[0], values[1])


def test_scope_domain_fits_each_catalogue_on_its_own(store: Store) -> None:
    shop(store, "cheap", [1.0, 2.0, 3.0, 4.0])
    shop(store, "dear", [100.0, 200.0, 300.0, 400.0])
    quantize_price(store, ["cheap", "dear"], PriceConfig(bins=2, encoding="onehot"))
    assert bins_in(store, "cheap") == bins_in(store, "dear") == [0, 0, 1, 1]


def test_scope_global_fits_all_named_catalogues_together(store: Store) -> None:
    shop(store, "cheap", [1.0, 2.0, 3.0, 4.0])
    shop(store, "dear", [100.0, 200.0, 300.0, 400.0])
    quantize_price(store, ["cheap", "dear"], PriceConfig(bins=2, scope="global", encoding="onehot"))
    assert bins_in(store, "cheap") == [0, 0, 0, 0]
    assert bins_in(store, "dear") == [1, 1, 1, 1]
    assert store.domain("cheap").entry("price")["edges"] == store.domain("dear").entry("price")["edges"]


def test_scope_global_is_stale_once_another_catalogue_joins(store: Store) -> None:
    shop(store, "cheap", [1.0, 2.0])
    shop(store, "dear", [100.0, 200.0])
    config = PriceConfig(scope="global")
    assert [result.status for result in quantize_price(store, ["cheap"], config)] == ["built"]
    assert [result.status for result in quantize_price(store, ["cheap"], config)] == ["fresh"]
    assert [result.status for result in quantize_price(store, ["cheap", "dear"], config)] == ["built", "built"]
    assert [result.status for result in quantize_price(store, ["dear", "cheap"], config)] == ["fresh", "fresh"]


def test_scope_category_fits_large_categories_and_counts_the_small_ones(store: Store) -> None:
    paths = [["Shop", "Music"]] * 4 + [["Shop", "Books"]] * 4 + [["Shop", "Toys"]] + [[]]
    shop(store, "shop", [1.0, 2, 3, 4, 100, 200, 300, 400, 1, 400], paths)
    [result] = quantize_price(store, ["shop"], PriceConfig(bins=2, scope="category", encoding="onehot"))
    assert bins_in(store, "shop") == [0, 0, 1, 1, 0, 0, 1, 1, 0, 1]
    assert result.figures["categories"] == 3
    assert result.figures["categories_on_domain_edges"] == 1
    assert set(store.domain("shop").entry("price")["category_edges"]) == {"Music", "Books"}


def test_items_without_a_category_do_not_form_one(store: Store) -> None:
    paths = [["Music"], ["Books"], [], [], []]
    shop(store, "shop", [1.0, 100, 1, 2, 3], paths)
    quantize_price(store, ["shop"], PriceConfig(bins=2, scope="category", encoding="onehot"))
    assert store.domain("shop").entry("price")["category_edges"] == {}
    assert bins_in(store, "shop") == [0, 1, 0, 1, 1]  # the median of the whole catalogue is 2


def test_codes_are_the_same_when_they_are_written_in_pieces(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    shop(store, "shop", [1.0, None, 2.0, 3.0, 4.0])
    quantize_price(store, ["shop"], PriceConfig())
    whole = store.domain("shop").feature("price").values.tolist()
    monkeypatch.setattr("antpipe.features.quantize_price.CHUNK", 2)
    quantize_price(store, ["shop"], PriceConfig(), force=True)
    assert store.domain("shop").feature("price").values.tolist() == whole


def test_a_catalogue_without_prices_gets_an_artefact_that_says_so(store: Store) -> None:
    shop(store, "shop", [None, None])
    [result] = quantize_price(store, ["shop"], PriceConfig())
    assert result.figures["present"] == result.figures["bins"] == 0
    feature = store.domain("shop").feature("price")
    assert not feature.present.any()
    assert not feature.values.any()


def test_onehot_is_as_wide_as_the_bins_asked_for(store: Store) -> None:
    shop(store, "shop", [1.0, 2.0])
    quantize_price(store, ["shop"], PriceConfig(bins=7, encoding="onehot"))
    assert store.domain("shop").feature("price").values.shape == (2, 7)


def test_a_second_run_is_fresh_and_another_setting_is_not(store: Store) -> None:
    shop(store, "shop", [1.0, 2.0])
    [first] = quantize_price(store, ["shop"], PriceConfig())
    [second] = quantize_price(store, ["shop"], PriceConfig())
    assert (first.status, second.status) == ("built", "fresh")
    assert second.figures == first.figures
    assert quantize_price(store, ["shop"], PriceConfig(), force=True)[0].status == "built"
    assert quantize_price(store, ["shop"], PriceConfig(bins=5))[0].status == "built"


def test_the_width_of_the_sinusoid_does_not_make_a_onehot_code_stale(store: Store) -> None:
    shop(store, "shop", [1.0, 2.0])
    quantize_price(store, ["shop"], PriceConfig(encoding="onehot"))
    assert quantize_price(store, ["shop"], PriceConfig(encoding="onehot", price_width=8))[0].status == "fresh"


@pytest.mark.parametrize("price", [-3.0, math.inf, math.nan])
def test_impossible_prices_are_refused_and_no_domain_changes(store: Store, price: float) -> None:
    shop(store, "good", [1.0, 2.0])
    shop(store, "bad", [1.0, price])
    with pytest.raises(DataError, match="A01") as caught:
        quantize_price(store, ["good", "bad"], PriceConfig())
    assert caught.value.next_command
    assert "price" not in store.domain("good").manifest()
    assert "price" not in store.domain("bad").manifest()

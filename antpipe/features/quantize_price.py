"""quantize-price: an item's price becomes the code of its quantile bin.

A bin holds its lower edge: bin k is edges[k-1] <= log(1 + price) < edges[k], the first and the last bin are open.
Edges are prices of the catalogue, distinct and above the lowest price, so every bin holds at least one price. There
are fewer bins than asked for where prices repeat a lot; a catalogue with no more distinct prices than bins gets a
bin for each price.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from antpipe.errors import DataError
from antpipe.settings.base import flags_of
from antpipe.settings.features import PriceConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.domain import Domain
from antpipe.store.store import Store

CHUNK = 65_536


@dataclass(frozen=True)
class Catalogue:
    """prices: (N,) log(1 + price) in float64, NaN where missing. categories: N names, '' where an item has none."""

    domain: Domain
    prices: NDArray[np.float64]
    categories: list[str]


def quantize_price(
    store: Store, domains: Sequence[str], config: PriceConfig, *, force: bool = False
) -> list[StageResult]:
    """Write price.arrow of each domain: (N, d) float16; an item without a price is zeros and not present.

    d is `price_width` (sinusoid) or `bins` (onehot). Scope `domain` fits the edges on each catalogue, `global` on all
    named domains together, `category` on each category of a domain (see `categories_of`); a category with fewer
    prices than bins uses its domain's edges, which the figures count. A domain without any price gets an artefact
    with present = 0, so that the other domains and a training with other modalities go on.
    Raises DataError for a price that is negative or not finite.
    """
    places = [store.domain(name) for name in dict.fromkeys(domains)]
    catalogues = [_read(place, config.scope == "category") for place in places]
    everything = np.concatenate([catalogue.prices for catalogue in catalogues]) if catalogues else np.empty(0)
    results = []
    for catalogue in catalogues:
        parameters = _parameters(config, places)
        place = catalogue.domain
        if not force and place.is_fresh("price", parameters):
            results.append(StageResult(place.name, "price", "fresh", place.entry("price")["figures"]))
            continue
        edges = fit_edges(everything if config.scope == "global" else catalogue.prices, config.bins)
        results.append(_write(catalogue, edges, config, parameters))
    return results


def fit_edges(prices: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """At most bins - 1 increasing edges between quantile bins; NaN is ignored.

    prices: (N,), any increasing function of the price gives the same bins. An edge is the lowest price of the bin
    above it.
    """
    present = np.sort(prices[~np.isnan(prices)])
    if not len(present):
        return present
    distinct = np.unique(present)
    if len(distinct) <= bins:
        return distinct[1:]
    quantiles = np.quantile(present, np.arange(1, bins) / bins)
    edges = present[np.searchsorted(present, quantiles, side="left")]
    return np.unique(edges[edges > present[0]])


def find_bins(prices: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bin, 0 to len(edges), of each price. prices: (N,) without NaN."""
    return np.searchsorted(edges, prices, side="right").astype(np.int64)


def sinusoid(bins: NDArray[np.int64], width: int) -> NDArray[np.float32]:
    """(N,) bins -> (N, width): sines and cosines of falling frequency, interleaved.

    Vaswani et al. 2017, arXiv 1706.03762, section 3.5. Bin 0 is (0, 1, 0, 1, …): never the zeros of a missing price.
    """
    columns = np.arange(width)
    angles = bins[:, None] / 10_000.0 ** (2 * (columns // 2) / width)
    return np.asarray(np.where(columns % 2 == 0, np.sin(angles), np.cos(angles)), dtype=np.float32)


def onehot(bins: NDArray[np.int64], width: int) -> NDArray[np.float32]:
    """(N,) bins below width -> (N, width)."""
    return np.asarray(bins[:, None] == np.arange(width), dtype=np.float32)


def categories_of(paths: Sequence[Sequence[str]]) -> list[str]:
    """An item's category: the first level of its path on which the catalogue's paths differ, '' where it has none.

    The levels above it, such as the shop's own name in front of every path, tell nothing. Items without a path do not
    count for what is common.
    """
    filled = [path for path in paths if path]
    depth = 0
    while filled and all(len(path) > depth for path in filled) and len({path[depth] for path in filled}) == 1:
        depth += 1
    return [path[depth] if len(path) > depth else "" for path in paths]


def _read(place: Domain, with_categories: bool) -> Catalogue:
    columns = ["item_id", "price", *(["category"] if with_categories else [])]
    table: pa.Table = place.table("items", columns)
    prices = np.array(table["price"].to_numpy(), dtype=np.float64)
    missing = table["price"].is_null().to_numpy()
    wrong = ~missing & ~(np.isfinite(prices) & (prices >= 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{place.path / 'items.parquet'}: item {table['item_id'][row].as_py()!r} has the price {prices[row]}",
            place.command("items", force=True),
        )
    prices[missing] = np.nan
    return Catalogue(
        place,
        np.log1p(prices),
        categories_of([path or [] for path in table["category"].to_pylist()]) if with_categories else [],
    )


def _parameters(config: PriceConfig, places: Sequence[Domain]) -> dict[str, Any]:
    """What the fingerprint covers; edges of scope `global` depend on every catalogue they are fitted on."""
    parameters: dict[str, Any] = {"bins": config.bins, "scope": config.scope, "encoding": config.encoding}
    if config.encoding == "sinusoid":
        parameters["price_width"] = config.price_width
    if config.scope == "global":
        parameters["fitted_on"] = {place.name: place.entry("items")["fingerprint"] for place in places}
    return parameters


def _category_edges(catalogue: Catalogue, bins: int) -> dict[str, NDArray[np.float64]]:
    """Edges of the categories that have at least as many prices as there are bins."""
    names = np.array(catalogue.categories, dtype=object)  # strings of a fixed width would all be as wide as the longest
    counted, counts = np.unique(names[~np.isnan(catalogue.prices)], return_counts=True)
    large = [str(name) for name, count in zip(counted, counts, strict=True) if name and count >= bins]
    return {name: fit_edges(catalogue.prices[names == name], bins) for name in large}


def _bins(
    catalogue: Catalogue, edges: NDArray[np.float64], of_category: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.int64]:
    """(N,) bins, -1 where the price is missing."""
    bins = np.full(len(catalogue.prices), -1, dtype=np.int64)
    present = ~np.isnan(catalogue.prices)
    bins[present] = find_bins(catalogue.prices[present], edges)
    names = np.array(catalogue.categories, dtype=object)
    for name, own in of_category.items():
        rows = present & (names == name)
        bins[rows] = find_bins(catalogue.prices[rows], own)
    return bins


def _write(
    catalogue: Catalogue, edges: NDArray[np.float64], config: PriceConfig, parameters: Mapping[str, Any]
) -> StageResult:
    of_category = _category_edges(catalogue, config.bins) if config.scope == "category" else {}
    bins = _bins(catalogue, edges, of_category)
    width, code = (config.price_width, sinusoid) if config.encoding == "sinusoid" else (config.bins, onehot)
    present = int((bins >= 0).sum())
    figures: dict[str, Any] = {
        "items": len(bins),
        "present": present,
        "coverage": round(present / len(bins), 4),
        "bins": len(np.unique(bins[bins >= 0])),
        "width": width,
    }
    details: dict[str, Any] = {"edges": edges.tolist(), "edges_of": "log(1 + price)"}
    if config.scope == "global":
        details["domains"] = list(parameters["fitted_on"])
    if config.scope == "category":
        names = {name for name, row in zip(catalogue.categories, bins, strict=True) if name and row >= 0}
        figures |= {"categories": len(names), "categories_on_domain_edges": len(names - of_category.keys())}
        details["category_edges"] = {name: own.tolist() for name, own in of_category.items()}
    place = catalogue.domain
    with place.writing("price", parameters) as out:
        with out.feature("price", len(bins), width) as feature:
            feature.present[:] = bins >= 0
            for start in range(0, len(bins), CHUNK):
                part = bins[start : start + CHUNK]
                feature.values[start : start + CHUNK] = np.where(part[:, None] >= 0, code(part, width), 0.0)
        out.details |= {**details, "figures": figures, "flags": flags_of(config)}
    return StageResult(place.name, "price", "built", figures)

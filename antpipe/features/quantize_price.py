"""Stage `quantize-price`: an item's price becomes the code of its quantile bin.

Bin k is edges[k-1] <= log(1 + price) < edges[k]; the first and the last bin are open. Edges are distinct prices of the
catalogue above the lowest one, so every bin holds at least one price. If many prices are equal, there are fewer bins
than asked for; a catalogue with no more distinct prices than bins gets one bin per price.
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
from antpipe.store.next_command import build_command
from antpipe.store.store import Store

CHUNK = 65_536


@dataclass(frozen=True)
class Prices:
    """The prices of a catalogue of N items.

    logs: (N,) log(1 + price) in float64, NaN if the item has no price. core: how many of the items, the first, edges
    are fitted on. categories: N names, '' if it has no category; empty unless scope `category` asks for them.
    """

    domain: Domain
    logs: NDArray[np.float64]
    core: int
    categories: list[str]


def quantize_price(
    store: Store, domains: Sequence[str], config: PriceConfig, *, force: bool = False
) -> list[StageResult]:
    """Write price.arrow of each domain: (N, d) float16, with zeros and present = false for an item without a price.

    d is `price_width` (sinusoid) or `bins` (onehot). Scope `domain` fits the edges on the core of each catalogue,
    `global` on those of all named domains together, `category` on each category of a domain (see `categories_of`). A
    category with fewer prices than bins uses its domain's edges; the figures count such categories. A domain without
    any price gets an artefact in which nothing is present, so that it holds up neither the other domains nor training
    on other modalities.
    Raises DataError for a price that is negative or not finite.
    """
    read = [_read(store.domain(name), config.scope == "category") for name in dict.fromkeys(domains)]
    parameters = _parameters(config, [prices.domain for prices in read])
    everything = np.concatenate([np.empty(0), *(prices.logs[: prices.core] for prices in read)])
    results = []
    for prices in read:
        domain = prices.domain
        if not force and domain.is_fresh("price", parameters):
            results.append(StageResult(domain.name, "price", "fresh", domain.entry("price")["figures"]))
            continue
        edges = fit_edges(everything if config.scope == "global" else prices.logs[: prices.core], config.bins)
        results.append(_write(prices, edges, config, parameters))
    return results


def fit_edges(prices: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """At most bins - 1 increasing edges between quantile bins; NaN is ignored.

    prices: (N,), or any increasing function of them, which gives the same bins. An edge is the lowest price of the bin
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
    """(N,) bins -> (N, width): interleaved sines and cosines of decreasing frequency.

    Vaswani et al. 2017, arXiv 1706.03762, section 3.5. Bin 0 is (0, 1, 0, 1, …), which differs from the zeros of a
    missing price.
    """
    columns = np.arange(width)
    angles = bins[:, None] / 10_000.0 ** (2 * (columns // 2) / width)
    return np.asarray(np.where(columns % 2 == 0, np.sin(angles), np.cos(angles)), dtype=np.float32)


def onehot(bins: NDArray[np.int64], width: int) -> NDArray[np.float32]:
    """(N,) bins below width -> (N, width)."""
    return np.asarray(bins[:, None] == np.arange(width), dtype=np.float32)


def categories_of(paths: Sequence[Sequence[str]], core: int | None = None) -> list[str]:
    """Each item's category: the first level at which the catalogue's paths differ, '' if the item's path is shorter.

    The levels above it, such as the shop's own name at the start of every path, say nothing. Items without a path are
    ignored when the paths are compared. core: how many of the paths, the first, are compared (None: all).
    """
    filled = [path for path in paths[:core] if path]
    depth = 0
    while filled and all(len(path) > depth for path in filled) and len({path[depth] for path in filled}) == 1:
        depth += 1
    return [path[depth] if len(path) > depth else "" for path in paths]


def _read(domain: Domain, with_categories: bool) -> Prices:
    columns = ["item_id", "price", *(["category"] if with_categories else [])]
    table: pa.Table = domain.table("items", columns)
    prices = np.array(table["price"].to_numpy(), dtype=np.float64)
    missing = table["price"].is_null().to_numpy()
    wrong = ~missing & ~(np.isfinite(prices) & (prices >= 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{domain.path / 'items.parquet'}: item {table['item_id'][row].as_py()!r} has the price {prices[row]}",
            build_command(domain, "items", force=True),
        )
    prices[missing] = np.nan
    core = domain.core_rows()
    paths = [path or [] for path in table["category"].to_pylist()] if with_categories else []
    return Prices(domain, np.log1p(prices), core, categories_of(paths, core))


def _parameters(config: PriceConfig, domains: Sequence[Domain]) -> dict[str, Any]:
    """What the fingerprint covers. Edges of scope `global` depend on every catalogue on which they are fitted."""
    parameters: dict[str, Any] = {"bins": config.bins, "scope": config.scope, "encoding": config.encoding}
    if config.encoding == "sinusoid":
        parameters["price_width"] = config.price_width
    if config.scope == "global":
        parameters["fitted_on"] = {domain.name: domain.entry("items")["fingerprint"] for domain in domains}
    return parameters


def _category_edges(prices: Prices, bins: int) -> dict[str, NDArray[np.float64]]:
    """Edges of the categories that have at least as many prices as there are bins."""
    logs = prices.logs[: prices.core]
    names = np.array(
        prices.categories[: prices.core], dtype=object
    )  # fixed-width strings would be as wide as the longest
    counted, counts = np.unique(names[~np.isnan(logs)], return_counts=True)
    large = [str(name) for name, count in zip(counted, counts, strict=True) if name and count >= bins]
    return {name: fit_edges(logs[names == name], bins) for name in large}


def _bins(
    prices: Prices, edges: NDArray[np.float64], of_category: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.int64]:
    """(N,) bins, -1 for a missing price."""
    bins = np.full(len(prices.logs), -1, dtype=np.int64)
    present = ~np.isnan(prices.logs)
    bins[present] = find_bins(prices.logs[present], edges)
    names = np.array(prices.categories, dtype=object)
    for name, own in of_category.items():
        rows = present & (names == name)
        bins[rows] = find_bins(prices.logs[rows], own)
    return bins


def _write(
    prices: Prices, edges: NDArray[np.float64], config: PriceConfig, parameters: Mapping[str, Any]
) -> StageResult:
    of_category = _category_edges(prices, config.bins) if config.scope == "category" else {}
    bins = _bins(prices, edges, of_category)
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
        names = {name for name, row in zip(prices.categories, bins, strict=True) if name and row >= 0}
        figures |= {"categories": len(names), "categories_on_domain_edges": len(names - of_category.keys())}
        details["category_edges"] = {name: own.tolist() for name, own in of_category.items()}
    domain = prices.domain
    with domain.writing("price", parameters) as out:
        with out.feature("price", len(bins), width) as feature:
            feature.present[:] = bins >= 0
            for start in range(0, len(bins), CHUNK):
                part = bins[start : start + CHUNK]
                feature.values[start : start + CHUNK] = np.where(part[:, None] >= 0, code(part, width), 0.0)
        out.details |= {**details, "figures": figures, "flags": flags_of(config)}
    return StageResult(domain.name, "price", "built", figures)

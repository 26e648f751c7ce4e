"""Figures of catalogues: sizes, coverage of the items, and their prices with the bins that a model reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from antpipe.report.figure import Figure, Rows, layered, listed
from antpipe.report.theme import Spec, Theme, frame, number, ordinal
from antpipe.store.domain import Domain

MODALITIES = {"text": "text", "image": "picture", "price": "price"}
BARS = 30  # of a price histogram


@dataclass(frozen=True)
class Shop:
    """What a report says about one catalogue.

    with_text, with_image, with_price: shares of the items. prices: (P,) in the catalogue's currency, of the items that
    have one. edges: between the price bins that a model reads, () without quantize-price or with several sets of them.
    """

    name: str
    users: int
    items: int
    interactions: int
    with_text: float
    with_image: float
    with_price: float
    prices: NDArray[np.float64]
    currency: str
    edges: Sequence[float]


def describe(domain: Domain) -> Shop:
    """Count in the tables of a domain, without cold items. Raises DataError if there are none."""
    core = domain.core_rows()
    columns = ["price", "currency", "image_urls", "image_files"]
    items = pl.DataFrame(domain.table("items", columns))[:core]
    text = (
        pl.DataFrame(domain.table("items", ["text"]))[:core].select((pl.col("text").fill_null("") != "").mean()).item()
    )
    image = (pl.col("image_urls").list.len().fill_null(0) + pl.col("image_files").list.len().fill_null(0)) > 0
    pictured, priced = items.select(image.mean(), pl.col("price").is_not_null().mean()).row(0)
    prices = items["price"].drop_nulls().cast(pl.Float64).to_numpy()
    currencies = items["currency"].drop_nulls().value_counts(sort=True)
    entry = domain.manifest().get("price", {})
    edges = np.expm1(np.array(entry.get("edges", []))).tolist() if not entry.get("category_edges") else []
    return Shop(
        domain.name,
        domain.table("users", ["user"]).num_rows,
        len(items),
        domain.table("interactions", ["user"]).num_rows,
        text or 0.0,
        pictured or 0.0,
        priced or 0.0,
        prices,
        str(currencies[0, 0]) if len(currencies) and currencies[0, 0] else "",
        edges,
    )


# -- coverage ---------------------------------------------------------------------------------------------------------


def coverage_figure(shops: Sequence[Shop]) -> Figure:
    """Which share of each catalogue's items has a text, a picture and a price."""
    rows: Rows = [
        {
            "shop": shop.name,
            "modality": shown,
            "share": getattr(shop, f"with_{name}"),
            "says": f"{shop.name}: {getattr(shop, f'with_{name}'):.1%} of {shop.items:,} items have a {shown}",
        }
        for shop in shops
        for name, shown in MODALITIES.items()
    ]
    alt = f"Share of items with a text, picture or price. {listed([row['says'] for row in rows], 12)}."
    return Figure(
        lambda theme: draw_coverage(theme, rows), alt, "Share of the items that have a text, picture or price."
    )


def draw_coverage(theme: Theme, rows: Rows) -> Spec:
    shops = list(dict.fromkeys(row["shop"] for row in rows))
    names = list(MODALITIES.values())
    colour = {
        "field": "modality",
        "type": "nominal",
        "scale": {"domain": names, "range": [theme.series(place) for place in range(len(names))]},
        "legend": {"title": None},
    }
    content = {
        "data": {"values": rows},
        "mark": {"type": "bar", "height": {"band": 0.9}, "cornerRadiusEnd": 2},
        "encoding": {
            "x": {
                **number("share", "share of items", domain=[0, 1]),
                "axis": {"title": "share of items", "format": ".0%", "tickCount": 5, "domain": False, "ticks": False},
            },
            "y": ordinal("shop", shops),
            "yOffset": {"field": "modality", "sort": names},
            "color": colour,
            "description": {"field": "says"},
        },
        "height": {"step": 13},
    }
    return frame(theme, content)


# -- prices -----------------------------------------------------------------------------------------------------------


def price_figure(shop: Shop) -> Figure | None:
    """A histogram of prices on a logarithmic axis, with the bins that a model reads; None without two prices."""
    rows = price_rows(shop.prices)
    if not rows:
        return None
    unit = f" in {shop.currency}" if shop.currency else ""
    low, middle, high = np.quantile(shop.prices, (0, 0.5, 1)).tolist()
    alt = (
        f"Prices of {len(shop.prices):,} of {shop.items:,} items of {shop.name}{unit}: from {low:,.2f} to {high:,.2f}, "
        f"half of them below {middle:,.2f}."
    )
    bins = (
        f" Ticks at the top are the edges of the {len(shop.edges) + 1} price bins that models read."
        if shop.edges
        else ""
    )
    return Figure(lambda theme: draw_prices(theme, rows, shop, unit), alt, f"{alt}{bins}")


def price_rows(prices: NDArray[np.float64]) -> Rows:
    """Bars of equal width in the logarithm of 1 + price: `low`, `high`, `items`. Empty for fewer than two prices."""
    if len(np.unique(prices)) < 2:
        return []
    edges = np.linspace(np.log1p(prices.min()), np.log1p(prices.max()), BARS + 1)
    counts, _ = np.histogram(np.log1p(prices), edges)
    bounds = np.expm1(edges).tolist()
    return [
        {
            "low": low,
            "high": high,
            "items": count,
            "says": f"{low:,.2f} to {high:,.2f}: {count:,} items",
        }
        for low, high, count in zip(bounds, bounds[1:], counts.tolist(), strict=False)
    ]


def draw_prices(theme: Theme, rows: Rows, shop: Shop, unit: str) -> Spec:
    scale: dict[str, Any] = {"type": "symlog", "nice": False, "domain": [rows[0]["low"], rows[-1]["high"]]}
    ticks = price_ticks(rows[0]["low"], rows[-1]["high"])
    axis = {"title": f"price{unit}", "values": ticks, "format": ",~r", "grid": False, "labelOverlap": "greedy"}
    x = {"field": "low", "type": "quantitative", "scale": scale, "axis": axis}
    inside = [{"edge": edge} for edge in shop.edges if rows[0]["low"] < edge < rows[-1]["high"]]
    marks = layered(
        rows,
        {
            "mark": {"type": "rect", "color": theme["c0"], "opacity": 0.85, "stroke": theme["paper"]},
            "encoding": {
                "x": x,
                "x2": {"field": "high"},
                "y": {
                    "field": "items",
                    "type": "quantitative",
                    "axis": {"title": "items", "domain": False, "tickCount": 4, "format": ",d", "tickMinStep": 1},
                },
                "y2": {"datum": 0},
                "description": {"field": "says"},
            },
        },
        {
            "data": {"values": inside},
            "mark": {"type": "rule", "color": theme["bad"], "strokeWidth": 1.5},
            "encoding": {"x": {**x, "field": "edge"}, "y": {"value": 0}, "y2": {"value": 10}},
        },
    )
    return frame(theme, {**marks, "height": 180})


def price_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20 … between two prices."""
    found = [base * 10.0**power for power in range(-2, 9) for base in (1, 2, 5)]
    return [tick for tick in found if low <= tick <= high]

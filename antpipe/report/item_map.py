"""A map of a domain's items: the two directions in which the vectors of a run differ most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from antpipe.core.catalogue import Ints
from antpipe.evaluation.vectors import OpenRun
from antpipe.features.quantize_price import categories_of
from antpipe.report.figure import Figure, Rows, listed, shortened
from antpipe.report.theme import SHAPES, Spec, Theme, frame
from antpipe.serving.recommend import titles_of

MOST_CATEGORIES = 7
REST, NONE = "other", "without category"
FEW = 400  # points; fewer are drawn larger
TITLE, CATEGORY = 80, 32  # letters shown


@dataclass(frozen=True)
class ItemMap:
    """Points of a map. items: number in the whole catalogue; share: of the variance, along both axes together."""

    rows: Rows
    items: int
    share: float


def sampled(n: int, most: int, seed: int) -> Ints:
    """At most `most` of n rows, in order, drawn at random."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def map_of(opened: OpenRun, most: int, seed: int) -> ItemMap:
    """The map of a run's items, by the principal components of a sample's unit vectors."""
    rows = sampled(len(opened.items), most, seed)
    vectors = opened.encoded[rows].numpy().astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    places, share = components(vectors / np.where(lengths > 0, lengths, 1))
    paths = opened.describing(["category"])["category"].to_list()
    categories = grouped([shortened(name, CATEGORY) for name in categories_of([path or [] for path in paths])])
    titles = titles_of(opened, rows)
    points = []
    for row, (x, y) in zip(rows.tolist(), places.tolist(), strict=True):
        title = shortened(titles[row], TITLE) or opened.item_ids[row]
        points.append(
            {
                "x": round(x, 4),
                "y": round(y, 4),
                "category": categories[row],
                "says": f"{title} · {categories[row]}",
            }
        )
    return ItemMap(points, len(opened.items), share)


def components(vectors: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """(N, D) vectors -> (N, 2) their first two principal components, and the share of the variance these have.

    The sign of a component makes its largest value positive, so that the same vectors give the same map.
    """
    centred = vectors - vectors.mean(0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    found = np.zeros((len(vectors), 2))
    kept = min(2, len(scale))
    found[:, :kept] = left[:, :kept] * scale[:kept]
    largest = found[np.abs(found).argmax(0), (0, 1)]
    total = float((scale**2).sum())
    return found * np.where(largest < 0, -1, 1), float((scale[:kept] ** 2).sum() / total) if total else 0.0


def grouped(categories: Sequence[str]) -> list[str]:
    """The largest categories by name, and all others together as one."""
    counts: dict[str, int] = {}
    for name in categories:
        if name:
            counts[name] = counts.get(name, 0) + 1
    largest = sorted(counts, key=lambda name: (-counts[name], name))
    kept = set(largest if len(largest) <= MOST_CATEGORIES + 1 else largest[:MOST_CATEGORIES])
    return [NONE if not name else name if name in kept else REST for name in categories]


def map_figure(found: ItemMap, name: str, arm: str) -> Figure:
    """Points by category, with titles on hover."""
    counts: dict[str, int] = {}
    for row in found.rows:
        counts[row["category"]] = counts.get(row["category"], 0) + 1
    order = legend_order(counts)
    few = f"a random sample of {len(found.rows):,} of {found.items:,}" if len(found.rows) < found.items else "all"
    shown = [f"{category} {counts[category]:,}" for category in order]
    alt = f"Map of {few} items of {name} by the vectors of {arm}, by category: {listed(shown, 12)}."
    caption = (
        f"The vectors that {arm} learned, {few} items, along their two principal components ({found.share:.0%} of the "
        "variance). Items that lie together are similar to the model."
    )
    return Figure(lambda theme: draw_map(theme, found.rows, order), alt, caption)


def legend_order(counts: Mapping[str, int]) -> list[str]:
    """Categories by size; the groups that are not categories come last."""
    return sorted(counts, key=lambda name: (name in (REST, NONE), name == NONE, -counts[name], name))


def draw_map(theme: Theme, rows: Rows, order: Sequence[str]) -> Spec:
    named = [name for name in order if name not in (REST, NONE)]
    colours = [theme["plain"] if name in (REST, NONE) else theme.series(named.index(name)) for name in order]
    shapes = [SHAPES[place % len(SHAPES)] for place in range(len(order))]
    axis = {"field": "x", "type": "quantitative", "axis": None, "scale": {"zero": False, "nice": False, "padding": 10}}
    content = {
        "data": {"values": rows},
        "mark": {
            "type": "point",
            "filled": True,
            "size": (90 if len(rows) < FEW else 46) / (1.5 if theme.narrow else 1),
            "opacity": 0.75,
        },
        "encoding": {
            "x": axis,
            "y": {**axis, "field": "y"},
            "color": {
                "field": "category",
                "type": "nominal",
                "scale": {"domain": list(order), "range": colours},
                "legend": {"title": None, "columns": 2 if theme.narrow else 4, "symbolOpacity": 1},
            },
            "shape": {"field": "category", "type": "nominal", "scale": {"domain": list(order), "range": shapes}},
            "description": {"field": "says"},
        },
        "height": round(theme.width * (1.0 if theme.narrow else 0.62)),
    }
    return frame(theme, content)

"""Figures of learning curves: arms by the number of users of the target."""

from collections.abc import Mapping, Sequence
from typing import Any

from antpipe.comparison.table import in_users
from antpipe.report.arms import interval_of_mean
from antpipe.report.figure import Figure, Rows, layered, listed, metric_name
from antpipe.report.theme import SHAPES, Spec, Theme, frame

MOST_LINES = 8


def curve_figure(
    name: str,
    curve: Mapping[str, Any],
    found: Mapping[str, Any],
    metric: str | None = None,
    protocol: str | None = None,
) -> Figure:
    """The mean of each arm by number of users, with every seed. found: the outcome that the curve is part of."""
    metric, protocol = metric or found["metric"], protocol or found["protocol"]
    rows = curve_rows(curve, found, metric, protocol)
    arms = shown_lines(rows, found["control"])
    every = len({row["arm"] for row in rows})
    rows = [row for row in rows if row["arm"] in arms]
    ends = []
    for arm in arms:
        means = [f"{row['mean']:.4f}" for row in rows if row["arm"] == arm]
        ends.append(f"{arm} {', '.join(means)}")
    sizes = [f"{point['users']:,}" for point in curve["points"]]
    alt = f"{metric_name(metric)} of {name} at {listed(sizes)} users: {'; '.join(ends)}."
    kept = "the catalogue has the items of these users only" if curve["catalogue"] == "cut" else "the whole catalogue"
    left = f" The {len(arms)} best of {every} arms are shown." if len(arms) < every else ""
    caption = (
        f"Protocol {protocol}, mean over seeds; small dots are seeds, vertical lines {1 - found['alpha']:.0%} "
        f"intervals over seeds. Users are nested random samples; {kept}.{left}"
    )
    return Figure(lambda theme: draw_curve(theme, rows, arms, metric), alt, caption)


def curve_rows(curve: Mapping[str, Any], found: Mapping[str, Any], metric: str, protocol: str) -> Rows:
    """One row per arm and number of users: `users`, `mean`, `low`, `high` (None for one seed), `seeds`."""
    rows: Rows = []
    for point in curve["points"]:
        for arm, facts in found["targets"][point["target"]]["arms"].items():
            figure = facts["protocols"][protocol][metric]
            low, high = interval_of_mean(figure["seeds"], found["alpha"])
            rows.append(
                {
                    "arm": arm,
                    "users": point["users"],
                    "mean": figure["mean"],
                    "low": low,
                    "high": high,
                    "seeds": list(figure["seeds"]),
                    "says": f"{arm} at {point['users']:,} users: {figure['mean']:.4f}",
                }
            )
    return rows


def shown_lines(rows: Rows, control: str) -> list[str]:
    """The arms of a figure: if there are many, the best ones at the largest size, and the control."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    if len(arms) <= MOST_LINES:
        return arms
    last = {row["arm"]: row["mean"] for row in rows}
    best = sorted(arms, key=lambda arm: (arm != control, -last[arm]))[:MOST_LINES]
    return [arm for arm in arms if arm in best]


def remarks_of(curve: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """How many users of the target transfer is worth, in words."""
    return [in_users(arm, curve, found) for arm in curve["worth"]]


def by_arm(theme: Theme, arms: Sequence[str]) -> dict[str, Any]:
    """Colour and shape of each arm, in one legend."""
    colours = [theme.series(place) for place in range(len(arms))]
    shapes = [SHAPES[place % len(SHAPES)] for place in range(len(arms))]
    legend = {"title": None, "columns": 2 if theme.narrow else 4}
    return {
        "color": {
            "field": "arm",
            "type": "nominal",
            "scale": {"domain": list(arms), "range": colours},
            "legend": legend,
        },
        "shape": {"field": "arm", "type": "nominal", "scale": {"domain": list(arms), "range": shapes}},
    }


def draw_curve(theme: Theme, rows: Rows, arms: Sequence[str], metric: str) -> Spec:
    dots = [{"arm": row["arm"], "users": row["users"], "value": value} for row in rows for value in row["seeds"]]
    sizes = sorted({row["users"] for row in rows})
    x = {
        "field": "users",
        "type": "quantitative",
        "scale": {"type": "log", "nice": False, "padding": 18},
        "axis": {"title": "users of the target", "values": sizes, "format": ",", "grid": False, "labelOverlap": True},
    }
    y = {"field": "mean", "type": "quantitative", "axis": {"title": metric_name(metric), "domain": False}}
    look = by_arm(theme, arms)
    marks = layered(
        rows,
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, "y": y, "color": look["color"]}},
        {
            "data": {"values": [row for row in rows if row["low"] is not None]},
            "mark": {"type": "rule", "strokeWidth": 1.5},
            "encoding": {
                "x": x,
                "y": {"field": "low", "type": "quantitative"},
                "y2": {"field": "high"},
                "color": look["color"],
            },
        },
        {
            "data": {"values": dots},
            "mark": {"type": "circle", "size": 12, "opacity": 0.8},
            "encoding": {"x": x, "y": {"field": "value", "type": "quantitative"}, "color": look["color"]},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 75, "opacity": 1},
            "encoding": {"x": x, "y": y, **look, "description": {"field": "says"}},
        },
    )
    return frame(theme, {**marks, "height": 220 if theme.narrow else 300})

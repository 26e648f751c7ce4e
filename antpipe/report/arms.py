"""Figures of arms on one target: their means with every seed, and their differences to the control."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from antpipe.comparison.plan import UNTRAINED
from antpipe.comparison.verdict import EQUIVALENT, NEGATIVE, NONE, POSITIVE
from antpipe.report.figure import Figure, Rows, layered, listed, metric_name
from antpipe.report.findings import Judged
from antpipe.report.theme import Spec, Theme, frame, number, ordinal

MOST_ARMS = 40  # in a figure; the table lists all arms
CONTROL, TRANSFER, OTHER, BASELINE = "control", "transfer, no verdict", "trained", "not trained"
# What a bar's colour means, in the order of the legend.
COLOURS = {
    CONTROL: "plain",
    POSITIVE: "good",
    NEGATIVE: "bad",
    EQUIVALENT: "c0",
    NONE: "c4",
    TRANSFER: "c5",
    OTHER: "c3",
    BASELINE: "faint",
}


def arms_figure(one: Judged, metric: str | None = None, protocol: str | None = None) -> Figure:
    """Bars of means over seeds with their intervals, and a dot for every seed. metric, protocol: of the verdict."""
    metric, protocol = metric or one.rules["metric"], protocol or one.rules["protocol"]
    names = shown_arms(one)
    rows = arm_rows(one, names, metric, protocol)
    best = max(rows, key=lambda row: row["mean"])
    left = f" The {len(names)} best of {len(one.arms)} arms are shown." if len(names) < len(one.arms) else ""
    alt = (
        f"{metric_name(metric)} of {len(names)} arms on {one.label}. Best: {best['arm']} with {best['mean']:.4f}. "
        + "; ".join(f"{row['arm']} {row['mean']:.4f}" for row in rows[:12])
    )
    level = f"{1 - one.rules['alpha']:.0%}"
    several = any(row["low"] is not None for row in rows)
    lines = f" Lines are {level} intervals of the mean over seeds (t distribution)." if several else ""
    caption = (
        f"Test split, protocol {protocol}: mean over seeds.{lines} Every dot is one seed.{left} "
        + ("Whether arms differ is tested below." if one.finished and one.control else "")
    ).strip()
    return Figure(lambda theme: draw_arms(theme, rows, names, metric), alt, caption)


def shown_arms(one: Judged) -> list[str]:
    """The arms a figure shows, in the order of the comparison; if there are many, the best ones and the control."""
    if len(one.arms) <= MOST_ARMS:
        return list(one.arms)
    kept = set(one.best()[:MOST_ARMS])
    if one.control and one.control not in kept:
        kept = {*one.best()[: MOST_ARMS - 1], one.control}
    return [name for name in one.arms if name in kept]


def arm_rows(one: Judged, names: Sequence[str], metric: str, protocol: str) -> Rows:
    """One row per arm: `mean`, `low` and `high` of its interval (None for a single seed), `seeds`, `role`."""
    rows: Rows = []
    for name in names:
        found = one.metric_of(name, metric, protocol)
        low, high = interval_of_mean(found["seeds"], one.rules["alpha"])
        rows.append(
            {
                "arm": name,
                "mean": found["mean"],
                "low": low,
                "high": high,
                "seeds": list(found["seeds"]),
                "role": role_of(one, name),
            }
        )
    return rows


def interval_of_mean(values: Sequence[float], alpha: float) -> tuple[float | None, float | None]:
    """The 1 - alpha interval of the mean of a sample by Student's t; None for fewer than two values."""
    from scipy.stats import t

    if len(values) < 2:
        return None, None
    half = float(t.ppf(1 - alpha / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def role_of(one: Judged, name: str) -> str:
    """The kind of an arm, or its verdict."""
    arm = one.arms[name]
    if name == one.control:
        return CONTROL
    if arm["kind"] == UNTRAINED:
        return BASELINE
    if arm["verdict"]:
        word: str = arm["verdict"]["word"] or TRANSFER
        return word
    return OTHER


def draw_arms(theme: Theme, rows: Rows, names: Sequence[str], metric: str) -> Spec:
    top = 1.08 * max(max(row["mean"], *row["seeds"]) for row in rows) or 1.0
    # An interval of two seeds may be much wider than everything else: it then runs out of the figure.
    top = max([top, *(row["high"] for row in rows if row["high"] is not None and row["high"] < 1.5 * top)])
    bars = [{key: row[key] for key in ("arm", "mean", "role")} | {"says": says(row)} for row in rows]
    lines = [
        {"arm": row["arm"], "low": max(row["low"], 0.0), "high": min(row["high"], top)}
        for row in rows
        if row["low"] is not None
    ]
    dots = [
        {"arm": row["arm"], "value": value, "says": f"{row['arm']}: {value:.4f}"}
        for row in rows
        for value in row["seeds"]
    ]
    x = number("mean", metric_name(metric), domain=[0, top], nice=False)
    y = ordinal("arm", names)
    marks = layered(
        bars,
        {
            "mark": {"type": "bar", "height": 14, "cornerRadiusEnd": 2},
            "encoding": {"x": x, "y": y, "color": by_role(theme, rows), "description": {"field": "says"}},
        },
        {
            "data": {"values": lines},
            "mark": {"type": "rule", "color": theme["ink"], "strokeWidth": 1.5},
            "encoding": {"x": number("low", ""), "x2": {"field": "high"}, "y": y},
        },
        {
            "data": {"values": dots},
            "mark": {"type": "point", "size": 26, "filled": True, "fill": theme["paper"], "stroke": theme["ink"]},
            "encoding": {"x": number("value", ""), "y": y, "description": {"field": "says"}},
        },
    )
    return frame(theme, {**marks, "height": {"step": 26}})


def says(row: dict[str, Any]) -> str:
    between = "" if row["low"] is None else f", interval {row['low']:.4f} to {row['high']:.4f}"
    return f"{row['arm']} ({row['role']}): mean {row['mean']:.4f}{between}"


def by_role(theme: Theme, rows: Rows) -> dict[str, Any]:
    """The colours of the roles that occur, with a legend if there are several."""
    there = {row["role"] for row in rows}
    roles = [role for role in COLOURS if role in there]
    legend = {"title": None, "columns": 2 if theme.narrow else 6, "symbolType": "square"}
    return {
        "field": "role",
        "type": "nominal",
        "scale": {"domain": roles, "range": [theme[COLOURS[role]] for role in roles]},
        "legend": legend if len(roles) > 1 else None,
    }


# -- differences ------------------------------------------------------------------------------------------------------


def differences_figure(one: Judged, metric: str | None = None, protocol: str | None = None) -> Figure | None:
    """Differences to the control with the intervals of the tests; None if nothing was compared with a control."""
    metric, protocol = metric or one.rules["metric"], protocol or one.rules["protocol"]
    rows = difference_rows(one, shown_arms(one), metric, protocol)
    if not rows or one.control is None:
        return None
    band = one.rules["margin"] * one.metric_of(one.control, metric, protocol)["mean"]
    surely = [f"{row['arm']} {row['says']}" for row in rows]
    alt = f"Difference in {metric_name(metric)} to {one.control} on {one.label}: {listed(surely, 12)}."
    level = f"{1 - one.rules['alpha']:.0%}"
    within = (
        f" Inside the shaded band ({one.rules['margin']:.0%} of {one.control}) a difference counts as none."
        if band
        else ""
    )
    caption = f"Difference to {one.control}, {level} intervals that count seeds and users as samples.{within}"
    return Figure(lambda theme: draw_differences(theme, rows, band, metric, one.control or ""), alt, caption)


def difference_rows(one: Judged, names: Sequence[str], metric: str, protocol: str) -> Rows:
    """One row per arm that was compared: `difference`, `low`, `high` (None without a test), `role`."""
    rows: Rows = []
    for name in names:
        found = one.arms[name]["differences"].get(protocol, {}).get(metric)
        if found is None:
            continue
        tested = found["low"] is not None and found["high"] is not None
        between = f" ({found['low']:+.4f} to {found['high']:+.4f})" if tested else " (not tested)"
        rows.append(
            {
                "arm": name,
                "difference": found["difference"],
                "low": found["low"] if tested else None,
                "high": found["high"] if tested else None,
                "role": role_of(one, name),
                "says": f"{found['difference']:+.4f}{between}",
            }
        )
    return rows


def draw_differences(theme: Theme, rows: Rows, band: float, metric: str, control: str) -> Spec:
    names = [row["arm"] for row in rows]
    x = number("difference", f"difference to {control} in {metric_name(metric)}", zero=False)
    y = ordinal("arm", names)
    marks = layered(
        rows,
        {
            "data": {"values": [{"low": -band, "high": band}]},
            "mark": {"type": "rect", "color": theme["plain"], "opacity": 0.16},
            "encoding": {"x": number("low", "", zero=False), "x2": {"field": "high"}},
        },
        {
            "data": {"values": [{"zero": 0}]},
            "mark": {"type": "rule", "color": theme["ink"]},
            "encoding": {"x": number("zero", "", zero=False)},
        },
        {
            "data": {"values": [row for row in rows if row["low"] is not None]},
            "mark": {"type": "rule", "strokeWidth": 3, "strokeCap": "round"},
            "encoding": {
                "x": number("low", "", zero=False),
                "x2": {"field": "high"},
                "y": y,
                "color": by_role(theme, rows),
            },
        },
        {
            "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
            "encoding": {
                "x": x,
                "y": y,
                "color": by_role(theme, rows),
                "description": {"field": "label"},
            },
            "transform": [{"calculate": "datum.arm + ': ' + datum.says", "as": "label"}],
        },
    )
    return frame(theme, {**marks, "height": {"step": 26}})

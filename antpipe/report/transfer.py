"""Heat maps of transfer: how much each source helps on each target."""

from collections.abc import Mapping, Sequence
from typing import Any

from antpipe.report.figure import Figure, Rows, listed, metric_name, percent
from antpipe.report.findings import Judged
from antpipe.report.theme import Spec, Theme, frame

LEAVING = "leave one source out"
STARTING = "start from one source"
STRONGEST = 0.5  # opacity of the largest value: black or white text stays readable on it


def transfer_figures(judged: Sequence[Judged], outcomes: Mapping[str, Mapping[str, Any]]) -> dict[str, Figure]:
    """Heat maps by name: results of leaving sources out, and of starting from one source, for each stage."""
    found: dict[str, Rows] = {}
    for row in [*leaving_rows(judged), *starting_rows(judged)]:
        found.setdefault(f"{row['stage']}, {row['kind']}", []).append(row)
    metrics = {rules["metric"] for rules in outcomes.values()}
    return {name: transfer_figure(rows, metrics) for name, rows in found.items()}


def leaving_rows(judged: Sequence[Judged]) -> Rows:
    """One row per source left out: `value`, the share of the metric with all sources that is lost without this one."""
    rows: Rows = []
    for one in judged:
        metric = one.rules["metric"]
        for stage, sources in one.rules.get("sources", {}).get(one.target, {}).items():
            for source, said in sources.items():
                change = said["differences"][metric]
                whole = change["control"]
                if whole:
                    rows.append(cell(stage, LEAVING, source, one, -change["difference"] / whole, said["says"]))
    return rows


def starting_rows(judged: Sequence[Judged]) -> Rows:
    """One row per mix of sources that a judged arm starts from: `value`, its relative difference to the control."""
    rows: Rows = []
    for one in judged:
        metric, protocol = one.rules["metric"], one.rules["protocol"]
        for name, arm in one.arms.items():
            change = arm["differences"].get(protocol, {}).get(metric)
            if arm["mix"] and arm["verdict"] and change and change["control"]:
                stage = name.partition(" from ")[0]
                value = change["difference"] / change["control"]
                rows.append(cell(stage, STARTING, arm["mix"], one, value, arm["verdict"]["word"]))
    several = {(row["stage"], row["source"]) for row in rows}, {(row["stage"], row["target"]) for row in rows}
    return rows if any(len(pairs) > len({stage for stage, _ in pairs}) for pairs in several) else []


def cell(stage: str, kind: str, source: str, one: Judged, value: float, says: str | None) -> dict[str, Any]:
    sure = says is not None and says not in ("NONE", "not shown to matter")
    return {
        "stage": stage,
        "kind": kind,
        "source": source,
        "target": one.label,
        "value": value,
        "text": percent(value) + ("*" if sure else ""),
        "says": f"{source} on {one.label}: {percent(value)}" + (f" ({says})" if says else ""),
    }


def transfer_figure(rows: Rows, metrics: set[str]) -> Figure:
    """Sources as rows, targets as columns."""
    metric = " or ".join(metric_name(one) for one in sorted(metrics))
    leaving = rows[0]["kind"] == LEAVING
    worth = (
        f"What each source adds: {metric} with all sources against {metric} without it"
        if leaving
        else f"Change in {metric} against training from scratch, by what the arm starts from"
    )
    shown = sorted(rows, key=lambda row: -abs(row["value"]))
    alt = f"{worth}. {listed([row['says'] for row in shown], 12)}."
    caption = (
        f"{worth}. Plus and green: it helps; minus and red: it hurts. A star marks what the tests confirm; without "
        "one, it may be chance."
    )
    return Figure(lambda theme: draw_transfer(theme, rows), alt, caption)


def draw_transfer(theme: Theme, rows: Rows) -> Spec:
    sources = list(dict.fromkeys(row["source"] for row in rows))
    targets = list(dict.fromkeys(row["target"] for row in rows))
    largest = max(abs(row["value"]) for row in rows) or 1.0
    values = [
        row | {"strength": STRONGEST * abs(row["value"]) / largest, "sign": "good" if row["value"] >= 0 else "bad"}
        for row in rows
    ]
    axis = {"title": None, "ticks": False, "domain": False, "labelPadding": 6}
    across = {"labelAngle": -40 if len(targets) > (3 if theme.narrow else 7) else 0, "orient": "top"}
    place = {
        "x": {"field": "target", "type": "nominal", "sort": targets, "axis": {**axis, **across}},
        "y": {"field": "source", "type": "nominal", "sort": sources, "axis": axis},
    }
    colour = {
        "field": "sign",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": ["good", "bad"], "range": [theme["good"], theme["bad"]]},
    }
    strength = {
        "field": "strength",
        "type": "quantitative",
        "legend": None,
        "scale": {"domain": [0, 1], "range": [0, 1]},
    }
    rectangle = {"type": "rect", "stroke": theme["line"], "strokeOpacity": 1}
    text = {"type": "text", "color": theme["ink"], "fontSize": 11 if theme.narrow else 13}
    content = {
        "data": {"values": values},
        "layer": [
            {
                "mark": rectangle,
                "encoding": {**place, "color": colour, "fillOpacity": strength, "description": {"field": "says"}},
            },
            {"mark": text, "encoding": {**place, "text": {"field": "text"}}},
        ],
        "height": {"step": 40},
    }
    return frame(theme, content)


def stacked(figures: Mapping[str, Figure]) -> Figure:
    """Several heat maps as one figure, one below the other."""
    if len(figures) == 1:
        return next(iter(figures.values()))

    def draw(theme: Theme) -> Spec:
        parts = []
        for name, figure in figures.items():
            own = figure.draw(theme)
            kept = {key: own[key] for key in ("data", "layer", "height")}
            parts.append({"title": name, "width": theme.width - theme.label - 40, **kept})
        return frame(theme, {"vconcat": parts, "spacing": 24}) | {"autosize": {"type": "pad"}}

    return Figure(draw, " ".join(figure.alt for figure in figures.values()), next(iter(figures.values())).caption)

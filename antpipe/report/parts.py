"""Figures of parts of the test split, and of properties of the recommended lists beyond accuracy."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from antpipe.report.curves import by_arm
from antpipe.report.figure import Figure, Rows, listed, metric_name
from antpipe.report.findings import Judged
from antpipe.report.theme import Spec, Theme, frame, number, ordinal

MOST_ARMS = 5
# Groups of slices (evaluation/slices.py), and what they are called here.
GROUPS = {
    "item": "target in training",
    "popularity": "popularity of the target",
    "history": "length of the history",
    "text": "text of the target",
    "image": "picture of the target",
    "price": "price of the target",
}
PARTS = {"cold": "never (cold)", "warm": "yes (warm)", "head": "head", "tail": "tail"}
# Figures beyond accuracy (evaluation/beyond.py), and how to read them.
BEYOND = {
    "coverage": "share of the catalogue recommended",
    "gini": "Gini: 0 all items alike, 1 one item",
    "popularity": "mean popularity (interactions)",
    "novelty": "novelty (bits)",
    "distance": "distance within a list",
}


def compared_arms(one: Judged) -> list[str]:
    """The arms to compare in detail: the control, and the best others."""
    best = [name for name in one.best() if name != one.control][: MOST_ARMS - 1]
    return [name for name in one.arms if name in best or name == one.control]


# -- slices -----------------------------------------------------------------------------------------------------------


def slices_figure(one: Judged, metric: str | None = None, protocol: str | None = None) -> Figure | None:
    """The metric of each arm in each slice; None if no run with slices is here."""
    metric, protocol = metric or one.rules["metric"], protocol or one.rules["protocol"]
    rows = slice_rows(one, compared_arms(one), metric, protocol)
    if not rows:
        return None
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    said = [f"{GROUPS[row['group']]} {row['part']}: {row['arm']} {row['value']:.4f}" for row in rows]
    alt = f"{metric_name(metric)} on parts of the test split of {one.label}. {listed(said, 20)}."
    caption = (
        f"Protocol {protocol}, mean over the seeds whose runs are here. In brackets: test positions in the slice. "
        "Slices with few positions say little."
    )
    return Figure(lambda theme: draw_slices(theme, rows, arms, metric), alt, caption)


def slice_rows(one: Judged, arms: Sequence[str], metric: str, protocol: str) -> Rows:
    """One row per arm and slice that has positions: `group`, `part`, `positions`, `value` (mean over seeds)."""
    rows: Rows = []
    for arm in arms:
        slices = [evaluation["slices"] for evaluation in one.evaluations(arm)]
        for group in GROUPS if slices else ():
            for part, first in slices[0].get(group, {}).items():
                own = [each[group][part]["protocols"] for each in slices if first["positions"]]
                if own and not is_whole(slices[0][group], part):
                    value = sum(each[protocol][metric] for each in own) / len(own)
                    rows.append(
                        {
                            "arm": arm,
                            "group": group,
                            "part": f"{PARTS.get(part, part)} ({first['positions']:,})",
                            "positions": first["positions"],
                            "value": value,
                            "says": f"{arm}, {PARTS.get(part, part)}: {value:.4f}",
                        }
                    )
    return rows


def is_whole(group: Mapping[str, Any], part: str) -> bool:
    """Whether a slice has all positions of its group, and so adds nothing to the figures of the whole split."""
    return bool(group[part]["positions"] == sum(one["positions"] for one in group.values()))


def room_for(names: Iterable[str], most: int) -> int:
    """About as many pixels as the longest name takes, at most `most`."""
    return min(most, 12 + 7 * max(map(len, names)))


def draw_slices(theme: Theme, rows: Rows, arms: Sequence[str], metric: str) -> Spec:
    groups = [group for group in GROUPS if any(row["group"] == group for row in rows)]
    extent = room_for((row["part"] for row in rows), theme.label)
    top = 1.05 * max(row["value"] for row in rows) or 1.0
    parts = []
    for group in groups:
        own = [
            row | {"says": f"{row['arm']}, {row['part']}: {row['value']:.4f}"} for row in rows if row["group"] == group
        ]
        order = list(dict.fromkeys(row["part"] for row in own))
        last = group == groups[-1]
        x = number("value", metric_name(metric) if last else "", domain=[0, top], nice=False)
        x["axis"]["labels"] = last
        parts.append(
            {
                "title": {"text": GROUPS[group], "anchor": "start", "frame": "group", "fontSize": 12},
                "data": {"values": own},
                "width": theme.width - extent - 30,
                "height": {"step": 22},
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 0.9},
                "encoding": {
                    "x": x,
                    "y": ordinal("part", order, minExtent=extent, maxExtent=extent, grid=True),
                    **by_arm(theme, arms),
                    "description": {"field": "says"},
                },
            }
        )
    return frame(theme, {"vconcat": parts, "spacing": 14}) | {"autosize": {"type": "pad"}}


# -- beyond accuracy --------------------------------------------------------------------------------------------------


def beyond_figure(one: Judged, protocol: str | None = None) -> Figure | None:
    """What the lists of each arm are like; None if it was not measured."""
    protocol = protocol or one.rules["protocol"]
    rows = beyond_rows(one, compared_arms(one), protocol)
    if not rows:
        return None
    said = [f"{row['arm']}: {BEYOND[row['measure']]} {row['value']:.3g}" for row in rows]
    alt = f"What the first 10 recommendations on {one.label} are like. {listed(said, 25)}."
    caption = (
        f"Protocol {protocol}, first 10 items of every list, mean over seeds. Higher is not better here: the figures "
        "show what a gain in accuracy may have cost."
    )
    return Figure(lambda theme: draw_beyond(theme, rows), alt, caption)


def beyond_rows(one: Judged, arms: Sequence[str], protocol: str) -> Rows:
    """One row per arm and measure, at cutoff 10."""
    return [
        {"arm": arm, "measure": measure, "value": found[f"{measure}@10"]}
        for arm in arms
        for found in [one.arms[arm].get("beyond", {}).get(protocol, {})]
        for measure in BEYOND
        if f"{measure}@10" in found
    ]


def draw_beyond(theme: Theme, rows: Rows) -> Spec:
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    columns = 1 if theme.narrow else 2
    extent = room_for(arms, theme.label // (1 if theme.narrow else 2))
    room = theme.width // columns - extent - 40
    parts = []
    for measure in [name for name in BEYOND if any(row["measure"] == name for row in rows)]:
        own = [row | {"says": f"{row['arm']}: {row['value']:.4g}"} for row in rows if row["measure"] == measure]
        colour = {
            "field": "arm",
            "type": "nominal",
            "legend": None,
            "scale": {"domain": arms, "range": [theme.series(place) for place in range(len(arms))]},
        }
        parts.append(
            {
                "title": {"text": BEYOND[measure], "anchor": "start", "frame": "group", "fontSize": 12},
                "data": {"values": own},
                "width": room,
                "height": {"step": 22},
                "mark": {"type": "bar", "height": 12, "cornerRadiusEnd": 2},
                "encoding": {
                    "x": {**number("value", ""), "axis": {"title": None, "tickCount": 4, "domain": False}},
                    "y": ordinal("arm", arms, minExtent=extent, maxExtent=extent, labelLimit=extent),
                    "color": colour,
                    "description": {"field": "says"},
                },
            }
        )
    return frame(theme, {"concat": parts, "columns": columns, "spacing": 18}) | {"autosize": {"type": "pad"}}

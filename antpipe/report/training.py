"""Figures of training: the loss of each arm by epoch, with those of single modalities if a method has them."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from antpipe.report.figure import Figure, Rows, layered, listed
from antpipe.report.findings import Judged
from antpipe.report.parts import compared_arms
from antpipe.report.theme import SHAPES, Spec, Theme, frame
from antpipe.training.folder import RunFolder

LOSS, PREFIX = "loss", "loss_"  # names in RUN/metrics.jsonl: of the whole item, and the prefix for a modality
WHOLE = "whole item"
MOST_SAID = 20


def training_figure(one: Judged) -> Figure | None:
    """The losses of each arm by epoch; None if no trained run is here."""
    rows = loss_rows(one, compared_arms(one))
    if not rows:
        return None
    said = [
        f"{arm}, {loss}: {own[0]['value']:.3f} to {own[-1]['value']:.3f} in {own[-1]['epoch']} epochs"
        for arm, loss, own in by_line(rows)
    ]
    alt = f"Training losses on {one.label} by epoch. {listed(said, MOST_SAID)}."
    caption = (
        "Mean over the seeds whose runs are here. Losses of different arms are not comparable, so each has an axis of "
        "its own. With the method balance, those of single modalities say which of them learns slowly."
    )
    return Figure(lambda theme: draw_losses(theme, rows), alt, caption)


def loss_rows(one: Judged, arms: Sequence[str]) -> Rows:
    """One row per arm, loss and epoch: the mean over the runs that are here and came to that epoch."""
    rows: Rows = []
    for arm in arms:
        epochs = sorted((row for path in one.folders[arm] for row in RunFolder(path).read_rows()), key=epoch_of)
        for epoch, group in groupby(epochs, key=epoch_of):
            own = list(group)
            for name in [name for name in own[0] if name == LOSS or name.startswith(PREFIX)]:
                values = [row[name] for row in own if name in row]
                loss = WHOLE if name == LOSS else name.removeprefix(PREFIX)
                rows.append({"arm": arm, "loss": loss, "epoch": epoch, "value": sum(values) / len(values)})
    return rows


def epoch_of(row: Mapping[str, Any]) -> int:
    epoch: int = row["epoch"]
    return epoch


def by_line(rows: Rows) -> list[tuple[str, str, Rows]]:
    """Arm, loss and rows of each line."""
    lines = dict.fromkeys((row["arm"], row["loss"]) for row in rows)
    return [(arm, loss, [row for row in rows if (row["arm"], row["loss"]) == (arm, loss)]) for arm, loss in lines]


def draw_losses(theme: Theme, rows: Rows) -> Spec:
    arms, losses = (list(dict.fromkeys(row[name] for row in rows)) for name in ("arm", "loss"))
    columns = 1 if theme.narrow or len(arms) == 1 else 2
    colours, shapes = [theme.series(place) for place in range(len(losses))], list(SHAPES[: len(losses)])
    legend = {"title": None} if len(losses) > 1 else None
    look = {
        name: {"field": "loss", "type": "nominal", "scale": {"domain": losses, "range": values}, "legend": legend}
        for name, values in (("color", colours), ("shape", shapes))
    }
    return frame(
        theme,
        {
            "concat": [panel_of(theme, arm, rows, look, theme.width // columns - 70) for arm in arms],
            "columns": columns,
            "spacing": 18,
        },
    ) | {"autosize": {"type": "pad"}}


def panel_of(theme: Theme, arm: str, rows: Rows, look: Mapping[str, Any], width: int) -> Spec:
    """The lines of an arm, each with a mark at its end."""
    own = [row for row in rows if row["arm"] == arm]
    ends = [
        line[-1] | {"says": f"{arm}, {loss}: {line[-1]['value']:.4f} after {line[-1]['epoch']} epochs"}
        for _, loss, line in by_line(own)
    ]
    whole = {"title": "epoch", "grid": False, "tickMinStep": 1, "format": "d"}
    x = {"field": "epoch", "type": "quantitative", "axis": whole, "scale": {"nice": False, "zero": False, "padding": 6}}
    y = {
        "field": "value",
        "type": "quantitative",
        "axis": {"title": "loss", "domain": False, "tickCount": 5},
        "scale": {"zero": False},
    }
    marks = layered(
        own,
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, "y": y, "color": look["color"]}},
        {
            "data": {"values": ends},
            "mark": {"type": "point", "filled": True, "size": 75, "opacity": 1},
            "encoding": {"x": x, "y": y, **look, "description": {"field": "says"}},
        },
    )
    title = {"text": arm, "anchor": "start", "frame": "group", "fontSize": 12}
    return {"title": title, "width": width, "height": 160 if theme.narrow else 200, **marks}

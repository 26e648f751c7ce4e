"""Colours and fonts of figures, and the frame of a Vega-Lite specification (https://vega.github.io/vega-lite/docs/).

A figure is a specification: plain data, made by a function from the data that it shows. On the page, colours are CSS
variables, so that a figure follows the light or dark scheme; in a file of its own it has those of the light scheme.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]

FONT = "Arial, Helvetica, Liberation Sans, sans-serif"  # letters have equal widths: labels measured in one fit
NARROW = 480  # pixels; below, labels and legends get less room
LONGEST_LABEL, LONGEST_NARROW = 190, 110  # pixels of a name beside its bar
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
LIGHT = {
    "ink": "#1d2329",
    "soft": "#545d66",
    "line": "#d5dade",
    "paper": "#ffffff",
    "good": "#0b7a5b",
    "bad": "#b3372b",
    "plain": "#5b6b7b",
    "faint": "#87919b",
    "c0": "#1f6fb2",
    "c1": "#c45a11",
    "c2": "#0f8467",
    "c3": "#a4408b",
    "c4": "#8a6d00",
    "c5": "#5b55b8",
    "c6": "#b4374a",
    "c7": "#4b7a1e",
}
DARK = {
    "ink": "#e8ecef",
    "soft": "#a9b3bc",
    "line": "#3a434b",
    "paper": "#14181c",
    "good": "#45c9a0",
    "bad": "#ff8f80",
    "plain": "#9fb0c0",
    "faint": "#5d6872",
    "c0": "#6db6f2",
    "c1": "#f59a55",
    "c2": "#45c9a0",
    "c3": "#e08fcb",
    "c4": "#d6b93c",
    "c5": "#a9a4f5",
    "c6": "#ff8a99",
    "c7": "#9cca66",
}
SERIES = tuple(name for name in LIGHT if name[1:].isdigit())


@dataclass(frozen=True)
class Theme:
    """How a figure names its colours. width: of the figure in pixels, with its labels."""

    colours: Mapping[str, str]
    width: int

    def __getitem__(self, name: str) -> str:
        return self.colours[name]

    @property
    def narrow(self) -> bool:
        return self.width < NARROW

    @property
    def label(self) -> int:
        """The most pixels of a name beside its bar."""
        return LONGEST_NARROW if self.narrow else LONGEST_LABEL

    def series(self, number: int) -> str:
        """The colour of the series with this number."""
        return self.colours[SERIES[number % len(SERIES)]]


def on_page(width: int) -> Theme:
    """Colours that the page defines."""
    return Theme({name: f"var(--{name})" for name in LIGHT}, width)


def on_paper(width: int) -> Theme:
    """The colours of the light scheme."""
    return Theme(LIGHT, width)


def frame(theme: Theme, content: Mapping[str, Any]) -> Spec:
    """A whole specification around marks and encodings. Its width includes axes and labels."""
    axis = {
        "labelColor": theme["ink"],
        "titleColor": theme["soft"],
        "gridColor": theme["line"],
        "domainColor": theme["line"],
        "tickColor": theme["line"],
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": theme.label,
        "titlePadding": 8,
    }
    legend = {
        "labelColor": theme["ink"],
        "titleColor": theme["soft"],
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": theme.width - 60,
        "orient": "top",
        "symbolOpacity": 1,
    }
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "background": theme["paper"] if theme["paper"].startswith("#") else None,
        "padding": 4,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "width": theme.width,
        **content,
        "config": {
            "font": FONT,
            "axis": axis,
            "legend": legend,
            "view": {"stroke": None},
            "title": {"color": theme["ink"], "fontSize": 13, "fontWeight": "bold", "anchor": "start"},
            "header": {"labelColor": theme["ink"], "labelFontSize": 12},
        },
    }


def ordinal(field: str, order: Sequence[str], **axis: Any) -> dict[str, Any]:
    """A vertical axis of names, in this order."""
    shown = {"title": None, "ticks": False, "domain": False, "labelPadding": 6, **axis}
    return {"field": field, "type": "nominal", "sort": list(order), "axis": shown}


def number(field: str, title: str, *, zero: bool = True, **scale: Any) -> dict[str, Any]:
    """A horizontal axis of numbers."""
    axis = {"title": title, "tickCount": 5, "domain": False, "ticks": False, "labelFlush": False}
    return {"field": field, "type": "quantitative", "axis": axis, "scale": {"zero": zero, **scale}}

"""A figure: how it is drawn in a theme, and the text beside it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from antpipe.report.theme import Spec, Theme

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Figure:
    """draw: its specification in a theme. alt: what it shows, for people who cannot see it. caption: how to read it."""

    draw: Callable[[Theme], Spec]
    alt: str
    caption: str


def percent(share: float) -> str:
    """A relative change in per cent, with its sign."""
    return f"{share:+.1%}".replace("-", "\N{MINUS SIGN}")


def metric_name(metric: str) -> str:
    """`ndcg@10` as it is written in papers: NDCG@10."""
    name, at, depth = metric.partition("@")
    return f"{'Recall' if name == 'recall' else name.upper()}{at}{depth}"


def shortened(text: str, most: int) -> str:
    """A text of at most `most` characters on one line, without control and direction characters."""
    kept = "".join(" " if not letter.isprintable() else letter for letter in text)
    kept = " ".join(kept.split())
    return kept if len(kept) <= most else f"{kept[: most - 1].rstrip()}…"


def listed(words: Sequence[str], most: int = 6) -> str:
    """`a, b and c`; if there are many, the first ones and how many more."""
    shown = list(words[:most]) + ([f"{len(words) - most} more"] if len(words) > most else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else ""


def layered(rows: Rows, *layers: Mapping[str, Any]) -> dict[str, Any]:
    """Layers over the same rows."""
    return {"data": {"values": rows}, "layer": list(layers)}

"""Figures in words, as people write them: `1,654 interactions, text 100%`. All of them are in --json, by name."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WIDTH = 80  # columns of a terminal that shows results well
INDENT = "    "
# How a figure is worded. {n:,} is a number, {n:.1%} a share; a figure that is not listed is shown with its name.
PHRASES = {
    "users": "{n:,} users",
    "items": "{n:,} items",
    "interactions": "{n:,} interactions",
    "average_length": "{n:.1f} per user",
    "with_text": "text {n:.1%}",
    "with_price": "price {n:.1%}",
    "with_image_url": "picture URLs {n:.1%}",
    "with_image_file": "picture files {n:.1%}",
    "limit": "limit {n:,}",
    "malformed": "{n:,} lines malformed",
    "duplicate_lines": "{n:,} lines twice",
    "repeats_dropped": "{n:,} repeats dropped",
    "items_without_metadata": "{n:,} items without metadata",
    "k_core_dropped": "{n:,} interactions outside the k-core",
    "cold_items": "{n:,} cold items",
    "shared_users_dropped": "{n:,} shared users dropped",
    "present": "{n:,} described",
    "coverage": "coverage {n:.1%}",
    "texts": "{n:,} texts",
    "computed": "{n:,} computed",
    "reused": "{n:,} reused",
    "shared": "{n:,} from other domains",
    "width": "width {n:,}",
    "bins": "{n:,} bins",
    "cosine": "cosine to fp32 {n:.5f}",
    "train": "{n:,} positions to train",
    "valid": "{n:,} to validate",
    "test": "{n:,} to test",
    "min_length": "shortest {n:,}",
    "median_length": "median {n:g}",
    "max_length": "longest {n:,}",
    "histories": "{n:,} histories",
    "rows": "{n:,} rows",
    "popular": "{n:,} users got the most popular",
    "fewer": "{n:,} users got less than asked for",
    "continued": "{n:,} parts from an earlier run",
    "urls": "{n:,} URLs",
    "asked": "{n:,} requested",
    "ok": "{n:,} ok",
    "megabytes": "{n:.1f} MB",
}
ALWAYS = ("users", "items", "interactions", "present", "test", "rows", "urls", "ok")  # shown even if they are 0
UNSAID = ("density", "items_per_second", "positions_per_second", "seconds", "encoder", "precision")
LONGEST_WORDS = 200  # characters of a text among figures


def phrases(figures: Mapping[str, Any]) -> Iterator[str]:
    """Figures in words, in their order. Zeros are shown for sizes only; speeds are left to progress bars."""
    for name, value in figures.items():
        if name in UNSAID or not isinstance(value, str | int | float) or (value == 0 and name not in ALWAYS):
            continue
        if isinstance(value, str):
            yield f"{named(name)} {value[:LONGEST_WORDS]}"
        elif name in PHRASES:
            yield plural(percent(PHRASES[name].format(n=value)), value)
        elif isinstance(value, bool):
            yield named(name)
        elif isinstance(value, int):
            yield f"{value:,} {named(name)}"
        else:
            yield f"{named(name)} {value:.4g}"


def named(name: str) -> str:
    return name.replace("_", " ")


def percent(text: str) -> str:
    """Drop decimals that add nothing: 100.0% and 0.0% become 100% and 0%."""
    return text.replace("100.0%", "100%") if text.endswith("100.0%") else text.replace(" 0.0%", " 0%")


def plural(text: str, value: float) -> str:
    """1 user, not 1 users: for a value of 1, the first word that ends in s loses it."""
    if value != 1 or not text.startswith("1 "):
        return text
    words = text.split(" ")
    nouns = [place for place, word in enumerate(words) if word.endswith("s")]
    return " ".join(word.removesuffix("s") if [place] == nouns[:1] else word for place, word in enumerate(words))


def said(head: str, parts: Sequence[str]) -> str:
    """A line, and its details below it, indented and wrapped between words."""
    if not parts:
        return head.rstrip()
    return f"{head}\n{wrapped(', '.join(parts))}"


def wrapped(text: str, indent: str = INDENT) -> str:
    """Text in lines of at most WIDTH, each indented; long words stay whole."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def cut(text: str, before: int) -> str:
    """Text cut to fit into a line after `before` columns, but never to fewer than 20 characters."""
    most = max(20, WIDTH - before)
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"

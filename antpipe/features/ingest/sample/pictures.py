"""Product pictures of the sample shops: a silhouette for the kind, paint for the colour, a pattern for the style.

Silhouettes and paints are in pictures.toml. Drawn at twice the size and halved, without fonts, so that equal random
numbers give equal pixels everywhere.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from antpipe.features.ingest.sample.words import read_table

SIZE = 96
CANVAS = 2 * SIZE
Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Drawings:
    """The tables of pictures.toml: paints by colour, trims by material, and a sketch for each kind."""

    paints: dict[str, Colour]
    trims: dict[str, Colour]
    sketches: dict[str, str]


@cache
def drawings() -> Drawings:
    """How the products are drawn."""
    table = read_table("pictures.toml")
    paints, trims = ({name: (r, g, b) for name, (r, g, b) in table[key].items()} for key in ("paints", "trims"))
    return Drawings(paints, trims, table["sketches"])


def draw_picture(rng: np.random.Generator, kind: str, style: str, colour: str, material: str) -> bytes:
    """A PNG of 96 x 96 pixels; position, size, tilt, mirroring, pattern offset and background come from `rng`."""
    position = _positioning(rng)
    back = _shift((236, 236, 236), rng.integers(-16, 17, size=3))
    paint = _shift(drawings().paints[colour], rng.integers(-8, 9, size=3))
    offset = rng.integers(0, CANVAS, size=2)
    parts = [(form, ink, width, [position(point) for point in points]) for form, ink, width, points in _parts(kind)]

    surface = Image.new("RGB", (CANVAS, CANVAS), paint)
    pattern = ImageChops.offset(_pattern(style), int(offset[0]), int(offset[1]))
    surface.paste(_contrast(paint), mask=pattern)
    canvas = Image.new("RGB", (CANVAS, CANVAS), back)
    pen = ImageDraw.Draw(canvas)
    for form, ink, width, points in parts:
        if ink == "main":
            mask = Image.new("L", (CANVAS, CANVAS), 0)
            _fill(ImageDraw.Draw(mask), form, width, points, 255)
            canvas.paste(surface, mask=mask)
        else:
            _fill(pen, form, width, points, back if ink == "back" else drawings().trims[material])
        if form != "line":
            pen.line([*points, points[0]], fill=(60, 60, 60), width=2)
    content = io.BytesIO()
    canvas.reduce(2).save(content, "PNG")
    return content.getvalue()


@cache
def _parts(kind: str) -> list[tuple[str, str, int, list[Point]]]:
    """The parts of a sketch: form, ink, line width and outline. Ovals become polygons, so that they can be tilted."""
    parts = []
    for part in drawings().sketches[kind].split(";"):
        form, ink, *rest = part.split()
        numbers = [float(number) for number in rest]
        width = round(numbers.pop(0) * CANVAS / 100) if form == "line" else 0
        points = list(zip(numbers[::2], numbers[1::2], strict=True))
        if form == "box":
            (left, top), (right, bottom) = points
            points = [(left, top), (right, top), (right, bottom), (left, bottom)]
        elif form == "oval":
            (left, top), (right, bottom) = points
            middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
            turns = [2 * math.pi * step / 32 for step in range(32)]
            points = [
                (middle_x + (right - middle_x) * math.cos(t), middle_y + (bottom - middle_y) * math.sin(t))
                for t in turns
            ]
        parts.append((form, ink, width, points))
    return parts


@cache
def _pattern(style: str) -> Image.Image:
    """Where the second tone of a style goes; the canvas is a multiple of every period, so it wraps without a seam."""
    y, x = np.mgrid[:CANVAS, :CANVAS]
    from_ring = (x % 48 - 24) ** 2 + (y % 48 - 24) ** 2
    from_petal = np.minimum(
        (abs(x % 32 - 16) - 6) ** 2 + (y % 32 - 16) ** 2, (x % 32 - 16) ** 2 + (abs(y % 32 - 16) - 6) ** 2
    )
    second_tone = {
        "minimal": x < 0,  # nowhere
        "rustic": (y % 24 < 4) | (y % 24 == 13),  # planks
        "retro": (from_ring < 36) | ((from_ring >= 200) & (from_ring < 400)),  # rings
        "floral": from_petal < 20,  # four petals
        "sporty": (x + y) % 48 < 20,  # slanted bands
        "classic": (x % 24 < 6) | (y % 24 < 6),  # checks
    }[style]
    return Image.fromarray((second_tone * 255).astype(np.uint8))


def _positioning(rng: np.random.Generator) -> Callable[[Point], Point]:
    """Where a point of the sketch lands on the canvas."""
    turn, size, left, top = rng.uniform((-0.09, 0.78, -4, -4), (0.09, 0.96, 4, 4))
    mirror = 1 if rng.random() < 0.5 else -1
    cosine, sine = math.cos(turn), math.sin(turn)

    def position(point: Point) -> Point:
        x, y = mirror * (point[0] - 50) * size, (point[1] - 50) * size
        scale = CANVAS / 100
        return (
            round((x * cosine - y * sine + 50 + left) * scale),
            round((x * sine + y * cosine + 50 + top) * scale),
        )

    return position


def _fill(pen: ImageDraw.ImageDraw, form: str, width: int, points: list[Point], ink: Colour | int) -> None:
    if form == "line":
        pen.line(points, fill=ink, width=width, joint="curve")
    else:
        pen.polygon(points, fill=ink)


def _shift(colour: Colour, change: NDArray[np.int64]) -> Colour:
    red, green, blue = (min(255, max(0, part + int(step))) for part, step in zip(colour, change, strict=True))
    return red, green, blue


def _contrast(paint: Colour) -> Colour:
    """The second tone of a paint: darker, or lighter if the paint is dark."""
    return _shift(paint, np.full(3, 70 if sum(paint) < 300 else -55))

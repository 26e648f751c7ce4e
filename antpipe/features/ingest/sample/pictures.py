"""Product pictures of the sample shops: a silhouette for the kind, paint for the colour, a pattern for the style.

Drawn at twice the size and halved, without fonts, so that equal random numbers give equal pixels everywhere.
"""

import io
import math
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

SIZE = 96
CANVAS = 2 * SIZE
Colour = tuple[int, int, int]
PAINTS: dict[str, Colour] = {
    "black": (38, 38, 42),
    "white": (246, 244, 238),
    "grey": (142, 146, 152),
    "blue": (42, 78, 158),
    "red": (192, 40, 44),
    "green": (66, 118, 58),
    "yellow": (228, 186, 42),
    "brown": (120, 76, 42),
    "pink": (232, 142, 168),
    "turquoise": (38, 164, 164),
}
TRIMS: dict[str, Colour] = {
    "steel": (112, 118, 126),
    "aluminium": (196, 200, 206),
    "wood": (166, 118, 70),
    "bamboo": (208, 178, 112),
    "plastic": (70, 72, 78),
    "ceramic": (226, 214, 196),
    "glass": (176, 214, 224),
    "cotton": (220, 208, 184),
    "nylon": (88, 92, 66),
}
# Parts on a grid of 100 x 100, y downwards: box and oval by two corners, poly by its corners, line by its width and
# points. They are painted in `main` (colour and pattern), `trim` (material) or `back` (a hole).
SKETCHES = {
    "tent": "poly main 50 18 94 84 6 84; poly trim 50 45 62 84 38 84",
    "camping chair": "poly main 22 18 70 18 78 60 22 60; line trim 5 24 60 74 90; line trim 5 76 60 26 90",
    "backpack": "oval main 24 10 76 54; box main 24 32 76 88; box trim 34 56 66 78",
    "water bottle": "box main 36 30 64 92; box trim 42 12 58 30",
    "multitool": "box main 14 46 64 62; poly trim 64 46 94 34 88 54 64 62",
    "trekking pole": "line main 7 30 14 68 94; oval trim 22 4 40 24; line trim 4 56 82 72 76",
    "sleeping bag": "oval main 28 6 72 50; poly main 28 28 72 28 62 95 38 95; oval trim 40 14 60 36",
    "picnic blanket": "poly main 12 36 72 22 90 68 28 86; line trim 4 28 86 90 68",
    "lantern": "box trim 38 10 62 24; box main 30 24 70 76; box trim 26 76 74 90",
    "headlamp": "oval trim 6 26 94 74; oval back 14 32 86 68; oval main 32 34 68 80",
    "repair kit": "box main 12 32 88 84; box trim 40 22 60 32; box trim 46 44 54 72; box trim 36 54 64 62",
    "boot brush": "box main 10 34 90 52; poly trim 18 52 82 52 76 76 24 76",
    "kitchen table": "box main 6 34 94 46; box trim 14 46 22 90; box trim 78 46 86 90",
    "bar stool": "oval main 24 12 76 34; line trim 5 38 30 28 94; line trim 5 62 30 72 94; line trim 4 32 68 68 68",
    "mug": "box main 22 26 68 84; line trim 7 68 38 88 44 88 62 68 70",
    "saucepan": "box main 8 40 62 78; line trim 8 62 48 96 40",
    "chef's knife": "poly main 6 48 62 34 62 60 30 60; box trim 62 42 95 55",
    "spatula": "box main 32 6 68 46; line trim 7 50 46 50 95",
    "apron": "poly main 36 10 64 10 68 40 84 46 80 92 20 92 16 46 32 40; box trim 36 58 64 76",
    "oven glove": "oval main 26 8 66 60; box main 28 36 64 90; oval main 56 34 86 66; box trim 28 78 64 92",
    "pendant lamp": "line trim 3 50 3 50 36; poly main 38 36 62 36 90 78 10 78",
    "candle holder": "box trim 44 12 56 56; poly main 24 56 76 56 62 76 38 76; box main 28 76 72 88",
    "dish brush": "line trim 7 16 92 60 44; oval main 50 10 90 50",
    "drying rack": "line trim 3 20 72 20 26; line trim 3 40 72 40 26; line trim 3 60 72 60 26; line trim 3 80 72 80 26;"
    "box main 8 70 92 84",
    "desk": "box main 4 30 96 42; box main 60 42 92 74; line trim 5 12 42 12 92; line trim 5 88 74 88 92",
    "office chair": "oval main 28 6 72 48; box main 22 50 78 62; line trim 6 50 62 50 84;line trim 5 24 92 50 80 76 92",
    "pencil cup": "line trim 4 42 44 34 10; line trim 4 56 44 64 8; poly main 28 42 72 42 68 92 32 92",
    "document box": "box main 14 22 86 88; box trim 36 42 64 54",
    "stapler": "poly main 8 44 84 28 92 46 8 60; box trim 8 66 92 76",
    "scissors": "line trim 7 42 60 80 8; line trim 7 58 60 20 8; oval main 16 56 48 94; oval main 52 56 84 94",
    "desk mat": "box main 6 28 94 76; line trim 4 6 28 94 28 94 76 6 76 6 28",
    "seat cushion": "oval main 8 34 92 80; line trim 4 16 58 84 58",
    "desk lamp": "line trim 5 58 30 28 54 48 84; poly main 52 12 88 24 74 48 42 34; oval trim 28 82 70 94",
    "light bar": "box main 4 38 96 52; box trim 44 52 56 78",
    "cable tidy": "oval main 18 18 82 82; oval trim 38 38 62 62",
    "screen cleaner": "box main 32 44 68 92; box trim 42 24 58 44; poly trim 28 12 66 12 66 26 42 26",
    "garden bench": "box main 6 26 94 42; box main 6 52 94 64; box trim 14 64 22 90; box trim 78 64 86 90",
    "raised bed": "poly main 8 52 92 52 86 86 14 86; box trim 6 42 94 54",
    "plant pot": "poly main 26 40 74 40 66 92 34 92; box trim 20 28 80 40",
    "watering can": "box main 24 42 66 88; line trim 6 66 74 95 34; line trim 5 24 48 10 30 40 22 60 42",
    "trowel": "poly main 50 95 32 64 36 42 64 42 68 64; box trim 44 8 56 42",
    "pruning shears": "line main 9 46 48 26 94; line main 9 54 48 74 94; poly trim 40 52 46 6 62 30 56 56",
    "garden gloves": "box main 26 46 74 80; box main 26 16 35 48; box main 39 8 48 48; box main 52 8 61 48;"
    "box main 65 16 74 48; box trim 26 80 74 94",
    "parasol": "line trim 4 50 40 50 94; poly main 50 10 95 46 5 46",
    "solar lamp": "box trim 46 44 54 95; poly main 30 12 70 12 62 46 38 46",
    "string lights": "line trim 3 4 22 30 40 50 44 70 40 96 22; oval main 8 30 24 54; oval main 30 42 46 66;"
    "oval main 54 42 70 66; oval main 76 30 92 54",
    "broom": "line trim 5 50 4 50 56; poly main 34 56 66 56 80 94 20 94",
    "garden hose": "oval main 12 20 84 92; oval back 32 40 64 72; line trim 7 70 34 94 8",
}
Point = tuple[float, float]


def draw_picture(rng: np.random.Generator, kind: str, style: str, colour: str, material: str) -> bytes:
    """A PNG of 96 x 96 pixels; position, size, tilt, mirroring, pattern offset and background come from `rng`."""
    place = _placement(rng)
    back = _shift((236, 236, 236), rng.integers(-16, 17, size=3))
    paint = _shift(PAINTS[colour], rng.integers(-8, 9, size=3))
    offset = rng.integers(0, CANVAS, size=2)
    parts = [(form, ink, width, [place(point) for point in points]) for form, ink, width, points in _parts(kind)]

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
            _fill(pen, form, width, points, back if ink == "back" else TRIMS[material])
        if form != "line":
            pen.line([*points, points[0]], fill=(60, 60, 60), width=2)
    content = io.BytesIO()
    canvas.reduce(2).save(content, "PNG")
    return content.getvalue()


@cache
def _parts(kind: str) -> list[tuple[str, str, int, list[Point]]]:
    """A sketch as forms, inks, line widths and outlines (ovals become polygons, so that they can be tilted)."""
    parts = []
    for part in SKETCHES[kind].split(";"):
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


def _placement(rng: np.random.Generator) -> Callable[[Point], Point]:
    """Where a point of the sketch lands on the canvas."""
    turn, size, left, top = rng.uniform((-0.09, 0.78, -4, -4), (0.09, 0.96, 4, 4))
    mirror = 1 if rng.random() < 0.5 else -1
    cosine, sine = math.cos(turn), math.sin(turn)

    def place(point: Point) -> Point:
        x, y = mirror * (point[0] - 50) * size, (point[1] - 50) * size
        scale = CANVAS / 100
        return (
            round((x * cosine - y * sine + 50 + left) * scale),
            round((x * sine + y * cosine + 50 + top) * scale),
        )

    return place


def _fill(pen: ImageDraw.ImageDraw, form: str, width: int, points: list[Point], ink: Colour | int) -> None:
    if form == "line":
        pen.line(points, fill=ink, width=width, joint="curve")
    else:
        pen.polygon(points, fill=ink)


def _shift(colour: Colour, change: NDArray[np.int64]) -> Colour:
    red, green, blue = (min(255, max(0, part + int(step))) for part, step in zip(colour, change, strict=True))
    return red, green, blue


def _contrast(paint: Colour) -> Colour:
    """The second tone of a paint: darker, or lighter where the paint is dark."""
    return _shift(paint, np.full(3, 70 if sum(paint) < 300 else -55))

"""What the sample shops sell, and the words for it. All tables of docs/sample.md that are words live here."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

ROLES = ("anchor", "vessel", "tool", "textile", "light", "upkeep")
# Words of an attribute's value: the first one is its name, the others say the same.
STYLES = {
    "minimal": ("minimalist", "clean-lined", "pared-back"),
    "rustic": ("rustic", "farmhouse", "country-style"),
    "retro": ("retro", "vintage", "mid-century"),
    "floral": ("floral", "flowery", "botanical"),
    "sporty": ("sporty", "athletic", "dynamic"),
    "classic": ("classic", "traditional", "timeless"),
}
COLOURS = {
    "black": ("black", "jet", "charcoal black"),
    "white": ("white", "ivory", "snow"),
    "grey": ("grey", "slate", "silver-grey"),
    "blue": ("blue", "navy", "denim blue"),
    "red": ("red", "crimson", "cherry"),
    "green": ("green", "olive", "forest green"),
    "yellow": ("yellow", "mustard", "lemon"),
    "brown": ("brown", "chestnut", "walnut brown"),
    "pink": ("pink", "rose", "blush"),
    "turquoise": ("turquoise", "teal", "aqua"),
}
MATERIALS = {
    "steel": ("steel", "stainless steel"),
    "aluminium": ("aluminium", "light alloy"),
    "wood": ("wood", "solid oak", "timber"),
    "bamboo": ("bamboo", "bamboo cane"),
    "plastic": ("plastic", "polypropylene"),
    "ceramic": ("ceramic", "stoneware"),
    "glass": ("glass", "tempered glass"),
    "cotton": ("cotton", "cotton canvas"),
    "nylon": ("nylon", "polyamide fabric"),
}
TIERS = {
    "budget": ("budget", "low-cost", "great value"),
    "middle": ("everyday", "reliable", "all-round"),
    "premium": ("premium", "high-end", "deluxe"),
}
STYLE_NAMES, COLOUR_NAMES, MATERIAL_NAMES, TIER_NAMES = (tuple(t) for t in (STYLES, COLOURS, MATERIALS, TIERS))

# Colours that makers prefer for a style, in every shop.
PALETTES = {
    "minimal": ("black", "white", "grey"),
    "rustic": ("brown", "green", "red"),
    "retro": ("turquoise", "yellow", "pink"),
    "floral": ("pink", "green", "white"),
    "sporty": ("red", "blue", "black"),
    "classic": ("blue", "brown", "grey"),
}
# What things of a kind can be made of.
FRAME = ("steel", "aluminium", "wood", "bamboo", "plastic")
CLOTH = ("cotton", "nylon")
BOTTLE = ("steel", "aluminium", "plastic", "glass")
POT = ("steel", "plastic", "ceramic", "glass")
COOKWARE = ("steel", "aluminium", "ceramic", "glass")
HAND = ("steel", "aluminium", "wood", "plastic")
LAMP = ("steel", "aluminium", "bamboo", "glass", "plastic")
FLEXIBLE = ("plastic", "nylon", "cotton")
BRUSH = ("wood", "bamboo", "plastic")


@dataclass(frozen=True)
class Kind:
    """A kind of product: shelf, words for it (the first is its name), usual price in dollars, possible materials."""

    role: str
    shelf: str
    words: tuple[str, ...]
    price: float
    materials: tuple[str, ...]


@dataclass(frozen=True)
class Shop:
    """A shop, and how much its customers look at each attribute (1: as much as the model's constants say)."""

    name: str
    label: str
    kinds: tuple[Kind, ...]
    style: float
    colour: float
    material: float
    brand: float
    price: float
    user_share: float = 1.0
    item_share: float = 1.0


OUTDOOR = (
    Kind("anchor", "Tents", ("tent", "camping shelter"), 140, CLOTH),
    Kind("anchor", "Camp Furniture", ("camping chair", "folding chair"), 45, FRAME),
    Kind("vessel", "Packs", ("backpack", "rucksack"), 80, CLOTH),
    Kind("vessel", "Bottles", ("water bottle", "drinking flask"), 20, BOTTLE),
    Kind("tool", "Knives & Tools", ("multitool", "pocket tool"), 40, HAND),
    Kind("tool", "Trekking", ("trekking pole", "hiking stick"), 35, HAND),
    Kind("textile", "Sleeping", ("sleeping bag", "mummy bag"), 90, CLOTH),
    Kind("textile", "Blankets", ("picnic blanket", "ground sheet"), 28, CLOTH),
    Kind("light", "Lanterns", ("lantern", "camp light"), 32, LAMP),
    Kind("light", "Headlamps", ("headlamp", "head torch"), 30, FLEXIBLE),
    Kind("upkeep", "Repair", ("repair kit", "mending set"), 18, CLOTH),
    Kind("upkeep", "Cleaning", ("boot brush", "cleaning brush"), 10, BRUSH),
)
KITCHEN = (
    Kind("anchor", "Tables", ("kitchen table", "dining table"), 190, FRAME),
    Kind("anchor", "Stools", ("bar stool", "counter seat"), 75, FRAME),
    Kind("vessel", "Cups", ("mug", "coffee cup"), 14, POT),
    Kind("vessel", "Cookware", ("saucepan", "cooking pot"), 48, COOKWARE),
    Kind("tool", "Knives", ("chef's knife", "cook's knife"), 55, HAND),
    Kind("tool", "Utensils", ("spatula", "turner"), 12, HAND),
    Kind("textile", "Aprons", ("apron", "kitchen smock"), 24, CLOTH),
    Kind("textile", "Oven Textiles", ("oven glove", "pot mitt"), 15, CLOTH),
    Kind("light", "Ceiling Lights", ("pendant lamp", "hanging lamp"), 85, LAMP),
    Kind("light", "Candle Holders", ("candle holder", "candlestick"), 22, POT),
    Kind("upkeep", "Washing Up", ("dish brush", "scrubber"), 8, BRUSH),
    Kind("upkeep", "Drying", ("drying rack", "dish drainer"), 30, FRAME),
)
OFFICE = (
    Kind("anchor", "Desks", ("desk", "work table"), 230, FRAME),
    Kind("anchor", "Chairs", ("office chair", "swivel chair"), 160, FRAME),
    Kind("vessel", "Desk Storage", ("pencil cup", "pen holder"), 12, FRAME),
    Kind("vessel", "Filing", ("document box", "file case"), 22, FRAME),
    Kind("tool", "Staplers", ("stapler", "paper fastener"), 16, HAND),
    Kind("tool", "Cutting", ("scissors", "paper shears"), 11, HAND),
    Kind("textile", "Desk Mats", ("desk mat", "writing pad"), 25, CLOTH),
    Kind("textile", "Seat Comfort", ("seat cushion", "chair pad"), 34, CLOTH),
    Kind("light", "Desk Lamps", ("desk lamp", "reading lamp"), 48, LAMP),
    Kind("light", "Screen Lights", ("light bar", "monitor light"), 55, LAMP),
    Kind("upkeep", "Cables", ("cable tidy", "cord organiser"), 9, FLEXIBLE),
    Kind("upkeep", "Screen Care", ("screen cleaner", "display spray"), 10, BOTTLE),
)
GARDEN = (
    Kind("anchor", "Benches", ("garden bench", "patio seat"), 150, FRAME),
    Kind("anchor", "Beds", ("raised bed", "planter box"), 85, FRAME),
    Kind("vessel", "Pots", ("plant pot", "flower pot"), 18, POT),
    Kind("vessel", "Watering", ("watering can", "sprinkling can"), 26, POT),
    Kind("tool", "Hand Tools", ("trowel", "hand spade"), 14, HAND),
    Kind("tool", "Pruning", ("pruning shears", "secateurs"), 29, HAND),
    Kind("textile", "Gloves", ("garden gloves", "work gloves"), 13, CLOTH),
    Kind("textile", "Shade", ("parasol", "sun umbrella"), 70, CLOTH),
    Kind("light", "Solar Lights", ("solar lamp", "path light"), 24, LAMP),
    Kind("light", "String Lights", ("string lights", "fairy lights"), 27, LAMP),
    Kind("upkeep", "Sweeping", ("broom", "yard brush"), 20, BRUSH),
    Kind("upkeep", "Hoses", ("garden hose", "water hose"), 38, FLEXIBLE),
)
SHOPS = (
    Shop("sample-outdoor", "Outdoor", OUTDOOR, style=0.7, colour=0.6, material=1.2, brand=1.1, price=1.0),
    Shop("sample-kitchen", "Kitchen", KITCHEN, style=1.1, colour=1.2, material=0.8, brand=0.5, price=0.7),
    Shop("sample-office", "Office", OFFICE, style=0.9, colour=0.8, material=0.6, brand=0.7, price=1.4),
    Shop(
        "sample-garden",
        "Garden",
        GARDEN,
        style=1.2,
        colour=0.9,
        material=0.9,
        brand=0.4,
        price=0.8,
        user_share=0.25,
        item_share=0.5,
    ),
)

TITLES = (
    "{brand} {style} {kind}, {colour} {material}",
    "{brand} {kind} in {colour}",
    "{style} {kind} by {brand}, {colour}",
    "{brand} {kind}, {material}",
    "{colour} {kind} - {style} - {brand}",
    "{brand} {tier} {kind}",
)
# A description: the share of items that have a sentence of the group, and the group.
SENTENCES = (
    (0.7, ("A design of {style} taste.", "Fits {style} homes.", "Its look: {style}.")),
    (0.7, ("Made of {material}.", "Material: {material}.", "Built from {material} that lasts.")),
    (0.7, ("Colour: {colour}.", "Comes in {colour}.", "Shown here in {colour}.")),
    (0.4, ("Our {tier} choice.", "From the {tier} range.", "Quality level: {tier}.")),
    (0.4, ("A welcome gift.", "Easy to keep clean.", "Ready to use.", "Ships in plain cardboard.")),
)
BRAND_STARTS = ("Nor", "Al", "Ber", "Cal", "Dor", "Ek", "Fal", "Gre", "Hol", "Jor", "Kel", "Lun", "Mar", "Os", "Tor")
BRAND_ENDS = ("vik", "dale", "wick", "mira", "sen", "lona", "berg", "ford", "quin", "tano", "zel", "brook")


def invent_brands(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    """`count` different brand names."""
    names = [start + end for start in BRAND_STARTS for end in BRAND_ENDS]
    return tuple(names[i] for i in rng.permutation(len(names))[:count])


def describe(rng: np.random.Generator, kind: Kind, look: Mapping[str, str]) -> tuple[str, str]:
    """A title and a description; each mention of an attribute chooses its word anew.

    look: the names of style, colour, material and tier, and the brand.
    """
    words = {
        "kind": kind.words,
        "brand": (look["brand"],),
        "style": STYLES[look["style"]],
        "colour": COLOURS[look["colour"]],
        "material": MATERIALS[look["material"]],
        "tier": TIERS[look["tier"]],
    }

    def one_of(options: tuple[str, ...]) -> str:
        return options[int(rng.integers(len(options)))]

    def write(template: str) -> str:
        text = template.format(**{name: one_of(options) for name, options in words.items()})
        return text[0].upper() + text[1:]

    title = write(one_of(TITLES))
    written = [write(one_of(group)) for share, group in SENTENCES if rng.random() < share]
    return title, " ".join(written)

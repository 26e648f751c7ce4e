"""What the sample shops sell, and the words for it, from words.toml."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

Variants = dict[str, tuple[str, ...]]  # by the name of a value, the words for it


@dataclass(frozen=True)
class Kind:
    """A kind of product. words: for it, the first is its name. price: the usual one in dollars."""

    role: str
    shelf: str
    words: tuple[str, ...]
    price: float
    materials: tuple[str, ...]


@dataclass(frozen=True)
class Shop:
    """A shop, and how much its customers look at each attribute (1: as much as the constants of the model say)."""

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


@dataclass(frozen=True)
class Words:
    """The tables of words.toml. sentences: the share of items that have one of a group, and the group."""

    roles: tuple[str, ...]
    styles: Variants
    colours: Variants
    materials: Variants
    tiers: Variants
    palettes: Variants
    titles: tuple[str, ...]
    sentences: tuple[tuple[float, tuple[str, ...]], ...]
    brand_starts: tuple[str, ...]
    brand_ends: tuple[str, ...]
    shops: tuple[Shop, ...]


def read_table(name: str) -> dict[str, Any]:
    """A TOML file beside this module."""
    return tomllib.loads(files(__package__).joinpath(name).read_text(encoding="utf-8"))


@cache
def words() -> Words:
    """The words of the sample shops."""
    table = read_table("words.toml")

    def kind(row: dict[str, Any]) -> Kind:
        materials = tuple(table["material_groups"][row["made_of"]])
        return Kind(row["role"], row["shelf"], tuple(row["words"]), row["price"], materials)

    variants = ("styles", "colours", "materials", "tiers", "palettes")
    tables: dict[str, Any] = {name: {key: tuple(some) for key, some in table[name].items()} for name in variants}
    tables |= {name: tuple(table[name]) for name in ("roles", "titles", "brand_starts", "brand_ends")}
    sentences = tuple((group["share"], tuple(group["texts"])) for group in table["sentences"])
    shops = tuple(Shop(**{**row, "kinds": tuple(map(kind, row["kinds"]))}) for row in table["shops"])
    return Words(**tables, sentences=sentences, shops=shops)


def invent_brands(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    """`count` different brand names."""
    names = [start + end for start in words().brand_starts for end in words().brand_ends]
    return tuple(names[i] for i in rng.permutation(len(names))[:count])


def describe(rng: np.random.Generator, kind: Kind, look: Mapping[str, str]) -> tuple[str, str]:
    """A title and a description; each mention of an attribute draws its own word.

    look: the names of style, colour, material and tier, and the brand.
    """
    table = words()
    variants = {
        "kind": kind.words,
        "brand": (look["brand"],),
        "style": table.styles[look["style"]],
        "colour": table.colours[look["colour"]],
        "material": table.materials[look["material"]],
        "tier": table.tiers[look["tier"]],
    }

    def one_of(options: tuple[str, ...]) -> str:
        return options[int(rng.integers(len(options)))]

    def write(template: str) -> str:
        text = template.format(**{name: one_of(options) for name, options in variants.items()})
        return text[0].upper() + text[1:]

    title = write(one_of(table.titles))
    written = [write(one_of(group)) for share, group in table.sentences if rng.random() < share]
    return title, " ".join(written)

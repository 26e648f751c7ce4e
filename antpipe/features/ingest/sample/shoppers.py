"""Who buys what in a sample shop: its assortment, its shoppers and their purchases (formulas: docs/sample.md)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from antpipe.features.ingest.sample.words import Shop, words

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Assortment.
BRANDS = 10
PALETTE_ODDS = 4.0  # a colour of the style's palette is this many times as likely as another
BRAND_FAITH = 0.6  # how often an item has its brand's main style, and its brand's tier
TIER_SHIFT = (-0.5, 0.0, 0.6)  # of the log price, by tier
PRICE_SPREAD = 0.2
EXPOSURE_SPREAD = 0.6
# Shoppers.
FASHION_SPREAD = 0.5
TASTE_SPREAD = 0.6
PERSISTENCE = 3.0
DECAY = 0.7
QUALITY = 0.4
SENSITIVITY = 1.5
LEVEL_SPREAD = 0.4
LEVEL_DRIFT, LEVEL_NOISE = 0.01, 0.05
COMPLEMENT_BY_AGE = (1.0, 0.5)  # of the last item, and of the one before
PARTNERS, PARTNER_GAIN = 2, 1.0
BOREDOM, BOREDOM_SPAN = 1.0, 3
AGAIN = 4.0
# What a shopper wants (columns) after an item of some role (rows), in every shop; both in the order of the roles.
ROLE_COMPLEMENTS = np.array(
    [
        # anchor, vessel, tool, textile, light, upkeep
        [0.0, 0.0, 0.0, 1.5, 1.0, 0.0],  # anchor
        [0.0, 0.5, 1.0, 0.0, 0.0, 0.5],  # vessel
        [0.0, 0.5, 0.0, 0.0, 0.0, 1.5],  # tool
        [0.5, 0.0, 0.0, 0.5, 0.5, 0.0],  # textile
        [0.5, 0.5, 0.0, 0.0, 0.5, 0.0],  # light
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.0],  # upkeep
    ]
)
# Sequences.
SHORTEST, LONGEST = 5, 60
LOG_LENGTH, LENGTH_SPREAD = 1.8, 0.8
RATING, RATING_BY_QUALITY, RATING_BY_FIT, RATING_NOISE = 4.1, 0.4, 0.4, 0.9


@dataclass(frozen=True)
class Assortment:
    """N items, by the numbers of their attributes. relative_price: log price minus log of the kind's usual price."""

    kind: Ints
    style: Ints
    colour: Ints
    material: Ints
    tier: Ints
    brand: Ints
    relative_price: Floats
    quality: Floats
    exposure: Floats


@dataclass(frozen=True)
class Market:
    """What decides the purchases of U shoppers among N items with A attribute values (styles to brands) and K kinds."""

    assortment: Assortment
    attributes: Floats  # (N, A), 0 or 1
    attention: Floats  # (A,)
    fashion: Floats  # (A,)
    complements: Floats  # (K, K)
    sensitivity: float
    taste: Floats  # (U, A)
    price_level: Floats  # (U, LONGEST)
    lengths: Ints  # (U,)


def pick(chance: Floats, weights: Floats) -> Ints:
    """(n,) a column per row, drawn with probability proportional to `weights` (n, k) >= 0. chance: (n,) in [0, 1)."""
    edges = np.cumsum(weights, axis=1)
    return np.asarray((edges <= chance[:, None] * edges[:, -1:]).sum(axis=1).clip(max=weights.shape[1] - 1))


def make_assortment(rng: np.random.Generator, shop: Shop, size: int) -> Assortment:
    """What the shop offers before anybody buys."""

    def assort(weights: Floats) -> Ints:
        return pick(rng.random(len(weights)), weights)

    table = words()
    brand = assort(np.tile(1 / np.arange(1, BRANDS + 1), (size, 1)))
    brand_style, brand_tier = rng.permutation(BRANDS) % len(table.styles), rng.permutation(BRANDS) % len(table.tiers)
    own_style, own_tier = rng.random((2, size)) < BRAND_FAITH
    style = np.where(own_style, brand_style[brand], rng.integers(len(table.styles), size=size))
    tier = np.where(own_tier, brand_tier[brand], rng.integers(len(table.tiers), size=size))
    kind = rng.integers(len(shop.kinds), size=size)
    palette = np.array([[PALETTE_ODDS if c in table.palettes[s] else 1.0 for c in table.colours] for s in table.styles])
    fitting = np.array([[float(m in k.materials) for m in table.materials] for k in shop.kinds])
    return Assortment(
        kind=kind,
        style=style,
        colour=assort(palette[style]),
        material=assort(fitting[kind]),
        tier=tier,
        brand=brand,
        relative_price=np.array(TIER_SHIFT)[tier] + PRICE_SPREAD * rng.standard_normal(size),
        quality=rng.standard_normal(size),
        exposure=EXPOSURE_SPREAD * rng.standard_normal(size),
    )


def make_market(rng: np.random.Generator, shop: Shop, assortment: Assortment, users: int) -> Market:
    """The shop's fashion and complements, and its shoppers."""
    table = words()
    columns = [
        (assortment.style, len(table.styles), shop.style),
        (assortment.colour, len(table.colours), shop.colour),
        (assortment.material, len(table.materials), shop.material),
        (assortment.brand, BRANDS, shop.brand),
    ]
    attributes = np.concatenate([np.eye(size)[values] for values, size, _ in columns], axis=1)
    attention = np.concatenate([np.full(size, weight) for _, size, weight in columns])
    role = np.array([table.roles.index(kind.role) for kind in shop.kinds])
    complements = ROLE_COMPLEMENTS[role][:, role]
    for kind in range(len(role)):
        complements[kind, rng.permutation(len(role))[:PARTNERS]] += PARTNER_GAIN
    fashion = FASHION_SPREAD * rng.standard_normal(len(attention))
    taste = TASTE_SPREAD * rng.standard_normal((users, len(attention)))
    drift = LEVEL_DRIFT + LEVEL_NOISE * rng.standard_normal((users, LONGEST))
    drift[:, 0] = LEVEL_SPREAD * rng.standard_normal(users)
    extra = np.exp(LOG_LENGTH + LENGTH_SPREAD * rng.standard_normal(users)).astype(np.int64)
    most = max(SHORTEST, min(LONGEST, len(assortment.kind) // 2))
    return Market(
        assortment=assortment,
        attributes=attributes,
        attention=attention,
        fashion=fashion,
        complements=complements,
        sensitivity=SENSITIVITY * shop.price,
        taste=taste,
        price_level=np.cumsum(drift, axis=1),
        lengths=np.minimum(SHORTEST + extra, most),
    )


def utility(market: Market, users: Ints, history: Ints) -> Floats:
    """(n, N) the utility of each item to shoppers who bought `history` (n, t) so far, oldest first.

    The next item is drawn with probability proportional to exp(utility).
    """
    items, steps = market.assortment, history.shape[1]
    recency = (1 - DECAY) * DECAY ** np.arange(steps)[::-1]
    memory = np.einsum("t,nta->na", recency, market.attributes[history])
    liking = market.attention * (market.fashion + market.taste[users] + PERSISTENCE * memory)
    worth = liking @ market.attributes.T + QUALITY * items.quality + items.exposure
    worth -= market.sensitivity * (items.relative_price - market.price_level[users, steps][:, None]) ** 2
    bought = items.kind[history]
    for age, weight in enumerate(COMPLEMENT_BY_AGE[:steps], start=1):
        worth += weight * market.complements[bought[:, -age]][:, items.kind]
    worth -= BOREDOM * (bought[:, -BOREDOM_SPAN:, None] == items.kind).sum(axis=1)
    worth[np.arange(len(users))[:, None], history] -= AGAIN
    return np.asarray(worth)


def walk(rng: np.random.Generator, market: Market) -> list[Ints]:
    """The items of each shopper, in the order of purchase."""
    chance = rng.random((len(market.lengths), LONGEST))
    history = np.zeros((len(market.lengths), LONGEST), np.int64)
    for step in range(int(market.lengths.max())):
        users = np.flatnonzero(market.lengths > step)
        worth = utility(market, users, history[users, :step])
        odds = np.exp(worth - worth.max(axis=1, keepdims=True))
        history[users, step] = pick(chance[users, step], odds)
    return [row[:length] for row, length in zip(history, market.lengths, strict=True)]


def rate(rng: np.random.Generator, market: Market, user: Ints, item: Ints) -> Floats:
    """(n,) ratings 1 to 5 of items by users: better items, and items that suit the user's taste, get more stars."""
    fit = (market.attention * market.taste[user] * market.attributes[item]).sum(axis=1)
    noise = RATING_NOISE * rng.standard_normal(len(user))
    stars = RATING + RATING_BY_QUALITY * market.assortment.quality[item] + RATING_BY_FIT * fit + noise
    return np.asarray(stars.round().clip(1, 5))

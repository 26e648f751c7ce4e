"""Stage `ingest sample`: four small related shops, generated (the process is described in docs/sample.md)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from antpipe.features.ingest.domain import ITEMS, REJECTS, log_order, write_domain
from antpipe.features.ingest.sample.pictures import draw_picture
from antpipe.features.ingest.sample.shoppers import (
    BRANDS,
    Assortment,
    Floats,
    Ints,
    Market,
    make_assortment,
    make_market,
    rate,
    walk,
)
from antpipe.features.ingest.sample.words import Shop, describe, invent_brands, words
from antpipe.features.ingest.stage import require_same_source
from antpipe.settings.base import flags_of
from antpipe.settings.ingest import SampleConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.domain import Domain
from antpipe.store.next_command import spell
from antpipe.store.order import order_of
from antpipe.store.store import Store

GENERATOR = 1  # increase it when the same seed gives different shops
*SOURCES, TARGET = (shop.name for shop in words().shops)
WITHOUT_PICTURE, WITHOUT_PRICE = 0.08, 0.10
FIRST_DAY, DAYS = 18_628, 730  # since 1970-01-01: the years 2021 and 2022
DAY_MS = 86_400_000
SPAN_LEAST, GAP_SPREAD = 0.1, 1.5
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Each has its own stream of random numbers. Append only: the position is part of the seed of the stream.
PARTS = ("assortment", "shoppers", "steps", "ratings", "times", "words", "pictures", "prices", "user ids", "item ids")


@dataclass(frozen=True)
class GeneratedShop:
    """A shop with the hidden variables behind its tables. baskets[u]: numbers of the items that u bought, in order."""

    shop: Shop
    assortment: Assortment
    market: Market
    baskets: list[Ints]
    user_ids: list[str]
    item_ids: list[str]


def ingest_sample(store: Store, config: SampleConfig, *, force: bool = False) -> list[StageResult]:
    """Write the domains sample-outdoor, sample-kitchen, sample-office and, as the target, sample-garden.

    A shop depends on the seed, its sizes and its position in words.toml, not on what else is in the store. Raises
    DataError, before anything is written, if a domain of one of these names holds other data.
    """
    domains = [store.new_domain(shop.name) for shop in words().shops]
    command = spell("ingest sample", store=store.root, flags=flags_of(config))
    if not force:
        for domain in domains:
            require_same_source(domain, _parameters(domain, config), folder="", command=command)
    return [_ingest_shop(domain, config, number, force) for number, domain in enumerate(domains)]


def generate_shop(config: SampleConfig, number: int) -> GeneratedShop:
    """Shop `number` as `ingest_sample` writes it, with its hidden variables."""
    shop, rngs = words().shops[number], random_streams(config.seed, number)
    assortment = make_assortment(rngs["assortment"], shop, int(config.items * shop.item_share))
    market = make_market(rngs["shoppers"], shop, assortment, int(config.users * shop.user_share))
    return GeneratedShop(
        shop=shop,
        assortment=assortment,
        market=market,
        baskets=walk(rngs["steps"], market),
        user_ids=random_ids(rngs["user ids"], "A", 13, len(market.lengths)),
        item_ids=random_ids(rngs["item ids"], "B0", 8, len(assortment.kind)),
    )


def _parameters(domain: Domain, config: SampleConfig) -> dict[str, Any]:
    """What the fingerprint covers."""
    return {
        "format": "sample",
        "generator": GENERATOR,
        "shop": domain.name,
        "seed": config.seed,
        "users": config.users,
        "items": config.items,
    }


def _ingest_shop(domain: Domain, config: SampleConfig, number: int, force: bool) -> StageResult:
    parameters = _parameters(domain, config)
    if not force and domain.is_fresh("items", parameters):
        log_order(domain, order_of(domain))
        return StageResult(domain.name, "items", "fresh", domain.entry("items")["statistics"])
    made, rngs = generate_shop(config, number), random_streams(config.seed, number)
    user, item = np.repeat(np.arange(len(made.baskets)), made.market.lengths), np.concatenate(made.baskets)
    interactions = pl.DataFrame(
        {
            "user_id": [made.user_ids[u] for u in user],
            "item_id": [made.item_ids[i] for i in item],
            "timestamp": purchase_times(rngs["times"], made.market.lengths),
            "rating": rate(rngs["ratings"], made.market, user, item),
        }
    )
    bought = np.unique(item)
    rows, pictures = describe_items(rngs, made, bought)
    statistics = write_domain(
        domain,
        parameters=parameters,
        items=rows,
        interactions=interactions,
        rejects=pl.DataFrame(schema=REJECTS),
        report={"generated_items": len(made.item_ids), "never_bought": len(made.item_ids) - len(bought)},
        flags=flags_of(config),
        pictures=pictures,
    )
    return StageResult(domain.name, "items", "built", statistics)


def random_streams(seed: int, shop_number: int) -> dict[str, np.random.Generator]:
    """One generator per part of a shop, so that a change of one part leaves the draws of the others alone."""
    return {
        part: np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(shop_number, index)))
        for index, part in enumerate(PARTS)
    }


def random_ids(rng: np.random.Generator, prefix: str, length: int, count: int) -> list[str]:
    """Different ids that look like those of a big shop and say nothing about what they stand for."""
    ids: dict[str, None] = {}
    while len(ids) < count:
        letters = rng.integers(len(ALPHABET), size=length)
        ids[prefix + "".join(ALPHABET[letter] for letter in letters)] = None
    return list(ids)


def purchase_times(rng: np.random.Generator, lengths: Ints) -> Ints:
    """Milliseconds since 1970, user after user, ascending for each user.

    A user is active for a random part of the two years; gaps are log-normal: bursts and pauses.
    """
    times = []
    for length in lengths:
        span = rng.uniform(SPAN_LEAST, 1.0)
        start = rng.uniform(0.0, 1.0 - span)
        passed = np.cumsum(np.exp(GAP_SPREAD * rng.standard_normal(length)))
        days = FIRST_DAY + DAYS * (start + span * (passed - passed[0]) / passed[-1])
        times.append((days * DAY_MS).astype(np.int64) // 1000 * 1000)
    return np.concatenate(times)


def list_prices(rng: np.random.Generator, shop: Shop, assortment: Assortment) -> Floats:
    """Dollars ending in .99 (the price that shoppers see, rounded as shops do); nan if it is not published."""
    usual = np.array([kind.price for kind in shop.kinds])[assortment.kind]
    dollars = np.maximum(1.0, (usual * np.exp(assortment.relative_price)).round()) - 0.01
    return np.where(rng.random(len(dollars)) < WITHOUT_PRICE, np.nan, dollars)


def describe_items(
    rngs: dict[str, np.random.Generator], made: GeneratedShop, bought: Ints
) -> tuple[pl.DataFrame, dict[str, bytes]]:
    """The catalogue rows (ITEMS) of the item numbers in `bought`, and their pictures (PNG) by file name."""
    shop, assortment, item_ids, table = made.shop, made.assortment, made.item_ids, words()
    styles, colours, materials, tiers = map(list, (table.styles, table.colours, table.materials, table.tiers))
    brands = invent_brands(rngs["words"], BRANDS)
    prices = list_prices(rngs["prices"], shop, assortment)
    pictured = rngs["pictures"].random(len(prices)) >= WITHOUT_PICTURE
    rows: list[dict[str, Any]] = []
    pictures: dict[str, bytes] = {}
    for item in bought:
        kind = shop.kinds[assortment.kind[item]]
        look = {
            "style": styles[assortment.style[item]],
            "colour": colours[assortment.colour[item]],
            "material": materials[assortment.material[item]],
            "tier": tiers[assortment.tier[item]],
            "brand": brands[assortment.brand[item]],
        }
        title, description = describe(rngs["words"], kind, look)
        picture = f"{item_ids[item]}.png"
        if pictured[item]:
            pictures[picture] = draw_picture(
                rngs["pictures"], kind.words[0], look["style"], look["colour"], look["material"]
            )
        price = None if np.isnan(prices[item]) else float(prices[item])
        category = [shop.label, kind.shelf]
        rows.append(
            {
                "item_id": item_ids[item],
                "title": title,
                "text": " ".join([title, *category, look["brand"], description]).strip(),
                "price": price,
                "currency": None if price is None else "USD",
                "category": category,
                "image_urls": [],
                "image_files": [picture] if pictured[item] else [],
            }
        )
    return pl.DataFrame(rows, schema=ITEMS), pictures

"""How the shoppers of the generated shops behave: the structure that docs/sample.md promises, and its limits."""

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from antpipe.features.ingest.sample.shoppers import LONGEST, SHORTEST, Ints, pick, utility
from antpipe.features.ingest.sample.words import words
from antpipe.features.ingest_sample import generate_shop
from antpipe.settings.ingest import SampleConfig
from tests.conftest import REPOSITORY

DOCUMENT = (REPOSITORY / "docs" / "sample.md").read_text(encoding="utf-8")
by_shop = pytest.mark.parametrize("number", range(len(words().shops)), ids=[shop.name for shop in words().shops])


def documented(shop: str) -> list[list[float]]:
    """The numbers of the rows that begin with the shop's name, table by table."""
    rows = re.findall(rf"^\| {shop} \|(.+)\|$", DOCUMENT, re.MULTILINE)
    return [[float(cell) for cell in row.split("|")] for row in rows]


def test_pick_follows_the_weights() -> None:
    chance = (np.arange(1000) + 0.5) / 1000
    picked = pick(chance, np.tile([1.0, 0.0, 3.0], (1000, 1)))
    assert Counter(picked.tolist()) == {0: 250, 2: 750}


def test_utility_falls_for_what_was_bought_and_rises_for_what_looks_like_it() -> None:
    market = generate_shop(SampleConfig(), 1).market
    user, none = np.array([0]), np.zeros((1, 0), np.int64)
    item = 5
    change = utility(market, user, np.array([[item]]))[0] - utility(market, user, none)[0]
    style, kind = market.assortment.style, market.assortment.kind
    assert change[item] < 0
    assert change[(style == style[item]) & (kind != kind[item])].mean() > change[style != style[item]].mean()


@by_shop
def test_a_purchase_keeps_the_style_of_the_last_one_more_often_than_chance(number: int) -> None:
    made = generate_shop(SampleConfig(), number)
    style = made.assortment.style
    kept = np.concatenate([style[items[1:]] == style[items[:-1]] for items in made.baskets]).mean()
    share = np.bincount(style[np.concatenate(made.baskets)]) / made.market.lengths.sum()
    assert kept > 1.3 * (share**2).sum()


@by_shop
def test_lights_and_textiles_follow_big_things_more_often_than_chance(number: int) -> None:
    made = generate_shop(SampleConfig(), number)
    role = np.array([words().roles.index(kind.role) for kind in made.shop.kinds])[made.assortment.kind]
    wanted = [words().roles.index("light"), words().roles.index("textile")]
    after_anchor = np.concatenate([role[b[1:]][role[b[:-1]] == words().roles.index("anchor")] for b in made.baskets])
    anywhere = role[np.concatenate(made.baskets)]
    assert np.isin(after_anchor, wanted).mean() > 1.3 * np.isin(anywhere, wanted).mean()


def test_the_popularity_of_colours_differs_between_shops_more_than_within_one() -> None:
    halves = []
    for number in range(len(words().shops)):
        made = generate_shop(SampleConfig(), number)
        for start in (0, 1):
            colour = made.assortment.colour[np.concatenate(made.baskets[start::2])]
            halves.append(np.bincount(colour, minlength=len(words().colours)) / len(colour))
    distance = [[np.abs(a - b).sum() / 2 for b in halves] for a in halves]
    within = max(distance[i][i + 1] for i in range(0, 8, 2))
    between = min(distance[i][j] for i in range(8) for j in range(8) if i // 2 != j // 2)
    assert between > 2 * within


@by_shop
def test_repeated_purchases_are_rare(number: int) -> None:
    baskets = generate_shop(SampleConfig(), number).baskets
    distinct = sum(len(set(items.tolist())) for items in baskets)
    assert 0.9 < distinct / sum(map(len, baskets)) < 1


def test_lengths_stay_within_their_limits() -> None:
    lengths = generate_shop(SampleConfig(), 0).market.lengths
    assert lengths.min() == SHORTEST
    assert 30 < lengths.max() <= LONGEST
    assert float(np.percentile(lengths, 95)) < 35


# -- how much of the next item can be known -------------------------------------------------------------------


def recall_at_10(scores: NDArray[np.float64], targets: Ints) -> float:
    """Nothing masked; a tie counts half."""
    own = scores[np.arange(len(targets)), targets][:, None]
    ranks = (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2
    return float((ranks < 10).mean())


def knowable(number: int, config: SampleConfig) -> list[float]:
    """Recall@10 of everybody's last item by popularity, by a stranger who knows the last step, and by the generator."""
    made = generate_shop(config, number)
    market, size = made.market, len(made.item_ids)
    stranger = dataclasses.replace(market, taste=0 * market.taste, price_level=0 * market.price_level)
    targets = np.array([items[-1] for items in made.baskets])
    popularity = np.bincount(np.concatenate([items[:-2] for items in made.baskets]), minlength=size).astype(float)
    first_order, oracle = [], []
    for user, items in enumerate(made.baskets):
        first_order.append(utility(stranger, np.array([user]), items[None, -2:-1])[0])
        oracle.append(utility(market, np.array([user]), items[None, :-1])[0])
    scores = (np.tile(popularity, (len(targets), 1)), np.array(first_order), np.array(oracle))
    return [recall_at_10(score, targets) for score in scores]


@by_shop
def test_the_recalls_in_the_document_are_those_of_the_default_shops(number: int) -> None:
    _, recalls = documented(words().shops[number].name)
    assert recalls == pytest.approx(knowable(number, SampleConfig()), abs=0.015)


@by_shop
def test_the_attention_in_the_document_is_that_of_the_shop(number: int) -> None:
    attention, _ = documented(words().shops[number].name)
    shop = words().shops[number]
    assert attention == [shop.style, shop.colour, shop.material, shop.brand, shop.price]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_last_step_says_more_about_the_next_item_than_popularity_does(seed: int) -> None:
    popularity, first_order, oracle = knowable(len(words().shops) - 1, SampleConfig(seed=seed))
    assert popularity + 0.05 < first_order < oracle

"""The figures of domains, as in the tables of papers, and what two domains have in common."""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import polars as pl

from antpipe.runtime.logs import log
from antpipe.store.domain import Domain
from antpipe.store.order import ColdTargets, Order, cold_targets_of, doubts, order_of
from antpipe.store.store import Store


@dataclass(frozen=True)
class Figures:
    """Figures of one domain.

    average_length: interactions per user. density: the share of all (user, item) pairs that are interactions.
    with_text, with_image, with_price: shares of the items. order: that of its interactions; None without any. cold:
    targets that never occur in training; None before build-sequences.
    """

    domain: str
    users: int
    items: int
    interactions: int
    average_length: float
    density: float
    with_text: float
    with_image: float
    with_price: float
    order: Order | None
    cold: ColdTargets | None


@dataclass(frozen=True)
class Overlap:
    """How many users and items two domains have in common, by their original ids."""

    domains: tuple[str, str]
    users: int
    items: int


def domain_figures(domain: Domain) -> Figures:
    """The figures of a domain, counted in its tables, without cold items.

    An item has an image if it has an image URL or file.
    """
    columns = ["text", "price", "image_urls", "image_files"]
    items = pl.DataFrame(domain.table("items", columns))[: domain.core_rows()]
    users = domain.table("users", ["user"]).num_rows
    rows = domain.table("interactions", ["user"]).num_rows
    image = (pl.col("image_urls").list.len().fill_null(0) + pl.col("image_files").list.len().fill_null(0)) > 0
    shares = items.select(
        text=(pl.col("text").fill_null("") != "").mean(), image=image.mean(), price=pl.col("price").is_not_null().mean()
    ).row(0, named=True)
    return Figures(
        domain.name,
        users,
        len(items),
        rows,
        average_length=rows / users if users else 0.0,
        density=rows / (users * len(items)) if users and len(items) else 0.0,
        with_text=shares["text"] or 0.0,
        with_image=shares["image"] or 0.0,
        with_price=shares["price"] or 0.0,
        order=order_of(domain),
        cold=cold_targets_of(domain),
    )


def overlaps(domains: list[Domain]) -> list[Overlap]:
    """The overlap of each pair of domains."""
    ids = {
        domain.name: {
            column: pl.Series(column, domain.table(table, [column])[column][:rows].to_pylist(), pl.String)
            for table, column, rows in (("users", "user_id", None), ("items", "item_id", domain.core_rows()))
        }
        for domain in domains
    }
    return [
        Overlap((one, other), *(int(ids[one][name].is_in(ids[other][name].implode()).sum()) for name in ids[one]))
        for one, other in combinations(ids, 2)
    ]


def statistics(store: Store, names: list[str]) -> dict[str, list[Any]]:
    """`domains`: the Figures of each; `shared`: the Overlap of each pair.

    Warns if the order of a domain is doubtful (see order.py). Raises DataError for an unknown domain.
    """
    domains = [store.domain(name) for name in names]
    figures = [domain_figures(domain) for domain in domains]
    for one in figures:
        for doubt in doubts(one.order, one.cold):
            log.warning(f"domain {one.domain}: {doubt}")
    return {"domains": figures, "shared": overlaps(domains)}

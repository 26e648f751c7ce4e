"""Small shops for tests: a domain made of hand-written rows, without any ingest."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from antpipe.features.ingest.tables import INTERACTIONS, ITEMS, REJECTS, write_domain
from antpipe.store import Domain, Store

NOTHING_ELSE: dict[str, Any] = {
    "title": "", "text": "", "price": None, "currency": "", "category": [], "image_urls": [], "image_files": [],
}  # fmt: skip


def make_domain(
    store: Store,
    name: str,
    items: Sequence[Mapping[str, Any]],
    interactions: Sequence[tuple[Any, ...]] = (),
    pictures: Mapping[str, bytes] | None = None,
) -> Domain:
    """A domain of these rows.

    items: one mapping an item, `item_id` and whatever else of the columns of ITEMS the test is about.
    interactions: (user_id, item_id, timestamp) or (user_id, item_id, timestamp, rating); without any, one user
    meets every item. pictures: file contents by the names `image_files` uses. Rows: sorted by item_id.
    """
    rows = interactions or [("somebody", item["item_id"], time) for time, item in enumerate(items)]
    domain = store.new_domain(name)
    write_domain(
        domain,
        parameters={"format": "table", "items": [str(item) for item in items], "rows": [str(row) for row in rows]},
        items=pl.DataFrame([{**NOTHING_ELSE, **item} for item in items], schema=ITEMS),
        interactions=pl.DataFrame([(*row, None)[:4] for row in rows], schema=INTERACTIONS, orient="row"),
        rejects=pl.DataFrame(schema=REJECTS),
        report={},
        pictures=pictures,
    )
    return domain

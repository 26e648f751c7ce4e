"""Small shops for tests: a domain made of hand-written rows, without any ingest."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from antpipe.features.ingest.domain import INTERACTIONS, ITEMS, REJECTS, VERIFIED, write_domain
from antpipe.runtime.logs import silenced
from antpipe.store.domain import Domain
from antpipe.store.store import Store

NOTHING_ELSE: dict[str, Any] = {
    "title": "",
    "text": "",
    "price": None,
    "currency": "",
    "category": [],
    "image_urls": [],
    "image_files": [],
}


def make_domain(
    store: Store,
    name: str,
    items: Sequence[Mapping[str, Any]],
    interactions: Sequence[tuple[Any, ...]] = (),
    pictures: Mapping[str, bytes] | None = None,
    cold: Sequence[Mapping[str, Any]] = (),
) -> Domain:
    """A domain of these rows.

    items: one mapping an item, `item_id` and whatever else of the columns of ITEMS the test is about.
    interactions: (user_id, item_id, timestamp), perhaps with a rating, then whether the purchase is verified; without
    any, one user meets every item. pictures: file contents by the names `image_files` uses. cold: items outside the
    core. Rows: sorted by item_id, cold items last.
    """
    rows = interactions or [("somebody", item["item_id"], time) for time, item in enumerate(items)]
    domain = store.new_domain(name)
    schema = pl.Schema({**INTERACTIONS, **VERIFIED})
    width = max(len(INTERACTIONS), len(rows[0]))
    with silenced():  # what ingest says of the order is not what these tests are about
        write_domain(
            domain,
            parameters={
                "format": "table",
                "items": [str(item) for item in (*items, *cold)],
                "rows": [str(row) for row in rows],
            },
            items=pl.DataFrame([{**NOTHING_ELSE, **item} for item in items], schema=ITEMS),
            interactions=pl.DataFrame(
                [(*row, None)[:width] for row in rows], schema=dict([*schema.items()][:width]), orient="row"
            ),
            rejects=pl.DataFrame(schema=REJECTS),
            report={},
            flags=[],
            pictures=pictures,
            cold=pl.DataFrame([{**NOTHING_ELSE, **item} for item in cold], schema=ITEMS),
        )
    return domain


def picture(seed: int, size: tuple[int, int] = (40, 30), form: str = "PNG") -> bytes:
    """A file with a coarse pattern drawn from the seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(stream, form)
    return stream.getvalue()


def phone_picture(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """A JPEG with a second, smaller picture in it, as phones write them: Pillow reports the format MPO."""
    first = Image.open(io.BytesIO(picture(seed, size)))
    stream = io.BytesIO()
    first.save(stream, "MPO", save_all=True, append_images=[first.reduce(2)], quality=95)
    return stream.getvalue()


def picture_shop(store: Store, pictures: dict[str, bytes], files: dict[str, list[str]]) -> Domain:
    """The domain `shop`. pictures: file contents by name. files: for each item the names of its pictures."""
    items = [{"item_id": item_id, "image_files": names} for item_id, names in files.items()]
    return make_domain(store, "shop", items, pictures=pictures)

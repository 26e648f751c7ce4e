"""The metadata files of the Amazon releases: products become items.

One JSON object per line (2014: Python literals), with different keys in each release. Keys that are not used here are
not checked.
"""

import math
import re
from contextlib import closing
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
from msgspec import Struct

from antpipe.features.ingest.amazon.json_lines import Id, read_records
from antpipe.features.ingest.domain import ITEMS
from antpipe.features.ingest.price import parse_price
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.rules import Metadata, line_counts
from antpipe.features.ingest.text import category_path, clean_brand, clean_texts, clean_title, item_text
from antpipe.runtime.logs import log

Texts = str | list[str] | None
ROWS_AT_ONCE = 10_000


class Product(Struct):
    """One line of metadata of any release."""

    parent_asin: Id | None = None
    asin: Id | None = None
    title: str | None = None
    brand: str | None = None
    store: str | None = None
    main_cat: str | None = None
    main_category: str | None = None
    category: Texts = None
    categories: list[str | list[str]] | None = None
    feature: Texts = None
    features: Texts = None
    description: Texts = None
    price: float | str | None = None
    image_thumbs: Texts = msgspec.field(name="image", default=None)
    image_url: Texts = msgspec.field(name="imageURL", default=None)
    image_high: Texts = msgspec.field(name="imageURLHighRes", default=None)
    im_url: str | None = msgspec.field(name="imUrl", default=None)
    # A list of records; or, as the `datasets` library writes such a list, one record of lists.
    images: list[dict[str, str | None]] | dict[str, list[str | None]] | None = None

    def __post_init__(self) -> None:
        if self.parent_asin is None and self.asin is None:
            raise ValueError("neither `parent_asin` nor `asin`")

    @property
    def item(self) -> str:
        return self.parent_asin or self.asin or ""


def read_metadata(
    path: Path, text_fields: tuple[str, ...], rejects: Rejects, wanted: set[str], others: int | None = 0
) -> Metadata:
    """The wanted items of a metadata file and the first `others` (None: all) of the rest.

    If an item has several lines, the first counts and the others are duplicates. Memory grows with the items that are
    returned, and by an id for each of the rest.
    """
    left: float = math.inf if others is None else others
    ids: set[str] = set()
    parts, rows, release, good = [], [], "", 0
    with closing(read_records(path, lambda _: Product, list, rejects)) as records:
        for product in chain.from_iterable(piece for _, some in records for piece in some):
            release = release or release_of(product)
            good += 1
            if product.item not in ids and (product.item in wanted or left):
                left -= product.item not in wanted
                rows.append(describe(product, text_fields))
                if len(rows) == ROWS_AT_ONCE:  # a table takes a fraction of the memory of its rows as dictionaries
                    parts.append(pl.DataFrame(rows, schema=ITEMS))
                    rows = []
            ids.add(product.item)
    facts = {"format": release, **line_counts(rejects.count(path), good, len(ids))}
    log.info(f"{path.name}: {release}, {facts['lines']} lines")
    table = pl.concat([*parts, pl.DataFrame(rows, schema=ITEMS)])
    return Metadata(table, pl.Series("item_id", list(ids)), facts)


def release_of(product: Product) -> str:
    """The release of a metadata line, judged by its keys."""
    if product.parent_asin is not None:
        return "metadata of 2023"
    if product.image_url is not None or product.image_high is not None:
        return "metadata of 2018 (imageURL)"
    if product.image_thumbs is not None:
        return "metadata of 2018 (image: thumbnails)"
    return "metadata of 2018" if product.category is not None else "metadata of 2014"


def image_urls(product: Product) -> list[str]:
    """The URLs of a product's pictures at the best published resolution, in page order, each once.

    The 2018 release gives thumbnails (`I/51abc._SX38_SY50_CR,0,0,38,50_.jpg`), with or without the full size; the URL
    without the part between the dots is the full size.
    """
    pictures = product.images or []
    if isinstance(pictures, dict):
        pictures = [dict(zip(pictures, sizes, strict=True)) for sizes in zip_longest(*pictures.values())]
    urls = [picture.get("hi_res") or picture.get("large") or picture.get("thumb") for picture in pictures]
    for source in (product.image_high, product.image_url, product.image_thumbs, product.im_url):
        urls = urls or [_full_size(url) for url in _listed(source)]
    return list(dict.fromkeys(url for url in urls if url and url.startswith(("http://", "https://"))))


def _full_size(url: str) -> str:
    return re.sub(r"\._[A-Z][^/]*(\.[a-zA-Z]{3,4})\Z", r"\1", url)


def describe(product: Product, text_fields: tuple[str, ...]) -> dict[str, Any]:
    """A row of ITEMS. Prices without a currency are in US dollars: the releases come from amazon.com."""
    path: list[str] = []
    for level in product.categories or _listed(product.category):
        if isinstance(level, list):  # 2014: several paths, the first is the main one
            path = path or level
        else:
            path.append(level)
    category = category_path(path) or category_path(_listed(product.main_category or product.main_cat))
    title, price = clean_title(product.title), parse_price(product.price)
    text = item_text(
        {
            "title": title,
            "category": category,
            "brand": clean_brand(product.brand or product.store),
            "features": clean_texts(_listed(product.features or product.feature)),
            "description": clean_texts(_listed(product.description)),
        },
        text_fields,
    )
    return {
        "item_id": product.item,
        "title": title,
        "text": text,
        "price": price and price[0],
        "currency": price and (price[1] or "USD"),
        "category": category,
        "image_urls": image_urls(product),
        "image_files": [],
    }


def _listed(texts: Texts) -> list[str]:
    if texts is None:
        return []
    return [texts] if isinstance(texts, str) else texts

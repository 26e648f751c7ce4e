"""Lines of the published Amazon review files: how they are read, what they mean, what becomes of bad ones.

Releases: 2014 (jmcauley.ucsd.edu/data/amazon), 2018 (nijianmo.github.io/amazon), 2023 (amazon-reviews-2023.github.io).
Each is one JSON object a line; the metadata of 2014 are Python literals.

A line is malformed where it is not UTF-8 or not JSON, where an id or the time is missing or empty, where a value that
is used has the wrong type, and where a rating is not between 0 and 5. A missing rating stays missing.
"""

import ast
import json
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Meta, Struct
from numpy.typing import NDArray

from antpipe.errors import DataError
from antpipe.features.ingest.lines import Block, again, block_of, join, read_blocks
from antpipe.features.ingest.price import parse_price
from antpipe.features.ingest.text import category_path, clean_brand, clean_texts, clean_title, item_text

T = TypeVar("T", bound=Struct)
Kept = TypeVar("Kept")
EXCERPT = 200
BRACES = b"{}"
PIECE = 2_000  # lines that are decoded in one go

Id = Annotated[str, Meta(min_length=1)]
# Times beyond the year 5000 are milliseconds taken for seconds, or no times at all.
Seconds = Annotated[int, Meta(ge=0, le=10**11)]
Milliseconds = Annotated[int, Meta(ge=0, le=10**14)]
# Stars go from 1 to 5; 0 is written where the page showed none.
Rating = Annotated[float, Meta(ge=0, le=5)]

# What decoding a hostile line can raise: ValueError covers msgspec, json and UTF-8, the others are Python literals.
MALFORMED = (ValueError, TypeError, SyntaxError, RecursionError, MemoryError)


class Review2018(Struct, gc=False):
    """Releases of 2014 and 2018. A missing rating stays missing: nothing downstream needs it."""

    user: Id = msgspec.field(name="reviewerID")
    item: Id = msgspec.field(name="asin")
    seconds: Seconds = msgspec.field(name="unixReviewTime")
    rating: Rating | None = msgspec.field(name="overall", default=None)


class Review2023(Struct, gc=False):
    """Release of 2023. Its metadata describe parents (a product with all its colours and sizes)."""

    user: Id = msgspec.field(name="user_id")
    milliseconds: Milliseconds = msgspec.field(name="timestamp")
    rating: Rating | None = None
    parent_asin: Id | None = None
    asin: Id | None = None

    def __post_init__(self) -> None:
        if self.parent_asin is None and self.asin is None:
            raise ValueError("neither `parent_asin` nor `asin`")

    @property
    def item(self) -> str:
        return self.parent_asin or self.asin or ""


Review = Review2018 | Review2023
Texts = str | list[str] | None


class Product(Struct):
    """One line of metadata of any release; keys that are not used here are not checked."""

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
    images: list[dict[str, str | None]] | None = None

    def __post_init__(self) -> None:
        if self.parent_asin is None and self.asin is None:
            raise ValueError("neither `parent_asin` nor `asin`")

    @property
    def item(self) -> str:
        return self.parent_asin or self.asin or ""


def review_layout(line: bytes) -> type[Review]:
    """The release a review line is of; one of MALFORMED where it shows none."""
    if b'"reviewerID"' in line:
        return Review2018
    if b'"user_id"' in line:
        return Review2023
    json.loads(line)
    raise msgspec.ValidationError("neither `reviewerID` (releases of 2014 and 2018) nor `user_id` (2023)")


def product_layout(_: bytes) -> type[Product]:
    return Product


def review_format(review: Review) -> str:
    return "reviews of 2014/2018" if isinstance(review, Review2018) else "reviews of 2023"


def product_format(product: Product) -> str:
    """The release a metadata line is of, as far as its keys show it."""
    if product.parent_asin is not None:
        return "metadata of 2023"
    if product.image_url is not None or product.image_high is not None:
        return "metadata of 2018 (imageURL)"
    if product.image_thumbs is not None:
        return "metadata of 2018 (image: thumbnails)"
    return "metadata of 2018" if product.category is not None else "metadata of 2014"


@dataclass
class Rejects:
    """Malformed lines of one run; more than `limit` end it with the advice `next_command`."""

    limit: int
    next_command: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    first: str = ""

    def add(self, path: Path, number: int, reason: str, line: bytes) -> None:
        """number: of the line, from 1. DataError where there are too many."""
        excerpt = line.decode("utf-8", "replace")[:EXCERPT]
        self.rows.append({"file": path.name, "line": number, "reason": reason, "excerpt": excerpt})
        self.first = self.first or f"{path}:{number}: {reason}"
        if len(self.rows) > self.limit:
            raise DataError(
                f"{len(self.rows)} malformed line(s) so far, allowed are {self.limit}; the first: {self.first}",
                self.next_command,
            )

    def count(self, path: Path) -> int:
        """Malformed lines of a file."""
        return sum(row["file"] == path.name for row in self.rows)


def decode(line: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """One line as a record; one of MALFORMED where that fails."""
    if not line.isascii():
        line.decode("utf-8")  # msgspec does not look into the values it skips
    try:
        return decoder.decode(line)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        # Two kinds of line are usable though not strict JSON: Python literals, and texts cut in the middle of an
        # emoji (half a surrogate pair, which becomes a question mark).
        value = ast.literal_eval(line.decode()) if line.startswith(b"{'") else json.loads(line)
        return decoder.decode(json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace"))


def read_records(
    path: Path, layout: Callable[[bytes], type[T]], keep: Callable[[list[T]], Kept], rejects: Rejects, limit: int = 0
) -> Generator[tuple[Block, list[Kept]], None, None]:
    """Good lines and what is kept of them, many at a time; the others go to `rejects`.

    layout: the record type a line shows. The first line that shows one settles it for the file. keep: makes of some
    records what is needed of them; where it is asked, they are still in the processor's cache. limit: lines to read
    (0: all).
    DataError where the file has no good line.
    """
    decoder: msgspec.json.Decoder[T] | None = None
    good = number = 0
    for every in read_blocks(path):
        block = every.part(0, limit - number) if limit else every
        found: list[Kept] = []
        whole, pieces = True, [block.part(first, first + PIECE) for first in range(0, len(block), PIECE)]
        for at, piece in enumerate(pieces):
            records = decode_block(piece, decoder)
            if records is None:  # something is wrong with one of its lines
                records, lines = [], []
                for place, line in enumerate(piece.lines(), number + 1):
                    try:
                        decoder = decoder or msgspec.json.Decoder(layout(line))
                        records.append(decode(line, decoder))
                        lines.append(line)
                    except MALFORMED as error:
                        rejects.add(path, place, _reason(error), line)
                pieces[at], whole = block_of(lines), False
            if records:
                found.append(keep(records))
            good += len(records)
            number += len(piece)
        yield block if whole else join(pieces), found
        if number == limit:
            break
    if not number:
        raise DataError(f"{path}: empty", again(path))
    if not good:
        first = rejects.rows[-number]
        raise DataError(f"{path}:{first['line']}: {first['reason']}; no line of {number} is usable", again(path))


def decode_block(block: Block, decoder: msgspec.json.Decoder[T] | None) -> list[T] | None:
    """What whole lines say, a record a line; None where `decode` has to look at them one by one.

    In one go it is twice as fast, but msgspec takes a line feed for any white space: a line could hold two objects, or
    an object go on in the next line. Where all lines begin with a brace and end with one, no object can go on (nothing
    but a comma could stand between these braces, and a string holds no line feed), so equal numbers say that each line
    has one.
    """
    text, ends = block.text, block.ends
    if decoder is None or text[0] != BRACES[0]:
        return None
    if (text[ends - 1] != BRACES[1]).any() or (text[ends[:-1] + 1] != BRACES[0]).any():
        return None
    try:
        require_utf8(text)  # msgspec does not look into the values it skips
        records = decoder.decode_lines(text.data)
    except MALFORMED:
        return None
    return records if len(records) == len(block) else None


def require_utf8(text: NDArray[np.uint8]) -> None:
    """One of MALFORMED where bytes are not UTF-8. Unlike `bytes.decode`, this makes no string of them."""
    buffers = [None, pa.py_buffer(np.array([0, len(text)])), pa.py_buffer(text)]
    pa.Array.from_buffers(pa.large_string(), 1, buffers).validate(full=True)


def _reason(error: BaseException) -> str:
    if isinstance(error, msgspec.ValidationError):
        return str(error)
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: byte {error.start}"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at character {error.pos}"
    return "not JSON"


def image_urls(product: Product) -> list[str]:
    """Addresses of a product's pictures at the best published resolution, in page order, each once.

    The 2018 release gives thumbnails (`I/51abc._SX38_SY50_CR,0,0,38,50_.jpg`) with or without the full size; the
    address without the part between the dots is the full size.
    """
    pictures = product.images or []
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

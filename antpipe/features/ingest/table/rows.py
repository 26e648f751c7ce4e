"""What the rows of the two tables say: interactions, and items as they go into the catalogue."""

import json
import math
import re
from array import array
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from antpipe.errors import DataError
from antpipe.features.ingest.domain import ITEMS
from antpipe.features.ingest.price import parse_price
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.rules import Metadata, RawInteractions, drop_duplicate_lines, line_counts
from antpipe.features.ingest.table.columns import Columns
from antpipe.features.ingest.table.files import LineBreaks, read_rows
from antpipe.features.ingest.table.kept import KEPT, kept_columns
from antpipe.features.ingest.table.times import Times, to_milliseconds
from antpipe.features.ingest.text import (
    SEPARATOR,
    category_path,
    clean_brand,
    clean_html,
    clean_texts,
    clean_title,
    item_text,
)
from antpipe.runtime.logs import log
from antpipe.settings.ingest import TableConfig
from antpipe.store.next_command import first_lines

BETWEEN_LEVELS = re.compile(r"\s*\|\s*|\s+>\s+")
LONGEST_PATH = 1024
EXAMPLES = 3
ROWS_AT_ONCE = 10_000


def read_interactions(columns: Columns, config: TableConfig, rejects: Rejects) -> RawInteractions:
    """The rows of a file. Malformed rows go to `rejects`; of identical rows the first stays.

    Rows of a file without times are never identical: the same item again is another visit, and its position in the file
    its time. Raises DataError if the times fit no unit or if no row is usable.
    """
    table, roles = columns.table, columns.roles
    wanted = [roles[role][0] if role in roles else None for role in ("user", "item", "time", "rating")]
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    user, item, rating, whole = array("i"), array("i"), array("f"), array("q")
    times = Times(typed=wanted[2] in table.dates)
    before, breaks = len(rejects.rows), LineBreaks()
    named = [name for name in wanted if name is not None]
    for row in read_rows(table, named, rejects, config.limit, ids=named[:2]):
        breaks.see(row)
        values = iter(row.values)
        ids_time_rating = [None if name is None else next(values) for name in wanted]
        try:
            user_id, item_id = to_id(ids_time_rating[0], "user"), to_id(ids_time_rating[1], "item")
            stars = to_rating(ids_time_rating[3])
            times.add(row.line, row.line if wanted[2] is None else ids_time_rating[2])
        except ValueError as error:
            rejects.add(table.path, row.line, str(error), _excerpt(row.values))
            continue
        user.append(users.setdefault(user_id, len(users)))
        item.append(items.setdefault(item_id, len(items)))
        rating.append(stars)
        whole.append(hash((row.whole, row.line)) if wanted[2] is None else row.whole)
    malformed = len(rejects.rows) - before
    if not user:
        raise _no_row(table.path, rejects, malformed)
    milliseconds, unit = to_milliseconds(times, config.time_unit, table.path)
    every = pl.DataFrame(
        {
            "user_id": np.asarray(user),
            "item_id": np.asarray(item),
            "timestamp": milliseconds,
            "rating": np.asarray(rating),
            "line_hash": np.asarray(whole),
        }
    ).with_columns(pl.col("rating").fill_nan(None))
    distinct = drop_duplicate_lines(every)
    facts = _facts(columns, line_counts(malformed, len(every), len(distinct)), breaks) | {
        "time_unit": unit,
        "first_time": int(milliseconds.min()),
        "last_time": int(milliseconds.max()),
    }
    log.info(
        f"{facts['file']}: {facts['lines']} rows, times are {unit}, from {facts['first_time']} to {facts['last_time']}"
        + ("" if unit == "order" else " ms")
    )
    _warn_of_line_breaks(columns, breaks)
    return RawInteractions(distinct, pl.Series("user_id", list(users)), pl.Series("item_id", list(items)), facts)


def read_items(
    columns: Columns,
    text_fields: tuple[str, ...],
    rejects: Rejects,
    wanted: Set[str] = frozenset(),
    others: int | None = None,
    limit: int = 0,
) -> Metadata:
    """The wanted items and the first `others` (None: all) of the rest.

    Of several rows of an item the first counts, the others are duplicates. limit: rows to read (0: all). Raises
    DataError if no row is usable.
    """
    left: float = math.inf if others is None else others
    table, roles = columns.table, columns.roles
    flat = [(role, name) for role, names in roles.items() for name in names]
    ids: dict[str, None] = {}
    parts: list[pl.DataFrame] = []
    rows: list[dict[str, Any]] = []
    kept: list[list[Any]] = []
    missing: list[str] = []
    before, good, breaks = len(rejects.rows), 0, LineBreaks()
    for row in read_rows(table, [name for _, name in flat], rejects, limit, ids=roles["item"]):
        breaks.see(row)
        values: dict[str, list[Any]] = {}
        for (role, _), value in zip(flat, row.values, strict=True):
            values.setdefault(role, []).append(value)
        try:
            item_id = to_id(values["item"][0], "item")
        except ValueError as error:
            rejects.add(table.path, row.line, str(error), _excerpt(row.values))
            continue
        good += 1
        if item_id not in ids and (item_id in wanted or left):
            left -= item_id not in wanted
            rows.append(describe(item_id, values, text_fields, table.path.parent, missing))
            kept.append(values.get(KEPT, []))
            if len(rows) == ROWS_AT_ONCE:  # a table takes a fraction of the memory of its rows as dictionaries
                parts.append(pl.DataFrame(rows, schema=ITEMS))
                rows = []
        ids[item_id] = None
    malformed = len(rejects.rows) - before
    if not good:
        raise _no_row(table.path, rejects, malformed)
    _warn_of_line_breaks(columns, breaks)
    if missing:
        log.warning(
            f"{table.path.name}: {len(missing)} picture file(s) are not there, for example "
            f"{', '.join(missing[:EXAMPLES])}; embed-image --images DIR takes files named after the items"
        )
    facts = _facts(columns, line_counts(malformed, good, len(ids)), breaks)
    every = pl.concat([*parts, pl.DataFrame(rows, schema=ITEMS)])
    every = every.hstack(kept_columns(table, roles.get(KEPT, []), kept))
    return Metadata(every, pl.Series("item_id", list(ids)), facts)


def describe(
    item_id: str, values: Mapping[str, list[Any]], text_fields: tuple[str, ...], folder: Path, missing: list[str]
) -> dict[str, Any]:
    """A row of ITEMS. values: by role. folder: where paths of picture files start; missing files go to `missing`.

    The text is that of the columns of `text`, or if there are none, the parts named by text_fields.
    """

    def one(role: str) -> Any:
        return values[role][0] if role in values else None

    title = clean_title(_text(one("title")))
    category = category_path(level for part in _listed(one("category")) for level in BETWEEN_LEVELS.split(part))
    price = parse_price(_number(one("price")))
    if "text" in values:
        text = SEPARATOR.join(
            part.removesuffix(".") for value in values["text"] if (part := clean_html(" ".join(_listed(value))))
        )
    else:
        lists = {role: clean_texts(_listed(one(role))) for role in ("features", "description")}
        text = item_text(
            {"title": title, "category": category, "brand": clean_brand(_text(one("brand"))), **lists}, text_fields
        )
    urls, files = pictures_of(one("image"), folder, missing)
    return {
        "item_id": item_id,
        "title": title,
        "text": text,
        "price": price and price[0],
        "currency": price and price[1],
        "category": category,
        "image_urls": urls,
        "image_files": files,
    }


def pictures_of(value: Any, folder: Path, missing: list[str]) -> tuple[list[str], list[str]]:
    """URLs, and absolute paths of files that exist; names of other files go to `missing`."""
    urls, files = [], []
    for name in dict.fromkeys(part.strip() for text in _listed(value) for part in text.split("|")):
        if name.lower().startswith(("http://", "https://")):
            urls.append(name)
        elif name and _is_file(folder, name):
            files.append(str((folder / name).resolve()))
        elif name:
            missing.append(name[:200])
    return urls, files


def _is_file(folder: Path, name: str) -> bool:
    """Whether a file of this name exists and may be looked at."""
    if len(name) > LONGEST_PATH or "\x00" in name:
        return False
    try:
        return (folder / name).is_file()
    except OSError:  # a part longer than 255 bytes, a folder without permission
        return False


def to_id(value: Any, what: str) -> str:
    """An id as text without blanks around it; 7.0 becomes 7. Raises ValueError if it is missing or not an id."""
    if isinstance(value, list | dict):
        raise ValueError(f"{what} id {str(value)[:40]} is not a single value")
    if isinstance(value, float):
        if not value.is_integer():  # NaN too
            raise ValueError(f"no {what} id" if math.isnan(value) else f"{what} id {value} is not a whole number")
        value = int(value)
    text = "" if value is None else str(value).strip()
    if not text:
        raise ValueError(f"no {what} id")
    return text


def to_rating(value: Any) -> float:
    """A rating, NaN if it is missing. Raises ValueError if it is not a finite number."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"rating {str(value)[:40]!r} is not a number") from None
    if math.isinf(number) or abs(number) > 1e30 or (math.isnan(number) and isinstance(value, str)):
        raise ValueError(f"rating {str(value)[:40]!r} is not a finite number")
    return number


def _text(value: Any) -> str | None:
    return " ".join(parts) if (parts := _listed(value)) else None


def _number(value: Any) -> Any:
    """A price: decimals of Parquet as floats."""
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _listed(value: Any) -> list[str]:
    """A value as texts: a list, a JSON list as CSV files hold it, or one text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):  # not a list, but a text in brackets
            return [value]
    parts = value if isinstance(value, list) else [value]
    return [str(part) for part in parts if part is not None]


def _excerpt(values: list[Any]) -> bytes:
    return "\t".join("" if value is None else str(value) for value in values).encode("utf-8", "replace")


def _facts(columns: Columns, counts: Mapping[str, int], breaks: LineBreaks) -> dict[str, Any]:
    return {
        "file": columns.table.path.name,
        "format": columns.table.form,
        "columns": columns.roles,
        **counts,
        "line_breaks": {"rows": breaks.rows, "longest": [breaks.first, breaks.last]},
    }


def _warn_of_line_breaks(columns: Columns, breaks: LineBreaks) -> None:
    """Warn if values in quotes hold line breaks, as a stray quote can cause. Not if the user asked for quotes."""
    if breaks.rows and columns.table.check_quotes:
        log.warning(
            f"{columns.table.path.name}: {breaks.rows} {'row has' if breaks.rows == 1 else 'rows have'} line breaks "
            f"inside quotes, the longest from line {breaks.first} to line {breaks.last}; if quotes mean nothing in "
            "this file, add --no-quotes"
        )


def _no_row(path: Path, rejects: Rejects, malformed: int) -> DataError:
    if not malformed:
        return DataError(f"{path}: it has a header, but no row", first_lines(path))
    first = rejects.rows[-malformed]
    return DataError(
        f"{path}:{first['line']}: {first['reason']}; no row of {malformed} is usable; name the right columns with "
        "--map ROLE=COLUMN"
    )

"""The rows of the two tables: interactions, and items as they go into the catalogue."""

import math
import re
import shlex
from array import array
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from antpipe.features.ingest.advice import SettingsError
from antpipe.features.ingest.domain import ITEMS
from antpipe.features.ingest.price import Price, PriceColumn, parse_price
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.rules import Metadata, RawInteractions, drop_duplicate_lines, line_counts
from antpipe.features.ingest.table.columns import Columns, parse_map
from antpipe.features.ingest.table.cure import no_row
from antpipe.features.ingest.table.dates import date_format_of
from antpipe.features.ingest.table.files import read_rows
from antpipe.features.ingest.table.kept import KEPT, kept_columns
from antpipe.features.ingest.table.selection import is_return, selection_of, tell_left_out
from antpipe.features.ingest.table.table import LineBreaks
from antpipe.features.ingest.table.times import (
    UNITS,
    Times,
    exact_order,
    in_words,
    require_exact_times,
    to_milliseconds,
)
from antpipe.features.ingest.table.values import (
    Verified,
    described,
    levels_of,
    number_of,
    pictures_of,
    text_of,
    to_id,
    to_rating,
)
from antpipe.features.ingest.text import (
    MISSING_WORDS,
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

BETWEEN_LEVELS = re.compile(r"\||(?<=\s)>(?=\s)")  # without the blanks around: a long run would take quadratic time
WHOLE_FLOAT = re.compile(r"\d+\.0+")
EXAMPLES = 3
MOST_INSIDE = 0.5  # share of the lines of a file of interactions that may be inside quotes
FAR = 4_102_444_800_000  # the year 2100, in milliseconds
EARLY = 788_918_400_000  # the year 1995: numbers that end earlier are more likely ticks or steps of other systems
ROWS_AT_ONCE = 10_000
READ = ("user", "item", "time", "rating", "quantity", "verified")  # roles of interactions
UNKNOWN = -1  # neither a verified purchase nor none


def read_interactions(columns: Columns, config: TableConfig, rejects: Rejects) -> RawInteractions:
    """The rows of a file that --where and --drop-users keep. Malformed rows go to `rejects`; the first of identical
    rows is kept.

    Rows of a file without times are never identical: the same item again is another visit, whose time is its position
    in the file. Raises DataError if the times fit no unit or if no row is usable.
    """
    table, roles = columns.table, columns.roles
    wanted = [roles[role][0] if role in roles else None for role in READ]
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    user, item, rating, verified, whole = array("i"), array("i"), array("f"), array("b"), array("q")
    form = date_format_of(table, wanted[2], config)
    times = Times(typed=table.fine.get(wanted[2] or "", 1) if wanted[2] in table.dates else 0, form=form)
    before, breaks, truth = rejects.total, LineBreaks(), Verified("verified" in parse_map(config))
    named = [name for name in wanted if name is not None]
    chosen = selection_of(table, wanted[2], config, form)
    left_out, returns = dict.fromkeys(config.drop_users, 0), 0
    columns_read = [*named, *chosen.columns]
    every_row = read_rows(table, columns_read, rejects, config.limit, ids=named[:2], exact=wanted[2])
    for row in chosen.rows(every_row, len(named)):
        breaks.see(row)
        values = iter(row.values)
        cells = [None if name is None else next(values) for name in wanted]
        try:
            user_id = to_id(cells[0], "user")
            if user_id in left_out:
                left_out[user_id] += 1
                continue
            item_id = to_id(cells[1], "item")
            stars, real = to_rating(cells[3]), truth.read(row.line, cells[5])
            times.add(row.line, row.line if wanted[2] is None else cells[2])
        except ValueError as error:
            rejects.add(table.path, row.line, str(error), _excerpt(row.values[: len(named)]))
            continue
        returns += is_return(cells[4])
        user.append(users.setdefault(user_id, len(users)))
        item.append(items.setdefault(item_id, len(items)))
        rating.append(stars)
        verified.append(UNKNOWN if real is None else real)
        whole.append(hash((row.whole, row.line)) if wanted[2] is None else row.whole)
    malformed = rejects.total - before
    dropped = {
        **({"where_dropped": chosen.dropped} if config.where else {}),
        **({"users_dropped": sum(left_out.values())} if config.drop_users else {}),
    }
    if not user:
        raise no_row(table.path, rejects, malformed, dropped, config)
    milliseconds, unit = to_milliseconds(times, config.time_unit, table.path)
    require_exact_times(table, wanted[2], times)
    order = exact_order(times, unit)
    every = pl.DataFrame(
        {
            "user_id": np.asarray(user),
            "item_id": np.asarray(item),
            "timestamp": milliseconds,
            "rating": np.asarray(rating),
            "verified": np.full(len(user), UNKNOWN, np.int8) if truth.unfit else np.asarray(verified),
            "line_hash": np.asarray(whole),
        }
    ).with_columns(pl.col("rating").fill_nan(None), pl.col("verified").replace(UNKNOWN, None).cast(pl.Boolean))
    every = every if order is None else every[order]
    distinct = drop_duplicate_lines(every)
    facts = _facts(columns, line_counts(malformed, len(every), len(distinct), dropped), breaks) | {
        "time_unit": unit,
        "first_time": int(milliseconds.min()),
        "last_time": int(milliseconds.max()),
    }
    _tell_times(facts, "their type says so" if times.typed else form.in_words if form else "ISO 8601")
    _tell_unfit(table.path, wanted[5], truth)
    tell_left_out(table.path, config, chosen, left_out, (wanted[4] or "", returns))
    for role, rows, ids in (("user", user, users), ("item", item, items)):
        _tell_odd_ids(columns, role, np.asarray(rows), ids)
    _require_few_line_breaks(columns, breaks, facts["lines"])
    return RawInteractions(distinct, pl.Series("user_id", list(users)), pl.Series("item_id", list(items)), facts)


def _tell_times(facts: Mapping[str, Any], written: str) -> None:
    """Log how many rows there are and how their times were read. written: how dates are written."""
    unit, (first, last) = facts["time_unit"], (facts["first_time"], facts["last_time"])
    kind = {"order": "an order", "date": f"dates ({written})"}.get(unit, unit)
    span = f"{in_words(first, unit)} to {in_words(last, unit)}"
    log.info(f"{facts['file']}: {facts['lines']} rows, times are {kind}, from {span}")
    far, early = unit != "order" and last >= FAR, unit in UNITS and last < EARLY
    if far or early:
        log.warning(
            f"{facts['file']}: times {'reach to' if far else 'end at'} {in_words(last, unit)}; if that is wrong, say "
            "with --time-unit what they count"
        )


def _tell_unfit(path: Path, column: str | None, truth: Verified) -> None:
    """Warn of a column that seemed to say which purchases are verified, but says something else."""
    if truth.unfit:
        line, why = truth.first
        log.warning(
            f"{path}:{line}: {why}, like {truth.unfit} {'value' if truth.unfit == 1 else 'values'} of column "
            f"{column!r}, which is not used; if it says which purchases are verified, correct it, or find these "
            f"rows with --map {shlex.quote(f'verified={column}')}"
        )


def read_items(
    columns: Columns,
    text_fields: tuple[str, ...],
    rejects: Rejects,
    config: TableConfig,
    wanted: Set[str] = frozenset(),
    others: int | None = None,
    limit: int = 0,
    folder: Path | None = None,
) -> Metadata:
    """The wanted items and the first `others` (None: all) of the rest.

    If an item has several rows, the first counts and the others are duplicates. config: holds the condition that rows
    must fulfil. limit: rows to read (0: all). folder: pictures must lie below it (None: that of the table). Raises
    DataError if no row is usable.
    """
    left: float = math.inf if others is None else others
    table, roles = columns.table, columns.roles
    flat = [(role, name) for role, names in roles.items() for name in names]
    between = re.compile(re.escape(mark)) if (mark := config.category_separator) else BETWEEN_LEVELS
    ids: dict[str, None] = {}
    parts: list[pl.DataFrame] = []
    rows: list[dict[str, Any]] = []
    kept: list[list[Any]] = []
    missing: list[str] = []
    prices, described_before = PriceColumn(), 0
    outside: list[str] | None = None if config.allow_outside else []
    pictures = folder or table.home
    before, good, breaks = rejects.total, 0, LineBreaks()
    chosen = selection_of(table, None, config, None)
    every_row = read_rows(table, [*(name for _, name in flat), *chosen.columns], rejects, limit, ids=roles["item"])
    for row in chosen.rows(every_row, len(flat)):
        breaks.see(row)
        values: dict[str, list[Any]] = {}
        for (role, _), value in zip(flat, row.values, strict=False):
            values.setdefault(role, []).append(value)
        try:
            item_id = to_id(values["item"][0], "item")
        except ValueError as error:
            rejects.add(table.path, row.line, str(error), _excerpt(row.values))
            continue
        good += 1
        if item_id not in ids and (item_id in wanted or left):
            left -= item_id not in wanted
            rows.append(describe(item_id, values, text_fields, pictures, missing, between, outside))
            for value in values.get("price", []):
                prices.see(described_before + len(rows) - 1, number_of(value))
            kept.append(values.get(KEPT, []))
            if len(rows) == ROWS_AT_ONCE:  # a table takes a fraction of the memory of its rows as dictionaries
                parts.append(pl.DataFrame(rows, schema=ITEMS))
                described_before += len(rows)
                rows = []
        ids[item_id] = None
    malformed = rejects.total - before
    dropped = {"where_dropped": chosen.dropped} if config.where else {}
    if not good:
        raise no_row(table.path, rejects, malformed, dropped, config)
    _warn_of_line_breaks(columns, breaks)
    settled = prices.settled()
    _tell_unused(columns, prices.unread, missing, outside or [], pictures)
    tell_left_out(table.path, config, chosen, {}, ("", 0))
    listed_ids = {item_id: number for number, item_id in enumerate(ids)}
    _tell_odd_ids(columns, "item", np.arange(len(ids)), listed_ids)
    facts = _facts(columns, line_counts(malformed, good, len(ids), dropped), breaks)
    every = _with_prices(pl.concat([*parts, pl.DataFrame(rows, schema=ITEMS)]), settled)
    every = every.hstack(kept_columns(table, roles.get(KEPT, []), kept))
    return Metadata(every, pl.Series("item_id", list(ids)), facts)


def _with_prices(items: pl.DataFrame, prices: Mapping[int, Price | None]) -> pl.DataFrame:
    """The items with other prices in some rows."""
    if not prices:
        return items
    amounts, currencies = items["price"].to_list(), items["currency"].to_list()
    for row, price in prices.items():
        amounts[row], currencies[row] = price or (None, None)
    return items.with_columns(
        pl.Series("price", amounts, items["price"].dtype), pl.Series("currency", currencies, items["currency"].dtype)
    )


def _tell_unused(
    columns: Columns, prices: Sequence[object], missing: Sequence[str], outside: Sequence[str], folder: Path
) -> None:
    """Warn of values that were not used: prices, and pictures that are missing or not in the folder."""
    name = columns.table.path.name
    if prices:
        log.warning(
            f"{name}: {len(prices)} {'value' if len(prices) == 1 else 'values'} in column "
            f"{columns.roles['price'][0]!r} could not be read as a price, such as {str(prices[0])[:40]!r}; these items "
            "have none"
        )
    if missing:
        log.warning(
            f"{name}: {len(missing)} picture file(s) are not there, for example {', '.join(missing[:EXAMPLES])}; "
            "embed-image --images DIR takes files named after the items"
        )
    if outside:
        log.warning(
            f"{name}: {len(outside)} picture file(s) lie outside of {folder} and are left out, such as "
            f"{', '.join(outside[:EXAMPLES])}; --allow-outside takes them"
        )


def describe(
    item_id: str,
    values: Mapping[str, list[Any]],
    text_fields: tuple[str, ...],
    folder: Path,
    missing: list[str],
    between: re.Pattern[str] = BETWEEN_LEVELS,
    outside: list[str] | None = None,
) -> dict[str, Any]:
    """A row of ITEMS. values: by role. folder: where paths of picture files start; missing files go to `missing`, and
    those not below the folder to `outside` (None: they are taken). between: the levels of a category.

    The text is that of the columns of `text`, or if there are none, the parts named by text_fields.
    """

    def one(role: str) -> Any:
        return values[role][0] if role in values else None

    title = clean_title(text_of(one("title")))
    category = category_path(level.strip() for part in levels_of(one("category")) for level in between.split(part))
    price = parse_price(number_of(one("price")))
    if "text" in values:
        text = SEPARATOR.join(
            part.removesuffix(".") for value in values["text"] if (part := clean_html(" ".join(described(value))))
        )
    else:
        lists = {role: clean_texts(described(one(role))) for role in ("features", "description")}
        text = item_text(
            {"title": title, "category": category, "brand": clean_brand(text_of(one("brand"))), **lists}, text_fields
        )
    urls, files = pictures_of(one("image"), folder, missing, outside)
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


def _tell_odd_ids(columns: Columns, role: str, rows: NDArray[Any], ids: Mapping[str, int]) -> None:
    """Warn of an id that programs write for a missing value, and of ids that are all texts of whole floats.

    rows: the id of each, ids: their numbers.
    """
    if all(WHOLE_FLOAT.fullmatch(one) for one in ids):
        log.warning(
            f"{columns.table.path.name}: every {role} is a number such as {next(iter(ids))}, as programs write whole "
            "numbers among missing values; in other files they may stand without the point"
        )
    for word in sorted(MISSING_WORDS & ids.keys()):
        count = int((rows == ids[word]).sum())
        other = f"--where \"{columns.roles[role][0]} != '{word}'\""
        leave = f"--drop-users {shlex.quote(word)}" if role == "user" else other
        log.warning(
            f"{columns.table.path.name}: {count} {'row has' if count == 1 else 'rows have'} the {role} {word!r}, which "
            f"programs write for a missing value; if it is not an id, leave them out with {leave}"
        )


def _require_few_line_breaks(columns: Columns, breaks: LineBreaks, rows: int) -> None:
    """Raises SettingsError if quoted values with line breaks hold most lines of a file of interactions; warns of fewer.

    Rows of interactions are short. Reviews may have such values, and then the user says so.
    """
    _warn_of_line_breaks(columns, breaks)
    if columns.table.check_quotes and breaks.inside > MOST_INSIDE * (rows + breaks.inside):
        raise SettingsError(
            f"{columns.table.path}: {breaks.inside} of its lines are inside quoted values, the longest from line "
            f"{breaks.first} to line {breaks.last}, which leaves {rows} rows; if quotes mean nothing in this file, add "
            "--no-quotes (if these are values, add --quotes)",
            {"quotes": False},
        )


def _warn_of_line_breaks(columns: Columns, breaks: LineBreaks) -> None:
    """Warn if values in quotes hold line breaks, as a stray quote can cause. Not if the user asked for quotes."""
    if breaks.rows and columns.table.check_quotes:
        log.warning(
            f"{columns.table.path.name}: {breaks.rows} {'row has' if breaks.rows == 1 else 'rows have'} line breaks "
            f"inside quotes, the longest from line {breaks.first} to line {breaks.last}; if quotes mean nothing in "
            "this file, add --no-quotes"
        )

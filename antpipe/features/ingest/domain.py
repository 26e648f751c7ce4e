"""The last step of every ingest: clean tables with original ids become the Parquet files of a domain."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from antpipe.features.ingest.ids import numbered
from antpipe.runtime.files import naming
from antpipe.runtime.logs import log
from antpipe.store.domain import Domain
from antpipe.store.manifest import id_table_sha256
from antpipe.store.order import Order, basis_of, in_words, measure_order, order_doubts

TEXT, TEXTS = pl.String(), pl.List(pl.String)
ITEMS = pl.Schema(
    [
        ("item_id", TEXT),
        ("title", TEXT),
        ("text", TEXT),
        ("price", pl.Float32()),
        ("currency", TEXT),
        ("category", TEXTS),
        ("image_urls", TEXTS),
        ("image_files", TEXTS),
    ]
)
INTERACTIONS = pl.Schema({"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "rating": pl.Float32})
# An optional column of interactions: the part of a given split. 0: train, 1: validation, 2: test target.
GIVEN_SPLIT = pl.Schema({"split": pl.Int8})
# Another one: whether an interaction is a verified purchase; null if that is unknown.
VERIFIED = pl.Schema({"verified": pl.Boolean})
REJECTS = pl.Schema({"file": pl.String, "line": pl.Int64, "reason": pl.String, "excerpt": pl.String})


def write_domain(
    domain: Domain,
    *,
    parameters: Mapping[str, Any],
    items: pl.DataFrame,
    interactions: pl.DataFrame,
    rejects: pl.DataFrame,
    report: Mapping[str, Any],
    flags: Sequence[str],
    pictures: Mapping[str, bytes] | None = None,
    keep_order: bool = False,
    cold: pl.DataFrame | None = None,
) -> dict[str, Any]:
    """Give items and users dense ids, and write items, interactions, users and rejects in one step.

    items: columns of ITEMS, perhaps kept ones too, one row per item of the core. cold: the same of items outside it,
    which follow the core in the order of their ids. interactions: columns of INTERACTIONS, with timestamps in ms, and
    perhaps of GIVEN_SPLIT and VERIFIED; rows of equal user and time keep their order. Without interactions the domain
    is only a catalogue.
    Dense ids follow the sorted original ids, so they depend neither on row order nor on hash seeds. keep_order: items
    keep their order, and users are in the order of their first interaction, for features that come with their own
    numbering. pictures: file contents by the names that `image_files` uses. report: figures for the manifest, with the
    `folder` of the source if there is one. flags: those that repeat this ingest. Returns the statistics of the domain,
    which are stored too. Logs how the interactions are ordered, with a warning if that cannot be their order in time.
    """
    if not len(items):
        raise AssertionError("an empty domain must be refused earlier, where the reason is known")
    core_rows = len(items)
    items, users, interactions = numbered_tables(items, interactions, keep_order, cold)
    ids = items["item_id"].to_list()
    id_table = id_table_sha256(ids)
    statistics = domain_statistics(items, interactions, core_rows)
    with domain.writing("items", parameters, id_table=id_table) as out:
        if pictures:
            folder = f"images-{id_table[:12]}"
            (out.scratch / folder).mkdir()
            for name, content in pictures.items():
                with naming(out.scratch / folder / name):
                    (out.scratch / folder / name).write_bytes(content)
            items = items.with_columns(pl.col("image_files").list.eval(pl.lit(f"{folder}/") + pl.element()))
            out.details["images"] = folder
            out.details["pictures"] = {name: hashlib.sha256(content).hexdigest() for name, content in pictures.items()}
        out.parquet("items.parquet", items.to_arrow())
        out.parquet("interactions.parquet", interactions.to_arrow())
        out.parquet("users.parquet", users.to_arrow())
        out.parquet("rejects.parquet", rejects.select(REJECTS.names()).cast(REJECTS).to_arrow())
        out.details |= {"rows": len(items), "statistics": statistics, "report": dict(report), "flags": list(flags)}
        if len(items) > core_rows:
            out.details["core_rows"] = core_rows
        if "split" in interactions.columns:
            out.details["split"] = "given"
        if "verified" in interactions.columns:
            out.details["verified"] = True
    log_order(domain, measure_order(interactions, items["item_id"][:core_rows], basis_of(parameters, report)))
    return statistics


def log_order(domain: Domain, order: Order | None) -> None:
    """Tell the user how the interactions of a domain are ordered, and what makes that doubtful."""
    if order is not None:
        log.info(f"{domain.name}: {in_words(order)}")
        for doubt in order_doubts(order):
            log.warning(f"domain {domain.name}: {doubt}")


def numbered_tables(
    items: pl.DataFrame, interactions: pl.DataFrame, keep_order: bool = False, cold: pl.DataFrame | None = None
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Items, cold ones last, users and interactions with dense ids, as they are stored.

    A column VERIFIED in which everything is unknown is left out.
    """
    items = in_schema(items)
    user, user_ids = numbered(interactions["user_id"].cast(pl.String))
    item, met = numbered(interactions["item_id"].cast(pl.String))
    if not keep_order:
        items, order = items.sort("item_id"), user_ids.arg_sort()
        user_ids, user = user_ids.gather(order), _inverse(order).gather(user)
    if cold is not None:
        items = pl.concat([items, in_schema(cold).sort("item_id")])
    items = items.with_row_index("item").with_columns(pl.col("item").cast(pl.Int32))
    row = met.to_frame("item_id").join(items.select("item", "item_id"), on="item_id", how="left", maintain_order="left")
    if row["item"].null_count():
        raise AssertionError("an interaction names an item that is not in the catalogue")
    schema = pl.Schema({**INTERACTIONS, **GIVEN_SPLIT, **VERIFIED})
    known = [name for name in VERIFIED if name in interactions.columns and interactions[name].count()]
    given = [name for name in GIVEN_SPLIT if name in interactions.columns]
    rest = ["timestamp", "rating", *given, *known]
    table = pl.DataFrame([user.alias("user"), row["item"].gather(item).alias("item")]).hstack(
        interactions.select(pl.col(name).cast(schema[name]) for name in rest)
    )
    # One key after the other is twice as fast as both at once.
    table = table.sort("timestamp", maintain_order=True).sort("user", maintain_order=True)
    users = user_ids.to_frame("user_id").with_row_index("user").with_columns(pl.col("user").cast(pl.Int32))
    return items, users, table


def in_schema(items: pl.DataFrame) -> pl.DataFrame:
    """The columns of ITEMS, with their types, followed by kept columns."""
    return items.select(pl.col(name).cast(kind) for name, kind in ITEMS.items()).hstack(items.drop(ITEMS.names()))


def _inverse(order: pl.Series) -> pl.Series:
    """The position of each number in a permutation (int32)."""
    inverse = np.empty(len(order), np.int32)
    inverse[order.to_numpy()] = np.arange(len(order), dtype=np.int32)
    return pl.Series(inverse)


def completed(items: pl.DataFrame) -> pl.DataFrame:
    """ITEMS from some of its columns: lists that are missing are empty, other values null."""
    lists = [name for name in ITEMS if ITEMS[name] == TEXTS]
    return pl.concat([ITEMS.to_frame(), items], how="diagonal").with_columns(pl.col(lists).fill_null([]))


def domain_statistics(items: pl.DataFrame, interactions: pl.DataFrame, core_rows: int | None = None) -> dict[str, Any]:
    """Size, density and coverage of the core in the shape of the tables in papers. core_rows: how many of the items,
    the first, are the core (None: all)."""
    core = items.head(core_rows or len(items))
    users, rows, catalogue = interactions["user"].n_unique(), len(interactions), len(core)

    def share(condition: pl.Expr) -> float:
        """The share, rounded, but 0 only if no item has it, not even a cold one: 0 means there is nothing to build."""
        return round(float(core.select(condition.mean()).item()), 4) or (
            0.0001 if items.select(condition.any()).item() else 0.0
        )

    return {
        "users": users,
        "items": catalogue,
        "interactions": rows,
        "average_length": round(rows / max(users, 1), 2),
        "density": round(rows / (max(users, 1) * catalogue), 6),
        "with_text": share(pl.col("text") != ""),
        "with_price": share(pl.col("price").is_not_null()),
        "with_image_url": share(pl.col("image_urls").list.len() > 0),
        "with_image_file": share(pl.col("image_files").list.len() > 0),
    }

"""The last step of every ingest: clean tables with original ids become the domain's Parquet files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from antpipe.errors import DataError
from antpipe.features.ingest.ids import numbered
from antpipe.settings.ingest import IngestConfig
from antpipe.store.domain import Domain
from antpipe.store.files import id_table_sha256

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
# An optional column of interactions: the part of a split that was given, 0 train, 1 validation, 2 test target.
GIVEN_SPLIT = pl.Schema({"split": pl.Int8})
REJECTS = pl.Schema({"file": pl.String, "line": pl.Int64, "reason": pl.String, "excerpt": pl.String})


def require_same_source(domain: Domain, parameters: Mapping[str, Any], folder: str, command: str) -> None:
    """Refuse to replace a domain by data of another source; nothing is done where the domain does not exist yet.

    Two sources are the same where the format is the same and so is the folder or the content of the files: a folder
    may have moved, and its files may have been updated. folder: of the files, empty for data that are generated.
    command: builds this domain from the new source. Raises DataError, whose next command is that one with --force.
    """
    entry = domain.manifest().get("items")
    if entry is None:
        return
    before, old_folder = entry["parameters"], entry["report"].get("folder", "")
    same_place = folder == old_folder or before.get("files") == parameters.get("files")
    if before["format"] != parameters["format"] or not same_place:
        old, new = (
            f"`{command_of(form)}`" + (f" of {place}" if place else "")
            for form, place in ((before["format"], old_folder), (parameters["format"], folder))
        )
        raise DataError(
            f"domain {domain.name} holds data from {old}; {new} would replace them: choose another name or store, "
            "or force it",
            f"{command} --force",
        )


def rules_told(config: IngestConfig, text: Sequence[str]) -> str:
    """The rules of cleaning in one line, in their order, as they are announced and stored. text: what makes it."""
    shared = f"users of {', '.join(config.drop_shared_users_from)} left out; " if config.drop_shared_users_from else ""
    return (
        f"rules: identical lines once; {shared}repeats {config.repeats}, equal times in file order; items without "
        f"metadata {'kept' if config.keep_without_metadata else 'dropped'}; {config.min_user} or more interactions a "
        f"user, {config.min_item} an item; text: {', '.join(text)}"
    )


def command_of(form: str) -> str:
    """The command, without `antpipe`, that makes domains of a format: `amazon` -> `ingest amazon`."""
    return form if form.startswith("import ") else f"ingest {form}"


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
) -> dict[str, Any]:
    """Give items and users dense ids and write items, interactions, users and rejects in one step.

    items: ITEMS columns, one row an item. interactions: INTERACTIONS columns, timestamps in ms, and maybe GIVEN_SPLIT;
    rows of equal user and time stay in the order given; without any row the domain is a catalogue alone. Dense ids
    follow the sorted original ids, so they depend neither on row order nor on hash seeds; with keep_order items stay
    in the order given and users in that of their first interaction, for features that come with a numbering of
    their own. pictures: file contents by name, which `image_files` refers to by that name.
    report: figures kept in the manifest, with the `folder` of the source where there is one. flags: what to say on
    the command line to ingest in the same way again. Returns the domain's statistics (also kept).
    """
    if not len(items):
        raise AssertionError("an empty domain must be refused before, by those who know why it is empty")
    items, users, interactions = _numbered(items, interactions, keep_order)
    ids = items["item_id"].to_list()
    id_table = id_table_sha256(ids)
    statistics = domain_statistics(items, interactions)
    with domain.writing("items", parameters, id_table=id_table) as out:
        if pictures:
            folder = f"images-{id_table[:12]}"
            for name, content in pictures.items():
                (_folder(out.scratch, folder) / name).write_bytes(content)
            items = items.with_columns(pl.col("image_files").list.eval(pl.lit(f"{folder}/") + pl.element()))
            out.details["images"] = folder
        out.parquet("items.parquet", items.to_arrow())
        out.parquet("interactions.parquet", interactions.to_arrow())
        out.parquet("users.parquet", users.to_arrow())
        out.parquet("rejects.parquet", rejects.select(REJECTS.names()).cast(REJECTS).to_arrow())
        out.details |= {"rows": len(items), "statistics": statistics, "report": dict(report), "flags": list(flags)}
        if "split" in interactions.columns:
            out.details["split"] = "given"
    return statistics


def _numbered(
    items: pl.DataFrame, interactions: pl.DataFrame, keep_order: bool
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Items, users and interactions with their dense ids, as they are stored."""
    items = items.select(ITEMS.names()).cast(ITEMS)
    user, user_ids = numbered(interactions["user_id"].cast(pl.String))
    item, met = numbered(interactions["item_id"].cast(pl.String))
    if not keep_order:
        items, order = items.sort("item_id"), user_ids.arg_sort()
        user_ids, user = user_ids.gather(order), _inverse(order).gather(user)
    items = items.with_row_index("item").with_columns(pl.col("item").cast(pl.Int32))
    place = met.to_frame("item_id").join(
        items.select("item", "item_id"), on="item_id", how="left", maintain_order="left"
    )
    if place["item"].null_count():
        raise AssertionError("an interaction names an item that is not in the catalogue")
    schema = pl.Schema({**INTERACTIONS, **(GIVEN_SPLIT if "split" in interactions.columns else {})})
    rest = [name for name in schema.names() if name not in ("user_id", "item_id")]
    table = pl.DataFrame([user.alias("user"), place["item"].gather(item).alias("item")]).hstack(
        interactions.select(pl.col(name).cast(schema[name]) for name in rest)
    )
    # One key after the other is twice as fast as both at once.
    table = table.sort("timestamp", maintain_order=True).sort("user", maintain_order=True)
    users = user_ids.to_frame("user_id").with_row_index("user").with_columns(pl.col("user").cast(pl.Int32))
    return items, users, table


def _inverse(order: pl.Series) -> pl.Series:
    """The place at which each number of a permutation stands (int32)."""
    inverse = np.empty(len(order), np.int32)
    inverse[order.to_numpy()] = np.arange(len(order), dtype=np.int32)
    return pl.Series(inverse)


def _folder(scratch: Path, name: str) -> Path:
    path = scratch / name
    path.mkdir(exist_ok=True)
    return path


def domain_statistics(items: pl.DataFrame, interactions: pl.DataFrame) -> dict[str, Any]:
    """Size, density and coverage in the shape of the tables in papers."""
    users, rows, catalogue = interactions["user"].n_unique(), len(interactions), len(items)

    def share(condition: pl.Expr) -> float:
        return round(float(items.select(condition.mean()).item()), 4)

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

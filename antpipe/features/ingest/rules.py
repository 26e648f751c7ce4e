"""The cleaning rules of every ingest, in their order, and the report of what each of them dropped.

Malformed and identical lines are dropped while files are read. The rules then drop the users of other domains (if asked
to), repeats of a (user, item), items without metadata, and what is outside the k-core.

Columns `user_id` and `item_id` can be of any type; integers from 0 need the least memory and time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from antpipe.features.ingest.advice import SettingsError
from antpipe.features.ingest.domain import ITEMS, completed
from antpipe.features.ingest.shared_users import positions_of
from antpipe.settings.ingest import IngestConfig


@dataclass(frozen=True)
class RawInteractions:
    """The distinct lines of the interaction files, in file order.

    table: INTERACTIONS, but user_id and item_id are positions in `users` and `items`, which takes 20 bytes per line;
    with `split`, the position of the file, if the files are the parts of a split. facts: the report of these files.
    """

    table: pl.DataFrame
    users: pl.Series
    items: pl.Series
    facts: dict[str, Any]

    def with_ids(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows of the table with original ids instead of positions."""
        return rows.with_columns(self.users.gather(rows["user_id"]), self.items.gather(rows["item_id"]))


@dataclass(frozen=True)
class Metadata:
    """The content of a metadata file: ITEMS of the items asked for, in file order, and the ids of all its items. facts:
    its report."""

    table: pl.DataFrame
    ids: pl.Series
    facts: dict[str, Any]


@dataclass(frozen=True)
class Cleaned:
    """The tables of a domain, ITEMS and INTERACTIONS with original ids, and the report for its manifest.

    items: of the core. cold: those outside it, with the same columns.
    """

    items: pl.DataFrame
    interactions: pl.DataFrame
    report: dict[str, Any]
    cold: pl.DataFrame


def clean(
    domain: str,
    raw: RawInteractions,
    read_metadata: Callable[[set[str], int | None], Metadata] | None,
    elsewhere: Mapping[str, pl.Series],
    config: IngestConfig,
    usual_cold: int | None = 0,
) -> Cleaned:
    """Apply the rules.

    read_metadata: reads the metadata of given items and of so many others (None: all); None if there is no metadata.
    elsewhere: users of other domains who are dropped, by domain. usual_cold: how many items outside the k-core stay if
    the settings do not say (None: all). Raises SettingsError if no interaction of the domain is left.
    """
    most_cold = config.most_cold(usual_cold)
    shared = positions_of(raw.users, elsewhere)
    own = raw.table.filter(~pl.col("user_id").is_in(shared.implode())) if len(shared) else raw.table
    once = drop_repeats(own, config.repeats)
    metadata = Metadata(ITEMS.to_frame(), pl.Series("item_id", [], pl.String), {})
    if read_metadata is not None:
        # The k-core of a part lies within the k-core of the whole, so the texts of other items need not be kept.
        core, _ = k_core(once, config.min_user, config.min_item)
        metadata = read_metadata(set(raw.items.gather(core["item_id"].unique())), most_cold)
    described = pl.col("item_id").is_in(raw.items.is_in(metadata.ids.implode()).arg_true().implode())
    candidates = once if config.keep_without_metadata else once.filter(described)
    kept, rounds = k_core(candidates, config.min_user, config.min_item)
    after = _sizes(kept)
    report = {
        "interactions": raw.facts,
        "items": metadata.facts or None,
        "shared_users": {
            "from": list(elsewhere),
            "users": len(shared),
            "interactions": len(raw.table) - len(own),
        },
        "repeats_dropped": len(own) - len(once),
        "without_metadata": {**_sizes(once.filter(~described)), "kept": config.keep_without_metadata},
        "k_core": {
            "rounds": rounds,
            **{f"{name}_dropped": before - after[name] for name, before in _sizes(candidates).items()},
        },
    }
    if not len(kept):
        raise _nothing_left(domain, report, config)
    interactions = raw.with_ids(kept)
    items = _items_of(interactions, metadata.table)
    outside = int((~metadata.ids.is_in(items["item_id"].implode())).sum())
    cold = _cold_of(items, metadata.table, most_cold)
    report["cold"] = {"outside_the_core": outside, "kept": len(cold), "most": most_cold}
    return Cleaned(items, interactions, report, cold)


def drop_duplicate_lines(rows: pl.DataFrame) -> pl.DataFrame:
    """Keep the first of identical lines; row order stays.

    rows: with `line_hash`, 64 bits of each line's bytes. Among 100 million lines, two different ones share a hash with
    a probability below 0.001.
    """
    return rows.filter(pl.col("line_hash").is_first_distinct()).drop("line_hash")


def drop_repeats(interactions: pl.DataFrame, rule: str) -> pl.DataFrame:
    """Decide what is kept if a user meets an item again.

    rule: `keep-all` changes nothing; `keep-first` and `keep-last` leave one row per (user, item), sorted by time. Rows
    of equal time count in row order.
    """
    if rule == "keep-all":
        return interactions
    keep: Literal["first", "last"] = "first" if rule == "keep-first" else "last"
    in_time = interactions.sort("timestamp", maintain_order=True)
    return in_time.unique(["user_id", "item_id"], keep=keep, maintain_order=True)


def k_core(interactions: pl.DataFrame, min_user: int, min_item: int) -> tuple[pl.DataFrame, int]:
    """The largest part in which each user has `min_user` interactions and each item `min_item`.

    Rows are counted, so repeated visits to one item count each. Row order stays. Returns the rows and the number of
    rounds that dropped something. The result does not depend on the order of dropping.
    """
    user, item = _numbers(interactions["user_id"]), _numbers(interactions["item_id"])
    users, items = np.bincount(user), np.bincount(item)
    left = np.arange(len(interactions))
    rounds = 0
    while True:
        enough = (users >= min_user)[user] & (items >= min_item)[item]
        if enough.all():
            return (interactions[left] if rounds else interactions), rounds
        gone = ~enough
        users -= np.bincount(user[gone], minlength=len(users))
        items -= np.bincount(item[gone], minlength=len(items))
        left, user, item = left[enough], user[enough], item[enough]
        rounds += 1


def rules_in_words(config: IngestConfig, text: str) -> str:
    """The rules in one line, in their order, as they are logged and stored. text: what an item's text is made of."""
    shared = f"users of {', '.join(config.drop_shared_users_from)} dropped; " if config.drop_shared_users_from else ""
    return (
        f"rules: identical lines once; {shared}repeats {config.repeats}, equal times in file order; items without "
        f"metadata {'kept' if config.keep_without_metadata else 'dropped'}; at least {config.min_user} interactions "
        f"per user, {config.min_item} per item; text: {text}"
    )


def line_counts(
    malformed: int, good: int, kept: int, dropped: Mapping[str, int] = MappingProxyType({})
) -> dict[str, int]:
    """What became of the lines of a file: lines = kept + duplicate_lines + malformed + those that were dropped.

    good: kept and duplicate ones. dropped: by what was asked to drop them.
    """
    return {
        "lines": good + malformed + sum(dropped.values()),
        "malformed": malformed,
        "duplicate_lines": good - kept,
        "kept": kept,
        **dropped,
    }


def _sizes(interactions: pl.DataFrame) -> dict[str, int]:
    return {
        "users": interactions["user_id"].n_unique(),
        "items": interactions["item_id"].n_unique(),
        "interactions": len(interactions),
    }


def _numbers(ids: pl.Series) -> NDArray[np.int64]:
    """(N,) numbers from 0, the same for equal ids. Integers are taken as they are."""
    return (ids if ids.dtype.is_integer() else ids.rank("dense") - 1).cast(pl.Int64).to_numpy()


def _items_of(interactions: pl.DataFrame, described: pl.DataFrame) -> pl.DataFrame:
    """ITEMS with interactions; an item that the metadata do not describe has an empty text and nothing else."""
    met = interactions.select("item_id").unique()
    bare = met.join(described, on="item_id", how="anti").with_columns(text=pl.lit(""))
    return pl.concat([described.join(met, on="item_id", how="semi"), completed(bare)], how="diagonal")


def _cold_of(core: pl.DataFrame, described: pl.DataFrame, most: int | None) -> pl.DataFrame:
    """The first `most` (None: all) described items outside the core that have a text, a price or a picture."""
    something = (pl.col("text") != "") | pl.col("price").is_not_null()
    for pictures in ("image_urls", "image_files"):
        something |= pl.col(pictures).list.len() > 0
    cold = described.join(core, on="item_id", how="anti", maintain_order="left").filter(something)
    return cold if most is None else cold.head(most)


def _nothing_left(domain: str, report: Mapping[str, Any], config: IngestConfig) -> SettingsError:
    """The error that says where the interactions went, with the nearest settings that keep some of them."""
    shared, bare = report["shared_users"], report["without_metadata"]
    outside = report["k_core"]["interactions_dropped"]
    without = 0 if bare["kept"] else bare["interactions"]
    better: dict[str, Any] = {"drop_shared_users_from": None}
    if outside:
        better = {"min_user": 1, "min_item": 1}
    elif without:
        better = {"keep_without_metadata": True}
    return SettingsError(
        f"domain {domain}: no interaction is left. Of {report['interactions']['kept']} distinct lines, "
        + (f"{shared['interactions']} are of users of {', '.join(shared['from'])}, " if shared["from"] else "")
        + f"{report['repeats_dropped']} repeat an item of the same user ({config.repeats}), {without} have items "
        f"without metadata{' (do both files use the same item ids?)' if without else ''}, and {outside} have users "
        f"with fewer than {config.min_user} interactions or items with fewer than {config.min_item}",
        better,
    )

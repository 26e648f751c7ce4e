"""Rules that drop interactions: repeated lines, repeated items of a user, users and items that are too rare."""

from typing import Literal

import polars as pl


def drop_duplicate_lines(reviews: pl.DataFrame) -> pl.DataFrame:
    """Keep the first of identical lines; row order stays.

    reviews: INTERACTIONS columns and `line_hash`, 64 bits of the line's bytes. Lines count as identical when all
    columns agree, so two different lines are confused only if a user rated an item twice in the same
    millisecond and the hashes collide as well.
    """
    return reviews.unique(keep="first", maintain_order=True).drop("line_hash")


def drop_repeats(interactions: pl.DataFrame, rule: str) -> pl.DataFrame:
    """What stays when a user meets an item again.

    rule: `keep-all` changes nothing; `keep-first` and `keep-last` leave one row a (user, item), in time order.
    Equal times count in row order; rows come out sorted by time.
    """
    if rule == "keep-all":
        return interactions
    keep: Literal["first", "last"] = "first" if rule == "keep-first" else "last"
    in_time = interactions.sort("timestamp", maintain_order=True)
    return in_time.unique(["user_id", "item_id"], keep=keep, maintain_order=True)


def k_core(interactions: pl.DataFrame, min_user: int, min_item: int) -> tuple[pl.DataFrame, int]:
    """The largest part in which each user has `min_user` interactions and each item `min_item`.

    Counts are of rows: a user's repeated visits to one item count each. Row order stays. Returns the rows and
    the number of rounds that dropped something. The result does not depend on the order of dropping.
    """
    codes = interactions.select(pl.col("user_id", "item_id").rank("dense")).with_row_index("row")
    enough = (pl.len().over("user_id") >= min_user) & (pl.len().over("item_id") >= min_item)
    rounds = 0
    while len(left := codes.filter(enough)) < len(codes):
        codes = left
        rounds += 1
    return interactions[codes["row"]], rounds

"""Rules that drop interactions: repeated lines, repeated items of a user, users and items that are too rare.

The columns `user_id` and `item_id` can be of any type; integers from 0 on need the least memory and time.
"""

from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray


def drop_duplicate_lines(reviews: pl.DataFrame) -> pl.DataFrame:
    """Keep the first of identical lines; row order stays.

    reviews: interactions and `line_hash`, 64 bits of each line's bytes. Among 100 million lines, two different ones
    share a hash with a probability below 0.001.
    """
    return reviews.filter(pl.col("line_hash").is_first_distinct()).drop("line_hash")


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
    user, item = places(interactions["user_id"]), places(interactions["item_id"])
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


def places(ids: pl.Series) -> NDArray[np.int64]:
    """(N,) numbers from 0, the same for equal ids. Integers are taken as they are."""
    return (ids if ids.dtype.is_integer() else ids.rank("dense") - 1).cast(pl.Int64).to_numpy()

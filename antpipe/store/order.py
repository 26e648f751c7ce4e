"""Is the order of a domain's interactions their order in time? What their ids, ties and cold targets say about it.

A source whose rows were sorted by item id looks like any other: same users, same items, same counts. Whatever is
learned from it is worthless, so every ingest checks for it. docs/time-order.md explains the measures and their limits.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from antpipe.errors import IntegrityError
from antpipe.store.artefacts import ARTEFACTS
from antpipe.store.domain import Domain
from antpipe.store.entries import why_damaged
from antpipe.store.files import Sequences, damage_to
from antpipe.store.next_command import build_command

TIMES, POSITIONS, ROWS = "times", "positions", "rows"
BASIS = {TIMES: "time", POSITIONS: "numbers that are not times", ROWS: "the rows of the file"}
LEAST_ITEMS = 3  # fewer different items are always in ascending or descending order
MOST_COUNTED = 20  # items; with more, the probability of such an order is not worth counting
# When a figure is worth a warning. LEAST: the minimum of users or targets behind it. UNLIKELY: its probability by
# chance is below that; as users share items, they are not independent, so the shares below must be exceeded as well.
LEAST, UNLIKELY = 10, 1e-6
MOST_SORTED = 1 / 3  # of the users who would not be sorted by chance
MOST_TIED = 3 / 4  # of the positions
MOST_COLD, TIMES_CHANCE = 0.15, 3  # of the test targets, and as a multiple of what chance gives

Integers = NDArray[np.integer]


@dataclass(frozen=True)
class Order:
    """How the sequences of a domain are ordered. A share is None if there is nothing to compute it from.

    basis: what the order follows: TIMES, POSITIONS (numbers that are not times) or ROWS (of the file, since it has no
    times, or equal ones). judged_users: those with at least three different items. sorted_by_id: the share of them
    whose items ascend or descend by id; ids: read as `text`, as `numbers`, or as `rows` of the catalogue, whichever
    gives the largest share; by_chance: the share to expect if ids say nothing about the order. tied: the share of
    positions, without the first of each user, whose time is that of the position before.
    """

    basis: str
    judged_users: int
    sorted_by_id: float | None
    by_chance: float | None
    ids: str
    tied: float | None


@dataclass(frozen=True)
class ColdTargets:
    """Shares of the targets whose item never occurs in the training part of the domain; None without such targets.

    split: the split that made them targets. by_chance: the share of test targets to expect if the items of every user
    came in random order.
    """

    split: str
    validation: float | None
    test: float | None
    test_targets: int
    by_chance: float | None


# -- measures -----------------------------------------------------------------------------------------------------


def order_of(domain: Domain) -> Order | None:
    """The order of a domain, measured in its tables; None for a catalogue without interactions.

    Works for stores of any version. Raises DataError if there are no tables, IntegrityError if they are damaged.
    """
    entry = domain.entry("items")
    rows = pl.DataFrame(domain.table("interactions", ["user", "item", "timestamp"]))
    ids = pl.DataFrame(domain.table("items", ["item_id"]))["item_id"][: domain.core_rows()]
    return measure_order(rows, ids, basis_of(entry["parameters"], entry.get("report", {})))


def basis_of(parameters: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """TIMES, POSITIONS or ROWS, from the parameters of an ingest and what it found."""
    if report.get("time_unit") != "order":
        return TIMES
    roles = parameters.get("columns", {}).get("interactions", {"time": []})
    return POSITIONS if "time" in roles else ROWS


def measure_order(rows: pl.DataFrame, ids: pl.Series, basis: str) -> Order | None:
    """The order of interactions: columns user, item (dense) and timestamp, by user and time. ids: (N,) of the items.

    Under chance, the ids of a user's d different items are in any order with the same probability, so they ascend or
    descend with probability 2 / d!, or 0 if an item comes back after others: then no order of ids fits.
    """
    if not len(rows):
        return None
    user, item, time = (rows[name].to_numpy() for name in ("user", "item", "timestamp"))
    same = user[1:] == user[:-1]  # (R - 1,): the position before is of the same user
    tied = float((time[1:] == time[:-1])[same].mean()) if same.any() else None
    changes = np.bincount(user[1:][same & (item[1:] != item[:-1])], minlength=user[-1] + 1)
    different = np.zeros_like(changes)
    counted = rows.group_by("user").agg(pl.col("item").n_unique())
    different[counted["user"].to_numpy()] = counted["item"].to_numpy()
    judged = different >= LEAST_ITEMS
    share = chance = None
    ids_as = "rows"
    if judged.any():
        in_order = {name: _sorted_users(user, key[item], len(changes)) for name, key in id_orders(ids).items()}
        ids_as = max(in_order, key=lambda name: in_order[name][judged].sum())
        share = float(in_order[ids_as][judged].mean())
        chances = np.array([2 / math.factorial(n) for n in range(MOST_COUNTED + 1)])[
            np.minimum(different, MOST_COUNTED)
        ]
        chance = float(np.where(different == changes + 1, chances, 0)[judged].mean())
    return Order(ROWS if tied == 1 else basis, int(judged.sum()), share, chance, ids_as, tied)


def id_orders(ids: pl.Series) -> dict[str, Integers]:
    """The ways to read ids, and the place of each item in that order, (N,). Orders equal to another are left out."""
    rows = np.arange(len(ids))
    orders: dict[str, Integers] = {"text" if ids.is_sorted() else "rows": rows}
    if "rows" in orders:
        orders["text"] = ids.rank("ordinal").to_numpy().astype(np.int64) - 1
    parts = ids.str.extract_groups(r"^(?<before>\D*?)0*(?<number>[0-9]+)$").struct.unnest()
    if parts["before"].null_count() == 0 and parts["before"].n_unique() == 1:
        by_number = parts.with_row_index().sort(pl.col("number").str.len_bytes(), "number", maintain_order=True)
        place = np.empty(len(ids), np.int64)
        place[by_number["index"].to_numpy()] = rows
        if not any(np.array_equal(place, other) for other in orders.values()):
            orders["numbers"] = place
    return orders


def _sorted_users(user: Integers, key: Integers, users: int) -> NDArray[np.bool_]:
    """(users,): whether the keys of each user never fall, or never rise. user, key: (R,), by user."""
    same = user[1:] == user[:-1]
    rises, falls = np.zeros(users, np.bool_), np.zeros(users, np.bool_)
    rises[user[1:][same & (key[1:] > key[:-1])]] = True
    falls[user[1:][same & (key[1:] < key[:-1])]] = True
    return ~(rises & falls)


def cold_targets_of(domain: Domain) -> ColdTargets | None:
    """The cold targets of a domain by its split; None unless its sequences are fresh.

    Raises IntegrityError if they are damaged.
    """
    if domain.state("sequences").status != "fresh":
        if why := _damage_to_sequences(domain):
            raise IntegrityError(why, build_command(domain, "sequences", force=True))
        return None
    split = domain.entry("sequences")["parameters"]["split"]
    return measure_cold_targets(domain.sequences(), domain.core_rows(), split)


def _damage_to_sequences(domain: Domain) -> str:
    """Why the file of the sequences is not what was written, regardless of later changes to the items; '' if it is."""
    entry = domain.manifest().get("sequences", {})
    path = domain.path / ARTEFACTS["sequences"].files[0]
    return why_damaged(entry) or (damage_to(path, entry, entry["id_table"]) if entry else "")


def measure_cold_targets(sequences: Sequences, items: int, split: str) -> ColdTargets:
    """Count the targets whose item, of N, is in no training part.

    Under chance, each occurrence of an item is outside the training part with probability q, the share of such
    positions of its user; a target is cold if all other occurrences are.
    """
    lengths = np.diff(sequences.offsets)
    start = np.repeat(sequences.offsets[:-1], lengths)
    within = np.arange(len(sequences.items)) - start
    training = within < np.repeat(sequences.train_end, lengths)
    testing = within >= np.repeat(sequences.valid_end, lengths)
    cold = (np.bincount(sequences.items[training], minlength=items) == 0)[sequences.items]
    validation = ~training & ~testing
    outside = 1 - sequences.train_end / np.maximum(lengths, 1)  # q, (U,)
    weight = np.divide(lengths - sequences.valid_end, lengths * outside, out=np.zeros(len(lengths)), where=outside > 0)
    with np.errstate(divide="ignore"):  # log 0: an occurrence that is always in the training part
        all_outside = np.exp(np.bincount(sequences.items, np.repeat(np.log(outside), lengths), items))
    expected = float(all_outside @ np.bincount(sequences.items, np.repeat(weight, lengths), items))
    targets = int(testing.sum())
    return ColdTargets(
        split,
        validation=float(cold[validation].mean()) if validation.any() else None,
        test=float(cold[testing].mean()) if targets else None,
        test_targets=targets,
        by_chance=expected / targets if targets else None,
    )


# -- what they say ------------------------------------------------------------------------------------------------


def is_beyond_chance(found: float, expected: float, of: int) -> bool:
    """Whether `found` of `of` independent events are more than chance explains, if the mean of their probabilities is
    expected / of: by the bound of Hoeffding (1963, J. Am. Stat. Assoc. 58, 13-30, theorem 1), which holds for events of
    different probabilities."""
    share, chance = found / max(of, 1), expected / max(of, 1)
    if of < LEAST or share <= chance:
        return False
    if chance == 0:
        return True
    rest = (1 - share) * math.log((1 - share) / (1 - chance)) if share < 1 else 0.0
    return of * (share * math.log(share / chance) + rest) > -math.log(UNLIKELY)


def in_words(order: Order) -> str:
    """The figures of an order in one line."""
    parts = [f"order by {BASIS[order.basis]}"]
    if order.sorted_by_id is not None and order.by_chance is not None:
        parts.append(
            f"{order.sorted_by_id:.1%} of {order.judged_users} users have their items in the order of ids (by chance "
            f"{order.by_chance:.1%})"
        )
    if order.tied is not None:
        parts.append(f"{order.tied:.1%} of positions have the time of the one before")
    return "; ".join(parts)


def order_doubts(order: Order) -> list[str]:
    """Reasons why the order may not be that in time, which a user should read first; usually none."""
    found = []
    share, chance = order.sorted_by_id, order.by_chance
    of = order.judged_users
    if (
        share is not None
        and chance is not None
        and share - chance >= MOST_SORTED * (1 - chance)
        and is_beyond_chance(share * of, chance * of, of)
    ):
        found.append(
            f"{share:.1%} of {of} users have their items in the order of ids (read as {order.ids}), ascending or "
            f"descending, where chance gives {chance:.1%}: their order is probably not that in time; check the times "
            "of the source, and whether its rows were sorted by item"
        )
    if order.tied is not None and order.tied >= MOST_TIED:
        found.append(
            f"{order.tied:.1%} of positions have the same time as the position before, so the order of the rows in the "
            "file decides what comes last; check whether the source has finer times"
        )
    return found


def doubts(order: Order | None, cold: ColdTargets | None) -> list[str]:
    """All doubts about a domain."""
    return [*(order_doubts(order) if order else []), *(cold_doubts(cold) if cold else [])]


def cold_doubts(cold: ColdTargets) -> list[str]:
    """Whether more test targets are cold than an order in time explains. Other splits may leave any share cold."""
    share, chance, of = cold.test, cold.by_chance, cold.test_targets
    if (
        cold.split in ("time", "cold-items")
        or share is None
        or chance is None
        or share <= max(MOST_COLD, TIMES_CHANCE * chance)
    ):
        return []
    if not is_beyond_chance(share * of, chance * of, of):
        return []
    return [
        f"{share:.1%} of test targets never occur in the training part ({chance:.1%} would if the items of each user "
        "came in random order), another sign of a wrong order; check the times of the source, unless its items are "
        "sold for a short time only"
    ]

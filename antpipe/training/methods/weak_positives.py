"""Which interactions of a domain are weak positives, and why, in the order of its sequences."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from antpipe.errors import DataError, SameCommand
from antpipe.runtime.arrays import within_groups
from antpipe.settings.methods import BEHAVIOUR
from antpipe.store.domain import Domain
from antpipe.store.files import Sequences
from antpipe.store.next_command import build_command_with, spell
from antpipe.store.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

WITHOUT = SameCommand(without=("--method",))
LOW_RATED, UNVERIFIED = 1, 2
Marks = NDArray[np.int8]
Truths = NDArray[np.bool_]


def factors(low_rated: float, unverified: float) -> NDArray[np.float64]:
    """(4,) the factor of each mark: 0, LOW_RATED, UNVERIFIED, and both together."""
    return np.array([1.0, low_rated, unverified, low_rated * unverified])


def says_verified(store: Store, domain: str) -> bool:
    """Whether a domain says which of its interactions are verified purchases."""
    return bool(store.domain(domain).entry("items").get("verified"))


def weak_positives(store: Store, domains: Sequence[str], sequences: Sequence[Sequences]) -> Marks:
    """The marks of the items of the sequences, one domain after the other.

    LOW_RATED: not above the middle of the lowest and highest rating of the domain's training part. UNVERIFIED: known
    not to be a verified purchase. An interaction about which a domain says neither has no mark.
    Raises DataError for a domain in whose training part neither ratings nor verified purchases differ, or whose
    sequences lack some interactions.
    """
    return np.concatenate([_marks(store, name, part) for name, part in zip(domains, sequences, strict=True)])


def _marks(store: Store, name: str, sequences: Sequences) -> Marks:
    domain, said = store.domain(name), says_verified(store, name)
    table = domain.table("interactions", ["item", "rating", *(["verified"] if said else [])])
    if not np.array_equal(np.from_dlpack(table["item"].combine_chunks()), sequences.items):
        raise DataError(
            f"--method {BEHAVIOUR}: the sequences of {name} lack some of its interactions (--split cold-items)",
            spell("build-sequences", domains=[name], store=domain.root, flags=["--max-len", str(sequences.max_len)]),
        )
    lengths = np.diff(sequences.offsets)
    training = within_groups(lengths) < np.repeat(sequences.train_end, lengths)
    low, why_no_low = _low_rated(table["rating"], training)
    unverified, why_no_unverified = _unverified(table["verified"] if said else None, training)
    if why_no_low and why_no_unverified:
        raise DataError(
            f"--method {BEHAVIOUR}: in training, {name} {why_no_low}, and {why_no_unverified}",
            WITHOUT if said or table["rating"].null_count < len(table) else _with_ratings(domain),
        )
    return (LOW_RATED * low + UNVERIFIED * unverified).astype(np.int8)


def _low_rated(column: "pa.ChunkedArray", training: Truths) -> tuple[Truths, str]:
    """Which interactions are low-rated; if the domain cannot tell, why not."""
    import pyarrow.compute as pc

    ratings = np.from_dlpack(pc.fill_null(column, math.nan).combine_chunks())
    rated = ratings[training & ~np.isnan(ratings)]
    if not len(rated) or rated.min() == rated.max():
        return np.zeros_like(training), f"has {rated[0]:g} for all ratings" if len(rated) else "has no ratings"
    return np.asarray(ratings <= (rated.min() + rated.max()) / 2), ""


def _unverified(column: "pa.ChunkedArray | None", training: Truths) -> tuple[Truths, str]:
    """Which interactions are known not to be verified purchases; if the domain cannot tell, why not."""
    import pyarrow.compute as pc

    if column is None:
        return np.zeros_like(training), "does not say which purchases are verified"
    yes, no = (np.array(pc.fill_null(pc.equal(column, value), False).to_pylist(), np.bool_) for value in (True, False))
    if not (yes & training).any() or not (no & training).any():
        return np.zeros_like(training), f"has {'no' if (no & training).any() else 'only'} verified purchases"
    return no, ""


def _with_ratings(domain: Domain) -> str | SameCommand:
    """The command that ingests a table with its ratings; the user has to replace COLUMN in it."""
    entry = domain.manifest()["items"]
    if entry["parameters"].get("format") != "table" or not entry.get("flags"):
        return WITHOUT
    flags = entry["flags"]
    before = f"{flags[flags.index('--map') + 1]}," if "--map" in flags else ""
    return build_command_with(domain, "items", "--map", f"{before}rating=COLUMN", force=True)

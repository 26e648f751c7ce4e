"""Which interactions of a domain are low-rated, in the order of its sequences."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from antpipe.errors import DataError, SameCommand
from antpipe.runtime.arrays import within_groups
from antpipe.settings.methods import BEHAVIOUR
from antpipe.store.domain import Domain
from antpipe.store.files import Sequences
from antpipe.store.next_command import build_command_with, spell
from antpipe.store.store import Store

WITHOUT = SameCommand(without=("--method",))


def low_rated(store: Store, domains: Sequence[str], sequences: Sequence[Sequences]) -> NDArray[np.bool_]:
    """Which items of the sequences (one domain after the other) are low-rated: not above the middle of the lowest and
    highest rating of the domain's training part. An interaction without a rating is not.

    Raises DataError for a domain without ratings, with equal ones, or whose sequences lack some interactions.
    """
    return np.concatenate([_low(store.domain(name), part) for name, part in zip(domains, sequences, strict=True)])


def _low(domain: Domain, sequences: Sequences) -> NDArray[np.bool_]:
    import pyarrow.compute as pc

    table = domain.table("interactions", ["item", "rating"])
    if not np.array_equal(np.from_dlpack(table["item"].combine_chunks()), sequences.items):
        raise DataError(
            f"--method {BEHAVIOUR}: the sequences of {domain.name} lack some of its interactions (--split cold-items)",
            spell(
                "build-sequences", domains=[domain.name], store=domain.root, flags=["--max-len", str(sequences.max_len)]
            ),
        )
    ratings = np.from_dlpack(pc.fill_null(table["rating"], math.nan).combine_chunks())
    lengths = np.diff(sequences.offsets)
    training = ratings[within_groups(lengths) < np.repeat(sequences.train_end, lengths)]
    rated = training[~np.isnan(training)]
    if not len(rated):
        raise DataError(f"--method {BEHAVIOUR}: {domain.name} has no ratings in training", _with_ratings(domain))
    if rated.min() == rated.max():
        raise DataError(f"--method {BEHAVIOUR}: all ratings of {domain.name} are {rated[0]:g} in training", WITHOUT)
    return np.asarray(ratings <= (rated.min() + rated.max()) / 2)


def _with_ratings(domain: Domain) -> str | SameCommand:
    """The command that ingests a table with its ratings; the user has to replace COLUMN in it."""
    entry = domain.manifest()["items"]
    if entry["parameters"].get("format") != "table" or not entry.get("flags"):
        return WITHOUT
    flags = entry["flags"]
    before = f"{flags[flags.index('--map') + 1]}," if "--map" in flags else ""
    return build_command_with(domain, "items", "--map", f"{before}rating=COLUMN", force=True)

"""Figures for parts of a split: by popularity of the target, length of the history, or missing modality.

In each group of slices, every position is in exactly one slice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antpipe.core.batches import Examples
from antpipe.core.catalogue import Catalogue
from antpipe.core.ranking import Ranks, metrics
from antpipe.runtime.arrays import within_groups
from antpipe.store.files import Sequences

# Minimum value of each slice. Groups by the target's popularity in training and by the length of the history are common
# for sequential recommendation with little data (UniSRec, arXiv 2206.05941; MELT, arXiv 2304.08382).
OCCURRENCES = (0, 1, 5, 10, 20)
HISTORY = (1, 4, 6, 11, 21)
# Head: the most popular items, which together have a third of the training interactions (the short head of Cremonesi,
# Koren and Turrin, "Performance of recommender algorithms on top-N recommendation tasks", RecSys 2010). The rest: tail.
HEAD_SHARE = 1 / 3


@dataclass(frozen=True)
class Group:
    """Slices that divide the positions. names: one per slice; number: (Q,) index of each position's slice."""

    names: tuple[str, ...]
    number: NDArray[np.int64]


def training_counts(sequences: Sequences, n: int) -> NDArray[np.int64]:
    """How often each of n items occurs in the training part of the domain's sequences, (n,)."""
    lengths = np.diff(sequences.offsets)
    within = within_groups(lengths)
    return np.bincount(sequences.items[within < np.repeat(sequences.train_end, lengths)], minlength=n)


def head_items(counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether items are head, (n,): the most popular ones, until they have HEAD_SHARE of all interactions.

    Items as popular as the last of these are head too, so the result does not depend on the order of items.
    """
    if not counts.any():
        return np.zeros(len(counts), np.bool_)
    falling = np.sort(counts)[::-1]
    last = int(np.searchsorted(np.cumsum(falling), HEAD_SHARE * counts.sum()))
    head: NDArray[np.bool_] = counts >= falling[last]
    return head


def divide(
    part: Examples, counts: NDArray[np.int64], catalogue: Catalogue, domain: str, modalities: Sequence[str]
) -> dict[str, Group]:
    """All groups of slices. counts: (N,) occurrences of the domain's items in training; modalities: of the run."""
    targets = part.targets()
    known = counts[targets]
    found = {
        "item": Group(("cold", "warm"), np.where(known > 0, 1, 0)),
        "occurrences": _buckets(known, OCCURRENCES),
        "popularity": Group(("head", "tail"), np.where(head_items(counts)[targets], 0, 1)),
        "history": _buckets(part.end - part.start, HISTORY),
    }
    for modality in modalities:
        column = catalogue.features.get(modality)
        feature = column[catalogue.domains.index(domain)] if column else None
        there = np.zeros(len(targets), np.bool_) if feature is None else feature.present[targets]
        found[modality] = Group(("present", "missing"), np.where(there, 0, 1))
    return found


def _buckets(values: NDArray[np.int64], least: tuple[int, ...]) -> Group:
    names = [f"{low}" if low == following - 1 else f"{low}-{following - 1}" for low, following in pairwise(least)]
    return Group((*names, f"{least[-1]}+"), np.searchsorted(least, values, side="right") - 1)


def slice_figures(
    ranks: Ranks, users: NDArray[np.int32], divided: Mapping[str, Group]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Positions, users and metrics by protocol, for each slice of each group. An empty slice has no metrics.

    users: (Q,). A user counts once in each slice that has one of their positions.
    """
    return {
        name: {part: _figures(ranks, users, group.number == number) for number, part in enumerate(group.names)}
        for name, group in divided.items()
    }


def _figures(ranks: Ranks, users: NDArray[np.int32], here: NDArray[np.bool_]) -> dict[str, Any]:
    protocols = {name: metrics(values[here]) for name, values in ranks.by_protocol.items()} if here.any() else {}
    return {"positions": int(here.sum()), "users": len(np.unique(users[here])), "protocols": protocols}

"""Figures for parts of a split: by popularity of the target, what training showed of it, length of the history, or
missing modality.

In each group of slices, every position is in exactly one slice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from antpipe.core.batches import Examples
from antpipe.core.catalogue import Catalogue, Ints
from antpipe.core.ranking import Ranks, metrics
from antpipe.core.transitions import training_items, transitions
from antpipe.store.files import Sequences

# Minimum value of each slice. Groups by the target's popularity in training and by the length of the history are common
# for sequential recommendation with little data (UniSRec, arXiv 2206.05941; MELT, arXiv 2304.08382).
OCCURRENCES = (0, 1, 5, 10, 20)
HISTORY = (1, 4, 6, 11, 21)
# Head: the most popular items, which together have a third of the training interactions (the short head of Cremonesi,
# Koren and Turrin, "Performance of recommender algorithms on top-N recommendation tasks", RecSys 2010). The rest: tail.
HEAD_SHARE = 1 / 3
# Whether training led from the last item of the history to the target: directly (a model may have memorised it), by a
# path of two or three transitions, or not at all (it must generalise).
PATHS = ("1-step", "2-steps", "3-steps", "new")
PATHS_AT_ONCE = 1 << 22  # pairs of a start and an item two transitions away (20 MB)


@dataclass(frozen=True)
class Group:
    """Slices that divide the positions. names: one per slice; number: (Q,) index of each position's slice."""

    names: tuple[str, ...]
    number: NDArray[np.int64]


def training_counts(sequences: Sequences, n: int) -> NDArray[np.int64]:
    """How often each of n items occurs in the training part of the domain's sequences, (n,)."""
    return np.bincount(training_items(sequences)[0], minlength=n)


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


def path_lengths(follows: "csr_array", first: Ints, last: Ints) -> Ints:
    """How many transitions the shortest path from item first[p] to last[p] has, (P,): 1 to 3, 0 if it has more.

    follows: (N, N), not zero where the item of the column came right after that of the row. Paths are sought from both
    ends, for the pairs that need them, so no matrix of all pairs of items is made.
    """
    n = follows.shape[0]
    follows = follows.astype(np.bool_)
    leads_to, outgoing = follows.T.tocsr(), np.diff(follows.indptr)
    pairs, place = np.unique(first * n + last, return_inverse=True)
    start, end = np.divmod(pairs, n)
    length = np.where(follows[start, end], 1, 0)
    ahead = np.minimum(follows.astype(np.int64) @ outgoing, n)  # (N,) upper bound of the number of items two steps away
    for steps in (2, 3):
        left = np.flatnonzero(length == 0)
        at_once = np.cumsum(ahead[start[left]]) // PATHS_AT_ONCE
        for some in np.split(left, np.flatnonzero(np.diff(at_once)) + 1):
            starts, row = np.unique(start[some], return_inverse=True)
            reached = follows[starts] if steps == 2 else follows[starts] @ follows
            length[some[reached[row].multiply(leads_to[end[some]]).sum(1) > 0]] = steps
    return length[place]


def divide(
    part: Examples, sequences: Sequences, catalogue: Catalogue, domain: str, modalities: Sequence[str]
) -> dict[str, Group]:
    """All groups of slices. sequences: the domain's, whose training part is used; modalities: those of the run."""
    targets, n = part.targets(), len(catalogue.rows(domain))
    counts = training_counts(sequences, n)
    known = counts[targets]
    path = path_lengths(transitions(sequences, n), part.items[part.end - 1].astype(np.int64), targets)
    found = {
        "item": Group(("cold", "warm"), np.where(known > 0, 1, 0)),
        "occurrences": _buckets(known, OCCURRENCES),
        "popularity": Group(("head", "tail"), np.where(head_items(counts)[targets], 0, 1)),
        "path": Group(PATHS, np.where(path > 0, path - 1, PATHS.index("new"))),
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

"""Which positions of sequences are for training, validation and test, by each split; on arrays alone."""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Cuts = tuple[int | None, int | None]


def leave_one_out(lengths: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(U,) lengths -> train_end and valid_end, (U,) each: the last item is the test target of a sequence of at least
    two, the one before it the validation target of a sequence of at least three."""
    train_end = np.maximum(lengths - 2, 1)
    valid_end = np.maximum(lengths - 1, 1)
    return train_end.astype(np.int32), valid_end.astype(np.int32)


def cut_timestamps(timestamps: NDArray[np.int64], valid_share: float, test_share: float) -> Cuts:
    """The first timestamp of the validation and that of the test period; None for a period of share 0.

    A share is rounded to whole interactions, at least one. Ties at a cut join the later period.
    """
    ordered = np.sort(timestamps)

    def period(share: float) -> int:
        return max(1, round(share * len(ordered))) if share else 0

    test_start = max(0, len(ordered) - period(test_share))
    valid_start = max(0, test_start - period(valid_share))
    test_from = int(ordered[test_start]) if test_share else None
    valid_from = int(ordered[valid_start]) if valid_share else None
    return valid_from, test_from


def split_by_time(
    offsets: NDArray[np.int32], timestamps: NDArray[np.int64], cuts: Cuts
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """train_end and valid_end, (U,) each. timestamps[offsets[u]:offsets[u + 1]] are those of user u, ascending."""
    valid_from, test_from = cuts

    def earlier_than(cut: int) -> NDArray[np.int64]:
        counted = np.concatenate([[0], np.cumsum(timestamps < cut)])
        of_user: NDArray[np.int64] = np.diff(counted[offsets])
        return of_user

    lengths = np.diff(offsets).astype(np.int64)
    valid_end = lengths if test_from is None else np.maximum(earlier_than(test_from), 1)
    train_end = valid_end if valid_from is None else np.maximum(earlier_than(valid_from), 1)
    return train_end.astype(np.int32), valid_end.astype(np.int32)


def split_as_given(offsets: NDArray[np.int32], given: NDArray[np.int8]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """train_end and valid_end, (U,) each. given[offsets[u]:offsets[u + 1]] are the parts of user u, ascending."""

    def up_to(part: int) -> NDArray[np.int64]:
        counted = np.concatenate([[0], np.cumsum(given <= part)])
        return np.maximum(np.diff(counted[offsets]), 1)

    return up_to(0).astype(np.int32), up_to(1).astype(np.int32)


# -- items taken out of training --------------------------------------------------------------------------------------


def held_out_items(items: int, share: float, seed: int) -> NDArray[np.bool_]:
    """(N,) True for a random share of N items: rounded, at least one and not all of two or more."""
    count = min(max(1, round(share * items)), max(items - 1, 1))
    held = np.zeros(items, np.bool_)
    held[np.random.default_rng(seed).permutation(items)[:count]] = True
    return held


def kept_positions(offsets: Ints, items: Ints, train_end: Ints, held: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(R,) which positions stay: not held-out items in training parts, nor those that would then begin a sequence.

    items: (R,), of user u at offsets[u]:offsets[u + 1]. train_end: (U,). held: (N,). The first item of a sequence has
    no history, so it is never a target, but training reads it.
    """
    lengths = np.diff(offsets)
    user = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(len(items)) - np.repeat(offsets[:-1], lengths)
    kept = ~(held[items] & (within < train_end[user]))
    warm = np.concatenate([[0], np.cumsum(kept & ~held[items])])
    begun = warm[1:] > np.repeat(warm[offsets[:-1]], lengths)  # a warm item is here or before, in the same sequence
    return kept & begun


def ends_of_kept(offsets: Ints, kept: NDArray[np.bool_], *ends: Ints) -> tuple[Ints, ...]:
    """The offsets (U + 1,) after dropping positions (kept: (R,)), and each end (U,) recounted; ends are at least 1."""
    counted = np.concatenate([[0], np.cumsum(kept)])
    begin = counted[offsets[:-1]]
    found = (np.maximum(counted[offsets[:-1] + end] - begin, 1).astype(np.int32) for end in ends)
    return counted[offsets].astype(np.int32), *found

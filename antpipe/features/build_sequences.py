"""build-sequences: interactions become chronological sequences, their positions train, valid and test targets.

A user's first item is never a target. Split `leave-one-out`: the last position is the test target, the one before
the validation target, from two and three items on; every earlier position trains. Split `time`: two cut timestamps,
common to the domains named together, decide; interactions of equal time fall on the same side.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from antpipe.config import SequenceConfig
from antpipe.errors import DataError, UsageError
from antpipe.settings import flags_of
from antpipe.store import Domain, StageResult, Store

Cuts = tuple[int | None, int | None]


@dataclass(frozen=True)
class History:
    """Interactions by user and time. user (U,), offsets (U + 1,), items and timestamps (ms) (sum of lengths,)."""

    domain: Domain
    user: NDArray[np.int32]
    offsets: NDArray[np.int32]
    items: NDArray[np.int32]
    timestamps: NDArray[np.int64]


def build_sequences(
    store: Store,
    domains: Sequence[str],
    config: SequenceConfig,
    *,
    force: bool = False,
    warn: Callable[[str], None],
) -> list[StageResult]:
    """Write sequences.arrow of each domain: whole sequences, and `max_len` for the trainer, which looks back so far.

    warn: is called with a sentence where leave-one-out lets a training on several domains see the future.
    Raises UsageError for shares that leave no training period, DataError where split `time` leaves a domain no
    training target; then no domain is changed.
    """
    if config.split == "time" and config.valid_share + config.test_share >= 1:
        raise UsageError(
            f"--valid-share {config.valid_share} and --test-share {config.test_share}: nothing is left to train on; "
            "their sum must be below 1"
        )
    histories = [_read(store.domain(name)) for name in dict.fromkeys(domains)]
    if config.split == "leave-one-out":
        _warn_of_overlap(histories, warn)
        splits = [leave_one_out(np.diff(history.offsets)) for history in histories]
        cuts: Cuts | None = None
    else:
        cuts = cut_timestamps(
            np.concatenate([history.timestamps for history in histories]), config.valid_share, config.test_share
        )
        splits = [split_by_time(history.offsets, history.timestamps, cuts) for history in histories]
        for history, (train_end, _) in zip(histories, splits, strict=True):
            _require_training(history, train_end, config, alone=len(histories) == 1)
    parameters: dict[str, Any] = {"split": config.split, "max_len": config.max_len}
    if cuts is not None:
        parameters |= {"valid_share": config.valid_share, "test_share": config.test_share, "cuts": list(cuts)}
    results = []
    for history, split in zip(histories, splits, strict=True):
        place = history.domain
        if not force and place.is_fresh("sequences", parameters):
            results.append(StageResult(place.name, "sequences", "fresh", place.entry("sequences")["figures"]))
        else:
            details: dict[str, Any] = {"flags": flags_of(config)}
            if cuts is not None:
                details["domains"] = [one.domain.name for one in histories]
            results.append(_write(history, *split, parameters, details))
    return results


def leave_one_out(lengths: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(U,) lengths -> train_end and valid_end, (U,) each: one test target from two items on, one validation target
    from three on."""
    train_end = np.maximum(lengths - 2, 1)
    valid_end = np.maximum(lengths - 1, 1)
    return train_end.astype(np.int32), valid_end.astype(np.int32)


def cut_timestamps(timestamps: NDArray[np.int64], valid_share: float, test_share: float) -> Cuts:
    """First timestamps of the validation and of the test period; None for a period of share 0.

    A share is rounded to whole interactions, at least one; ties at a cut join the later period.
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
    """train_end and valid_end, (U,) each, of the sequences offsets[u]:offsets[u + 1] of chronological timestamps."""
    valid_from, test_from = cuts

    def earlier_than(cut: int) -> NDArray[np.int64]:
        counted = np.concatenate([[0], np.cumsum(timestamps < cut)])
        of_user: NDArray[np.int64] = np.diff(counted[offsets])
        return of_user

    lengths = np.diff(offsets).astype(np.int64)
    valid_end = lengths if test_from is None else np.maximum(earlier_than(test_from), 1)
    train_end = valid_end if valid_from is None else np.maximum(earlier_than(valid_from), 1)
    return train_end.astype(np.int32), valid_end.astype(np.int32)


def _read(place: Domain) -> History:
    table: pa.Table = place.table("interactions", ["user", "item", "timestamp"])
    users = table["user"].to_numpy()
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    return History(
        place,
        users[starts].astype(np.int32),
        np.append(starts, len(users)).astype(np.int32),
        table["item"].to_numpy(),
        table["timestamp"].to_numpy(),
    )


def _warn_of_overlap(histories: Sequence[History], warn: Callable[[str], None]) -> None:
    spans = [(history.domain.name, history.timestamps.min(), history.timestamps.max()) for history in histories]
    overlapping: dict[str, None] = {}
    for (one, first, last), (other, other_first, other_last) in combinations(spans, 2):
        if first <= other_last and other_first <= last:
            overlapping |= {one: None, other: None}
    if overlapping:
        warn(
            f"domains {', '.join(overlapping)} overlap in time: with leave-one-out, training sees interactions of one "
            "domain that lie after the test targets of another; --split time avoids it"
        )


def _require_training(history: History, train_end: NDArray[np.int32], config: SequenceConfig, alone: bool) -> None:
    if (train_end > 1).any():
        return
    place = history.domain
    # Alone, a domain gets cuts of its own; where it is alone already, only shorter periods can help.
    part = 2 if alone else 1
    shorter = replace(config, valid_share=config.valid_share / part, test_share=config.test_share / part)
    raise DataError(
        f"domain {place.name}: nobody has two interactions before the validation and test periods, so there is no "
        f"training target; its interactions lie between timestamps {history.timestamps.min()} and "
        f"{history.timestamps.max()}",
        shlex.join(
            ["antpipe", "build-sequences", "--domains", place.name, "--store", str(place.root), *flags_of(shorter)]
        ),
    )


def _write(
    history: History,
    train_end: NDArray[np.int32],
    valid_end: NDArray[np.int32],
    parameters: dict[str, Any],
    details: dict[str, Any],
) -> StageResult:
    lengths = np.diff(history.offsets)
    figures: dict[str, Any] = {
        "users": len(lengths), "interactions": len(history.items),
        "train": int((train_end - 1).sum()), "valid": int((valid_end - train_end).sum()),
        "test": int((lengths - valid_end).sum()),
        "min_length": int(lengths.min()), "median_length": float(np.median(lengths)), "max_length": int(lengths.max()),
    }  # fmt: skip
    if "cuts" in parameters:
        figures |= dict(zip(("valid_from", "test_from"), parameters["cuts"], strict=True))
    offsets = pa.array(history.offsets, pa.int32())
    batch = pa.record_batch({
        "user": pa.array(history.user, pa.int32()),
        "items": pa.ListArray.from_arrays(offsets, pa.array(history.items, pa.int32())),
        "timestamps": pa.ListArray.from_arrays(offsets, pa.array(history.timestamps, pa.int64())),
        "train_end": pa.array(train_end, pa.int32()),
        "valid_end": pa.array(valid_end, pa.int32()),
    })  # fmt: skip
    with history.domain.writing("sequences", parameters) as out:
        out.arrow("sequences.arrow", batch)
        out.details |= {"rows": len(lengths), "figures": figures, **details}
    return StageResult(history.domain.name, "sequences", "built", figures)

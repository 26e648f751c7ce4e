"""build-sequences: interactions become chronological sequences, their positions train, valid and test targets.

A user's first item is never a target. Split `leave-one-out`: the last position is the test target, the one before
the validation target, from two and three items on; every earlier position trains. Split `time`: two cut timestamps,
common to the domains named together, decide; interactions of equal time fall on the same side. Split `given`: the one
that came with the data. Split `auto`: `given` where a domain has one, else `leave-one-out`.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from antpipe.errors import DataError, UsageError
from antpipe.settings.base import flags_of
from antpipe.settings.features import SequenceConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.domain import Domain
from antpipe.store.store import Store

Cuts = tuple[int | None, int | None]
PARTS = ("training", "validation", "test")


@dataclass(frozen=True)
class History:
    """Interactions by user and time. user (U,), offsets (U + 1,), items and timestamps (ms) (sum of lengths,).

    given: (sum of lengths,) 0 train, 1 validation, 2 test; None where the data came without a split. timed: False
    where the timestamps are only an order.
    """

    domain: Domain
    user: NDArray[np.int32]
    offsets: NDArray[np.int32]
    items: NDArray[np.int32]
    timestamps: NDArray[np.int64]
    given: NDArray[np.int8] | None
    timed: bool


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
    chosen = [_split_of(history, config) for history in histories]
    _warn_of_overlap([one for one, split in zip(histories, chosen, strict=True) if split == "leave-one-out"], warn)
    cuts: Cuts | None = None
    if config.split == "time":
        cuts = cut_timestamps(
            np.concatenate([history.timestamps for history in histories]), config.valid_share, config.test_share
        )
    splits = [_ends(history, split, cuts) for history, split in zip(histories, chosen, strict=True)]
    if config.split == "time":
        for history, (train_end, _) in zip(histories, splits, strict=True):
            _require_training(history, train_end, config, alone=len(histories) == 1)
    results = []
    for history, name, split in zip(histories, chosen, splits, strict=True):
        place = history.domain
        parameters: dict[str, Any] = {"split": name, "max_len": config.max_len}
        if cuts is not None:
            parameters |= {"valid_share": config.valid_share, "test_share": config.test_share, "cuts": list(cuts)}
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


def split_as_given(offsets: NDArray[np.int32], given: NDArray[np.int8]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """train_end and valid_end, (U,) each, of the sequences offsets[u]:offsets[u + 1]; `given` must not fall in one."""

    def up_to(part: int) -> NDArray[np.int64]:
        counted = np.concatenate([[0], np.cumsum(given <= part)])
        return np.maximum(np.diff(counted[offsets]), 1)

    return up_to(0).astype(np.int32), up_to(1).astype(np.int32)


def _split_of(history: History, config: SequenceConfig) -> str:
    """The split of one domain. DataError where what is asked for cannot be had."""
    place = history.domain

    def command(split: str) -> str:
        flags = flags_of(replace(config, split=split))
        return shlex.join(["antpipe", "build-sequences", "--domains", place.name, "--store", str(place.root), *flags])

    if config.split == "time" and not history.timed:
        raise DataError(
            f"domain {place.name}: its timestamps are only an order, so --split time has no time to cut at",
            command("leave-one-out"),
        )
    if config.split == "given" or (config.split == "auto" and history.given is not None):
        if history.given is None:
            raise DataError(f"domain {place.name}: its data came without a split", command("leave-one-out"))
        falls = np.diff(history.given) < 0
        falls[history.offsets[1:-1] - 1] = False  # from one user to the next
        if falls.any():
            row = int(np.argmax(falls))
            user = history.user[np.searchsorted(history.offsets, row, side="right") - 1]
            user_id = place.table("users", ["user_id"])["user_id"][int(user)].as_py()
            raise DataError(
                f"domain {place.name}: user {user_id!r} has a {PARTS[history.given[row + 1]]} interaction after a "
                f"{PARTS[history.given[row]]} one: the given split is not one in time",
                command("leave-one-out"),
            )
        return "given"
    return "leave-one-out" if config.split == "auto" else config.split


def _ends(history: History, split: str, cuts: Cuts | None) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    if split == "given" and history.given is not None:
        return split_as_given(history.offsets, history.given)
    if cuts is not None:
        return split_by_time(history.offsets, history.timestamps, cuts)
    return leave_one_out(np.diff(history.offsets))


def _read(place: Domain) -> History:
    entry = place.entry("items")
    given = entry.get("split") == "given"
    columns = ["user", "item", "timestamp"]
    table: pa.Table = place.table("interactions", [*columns, "split"] if given else columns)
    if not len(table):
        raise DataError(
            f"domain {place.name}: it is a catalogue without interactions, so there are no sequences",
            place.command_with("items", "--interactions", "FILE"),
        )
    # Not to_numpy and pa.array: where pandas is installed, they load it.
    known: dict[str, NDArray[Any]] = {name: np.from_dlpack(table[name].combine_chunks()) for name in table.column_names}
    users = known["user"]
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    return History(
        place,
        users[starts].astype(np.int32),
        np.append(starts, len(users)).astype(np.int32),
        known["item"],
        known["timestamp"],
        known["split"] if given else None,
        entry.get("report", {}).get("time_unit") != "order",
    )


def _warn_of_overlap(histories: Sequence[History], warn: Callable[[str], None]) -> None:
    spans = [
        (history.domain.name, history.timestamps.min(), history.timestamps.max())
        for history in histories
        if history.timed
    ]
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
        "users": len(lengths),
        "interactions": len(history.items),
        "train": int((train_end - 1).sum()),
        "valid": int((valid_end - train_end).sum()),
        "test": int((lengths - valid_end).sum()),
        "min_length": int(lengths.min()),
        "median_length": float(np.median(lengths)),
        "max_length": int(lengths.max()),
    }
    if "cuts" in parameters:
        figures |= dict(zip(("valid_from", "test_from"), parameters["cuts"], strict=True))
    offsets = _arrow(history.offsets, pa.int32())
    batch = pa.record_batch(
        {
            "user": _arrow(history.user, pa.int32()),
            "items": pa.ListArray.from_arrays(offsets, _arrow(history.items, pa.int32())),
            "timestamps": pa.ListArray.from_arrays(offsets, _arrow(history.timestamps, pa.int64())),
            "train_end": _arrow(train_end, pa.int32()),
            "valid_end": _arrow(valid_end, pa.int32()),
        }
    )
    with history.domain.writing("sequences", parameters) as out:
        out.arrow("sequences.arrow", batch)
        out.details |= {"rows": len(lengths), "figures": figures, **details}
    return StageResult(history.domain.name, "sequences", "built", figures)


def _arrow(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """(N,) numbers as they lie in memory."""
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values.astype(kind.to_pandas_dtype()))])

"""Stage `build-sequences`: interactions become chronological sequences of training, validation and test targets.

A user's first item is never a target. The splits:

- `leave-one-out`: the last position is the test target (in sequences of two or more items), the one before it the
  validation target (three or more items), and every earlier position is a training target.
- `time`: two cut timestamps, shared by the domains named together, decide. Interactions of equal time fall on the same
  side of a cut.
- `given`: the split that came with the data.
- `cold-items`: leave-one-out, but a random share of the items is taken out of training.
- `auto`: `given` if the data came with a split, else `leave-one-out`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from antpipe.errors import DataError, UsageError
from antpipe.features.splits import (
    Cuts,
    cut_timestamps,
    ends_of_kept,
    held_out_items,
    kept_positions,
    leave_one_out,
    split_as_given,
    split_by_time,
)
from antpipe.runtime.logs import log
from antpipe.settings.base import flags_of
from antpipe.settings.features import SequenceConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.domain import Domain
from antpipe.store.files import Sequences
from antpipe.store.next_command import spell, supply_command
from antpipe.store.order import cold_doubts, measure_cold_targets
from antpipe.store.store import Store

PARTS = ("training", "validation", "test")


@dataclass(frozen=True)
class History:
    """The interactions of a domain by user and time: user u has items[offsets[u]:offsets[u + 1]].

    user: (U,). offsets: (U + 1,). items, timestamps (ms) and given: (sum of lengths,). given: 0 for training, 1 for
    validation, 2 for test; None if the data came without a split. timed: whether timestamps are times, not only an
    order.
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
) -> list[StageResult]:
    """Write sequences.arrow of each domain: whole sequences, and `max_len`, how many items the model looks back.

    Warns if training on several domains would see the future of one of them, as leave-one-out allows, and if too many
    test targets never occur in training.
    Raises UsageError for shares that leave no training period, and DataError if a domain has no interactions, cannot
    be split as asked, or is left without a training target by split `time`. No domain is changed then.
    """
    if config.split == "time" and config.valid_share + config.test_share >= 1:
        raise UsageError(
            f"--valid-share {config.valid_share} and --test-share {config.test_share} leave nothing to train on; "
            "their sum must be below 1"
        )
    histories = [_read(store.domain(name)) for name in dict.fromkeys(domains)]
    chosen = [_split_of(history, config) for history in histories]
    _warn_of_overlap([one for one, split in zip(histories, chosen, strict=True) if split == "leave-one-out"])
    cuts: Cuts | None = None
    if config.split == "time":
        cuts = cut_timestamps(
            np.concatenate([history.timestamps for history in histories]), config.valid_share, config.test_share
        )
    splits = [_ends(history, split, cuts) for history, split in zip(histories, chosen, strict=True)]
    if config.split == "cold-items":
        pairs = [_hold_out(history, ends, config) for history, ends in zip(histories, splits, strict=True)]
        histories, splits = [history for history, _ in pairs], [ends for _, ends in pairs]
    if config.split == "time":
        for history, (train_end, _) in zip(histories, splits, strict=True):
            _require_training(history, train_end, config, alone=len(histories) == 1)
    results = []
    for history, name, split in zip(histories, chosen, splits, strict=True):
        domain = history.domain
        parameters: dict[str, Any] = {"split": name, "max_len": config.max_len}
        if name == "cold-items":
            parameters |= {"cold_share": config.cold_share, "cold_seed": config.cold_seed}
        if cuts is not None:
            parameters |= {"valid_share": config.valid_share, "test_share": config.test_share, "cuts": list(cuts)}
        if not force and domain.is_fresh("sequences", parameters):
            results.append(StageResult(domain.name, "sequences", "fresh", domain.entry("sequences")["figures"]))
        else:
            details: dict[str, Any] = {"flags": flags_of(config)}
            if cuts is not None:
                details["domains"] = [one.domain.name for one in histories]
            results.append(write_sequences(history, *split, parameters, details))
        _warn_of_cold_targets(history, split, parameters)
    return results


def _split_of(history: History, config: SequenceConfig) -> str:
    """The split of one domain. Raises DataError if its data cannot be split as asked."""
    domain, instead = history.domain, _command(history.domain, replace(config, split="leave-one-out"))
    if config.split == "time" and not history.timed:
        raise DataError(
            f"domain {domain.name}: its timestamps are only an order, so --split time has no time at which to cut",
            instead,
        )
    if config.split == "given" or (config.split == "auto" and history.given is not None):
        if history.given is None:
            raise DataError(f"domain {domain.name}: its data came without a split", instead)
        falls = np.diff(history.given) < 0
        falls[history.offsets[1:-1] - 1] = False  # between two users
        if falls.any():
            row = int(np.argmax(falls))
            user = history.user[np.searchsorted(history.offsets, row, side="right") - 1]
            user_id = domain.table("users", ["user_id"])["user_id"][int(user)].as_py()
            raise DataError(
                f"domain {domain.name}: user {user_id!r} has a {PARTS[history.given[row + 1]]} interaction after a "
                f"{PARTS[history.given[row]]} one, so the given split is not chronological",
                instead,
            )
        return "given"
    return "leave-one-out" if config.split == "auto" else config.split


def _ends(history: History, split: str, cuts: Cuts | None) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    if split == "given" and history.given is not None:
        return split_as_given(history.offsets, history.given)
    if cuts is not None:
        return split_by_time(history.offsets, history.timestamps, cuts)
    return leave_one_out(np.diff(history.offsets))


def _hold_out(
    history: History, ends: tuple[NDArray[np.int32], NDArray[np.int32]], config: SequenceConfig
) -> tuple[History, tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Take held-out items out of the training parts: the history and its ends, without users who have nothing left."""
    held = held_out_items(history.domain.core_rows(), config.cold_share, config.cold_seed)
    kept = kept_positions(history.offsets, history.items, ends[0], held)
    offsets, *found = ends_of_kept(history.offsets, kept, *ends)
    there = np.diff(offsets) > 0
    train_end, valid_end = (end[there] for end in found)
    if not (train_end > 1).any():
        fewer = replace(config, cold_share=config.cold_share / 2)
        raise DataError(
            f"domain {history.domain.name}: without {int(held.sum())} of its items, no user has two in training",
            _command(history.domain, fewer),
        )
    left = replace(
        history,
        user=history.user[there],
        offsets=np.append(offsets[:-1][there], offsets[-1]),
        items=history.items[kept],
        timestamps=history.timestamps[kept],
        given=None,
    )
    return left, (train_end, valid_end)


def _command(domain: Domain, config: SequenceConfig) -> str:
    """The command that builds the sequences of one domain alone, with these settings."""
    return spell("build-sequences", domains=[domain.name], store=domain.root, flags=flags_of(config))


def _read(domain: Domain) -> History:
    entry = domain.entry("items")
    given = entry.get("split") == "given"
    columns = ["user", "item", "timestamp"]
    table: pa.Table = domain.table("interactions", [*columns, "split"] if given else columns)
    if not len(table):
        raise DataError(
            f"domain {domain.name} is a catalogue without interactions, so it has no sequences",
            supply_command(domain, "sequences"),
        )
    # Not to_numpy and pa.array: they load pandas if it is installed.
    known: dict[str, NDArray[Any]] = {name: np.from_dlpack(table[name].combine_chunks()) for name in table.column_names}
    users = known["user"]
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    return History(
        domain,
        users[starts].astype(np.int32),
        np.append(starts, len(users)).astype(np.int32),
        known["item"],
        known["timestamp"],
        known["split"] if given else None,
        entry.get("report", {}).get("time_unit") != "order",
    )


def _warn_of_overlap(histories: Sequence[History]) -> None:
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
        log.warning(
            f"domains {', '.join(overlapping)} overlap in time: with leave-one-out, training sees interactions of one "
            "domain that are later than the test targets of another; --split time avoids this"
        )


def _warn_of_cold_targets(
    history: History, split: tuple[NDArray[np.int32], NDArray[np.int32]], parameters: dict[str, Any]
) -> None:
    offsets = history.offsets.astype(np.int64)
    sequences = Sequences(history.user, offsets, history.items, *split, parameters["max_len"])
    for doubt in cold_doubts(measure_cold_targets(sequences, history.domain.core_rows(), parameters["split"])):
        log.warning(f"domain {history.domain.name}: {doubt}")


def _require_training(history: History, train_end: NDArray[np.int32], config: SequenceConfig, alone: bool) -> None:
    """Raise DataError if nobody has a training target; alone: whether the cuts were made for this domain only."""
    if (train_end > 1).any():
        return
    # With cuts of its own, the domain may have training targets. If it has its own, only shorter periods can help.
    part = 2 if alone else 1
    shorter = replace(config, valid_share=config.valid_share / part, test_share=config.test_share / part)
    raise DataError(
        f"domain {history.domain.name}: no user has two interactions before the validation and test periods, so there "
        f"is no training target; its interactions lie between timestamps {history.timestamps.min()} and "
        f"{history.timestamps.max()}",
        _command(history.domain, shorter),
    )


def write_sequences(
    history: History,
    train_end: NDArray[np.int32],
    valid_end: NDArray[np.int32],
    parameters: dict[str, Any],
    details: dict[str, Any],
) -> StageResult:
    """Write sequences.arrow of the domain of a history whose positions are divided at these ends, (U,) each."""
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
    """(N,) numbers as an Arrow array, without pa.array (see `_read`)."""
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values.astype(kind.to_pandas_dtype()))])

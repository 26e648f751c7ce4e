"""Steps of one fixed shape, for a GPU: windows packed into rows of equal length, and everything padded.

A GPU can replay a recorded step if its shapes never change. So the planned shape is somewhat larger than the steps of
the run, and the rest is padding, which has no weight in the loss (core/gpu/static.py). A step that does not fit gets
a shape two, four … times as large.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antpipe.core.batches import Batch, Candidates, Windows, add_drawn, make_batch, step_windows
from antpipe.core.catalogue import Ints
from antpipe.runtime.arrays import within_groups

SAMPLED_STEPS = 64  # of the first epoch, to plan the shape
HEADROOM = 1 / 16  # above the largest of these
ROW_MULTIPLE = 8  # divides row lengths: attention on a GPU copies masks of other lengths
SHORTEST_ROW = 32
WHOLE = 0  # number of items of a step that reads the whole catalogue: they are not listed


@dataclass(frozen=True)
class Shape:
    """rows of `length` positions; places for targets and for items (WHOLE: all items of the catalogue, in order)."""

    rows: int
    length: int
    targets: int
    items: int

    def parts(self) -> dict[str, tuple[int, ...]]:
        """The arrays of a step, which lie one after the other in one vector of 64-bit numbers."""
        grid = (self.rows, self.length)
        return {
            "inputs": grid,
            "places": grid,
            "windows": grid,
            "positions": (self.targets,),
            "targets": (self.targets,),
            "users": (self.targets,),
            "items": (self.items,),
            "log_inclusion": (self.items,),
            "counts": (1,),
        }

    def numbers(self) -> int:
        return sum(int(np.prod(part)) for part in self.parts().values())

    def split(self, numbers: Any) -> dict[str, Any]:
        """Views of the arrays in a vector (numbers(),), of numpy or torch."""
        views, start = {}, 0
        for name, part in self.parts().items():
            size = int(np.prod(part))
            views[name] = numbers[start : start + size].reshape(part)
            start += size
        return views

    def holding(self, rows: int, targets: int, items: int) -> "Shape":
        """This shape, doubled until it has room for this many rows, targets and items."""
        shape = self
        while shape.rows < rows or shape.targets < targets or (self.items != WHOLE and shape.items < items):
            shape = replace(shape, rows=2 * shape.rows, targets=2 * shape.targets, items=2 * shape.items)
        return shape


@dataclass(frozen=True)
class PackedBatch:
    """The input of one step in a fixed shape.

    numbers: (shape.numbers(),) int64, the arrays of `Shape.parts`: `inputs` (B, L) indices into the step's items,
    `places` (B, L) of a position in its window, `windows` (B, L) the number of its window, from 1, and 0 for padding;
    `positions` (P,) indices into the flattened (B * L) outputs, `targets` (P,) indices into the items, `users` (P,) the
    sequence of each target, `items` (n,) global rows, `log_inclusion` (n,) as the bits of float64, infinite for items
    that are not candidates; `counts` (1,) the number of real targets. Padding repeats the first position's target.
    items: (n,) without padding; targets: (P,) without padding, global rows. features: by modality, float16 (n, d) with
    padding, if they are not on the GPU; present: (n,) bool likewise. made_of: what `exact` rebuilds the batch from.
    """

    shape: Shape
    numbers: Any
    items: Ints
    targets: Ints
    made_of: tuple[Windows, Ints, Candidates, dict[str, Any]]
    features: Mapping[str, Any] = field(default_factory=dict)
    present: Mapping[str, Any] = field(default_factory=dict)

    def exact(self) -> Batch:
        """The same step in exact blocks."""
        windows, chosen, candidates, state = self.made_of
        rng = np.random.default_rng(0)
        rng.bit_generator.state = state
        return make_batch(windows, chosen, candidates, rng)


def pack(lengths: Ints, width: int) -> tuple[Ints, Ints]:
    """A row and a first column for each of the sequences (W,), so that rows of `width` hold them side by side.

    Each sequence longer than half a row starts its own row; the others fill the rows, shortest first, as many as fit.
    """
    row, column = np.empty(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    large, order = np.flatnonzero(2 * lengths > width), np.argsort(lengths, kind="stable")
    small = order[: len(order) - len(large)]
    row[large] = np.arange(len(large))
    used, ends = lengths[large].tolist(), [0, *np.cumsum(lengths[small]).tolist()]
    counts: list[int] = []
    begin = 0
    while begin < len(small):
        room = width - (used[len(counts)] if len(counts) < len(used) else 0)
        stop = bisect_right(ends, ends[begin] + room) - 1
        counts.append(stop - begin)
        begin = stop
    row[small] = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum([0, *counts])[:-1]  # of each row, among the small ones
    shift = np.array([ends[one] - (used[number] if number < len(used) else 0) for number, one in enumerate(first)])
    if len(small):
        column[small] = np.array(ends[:-1]) - shift[row[small]]
    return row, column


def row_length(max_len: int) -> int:
    return max(SHORTEST_ROW, -(-max_len // ROW_MULTIPLE) * ROW_MULTIPLE)


def plan_shape(windows: Windows, batch_size: int, seed: int, candidates: Candidates, max_len: int) -> Shape:
    """The shape for the steps of a run: rows and items of its first ones with HEADROOM, and places for all targets."""
    length, most = row_length(max_len), np.ones(2)
    for chosen, _ in islice(step_windows(windows, batch_size, seed, 1), SAMPLED_STEPS):
        row, _ = pack(windows.length[chosen], length)
        read, *_ = _read_by(windows, chosen)
        named = len(np.unique(read)) if candidates.drawn < candidates.size else 0
        most = np.maximum(most, [row.max() + 1, named])
    rows, items = (int(one * (1 + HEADROOM)) + 1 for one in most)
    targets = min(int(windows.targets.sum()), batch_size - 1 + int(windows.targets.max()))  # no step has more
    return Shape(
        -(-rows // 8) * 8,
        length,
        -(-targets // 16) * 16,
        WHOLE if candidates.drawn >= candidates.size else -(-(items + candidates.drawn) // 64) * 64,
    )


def _read_by(windows: Windows, chosen: Ints) -> tuple[Ints, Ints, Ints]:
    """All items of the chosen windows, inputs and last targets (T + W,); for each, the index of its window among the
    chosen ones, and its place in the window."""
    size = windows.length[chosen] + 1
    within = within_groups(size)
    window = np.repeat(np.arange(len(chosen)), size)
    return windows.items[windows.first[chosen][window] + within], window, within


def packed_batch(
    windows: Windows,
    chosen: Ints,
    candidates: Candidates,
    rng: np.random.Generator,
    base: Shape,
    new: NDArray[np.bool_] | None = None,
) -> PackedBatch:
    """The step on the chosen windows: the same items, sequences and targets as `make_batch`, in another order.

    new: (N,) True for items that are not candidates; None if all are candidates.
    """
    made_of = (windows, chosen, candidates, dict(rng.bit_generator.state))
    read, window, within = _read_by(windows, chosen)
    length, targets = windows.length[chosen], windows.targets[chosen]
    items, log_inclusion, index = np.empty(0, np.int64), None, read
    if base.items != WHOLE:
        items, index = np.unique(read, return_inverse=True)
        if candidates.drawn:
            own = items
            items, log_inclusion = add_drawn(own, candidates, rng)
            index = np.searchsorted(items, own)[index]
    row, column = pack(length, base.length)
    is_target = within > (length - targets)[window]
    shape = base.holding(int(row.max()) + 1, int(targets.sum()), len(items))
    numbers = np.zeros(shape.numbers(), np.int64)
    part = shape.split(numbers)
    is_input = within < length[window]
    flat = row * base.length + column  # (W,) of each window's first position
    place = flat[window[is_input]] + within[is_input]
    part["inputs"].reshape(-1)[place] = index[is_input]
    part["places"].reshape(-1)[place] = within[is_input]
    part["windows"].reshape(-1)[place] = window[is_input] + 1
    count = int(targets.sum())
    part["positions"][:count] = flat[window[is_target]] + within[is_target] - 1
    part["targets"][:count] = index[is_target]
    part["targets"][count:] = part["targets"][0]
    part["users"][:count] = windows.user[chosen][window[is_target]]
    part["counts"][0] = count
    if base.items != WHOLE:
        part["items"][:] = items[0]
        part["items"][: len(items)] = items
        inclusion = np.full(shape.items, np.inf)
        inclusion[: len(items)] = 0 if log_inclusion is None else log_inclusion
        if new is not None:
            inclusion[: len(items)][new[items]] = np.inf
        part["log_inclusion"][:] = inclusion.view(np.int64)
    return PackedBatch(shape, numbers, items, read[is_target], made_of)

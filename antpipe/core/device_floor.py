"""The floor's terms on a device: what transitions add to a step or to examples, without the CPU and in fixed shapes.

The counted transitions of a catalogue lie on the device once. From there, each of a position's last items adds its row
of them to the scores of that position: a step brings only these items, not the pairs that they lead to.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from antpipe.core.untrained import DECAY, LAST, REACH, Untrained

if TYPE_CHECKING:
    import torch

MOST_SHARES = sum(DECAY**back for back in range(LAST))  # of the last items together


@dataclass(frozen=True)
class DeviceKnown:
    """`Untrained` of N items on a device.

    begin: (N + 1,) where the transitions of each item begin; keys: (S + 1,) ascending, item * N + following item;
    values: (S + 1,) float64 log1p(c). The last transition is padding: key N * N, value 0. texts: (N, d),
    where d may be 0; new: (N,).
    """

    begin: "torch.Tensor"
    keys: "torch.Tensor"
    values: "torch.Tensor"
    texts: "torch.Tensor"
    new: "torch.Tensor"
    largest: float  # of the values

    def items(self) -> int:
        return len(self.new)


def known_on(known: Untrained, device: "torch.device") -> DeviceKnown:
    """Copy what is known to a device: 16 bytes per pair of items, 4 d per item with texts."""
    import torch

    steps, n = known.steps, len(known.new)
    steps.sort_indices()
    keys = np.repeat(np.arange(n), np.diff(steps.indptr)) * n + steps.indices
    arrays = (steps.indptr.astype(np.int64), np.append(keys, n * n), np.append(steps.data, 0.0), known.new)
    begin, keys, values, new, texts = (torch.from_numpy(array).to(device) for array in (*arrays, known.texts))
    return DeviceKnown(begin, keys, values, texts, new, float(steps.data.max(initial=0.0)))


def transitions_of(
    known: DeviceKnown,
    last: "torch.Tensor",
    size: int,
    targets: "torch.Tensor | None" = None,
    columns: "torch.Tensor | None" = None,
    n: int = 0,
) -> "torch.Tensor":
    """(p, n) float32: the transitions term of p positions.

    last: (p, LAST) rows, the latest first, -1 for none. size: at least the number of transitions that they have, the
    sum of `transition_counts`. targets: (p,) rows that the position's own user does not vote for (`step_pairs`).
    columns: (N,) the column of each item, n if it has none; None: items are columns.
    """
    import torch

    device, items, p = last.device, known.items(), len(last)
    n = n if columns is not None else items
    read, real = last.clamp(min=0).flatten(), (last >= 0).flatten()
    begin = known.begin.index_select(0, read)
    count = torch.where(real, known.begin.index_select(0, read + 1) - begin, 0)  # (p LAST,)
    ends = count.cumsum(0)
    number = torch.arange(size, device=device)
    reader = torch.searchsorted(ends, number, right=True).clamp_(max=len(ends) - 1)  # which last item of which position
    there = number < ends[-1]
    shift = (begin + count - ends).index_select(0, reader)
    place = torch.where(there, number + shift, len(known.keys) - 1)  # (size,)
    item, value = known.keys.index_select(0, place) % items, known.values.index_select(0, place).float()
    row, back = reader // LAST, reader % LAST
    if targets is not None:
        own = (back < REACH) / (back + 1)  # what the target's own occurrence after this item counts
        less = torch.log1p((torch.expm1(value) - own).clamp(min=0))
        value = torch.where(item == targets.index_select(0, row), less, value)
    value = torch.where(there, value * shares(device).index_select(0, back), 0)
    column = item if columns is None else columns.index_select(0, item)
    dense = torch.zeros(p * (n + 1), device=device)
    return dense.index_add_(0, row * (n + 1) + column, value).view(p, n + 1)[:, :n]


def transitions_at(
    known: DeviceKnown, last: "torch.Tensor", row: "torch.Tensor", item: "torch.Tensor"
) -> "torch.Tensor":
    """The same in float64 at some pairs: (s,) for positions row (s,) and items (s,)."""
    import torch

    read = last.index_select(0, row)  # (s, LAST)
    keys = torch.where(read >= 0, read * known.items() + item[:, None], -1)
    place = torch.searchsorted(known.keys, keys)
    found = torch.where(known.keys[place] == keys, known.values[place], 0.0)
    return (found * shares(last.device).double()).sum(1)


def shares(device: "torch.device") -> "torch.Tensor":
    """(LAST,) what each of the last items counts."""
    import torch

    return torch.full((LAST,), DECAY, device=device).pow(torch.arange(LAST, device=device))

"""The floor's terms on a device: what transitions and words add to the scores of examples, without the CPU.

The links of a catalogue, that is, pairs of items with counted transitions or shared words, are copied to the device
once. Each of an example's last items then adds its row of links to the scores of that example.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from antpipe.core.untrained import DECAY, LAST, TRANSITIONS, WORDS, Untrained

if TYPE_CHECKING:
    import torch

Weights = Mapping[str, Any]  # by term: numbers, or scalars on the device
MOST_SHARES = sum(DECAY**back for back in range(LAST))  # sum of the last items' shares


@dataclass(frozen=True)
class DeviceKnown:
    """`Untrained` of N items on a device.

    begin: (N + 1,) where the links of each item begin; keys: (S + 1,) ascending, item * N + linked item; steps, words:
    (S + 1,) float64 of `Untrained`, 0 if a link has only the other. The last link is padding: key N * N, values 0.
    texts: (N, d), where d may be 0; new, popularity, typical: (N,).
    """

    largest: dict[str, float]  # maximum of the steps and of the words
    begin: "torch.Tensor"
    keys: "torch.Tensor"
    steps: "torch.Tensor"
    words: "torch.Tensor"
    texts: "torch.Tensor"
    new: "torch.Tensor"
    popularity: "torch.Tensor"
    typical: "torch.Tensor"

    def items(self) -> int:
        return len(self.new)


def known_on(known: Untrained, device: "torch.device") -> DeviceKnown:
    """Copy what is known to a device: 24 bytes per link, and 4 d bytes per item for its text."""
    import torch

    n, parts = len(known.new), {TRANSITIONS: known.steps, WORDS: known.words}
    keys_of = {name: np.repeat(np.arange(n), np.diff(one.indptr)) * n + one.indices for name, one in parts.items()}
    keys = np.union1d(*keys_of.values())
    values = {name: np.zeros(len(keys) + 1) for name in parts}
    for name, one in parts.items():
        values[name][np.searchsorted(keys, keys_of[name])] = one.data
    begin = np.searchsorted(keys, np.arange(n + 1) * n)
    links = (np.append(keys, n * n), values[TRANSITIONS], values[WORDS])
    arrays = (begin, *links, known.texts, known.new, known.popularity, known.typical)
    tensors = (torch.from_numpy(array).to(device) for array in arrays)
    largest = {name: float(parts[name].data.max(initial=0.0)) for name in (TRANSITIONS, WORDS)}
    return DeviceKnown(largest, *tensors)


def links_of(known: DeviceKnown, last: "torch.Tensor", size: int, weights: Weights) -> "torch.Tensor":
    """(p, N) float32: the sum of the transitions and words terms of p positions, times their weights.

    last: (p, LAST) rows, the latest first, -1 for none. size: at least the number of their links, such as the sum of
    `link_counts`.
    """
    import torch

    device, items, p = last.device, known.items(), len(last)
    read, real = last.clamp(min=0).flatten(), (last >= 0).flatten()
    begin = known.begin.index_select(0, read)
    count = torch.where(real, known.begin.index_select(0, read + 1) - begin, 0)  # (p LAST,)
    ends = count.cumsum(0)
    number = torch.arange(size, device=device)
    reader = torch.searchsorted(ends, number, right=True).clamp_(max=len(ends) - 1)  # which last item of which position
    there = number < ends[-1]
    shift = (begin + count - ends).index_select(0, reader)
    place = torch.where(there, number + shift, len(known.keys) - 1)  # (size,)
    item, value = known.keys.index_select(0, place) % items, known.steps.index_select(0, place).float()
    row, back = reader // LAST, reader % LAST
    value = value * weights[TRANSITIONS] + known.words.index_select(0, place).float() * weights[WORDS]
    value = torch.where(there, value * shares(device).index_select(0, back), 0)
    dense = torch.zeros(p * items, device=device)
    return dense.index_add_(0, row * items + item, value).view(p, items)


def links_at(
    known: DeviceKnown, last: "torch.Tensor", row: "torch.Tensor", item: "torch.Tensor", weights: Weights
) -> "torch.Tensor":
    """The same sum in float64 for single pairs (s,) of a position, row (s,), and an item (s,)."""
    import torch

    read = last.index_select(0, row)  # (s, LAST)
    keys = torch.where(read >= 0, read * known.items() + item[:, None], -1)
    place = torch.searchsorted(known.keys, keys)
    share, there = shares(last.device).double(), known.keys[place] == keys
    steps, words = ((torch.where(there, one[place], 0.0) * share).sum(1) for one in (known.steps, known.words))
    found: torch.Tensor = steps * weights[TRANSITIONS] + words * weights[WORDS]
    return found


def shares(device: "torch.device") -> "torch.Tensor":
    """(LAST,) the weight of each of the last items, the latest first."""
    import torch

    return torch.full((LAST,), DECAY, device=device).pow(torch.arange(LAST, device=device))

"""From interactions to batches: training windows, their batches, and evaluation examples.

Items are rows of a catalogue (catalogue.py), numbered over all its domains, or rows of one domain where that is said.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from antpipe.core.catalogue import Ints
from antpipe.runtime.arrays import within_groups
from antpipe.store.files import Sequences

# One more pass through the Transformer costs about as much as this many padded positions (2 cores, width 64 to 256).
PADDING_WORTH_A_BLOCK = 128


@dataclass(frozen=True)
class Windows:
    """Stretches of item sequences to train on. Window w reads `length[w]` items from `first[w]` on.

    Its last `targets[w]` positions have a target each: the item after it.
    """

    items: Ints  # all sequences one after the other, global item rows
    first: Ints  # (W,)
    length: Ints  # (W,)
    targets: Ints  # (W,)


def training_windows(sequences: Sequence[Sequences], offsets: Ints, stride: int = 1) -> Windows:
    """All prefixes of all users' training parts, each looking back on at most max_len items.

    While a training part fits max_len + 1 items it is one window with a target at every position, which one
    causal pass serves. Behind it, windows of max_len items serve the next `stride` targets each. With a stride of 1
    every prefix starts at position 0, just as if it stood alone; with a longer one, long histories cost that many times
    less, and of their prefixes some look back on up to stride - 1 items fewer than max_len.
    """
    items, first, length, targets = [], [], [], []
    base = 0
    for part, offset in zip(sequences, offsets[:-1], strict=True):
        start, train = base + part.offsets[:-1], part.train_end.astype(np.int64)
        head = np.minimum(train - 1, part.max_len)  # inputs of the first window
        some = head > 0
        step = min(stride, part.max_len)
        extra = np.maximum(train - 1 - part.max_len, 0)  # targets behind it
        count = -(-extra // step)  # windows for them
        within = within_groups(count)
        served = np.minimum(step, np.repeat(extra, count) - within * step)  # the last one may serve fewer
        first += [start[some], np.repeat(start, count) + within * step + served]
        length += [head[some], np.full(len(within), part.max_len)]
        targets += [head[some], served]
        items.append(part.items.astype(np.int64) + offset)
        base += len(part.items)
    return Windows(*(np.concatenate(parts) for parts in (items, first, length, targets)))


@dataclass(frozen=True)
class Block:
    """Sequences of similar length. inputs: (B, L) rows into the batch's items, padded at the end with row 0;
    positions: (p,) places in the flattened (B * L) outputs that have a target."""

    inputs: Ints
    positions: Ints


@dataclass(frozen=True)
class Batch:
    """What one step reads. items: (n,) global rows. targets: (P,) rows into `items` of all positions of the step.

    blocks: the sequences this process works on; their positions are targets[first : first + p], in the blocks' order
    (in one process first = 0 and p = P). log_inclusion: (n,) logarithm of each item's probability to be among
    `items`, where these are a sample of the catalogue.
    """

    items: Ints
    blocks: tuple[Block, ...]
    targets: Ints
    first: int = 0
    log_inclusion: NDArray[np.float32] | None = None

    def own_targets(self) -> slice:
        return slice(self.first, self.first + sum(len(block.positions) for block in self.blocks))


@dataclass(frozen=True)
class Candidates:
    """Which items a step needs besides those its sequences name: `drawn` of a catalogue of `size`."""

    size: int
    drawn: int


def batches(
    windows: Windows, batch_size: int, seed: int, epoch: int, candidates: Candidates, share: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """One pass over the windows in an order that depends on seed and epoch only; about batch_size targets a batch.

    share: which of how many processes this is; each works on its part of every batch.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(windows.first))
    step = (np.cumsum(windows.targets[order]) - 1) // batch_size
    for number, chosen in enumerate(np.split(order, np.flatnonzero(np.diff(step)) + 1)):
        rng = np.random.default_rng([seed, epoch, number])
        yield make_batch(windows, chosen, candidates, rng, share)


def make_batch(
    windows: Windows, chosen: Ints, candidates: Candidates, rng: np.random.Generator, share: tuple[int, int] = (0, 1)
) -> Batch:
    """The batch of some windows, in blocks of similar length."""
    rank, size = share
    order = chosen[np.argsort(windows.length[chosen], kind="stable")]
    parts = [blocks_of(windows, order[one::size]) for one in range(size)]
    target = np.concatenate([targets for _, targets in parts])
    named = [target, *(block.inputs.ravel() for blocks, _ in parts for block in blocks)]
    first = sum(len(targets) for _, targets in parts[:rank])
    if candidates.drawn >= candidates.size:  # rows of the catalogue are rows of the batch
        return Batch(np.arange(candidates.size), parts[rank][0], target, first)
    own = np.unique(np.concatenate(named))
    items, log_inclusion = add_drawn(own, candidates, rng) if candidates.drawn else (own, None)
    blocks = (Block(np.searchsorted(items, block.inputs), block.positions) for block in parts[rank][0])
    return Batch(items, tuple(blocks), np.searchsorted(items, target), first, log_inclusion)


def blocks_of(windows: Windows, order: Ints) -> tuple[tuple[Block, ...], Ints]:
    """Windows in order of length as blocks whose inputs are global rows, and the targets (p,), global rows too."""
    blocks, targets = [], [np.empty(0, np.int64)]
    for group in np.split(order, block_ends(windows.length[order])) if len(order) else ():
        first, length = windows.first[group], windows.length[group]
        column = np.arange(length.max())
        real = column < length[:, None]  # (B, L)
        place = np.where(real, first[:, None] + column, first[:, None])
        positions = np.flatnonzero(real & (column >= (length - windows.targets[group])[:, None]))
        blocks.append(Block(windows.items[place], positions))
        targets.append(windows.items[place.reshape(-1)[positions] + 1])
    return tuple(blocks), np.concatenate(targets)


def add_drawn(own: Ints, candidates: Candidates, rng: np.random.Generator) -> tuple[Ints, NDArray[np.float32] | None]:
    """A step's own items (sorted) together with items drawn from the others, uniformly and without repetition.

    Returns all of them, sorted, and the logarithm of each one's probability to be there: own ones are certain.
    """
    others = candidates.size - len(own)
    if others <= candidates.drawn:
        return np.arange(candidates.size), None
    some = rng.choice(candidates.size, min(candidates.size, candidates.drawn + len(own)), replace=False)
    drawn = some[~np.isin(some, own)][: candidates.drawn]
    items = np.sort(np.concatenate([own, drawn]))
    log_inclusion = np.full(len(items), np.log(len(drawn) / others), np.float32)
    log_inclusion[np.searchsorted(items, own)] = 0
    return items, log_inclusion


def history_pairs(blocks: Sequence[Block], n: int) -> tuple[Ints, Ints]:
    """Each position of some blocks, in their order, with each item up to it: rows (S,) of the positions, ascending,
    and rows (S,) of the batch's n items. A pair is there once, however often its item comes."""
    keys, base = [np.empty(0, np.int64)], 0
    for block in blocks:
        sequence, place = np.divmod(block.positions, block.inputs.shape[1])
        position, column = np.nonzero(np.arange(block.inputs.shape[1]) <= place[:, None])
        keys.append((base + position) * n + block.inputs[sequence[position], column])
        base += len(place)
    rows, items = np.divmod(np.unique(np.concatenate(keys)), n)
    return rows, items


def pairs_among(pairs: tuple[Ints, Ints], candidates: Ints) -> tuple[Ints, Ints]:
    """Pairs of row and item as pairs of row and column, where the columns are candidates (P,) of which several may be
    the same item."""
    rows, items = pairs
    order = np.argsort(candidates, kind="stable")
    first = np.searchsorted(candidates[order], items)
    count = np.searchsorted(candidates[order], items, side="right") - first
    within = within_groups(count)
    return np.repeat(rows, count), order[np.repeat(first, count) + within]


def block_ends(lengths: Ints) -> list[int]:
    """Where to cut ascending lengths (W,) into blocks: at powers of two, unless padding the shorter sequences to
    the next power costs fewer than PADDING_WORTH_A_BLOCK positions."""
    power = np.ceil(np.log2(lengths)).astype(np.int64)
    ends: list[int] = []
    begin = 0
    for cut in np.flatnonzero(np.diff(power)) + 1:
        padding = (cut - begin) * (2 ** int(power[cut]) - lengths[cut - 1])
        if padding >= PADDING_WORTH_A_BLOCK:
            ends.append(int(cut))
            begin = int(cut)
    return ends


@dataclass(frozen=True)
class Examples:
    """Positions to predict in one domain. Example q of user[q] has the history items[start[q]:end[q]] and the
    target items[end[q]]; items are rows of the domain's own catalogue."""

    user: NDArray[np.int32]  # (Q,)
    items: NDArray[np.int32]
    start: Ints  # (Q,)
    end: Ints  # (Q,)
    max_len: int

    def __len__(self) -> int:
        return len(self.user)

    def targets(self) -> Ints:
        return self.items[self.end].astype(np.int64)


def examples(sequences: Sequences, split: str) -> Examples:
    """The targets of a split (`valid` or `test`), each with everything its user did before."""
    lengths = np.diff(sequences.offsets)
    low, high = (sequences.train_end, sequences.valid_end) if split == "valid" else (sequences.valid_end, lengths)
    count = np.maximum(high - low, 0)
    row = np.repeat(np.arange(len(count)), count)
    within = within_groups(count)
    start = sequences.offsets[:-1][row]
    return Examples(sequences.user[row], sequences.items, start, start + low[row] + within, sequences.max_len)


def sample(part: Examples, most: int) -> Examples:
    """At most `most` of the examples, always the same ones; all of them where `most` is 0."""
    if not 0 < most < len(part):
        return part
    some = np.sort(np.random.default_rng(0).choice(len(part), most, replace=False))
    return Examples(part.user[some], part.items, part.start[some], part.end[some], part.max_len)


def history_blocks(part: Examples, size: int) -> Iterator[tuple[Ints, Ints]]:
    """Histories cut to the last max_len items, in blocks of at most `size` examples of one length: without padding,
    so that what comes out for one example does not depend on the others.

    Yields example numbers (B,) and inputs (B, L).
    """
    length = np.minimum(part.end - part.start, part.max_len)
    order = np.argsort(length, kind="stable")
    for same in np.split(order, np.flatnonzero(np.diff(length[order])) + 1):
        for begin in range(0, len(same), size):
            rows = same[begin : begin + size]
            column = np.arange(length[rows[0]])
            first = part.end[rows] - length[rows]
            yield rows, part.items[first[:, None] + column].astype(np.int64)

"""From sequences to training windows and their batches, and to evaluation examples.

Items are global rows of a catalogue (catalogue.py), or rows of one domain where a docstring says so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from antpipe.core.catalogue import Ints
from antpipe.runtime.arrays import within_groups
from antpipe.store.files import Sequences

# One more pass through the Transformer costs about as much as this many padded positions (2 cores, width 64 to 256).
PADDING_WORTH_A_BLOCK = 128


@dataclass(frozen=True)
class Windows:
    """Stretches of item sequences to train on. Window w reads `length[w]` items, starting at `first[w]`.

    Each of its last `targets[w]` positions has a target: the item that follows it.
    """

    items: Ints  # all sequences concatenated, global item rows
    first: Ints  # (W,)
    length: Ints  # (W,)
    targets: Ints  # (W,)
    user: Ints  # (W,) number of the sequence that each is cut from, counted over all domains


def training_windows(sequences: Sequence[Sequences], offsets: Ints, stride: int = 1) -> Windows:
    """All prefixes of all users' training parts, each with a history of at most max_len items.

    The first max_len + 1 items are one window with a target at every position, served by one causal pass. After that,
    each window of max_len items serves the next `stride` targets. With a stride of 1 every prefix starts at position 0,
    as if encoded on its own. A longer stride makes long histories cheaper by that factor, and leaves some prefixes
    with up to stride - 1 items less history.
    """
    items, first, length, targets, user = [], [], [], [], []
    base = users = 0
    for part, offset in zip(sequences, offsets[:-1], strict=True):
        start, train = base + part.offsets[:-1], part.train_end.astype(np.int64)
        head = np.minimum(train - 1, part.max_len)  # inputs of the first window
        some = head > 0
        step = min(stride, part.max_len)
        extra = np.maximum(train - 1 - part.max_len, 0)  # targets after it
        count = -(-extra // step)  # windows for them
        within = within_groups(count)
        served = np.minimum(step, np.repeat(extra, count) - within * step)  # the last one may serve fewer
        first += [start[some], np.repeat(start, count) + within * step + served]
        length += [head[some], np.full(len(within), part.max_len)]
        targets += [head[some], served]
        user += [users + np.flatnonzero(some), users + np.repeat(np.arange(len(count)), count)]
        items.append(part.items.astype(np.int64) + offset)
        base += len(part.items)
        users += len(part.user)
    return Windows(*(np.concatenate(parts) for parts in (items, first, length, targets, user)))


@dataclass(frozen=True)
class Block:
    """Sequences of similar length.

    inputs: (B, L) indices into the batch's items, padded at the end with the first item of the sequence.
    positions: (p,) indices into the flattened (B * L) outputs that have a target.
    """

    inputs: Ints
    positions: Ints


@dataclass(frozen=True)
class Batch:
    """The input of one step.

    items: (n,) global rows. targets: (P,) indices into `items` for all positions of the step; users: (P,) the number of
    each position's sequence. blocks: the sequences of this process; their positions have, in order, the targets
    targets[first : first + p] (with one process first = 0 and p = P). log_inclusion: (n,) log probability that each
    item is among `items`, if these are a sample of the catalogue. windows: those of this process, in the order of its
    blocks.
    """

    items: Ints
    blocks: tuple[Block, ...]
    targets: Ints
    users: Ints
    first: int = 0
    log_inclusion: NDArray[np.float32] | None = None
    windows: Ints | None = None

    def own_targets(self) -> slice:
        return slice(self.first, self.first + sum(len(block.positions) for block in self.blocks))


@dataclass(frozen=True)
class Candidates:
    """Negatives of a step in addition to the items of its sequences: `drawn` from a catalogue of `size`."""

    size: int
    drawn: int


def batches(
    windows: Windows, batch_size: int, seed: int, epoch: int, candidates: Candidates, share: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """One pass over the windows, in an order given by seed and epoch, with about batch_size targets per batch.

    share: (rank, processes); each process gets its part of every batch.
    """
    for chosen, rng in step_windows(windows, batch_size, seed, epoch):
        yield make_batch(windows, chosen, candidates, rng, share)


def step_windows(
    windows: Windows, batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[Ints, np.random.Generator]]:
    """The windows of each step of an epoch, and the random numbers of that step."""
    order = np.random.default_rng([seed, epoch]).permutation(len(windows.first))
    step = (np.cumsum(windows.targets[order]) - 1) // batch_size
    for number, chosen in enumerate(np.split(order, np.flatnonzero(np.diff(step)) + 1)):
        yield chosen, np.random.default_rng([seed, epoch, number])


def make_batch(
    windows: Windows, chosen: Ints, candidates: Candidates, rng: np.random.Generator, share: tuple[int, int] = (0, 1)
) -> Batch:
    """The batch of the chosen windows, in blocks of similar length."""
    rank, size = share
    order = chosen[np.argsort(windows.length[chosen], kind="stable")]
    shares = [order[one::size] for one in range(size)]
    parts = [blocks_of(windows, own) for own in shares]
    target = np.concatenate([targets for _, targets in parts])
    users = np.concatenate([np.repeat(windows.user[own], windows.targets[own]) for own in shares])
    named = [target, *(block.inputs.ravel() for blocks, _ in parts for block in blocks)]
    first = sum(len(targets) for _, targets in parts[:rank])
    if candidates.drawn >= candidates.size:  # the batch has the whole catalogue
        return Batch(np.arange(candidates.size), parts[rank][0], target, users, first, None, shares[rank])
    own = np.unique(np.concatenate(named))
    items, log_inclusion = add_drawn(own, candidates, rng) if candidates.drawn else (own, None)
    blocks = (Block(np.searchsorted(items, block.inputs), block.positions) for block in parts[rank][0])
    return Batch(items, tuple(blocks), np.searchsorted(items, target), users, first, log_inclusion, shares[rank])


def blocks_of(windows: Windows, order: Ints) -> tuple[tuple[Block, ...], Ints]:
    """Windows, ordered by length, as blocks whose inputs are global rows, and their targets (p,), also global rows."""
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
    """A step's own items (sorted) plus negatives drawn uniformly, without replacement, from the others.

    Returns all items, sorted, and the log probability that each is included (0 for own items).
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
    """Unique pairs of a position of the blocks and an item in its history, the position's own item included.

    Returns row numbers (S,) of the positions, ascending in the order of the blocks, and indices (S,) into the batch's n
    items.
    """
    keys, base = [np.empty(0, np.int64)], 0
    for block in blocks:
        sequence, place = np.divmod(block.positions, block.inputs.shape[1])
        position, column = np.nonzero(np.arange(block.inputs.shape[1]) <= place[:, None])
        keys.append((base + position) * n + block.inputs[sequence[position], column])
        base += len(place)
    rows, items = np.divmod(np.unique(np.concatenate(keys)), n)
    return rows, items


def pairs_among(pairs: tuple[Ints, Ints], candidates: Ints) -> tuple[Ints, Ints]:
    """Convert (row, item) pairs to (row, column) pairs; columns index candidates (P,), which may repeat an item."""
    rows, items = pairs
    order = np.argsort(candidates, kind="stable")
    first = np.searchsorted(candidates[order], items)
    count = np.searchsorted(candidates[order], items, side="right") - first
    within = within_groups(count)
    return np.repeat(rows, count), order[np.repeat(first, count) + within]


def block_ends(lengths: Ints) -> list[int]:
    """Where to cut ascending lengths (W,) into blocks: at powers of two, unless padding the shorter sequences to the
    next power costs fewer than PADDING_WORTH_A_BLOCK positions."""
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
    """Positions to predict in one domain. Example q of user[q] has the history items[start[q]:end[q]] and the target
    items[end[q]]; items are rows of the domain."""

    user: NDArray[np.int32]  # (Q,)
    items: NDArray[np.int32]
    start: Ints  # (Q,)
    end: Ints  # (Q,)
    max_len: int

    def __len__(self) -> int:
        return len(self.user)

    def targets(self) -> Ints:
        return self.items[self.end].astype(np.int64)

    def some(self, rows: Ints | slice) -> "Examples":
        """The examples with these indices."""
        return Examples(self.user[rows], self.items, self.start[rows], self.end[rows], self.max_len)

    def as_read(self) -> "Examples":
        """The same examples, with histories cut to the last max_len items."""
        return replace(self, start=np.maximum(self.start, self.end - self.max_len))


def examples(sequences: Sequences, split: str) -> Examples:
    """The targets of a split (`valid` or `test`), each with the whole history of its user before it."""
    lengths = np.diff(sequences.offsets)
    low, high = (sequences.train_end, sequences.valid_end) if split == "valid" else (sequences.valid_end, lengths)
    count = np.maximum(high - low, 0)
    row = np.repeat(np.arange(len(count)), count)
    within = within_groups(count)
    start = sequences.offsets[:-1][row]
    return Examples(sequences.user[row], sequences.items, start, start + low[row] + within, sequences.max_len)


def with_validation(sequences: Sequences) -> Sequences:
    """The same sequences with the validation targets among those of training."""
    return replace(sequences, train_end=sequences.valid_end)


def sample(part: Examples, most: int) -> Examples:
    """At most `most` examples, always the same ones (0: all)."""
    if not 0 < most < len(part):
        return part
    return part.some(np.sort(np.random.default_rng(0).choice(len(part), most, replace=False)))


def history_blocks(part: Examples, size: int) -> Iterator[tuple[Ints, Ints]]:
    """Histories cut to the last max_len items, in blocks of at most `size` examples of equal length.

    Blocks have no padding, so the result of one example does not depend on the others. Yields example numbers (B,) and
    inputs (B, L).
    """
    length = np.minimum(part.end - part.start, part.max_len)
    order = np.argsort(length, kind="stable")
    for same in np.split(order, np.flatnonzero(np.diff(length[order])) + 1):
        for begin in range(0, len(same), size):
            rows = same[begin : begin + size]
            column = np.arange(length[rows[0]])
            first = part.end[rows] - length[rows]
            yield rows, part.items[first[:, None] + column].astype(np.int64)

"""Batches side by side: several threads of this process, each with a batch and few threads of torch of its own.

The small operators of a model do not use many threads well, and each waits for the slowest of them. Batches do not
wait for each other. What a batch gives depends on the threads of torch it is computed with, not on the lane or on what
the others do; torch computes outside Python's lock.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

MOST_LANES = 8  # each holds a batch, and between operators one at a time runs Python
AHEAD = 2  # batches a lane that are made or done and not yet taken: making them must not keep a lane waiting


@dataclass(frozen=True)
class Lanes:
    """So many batches at the same time, each with so many threads of torch."""

    count: int
    threads: int


def lanes_of(threads: int) -> Lanes:
    """The lanes that share so many threads of torch."""
    each = -(-threads // MOST_LANES)
    return Lanes(threads // each, each)


def side_by_side(compute: Callable[[Any], Any], batches: Iterable[Any], lanes: Lanes) -> Iterator[Any]:
    """What `compute` makes of each batch, in order. The batches are drawn in this thread, meanwhile.

    An error of a batch is raised in its turn; batches that were not begun are then left out.
    """
    import torch

    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(lanes.count, "lane", initializer=torch.set_num_threads, initargs=(lanes.threads,))
    under_way: deque[Future[Any]] = deque()
    try:
        for batch in batches:
            under_way.append(pool.submit(compute, batch))
            if len(under_way) >= AHEAD * lanes.count:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        try:
            pool.shutdown(cancel_futures=True)
        finally:  # a second Ctrl-C ends the waiting
            torch.set_num_threads(before)  # lanes set what threads of this process begin with

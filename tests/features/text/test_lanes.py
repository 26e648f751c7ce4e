"""Several batches at once: results in order, threads of their own, and no batch drawn too early."""

import threading
from collections.abc import Iterator

import pytest
import torch

from antpipe.features.text.embedder import AHEAD, MOST_LANES, Lanes, lanes_of, side_by_side


@pytest.mark.parametrize("threads", [1, 2, 7, 8, 9, 12, 13, 16, 64, 96])
def test_lanes_share_the_threads_and_leave_few_unused(threads: int) -> None:
    lanes = lanes_of(threads)
    assert 1 <= lanes.count <= MOST_LANES
    assert threads - lanes.threads < lanes.count * lanes.threads <= threads


def test_with_few_threads_every_lane_has_one() -> None:
    assert [lanes_of(threads) for threads in range(1, MOST_LANES + 1)] == [
        Lanes(count, 1) for count in range(1, MOST_LANES + 1)
    ]


def test_results_come_in_order_whichever_batch_finishes_first() -> None:
    second = threading.Event()

    def compute(number: int) -> int:
        if number == 0:
            assert second.wait(10)
        if number == 1:
            second.set()
        return number * 10

    assert list(side_by_side(compute, range(9), Lanes(2, 1))) == [number * 10 for number in range(9)]


def test_as_many_batches_as_lanes_are_computed_at_once() -> None:
    together = threading.Barrier(3, timeout=10)
    assert len(list(side_by_side(lambda _: together.wait(), range(6), Lanes(3, 1)))) == 6


def test_no_more_batches_are_drawn_than_keep_the_lanes_busy() -> None:
    drawn: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(20):
            drawn.append(number)
            yield number

    results = side_by_side(lambda number: number, batches(), Lanes(2, 1))
    for taken in range(4):
        next(results)
        assert len(drawn) <= taken + AHEAD * 2


def test_lanes_have_their_threads_and_the_caller_keeps_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert set(side_by_side(lambda _: torch.get_num_threads(), range(8), Lanes(2, 1))) == {1}
        assert torch.get_num_threads() == 3
        assert set(side_by_side(lambda _: torch.get_num_threads(), range(2), Lanes(1, 3))) == {3}
    finally:
        torch.set_num_threads(before)


def test_an_error_is_raised_in_its_turn_and_ends_the_work() -> None:
    begun: list[int] = []

    def compute(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError("batch 3")
        return number

    got: list[int] = []
    with pytest.raises(ValueError, match="batch 3"):
        got.extend(side_by_side(compute, range(100), Lanes(1, 1)))
    assert sorted(begun)[:4] == [0, 1, 2, 3]
    assert len(begun) <= 4 + AHEAD


def test_abandoned_work_leaves_no_thread_behind() -> None:
    results = side_by_side(lambda number: number, range(100), Lanes(2, 1))
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]

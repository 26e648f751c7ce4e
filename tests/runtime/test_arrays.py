"""Index arithmetic on groups."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from antpipe.runtime.arrays import within_groups

SIZES = st.lists(st.integers(0, 5), max_size=8)


@given(SIZES)
def test_positions_count_from_zero_in_each_group(sizes: list[int]) -> None:
    expected = [position for size in sizes for position in range(size)]
    assert within_groups(np.array(sizes, dtype=np.int64)).tolist() == expected


@given(SIZES, st.data())
def test_added_to_repeated_starts_they_are_the_indices_of_slices(sizes: list[int], data: st.DataObject) -> None:
    starts = data.draw(st.lists(st.integers(0, 100), min_size=len(sizes), max_size=len(sizes)))
    lengths = np.array(sizes, dtype=np.int64)
    indices = np.repeat(np.array(starts, dtype=np.int64), lengths) + within_groups(lengths)
    assert indices.tolist() == [
        n for start, size in zip(starts, sizes, strict=True) for n in range(start, start + size)
    ]


def test_narrow_sizes_do_not_overflow() -> None:
    positions = within_groups(np.array([100, 100], dtype=np.int8))
    assert positions.dtype == np.int64
    assert positions.tolist() == [*range(100), *range(100)]

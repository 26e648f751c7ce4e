"""Index arithmetic on groups of different sizes that are stored one after the other in one array."""

import numpy as np
from numpy.typing import NDArray


def within_groups(sizes: NDArray[np.integer]) -> NDArray[np.int64]:
    """The position of each element within its group: sizes [2, 0, 3] give [0, 1, 0, 1, 2].

    sizes: (G,). Returns (sum of sizes,). So `np.repeat(starts, sizes) + within_groups(sizes)` gives the indices of the
    G slices `starts[g] : starts[g] + sizes[g]` without a loop over groups.
    """
    before = np.cumsum(sizes) - sizes  # how many elements the groups before each group have
    positions: NDArray[np.int64] = np.arange(sizes.sum()) - np.repeat(before, sizes)
    return positions

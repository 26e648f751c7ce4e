"""Approximate search by FAISS's IVF and HNSW, in place of the exact one, and how much of the exact one it finds.

Default sizes follow FAISS's guidelines (https://github.com/facebookresearch/faiss/wiki/Guidelines-to-choose-an-index).
"""

from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antpipe.core.ranking import CUTOFFS, LARGEST_BLOCK, Floats, Search, nearest
from antpipe.settings.evaluation import EvaluateConfig

# K-means of FAISS asks for at least so many vectors a centroid (ClusteringParameters.min_points_per_centroid).
LEAST_A_LIST = 39


def list_count(n: int, asked: int) -> int:
    """Inverted lists for n vectors: as asked, or 4 sqrt(n), but no more than there are vectors to fit them on."""
    return min(n, asked) if asked else max(1, min(round(4 * sqrt(n)), n // LEAST_A_LIST))


def build_index(items: Floats, config: EvaluateConfig) -> tuple[Search, dict[str, Any]]:
    """A search over unit vectors (N, D) by config.index, `ivf` or `hnsw`, and the sizes it was built with."""
    import faiss

    n, width = items.shape
    index: Any
    if config.index == "ivf":
        lists = list_count(n, config.nlist)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1  # fewer are asked for by name (--nlist), or follow from a small catalogue
        index.train(items)
        index.add(items)
        index.nprobe = min(lists, config.nprobe)
        sizes = {"nlist": lists, "nprobe": index.nprobe}
    else:
        index = faiss.IndexHNSWFlat(width, config.hnsw_m, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = config.ef_construction, config.ef_search
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)  # built by several, the graph depends on which of them is faster
        try:
            index.add(items)
        finally:
            faiss.omp_set_num_threads(threads)
        sizes = {"hnsw_m": config.hnsw_m, "ef_construction": config.ef_construction, "ef_search": config.ef_search}

    def search(queries: Floats, k: int) -> tuple[Floats, NDArray[np.int64]]:
        scores, rows = index.search(queries, k)
        return scores, rows

    return search, {"kind": config.index, **sizes}


def recall_of_exact(queries: Floats, items: Floats, search: Search) -> dict[str, float]:
    """The share of the exact k nearest items that `search` finds among its first k, for each cutoff, over all queries.

    What scores as high as the exact k-th item, within float32, is right: which of several equals is found is chance.
    """
    deepest = min(max(CUTOFFS), len(items))
    slack = (queries.shape[1] + 2) * 2.0**-23  # twice what a score may be off (ranking.py): two searches add up apart
    right = dict.fromkeys(CUTOFFS, 0)
    for start in range(0, len(queries), LARGEST_BLOCK):
        block = queries[start : start + LARGEST_BLOCK]
        exact, _ = nearest(block, items, deepest)
        scores, rows = search(block, deepest)
        for k in CUTOFFS:
            least = exact[:, min(k, deepest) - 1, None] - slack
            right[k] += int(((scores[:, :k] >= least) & (rows[:, :k] >= 0)).sum())
    return {f"recall_of_exact@{k}": right[k] / (len(queries) * min(k, deepest)) for k in CUTOFFS}

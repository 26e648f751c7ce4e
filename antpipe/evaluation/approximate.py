"""Approximate search with FAISS's IVF and HNSW, and its recall of the exact search.

Default sizes follow FAISS's guidelines (https://github.com/facebookresearch/faiss/wiki/Guidelines-to-choose-an-index).
"""

from math import sqrt
from typing import Any

from antpipe.core.ranking import CUTOFFS, LARGEST_BLOCK, Floats, Search, nearest
from antpipe.settings.evaluation import EvaluateConfig

# Minimum number of vectors per centroid that FAISS's k-means asks for (ClusteringParameters.min_points_per_centroid).
LEAST_PER_LIST = 39


def list_count(n: int, asked: int) -> int:
    """Inverted lists for n vectors: as asked, or else 4 sqrt(n), as far as there are enough vectors to fit them."""
    return min(n, asked) if asked else max(1, min(round(4 * sqrt(n)), n // LEAST_PER_LIST))


def build_index(items: Floats, config: EvaluateConfig) -> tuple[Any, dict[str, Any]]:
    """A FAISS index over unit vectors (N, D) of the kind config.index, `ivf` or `hnsw`, and its parameters."""
    import faiss

    n, width = items.shape
    index: Any
    if config.index == "ivf":
        lists = list_count(n, config.nlist)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1  # no warning: the user chose --nlist, or the catalogue is small
        index.train(items)
        index.add(items)
        index.nprobe = min(lists, config.nprobe)
        sizes = {"nlist": lists, "nprobe": index.nprobe}
    else:
        index = faiss.IndexHNSWFlat(width, config.hnsw_m, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = config.ef_construction, config.ef_search
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)  # with several threads, the graph depends on their timing
        try:
            index.add(items)
        finally:
            faiss.omp_set_num_threads(threads)
        sizes = {"hnsw_m": config.hnsw_m, "ef_construction": config.ef_construction, "ef_search": config.ef_search}
    return index, {"kind": config.index, **sizes}


def recall_of_exact(queries: Floats, items: Floats, search: Search) -> dict[str, float]:
    """The share of the exact k nearest items among the first k that `search` finds, for each cutoff, over all queries.

    An item that scores as high as the exact k-th item, within float32, counts as found: ties are broken arbitrarily.
    """
    deepest = min(max(CUTOFFS), len(items))
    slack = (queries.shape[1] + 2) * 2.0**-23  # twice the error bound of ranking.py: both searches round
    right = dict.fromkeys(CUTOFFS, 0)
    for start in range(0, len(queries), LARGEST_BLOCK):
        block = queries[start : start + LARGEST_BLOCK]
        exact, _ = nearest(block, items, deepest)
        scores, rows = search(block, deepest)
        for k in CUTOFFS:
            least = exact[:, min(k, deepest) - 1, None] - slack
            right[k] += int(((scores[:, :k] >= least) & (rows[:, :k] >= 0)).sum())
    return {f"recall_of_exact@{k}": right[k] / (len(queries) * min(k, deepest)) for k in CUTOFFS}

"""Judge a run on a domain by full ranking: figures under both protocols, and the rank of every position."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antpipe.core.batches import Examples, examples
from antpipe.core.ranking import PROTOCOLS, Ranks, rank_examples, score_of_history, summary, unit_vectors
from antpipe.errors import DataError
from antpipe.evaluation.approximate import build_index, recall_of_exact
from antpipe.evaluation.slices import groups, slice_figures, training_counts
from antpipe.runtime.devices import choose_device
from antpipe.runtime.files import atomic
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.store.files import write_json
from antpipe.store.store import Store
from antpipe.training.compatibility import open_run


def evaluate_run(
    store: Store, run: Path, domain: str, config: EvaluateConfig, notice: Callable[[str], None]
) -> dict[str, Any]:
    """Rank the targets of a split among the domain's whole catalogue.

    Writes RUN/evaluation-DOMAIN-SPLIT.json and RUN/ranks-DOMAIN-SPLIT.parquet (user, position, target, seen,
    occurrences of the target in training, and the rank by protocol, null beyond the deepest cutoff). Figures of an
    approximate index go to files of their own, whose names end with it: -ivf or -hnsw. Returns what the JSON holds.
    """
    device = choose_device(config.device)
    model, described, catalogue = open_run(store, run, domain, notice)
    sequences = store.domain(domain).sequences()
    if sequences.max_len != described.max_len:
        raise DataError(
            f"{run} looks back on {described.max_len} items, the sequences of {domain} on {sequences.max_len}",
            store.domain(domain).command_with("sequences", "--max-len", str(described.max_len)),
        )
    part = examples(sequences, config.split)
    if not len(part):
        raise DataError(f"domain {domain}: no position to predict in split {config.split}")
    queries, items = unit_vectors(model.to(device), catalogue, domain, part, device)
    exact = config.index == "exact"
    search, index = (None, {"kind": "exact"}) if exact else build_index(items, config)
    if search:
        index |= recall_of_exact(queries, items, search)
    ranks = rank_examples(queries, items, part, config.block_size, search, score_of_history(model))
    counts = training_counts(sequences, len(items))
    divided = groups(part, counts, catalogue, domain, tuple(described.modalities))
    result = {
        "domain": domain,
        "split": config.split,
        "stage": described.stage,
        "run_fingerprint": described.fingerprint,
        "items": len(items),
        "users": len(np.unique(part.user)),
        "approximate": not exact,
        "index": index,
        **summary(ranks),
        "slices": slice_figures(ranks, part.user, divided),
    }
    name = f"{domain}-{config.split}" + ("" if exact else f"-{config.index}")
    write_ranks(run / f"ranks-{name}.parquet", part, ranks, counts)
    write_json(run / f"evaluation-{name}.json", result)
    return result


def write_ranks(path: Path, part: Examples, ranks: Ranks, counts: NDArray[np.int64]) -> None:
    """The rank of every position as a table; it takes the place of an older one only when it is whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "user": part.user,
        "position": (part.end - part.start).astype(np.int32),
        "target": part.targets().astype(np.int32),
        "seen": ranks.seen,
        "occurrences": counts[part.targets()].astype(np.int32),
    }
    for protocol in PROTOCOLS:
        values = ranks.by_protocol[protocol]
        columns[f"rank_{protocol}"] = pa.array(values, mask=np.isinf(values))
    with atomic(path) as scratch:
        pq.write_table(pa.table(columns), scratch, compression="zstd")

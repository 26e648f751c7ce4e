"""Judge a run on a domain by full ranking: figures under both protocols, and the rank of every position."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from antpipe.compatibility import open_run
from antpipe.config import EvaluateConfig
from antpipe.data import examples
from antpipe.devices import choose_device
from antpipe.errors import DataError
from antpipe.ranking import PROTOCOLS, evaluate, summary
from antpipe.store import Store, write_json


def evaluate_run(
    store: Store, run: Path, domain: str, config: EvaluateConfig, notice: Callable[[str], None]
) -> dict[str, Any]:
    """Rank the targets of a split among the domain's whole catalogue.

    Writes RUN/evaluation-DOMAIN-SPLIT.json and RUN/ranks-DOMAIN-SPLIT.parquet (user, position, target, seen, and
    the rank by protocol, null beyond the deepest cutoff). Returns what the JSON holds.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

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
    ranks = evaluate(model.to(device), catalogue, domain, part, device)
    result = {
        "domain": domain, "split": config.split, "stage": described.stage, "run_fingerprint": described.fingerprint,
        "items": store.domain(domain).rows(), **summary(ranks),
    }  # fmt: skip
    name = f"{domain}-{config.split}"
    columns: dict[str, Any] = {
        "user": part.user, "position": (part.end - part.start).astype(np.int32),
        "target": part.targets().astype(np.int32), "seen": ranks.seen,
    }  # fmt: skip
    for protocol in PROTOCOLS:
        values = ranks.by_protocol[protocol]
        columns[f"rank_{protocol}"] = pa.array(values, mask=np.isinf(values))
    scratch = run / f".ranks-{name}.parquet"
    pq.write_table(pa.table(columns), scratch, compression="zstd")
    scratch.replace(run / f"ranks-{name}.parquet")
    write_json(run / f"evaluation-{name}.json", result)
    return result

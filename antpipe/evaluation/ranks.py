"""The ranks of an evaluation, with original ids."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Required, TypedDict

import numpy as np
import polars as pl

from antpipe.core.ranking import CUTOFFS, PROTOCOLS, metrics
from antpipe.errors import DataError, IntegrityError
from antpipe.runtime.files import atomic
from antpipe.store.documents import read_json
from antpipe.store.next_command import spell
from antpipe.store.store import Store
from antpipe.store.tables import read_table
from antpipe.training import checkpoint
from antpipe.training.folder import RunFolder

if TYPE_CHECKING:
    import pyarrow as pa

RANKS = {"user": "int", "position": "int", "target": "int", "seen": "bool", "occurrences": "int"}
RANKS |= {"rank_all": "double", "rank_unseen": "double"}
ROUNDING = 1e-9  # tolerance for figures that are recomputed


class Evaluation(TypedDict, total=False):
    """The JSON of an evaluation, as far as it is read again."""

    domain: Required[str]
    split: Required[str]
    run_fingerprint: Required[str]
    sequences: str  # their fingerprint; 0.1.0 did not write it
    items: Required[int]
    users: Required[int]
    positions: Required[int]
    target_in_history: Required[float]
    protocols: Required[dict[str, dict[str, float]]]
    slices: dict[str, Any]
    beyond: dict[str, Any]


def read_evaluation(path: Path, next_command: str | None) -> Mapping[str, Any]:
    """The figures that write_evaluation wrote. Raises FileNotFoundError without any, IntegrityError if damaged."""
    read_json(path, Evaluation, next_command)
    return read_json(path, dict[str, Any], next_command)


def read_ranks(store: Store, run: Path, domain: str, split: str = "test", index: str = "exact") -> pl.DataFrame:
    """The ranks that evaluate_run wrote, one row per position, with original user and item ids.

    Columns: user_id, item_id (of the target), position, seen, occurrences, rank_all, rank_unseen; a rank is null beyond
    the deepest cutoff. Raises DataError if the run was not evaluated like this, or changed since.
    """
    folder, here = RunFolder(run), store.domain(domain)
    figures_path, path = folder.evaluation(domain, split, index), folder.ranks(domain, split, index)
    flags = ["--run", str(run), "--split", split, "--index", index]
    again = spell("evaluate", domains=[domain], store=store.root, flags=flags)
    if not (figures_path.exists() and path.exists()):
        raise DataError(f"{run} was not evaluated on {domain} (split {split}, index {index})", again)
    figures = read_evaluation(figures_path, again)
    ids, users = here.item_ids(), here.table("users", ["user_id"])["user_id"]
    sequences = here.entry("sequences")["fingerprint"]
    now = (checkpoint.describe(run).fingerprint, here.core_rows(), sequences)
    if (figures["run_fingerprint"], figures["items"], figures.get("sequences", sequences)) != now:
        raise DataError(f"{figures_path}: the run or the catalogue of {domain} changed since this evaluation", again)
    table = read_table(path, RANKS, again)
    require_own(table, figures["protocols"], path, again)
    ranks = pl.DataFrame(table)
    return ranks.select(
        pl.Series("user_id", users.to_pylist())[ranks["user"]],
        pl.Series("item_id", ids)[ranks["target"]],
        pl.exclude("user", "target"),
    )


def require_own(
    table: "pa.Table", protocols: Mapping[str, Mapping[str, float]], path: Path, next_command: str | None
) -> None:
    """Raise IntegrityError unless the ranks of a file give the figures of their evaluation: an intact file may belong
    to another run. protocols: these figures."""
    for protocol in (name for name in PROTOCOLS if name in protocols):
        found = metrics(table[f"rank_{protocol}"].fill_null(np.inf).to_numpy().astype(np.float64))
        if any(abs(found[name] - value) > ROUNDING for name, value in protocols[protocol].items() if name in found):
            raise IntegrityError(f"{path}: its ranks are not those of its evaluation", next_command)


def write_per_user(ranks: pl.DataFrame, path: Path) -> None:
    """Write ranks, as `read_ranks` gives them, with the metrics of each position as a Parquet file.

    Further columns are Float64, named METRIC@K_PROTOCOL, such as ndcg@10_all; the mean of one over all rows is the
    figure that `evaluate` prints. docs/files.md describes the file.
    """
    columns = []
    for protocol in PROTOCOLS:
        rank = pl.col(f"rank_{protocol}")
        for k in CUTOFFS:
            hit = (rank <= k).fill_null(value=False)
            gains = {"recall": pl.lit(1.0), "ndcg": 1 / (rank + 1).log(2), "mrr": 1 / rank}
            columns += [
                pl.when(hit).then(gain).otherwise(0.0).alias(f"{metric}@{k}_{protocol}")
                for metric, gain in gains.items()
            ]
    with atomic(path, durable=True) as scratch:
        ranks.with_columns(columns).write_parquet(scratch)

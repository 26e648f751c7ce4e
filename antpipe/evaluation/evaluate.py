"""Judge a run on a domain by full ranking: figures under both protocols, and the rank of every position."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from antpipe.core.batches import Examples, examples
from antpipe.core.catalogue import Ints
from antpipe.core.gpu.floor import known_on
from antpipe.core.gpu.ranking import evaluate_on_device, example_blocks
from antpipe.core.ranking import PROTOCOLS, Ranks, summary
from antpipe.core.reranker import reranks
from antpipe.core.scoring import scoring
from antpipe.errors import DataError, SameCommand, UsageError
from antpipe.evaluation.approximate import build_index, recall_of_exact
from antpipe.evaluation.slices import Group, divide, slice_figures, training_counts
from antpipe.runtime.devices import choose_device
from antpipe.runtime.logs import log
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.store.documents import write_json
from antpipe.store.next_command import build_command_with
from antpipe.store.store import Store
from antpipe.store.tables import write_table
from antpipe.training.folder import RunFolder
from antpipe.training.opening import known_for, open_run, seen_by


def evaluate_run(store: Store, run: Path, domain: str, config: EvaluateConfig) -> dict[str, Any]:
    """Rank the targets of a split among the domain's whole catalogue.

    Writes figures and ranks to the folder of the run (see write_evaluation); those of an approximate index have files
    of their own. Returns the figures. Raises DataError if the run cannot read the domain or the split has no positions.
    """
    device = choose_device(config.device)
    model, described, catalogue = open_run(store, run, domain)
    sequences = store.domain(domain).sequences()
    if sequences.max_len != described.max_len:
        raise DataError(
            f"{run} reads histories of {described.max_len} items, the sequences of {domain} have {sequences.max_len}",
            build_command_with(store.domain(domain), "sequences", "--max-len", str(described.max_len)),
        )
    if described.refit and domain in described.domains and config.split == "valid":
        log.warning(f"{run} was trained on the validation targets: its figures on them are meaningless")
    part = examples(sequences, config.split)
    if not len(part):
        raise DataError(f"domain {domain}: no positions to predict in split {config.split}")
    model, n = model.to(device), len(catalogue.rows(domain))
    index: dict[str, Any] = {"kind": "exact"}
    known, shown = known_for(store, model, described, catalogue, domain), seen_by(described, domain, sequences)
    if config.index != "exact" and reranks(model):
        raise UsageError(f"{run} has a re-ranker, which needs the exact best items", SameCommand({"--index": "exact"}))
    if config.index == "exact" and device.type != "cpu" and not reranks(model):
        blocks = example_blocks(part, n, device, config.block_size, known)
        there = None if known is None else known_on(known, device)
        ranks = evaluate_on_device(model, catalogue, domain, device, blocks, known=there)
    else:
        scores, search = scoring(model, catalogue, domain, part, device, known), None
        if config.index != "exact":
            found, index = build_index(scores.items, config)
            search = found.search
            index |= recall_of_exact(scores.queries, scores.items, search)
        ranks = scores.ranks(part, config.block_size, search)
    counts = training_counts(shown, n)
    divided = divide(part, shown, catalogue, domain, tuple(described.modalities))
    facts = {
        "domain": domain,
        "split": config.split,
        "stage": described.way(),
        "run_fingerprint": described.fingerprint,
        "sequences": store.domain(domain).entry("sequences")["fingerprint"],
        "index": index,
    }
    return write_evaluation(run, facts, part, ranks, counts, divided)


def write_evaluation(
    run: Path, facts: Mapping[str, Any], part: Examples, ranks: Ranks, counts: Ints, divided: Mapping[str, Group]
) -> dict[str, Any]:
    """Write figures and ranks to the folder of a run; each file replaces an older one in one step.

    facts: what was judged (domain, split, stage, run_fingerprint, index …). counts: (N,) occurrences of the items in
    training. The Parquet file has the columns user, position, target, seen (the target is in the history), occurrences
    (of the target in training) and the rank by protocol, null beyond the deepest cutoff. Returns what the JSON holds.
    """
    import pyarrow as pa

    figures = {
        **facts,
        "items": len(counts),
        "users": len(np.unique(part.user)),
        "approximate": facts["index"]["kind"] != "exact",
        **summary(ranks),
        "slices": slice_figures(ranks, part.user, divided),
    }
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
    folder, which = RunFolder(run), (facts["domain"], facts["split"], facts["index"]["kind"])
    write_table(folder.ranks(*which), pa.table(columns))
    write_json(folder.evaluation(*which), figures)
    return figures

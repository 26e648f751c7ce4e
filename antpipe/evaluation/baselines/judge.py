"""A baseline judged on a domain. Its files are those of an evaluated run."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from antpipe.core.batches import examples
from antpipe.core.catalogue import load_catalogue
from antpipe.errors import DataError
from antpipe.evaluation.baselines.item_knn import item_knn
from antpipe.evaluation.baselines.markov import markov
from antpipe.evaluation.baselines.popularity import popularity
from antpipe.evaluation.baselines.scores import Scorer, rank_scores
from antpipe.evaluation.baselines.text_nearest import text_nearest, tfidf_nearest
from antpipe.evaluation.evaluate import write_evaluation
from antpipe.evaluation.slices import divide, training_counts
from antpipe.store.domain import Domain
from antpipe.store.manifest import digest
from antpipe.store.store import Store

VERSION = 1  # raise it when a baseline's scores change
# By name: the artefacts it reads, and how to fit it on the training part of a domain.
BASELINES: dict[str, tuple[tuple[str, ...], Callable[[Domain], Scorer]]] = {
    "popularity": (("sequences",), lambda domain: popularity(domain.sequences(), domain.rows())),
    "item-knn": (("sequences",), lambda domain: item_knn(domain.sequences(), domain.rows())),
    "markov": (("sequences",), lambda domain: markov(domain.sequences(), domain.rows())),
    "tfidf-nearest": (("sequences", "items"), tfidf_nearest),
    "text-nearest": (("sequences", "text"), text_nearest),
}


def baseline_fingerprint(store: Store, name: str, domain: str) -> str:
    """Hash of everything that determines a baseline's ranks. Raises DataError if the domain lacks an artefact."""
    reads, _ = BASELINES[name]
    return digest(
        [name, VERSION, {artefact: store.domain(domain).entry(artefact)["fingerprint"] for artefact in reads}]
    )


def judge_baseline(store: Store, name: str, domain: str, folder: Path, split: str = "test") -> dict[str, Any]:
    """Fit a baseline (one of BASELINES) on the training part of a domain, and rank the targets of a split.

    Writes the same files to `folder` as evaluate_run does for a run, without slices by modality. Returns the content of
    the JSON, which also has the `seconds` of fitting and ranking.
    """
    here = store.domain(domain)
    part = examples(here.sequences(), split)
    if not len(part):
        raise DataError(f"domain {domain}: no positions to predict in split {split}")
    fingerprint = baseline_fingerprint(store, name, domain)
    _, fit = BASELINES[name]
    began = time.perf_counter()
    ranks = rank_scores(fit(here), part, here.rows())
    facts = {
        "domain": domain,
        "split": split,
        "stage": name,
        "run_fingerprint": fingerprint,
        "index": {"kind": "exact"},
        "seconds": time.perf_counter() - began,
    }
    counts = training_counts(here.sequences(), here.rows())
    divided = divide(part, counts, load_catalogue(store, [domain], ()), domain, ())
    folder.mkdir(parents=True, exist_ok=True)
    return write_evaluation(folder, facts, part, ranks, counts, divided)

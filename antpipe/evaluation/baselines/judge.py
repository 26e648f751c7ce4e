"""A baseline judged on a domain, in files like those of a run: evaluation-DOMAIN-SPLIT.json and ranks-….parquet."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from antpipe.core.batches import examples
from antpipe.core.catalogue import load_catalogue
from antpipe.core.ranking import summary
from antpipe.errors import DataError
from antpipe.evaluation.baselines.item_knn import item_knn
from antpipe.evaluation.baselines.markov import markov
from antpipe.evaluation.baselines.popularity import popularity
from antpipe.evaluation.baselines.scores import Scorer, rank_scores
from antpipe.evaluation.baselines.text_nearest import text_nearest, tfidf_nearest
from antpipe.evaluation.evaluate import write_ranks
from antpipe.evaluation.slices import groups, slice_figures, training_counts
from antpipe.store.domain import Domain
from antpipe.store.files import digest, write_json
from antpipe.store.store import Store
from antpipe.training.run import nothing

VERSION = 1  # raise it when a baseline's scores change
# By name: what it reads of a domain, and how to make it.
BASELINES: dict[str, tuple[tuple[str, ...], Callable[[Domain], Scorer]]] = {
    "popularity": (("sequences",), lambda domain: popularity(domain.sequences(), domain.rows())),
    "item-knn": (("sequences",), lambda domain: item_knn(domain.sequences(), domain.rows())),
    "markov": (("sequences",), lambda domain: markov(domain.sequences(), domain.rows())),
    "tfidf-nearest": (("sequences", "items"), tfidf_nearest),
    "text-nearest": (("sequences", "text"), text_nearest),
}


def baseline_fingerprint(store: Store, name: str, domain: str) -> str:
    """Of all that determines a baseline's ranks. DataError where the domain lacks what it reads."""
    reads, _ = BASELINES[name]
    return digest(
        [name, VERSION, {artefact: store.domain(domain).entry(artefact)["fingerprint"] for artefact in reads}]
    )


def judge_baseline(store: Store, name: str, domain: str, folder: Path, split: str = "test") -> dict[str, Any]:
    """Rank the targets of a split by a baseline, one of BASELINES, fitted on the training part.

    Writes the two files to `folder` and returns what the JSON holds, as evaluate_run does for a run, and the `seconds`
    of fitting and ranking; there are no slices by modality.
    """
    place = store.domain(domain)
    part = examples(place.sequences(), split)
    if not len(part):
        raise DataError(f"domain {domain}: no position to predict in split {split}")
    fingerprint = baseline_fingerprint(store, name, domain)
    began = time.perf_counter()
    _, make = BASELINES[name]
    ranks = rank_scores(make(place), part, place.rows())
    seconds = time.perf_counter() - began
    counts = training_counts(place.sequences(), place.rows())
    divided = groups(part, counts, load_catalogue(store, [domain], (), nothing), domain, ())
    result = {
        "domain": domain,
        "split": split,
        "stage": name,
        "run_fingerprint": fingerprint,
        "items": place.rows(),
        "users": len(np.unique(part.user)),
        "approximate": False,
        "index": {"kind": "exact"},
        **summary(ranks),
        "slices": slice_figures(ranks, part.user, divided),
        "seconds": seconds,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_ranks(folder / f"ranks-{domain}-{split}.parquet", part, ranks, counts)
    write_json(folder / f"evaluation-{domain}-{split}.json", result)
    return result

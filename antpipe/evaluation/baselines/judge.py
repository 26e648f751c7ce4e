"""A baseline judged on a domain. Its files are those of an evaluated run."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antpipe.core.batches import examples
from antpipe.core.catalogue import load_catalogue
from antpipe.core.untrained import FORM
from antpipe.errors import DataError
from antpipe.evaluation.baselines.floor import floor
from antpipe.evaluation.baselines.item_knn import item_knn
from antpipe.evaluation.baselines.markov import markov
from antpipe.evaluation.baselines.popularity import popularity
from antpipe.evaluation.baselines.scores import Scorer, rank_scores
from antpipe.evaluation.baselines.text_nearest import text_nearest, tfidf_nearest
from antpipe.evaluation.baselines.tgh import tgh
from antpipe.evaluation.evaluate import write_evaluation
from antpipe.evaluation.slices import divide, training_counts
from antpipe.runtime.files import make_folder
from antpipe.store.domain import Domain
from antpipe.store.manifest import digest
from antpipe.store.store import Store

VERSIONS = {"floor": FORM}  # 1 for the others; increment when the scores of a baseline change
Facts = dict[str, Any]


@dataclass(frozen=True)
class Baseline:
    """reads: the artefacts it needs. fit: fits it to the training part of a domain; returns its scores, and what was
    chosen for them. may_read: artefacts it reads if they exist."""

    reads: tuple[str, ...]
    fit: Callable[[Domain], tuple[Scorer, Facts]]
    may_read: tuple[str, ...] = ()


def fixed(fit: Callable[[Domain], Scorer]) -> Callable[[Domain], tuple[Scorer, Facts]]:
    """A fit that has nothing to choose."""
    return lambda domain: (fit(domain), {})


BASELINES = {
    "popularity": Baseline(("sequences",), fixed(lambda domain: popularity(domain.sequences(), domain.core_rows()))),
    "item-knn": Baseline(("sequences",), fixed(lambda domain: item_knn(domain.sequences(), domain.core_rows()))),
    "markov": Baseline(("sequences",), fixed(lambda domain: markov(domain.sequences(), domain.core_rows()))),
    "tfidf-nearest": Baseline(("sequences", "items"), fixed(tfidf_nearest)),
    "text-nearest": Baseline(("sequences", "text"), fixed(text_nearest)),
    "tgh": Baseline(("sequences", "text"), fixed(tgh)),
    "floor": Baseline(("sequences",), floor, ("text",)),
}


def baseline_fingerprint(store: Store, name: str, domain: str) -> str:
    """Hash of everything that determines a baseline's ranks. Raises DataError if the domain lacks an artefact."""
    baseline, here = BASELINES[name], store.domain(domain)
    there = here.manifest()
    reads = (*baseline.reads, *(artefact for artefact in baseline.may_read if artefact in there))
    return digest([name, VERSIONS.get(name, 1), {artefact: here.entry(artefact)["fingerprint"] for artefact in reads}])


def judge_baseline(store: Store, name: str, domain: str, folder: Path, split: str = "test") -> dict[str, Any]:
    """Fit a baseline (one of BASELINES) on the training part of a domain, and rank the targets of a split.

    Writes the same files to `folder` as evaluate_run does for a run, without slices by modality. Returns the content of
    the JSON, which also has the `seconds` of fitting and ranking and, for `floor`, the `weights` chosen on validation.
    """
    here = store.domain(domain)
    part = examples(here.sequences(), split)
    if not len(part):
        raise DataError(f"domain {domain}: no positions to predict in split {split}")
    fingerprint = baseline_fingerprint(store, name, domain)
    began = time.perf_counter()
    score, chosen = BASELINES[name].fit(here)
    ranks = rank_scores(score, part, here.core_rows())
    facts = {
        "domain": domain,
        "split": split,
        "stage": name,
        "run_fingerprint": fingerprint,
        "sequences": here.entry("sequences")["fingerprint"],
        "index": {"kind": "exact"},
        "seconds": time.perf_counter() - began,
        **chosen,
    }
    counts = training_counts(here.sequences(), here.core_rows())
    divided = divide(part, here.sequences(), load_catalogue(store, [domain], ()), domain, ())
    make_folder(folder)
    return write_evaluation(folder, facts, part, ranks, counts, divided)

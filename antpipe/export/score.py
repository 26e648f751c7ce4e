"""Which terms of a run's score are in its vectors, and which are not."""

from collections.abc import Mapping, Sequence
from typing import Any

from antpipe.core.floor import COSINE, weights_of
from antpipe.core.reranker import POOL
from antpipe.core.scoring import score_of_history
from antpipe.core.untrained import HISTORY, NOVELTY, POPULARITY, TEXT, TRANSITIONS, WORDS
from antpipe.evaluation.vectors import OpenRun
from antpipe.runtime.logs import log
from antpipe.serving.explain import RERANKER
from antpipe.training import checkpoint

MEANING = {
    COSINE: "trained vectors",
    TEXT: "texts of the history",
    NOVELTY: "items that do not occur in training",
    POPULARITY: "items that occur often in training",
    WORDS: "TF-IDF neighbours of the last items' texts",
    TRANSITIONS: "what came after the last items in training",
    HISTORY: "a bonus for items that are in the history",
    RERANKER: f"the {POOL} best items are scored again, by a small network that shops have taught",
}
IN_VECTORS = (COSINE, TEXT, NOVELTY, POPULARITY)  # terms that the inner product of vectors holds


def score_facts(opened: OpenRun, held: Sequence[str] = IN_VECTORS) -> dict[str, Any]:
    """For export.json: the weights of the terms of the run's score, those in `held` and those left out."""
    if opened.known is None:
        bonus = score_of_history(opened.model)
        weights = {COSINE: 1.0, **({HISTORY: bonus} if bonus else {})}
    else:
        weights = weights_of(opened.model) | ({RERANKER: 1.0} if opened.rerank else {})
    return {
        "inner_product": {name: weight for name, weight in weights.items() if name in held},
        "left_out": {name: weight for name, weight in weights.items() if weight and name not in held},
    }


def left_out_in_words(left_out: Mapping[str, float]) -> str:
    """A sentence on the terms that no vector holds."""
    if not left_out:
        return "The inner product of a user's vector and an item's vector is the whole score of the run."
    terms = "; ".join(f"{name} (weight {weight:.4g}): {MEANING[name]}" for name, weight in left_out.items())
    return (
        "The inner product of a user's vector and an item's vector is not the whole score of the run. These terms are "
        f"not in it, but `antpipe recommend` and `antpipe evaluate` add them: {terms}."
    )


def warn_of_left_out(left_out: Mapping[str, float], what: str) -> None:
    """Log a warning that an export ranks differently from the run."""
    if left_out:
        log.warning(f"{what} rank without {', '.join(left_out)}, which add to the score of this run (see README.md)")


def run_facts(opened: OpenRun, held: Sequence[str] = IN_VECTORS) -> dict[str, Any]:
    """For export.json: the run and the domain that vectors are of, and what their score holds."""
    described = checkpoint.describe(opened.run)
    return {
        "domain": opened.domain.name,
        "run": {"fingerprint": described.fingerprint, "stage": described.stage},
        "id_table": opened.domain.entry("items")["id_table"],
        "score": score_facts(opened, held),
    }

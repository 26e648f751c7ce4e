"""The untrained floor (core/untrained.py) as a baseline."""

from typing import Any

from antpipe.core.batches import examples
from antpipe.core.untrained import blend, fit_weights, in_words, untrained
from antpipe.evaluation.baselines.scores import Scorer
from antpipe.runtime.logs import log
from antpipe.store.domain import Domain
from antpipe.store.next_command import build_command


def floor(domain: Domain) -> tuple[Scorer, dict[str, Any]]:
    """The scores of the blend, and the weights that were fitted to the validation positions.

    Terms for which the domain has no data are left out, and a message says so.
    """
    known = untrained(domain)
    if not known.texts.shape[1]:
        command = build_command(domain, "text")
        log.warning(f"domain {domain.name}: floor without texts, because it has no text features; next: {command}")
    if not known.steps.nnz:
        log.warning(f"domain {domain.name}: floor without transitions, no training part has two items")
    weights = fit_weights(known, examples(domain.sequences(), "valid"))
    log.info(f"{domain.name}  floor: {in_words(weights)}")
    return lambda part: blend(known, part, weights), {"weights": weights}

"""The order of a comparison's domains: facts about each target, and notes if an order cannot be chronological.

Measured before anything is trained, in the store as it is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from antpipe.runtime.logs import log
from antpipe.store.order import cold_targets_of, doubts, order_of
from antpipe.store.store import Store
from antpipe.training.checkpoint import Checkpoint


def order_facts(store: Store, targets: Iterable[str], starts: Mapping[str, Checkpoint]) -> dict[str, dict[str, Any]]:
    """By target: `order`, `cold_targets`, and `notes`: doubts about its order and that of the sources, also logged.

    starts: what the arms start from. A source that is not in the store any more, or has changed since it was read, is
    left out. Raises IntegrityError if the sequences of one are damaged.
    """
    read = {name: made.get("sequences") for start in starts.values() for name, made in start.domains.items()}
    sources = [store.domain(name) for name in sorted(read) if name in store.domains()]
    cold_of = {domain.name: cold_targets_of(domain) for domain in sources}
    about = {
        domain.name: doubts(order_of(domain), cold_of[domain.name])
        for domain in sources
        if cold_of[domain.name] and domain.entry("sequences")["fingerprint"] == read[domain.name]
    }
    of_sources = [f"source {name}: {doubt}" for name, found in about.items() for doubt in found]
    facts = {}
    for target in targets:
        order, cold = order_of(store.domain(target)), cold_targets_of(store.domain(target))
        notes = [f"target {target}: {doubt}" for doubt in doubts(order, cold)]
        for note in notes:
            log.warning(note)
        facts[target] = {
            "order": order and asdict(order),
            "cold_targets": cold and asdict(cold),
            "notes": [*notes, *of_sources],
        }
    for note in of_sources:
        log.warning(note)
    return facts

"""The model card of a run: data, licence, metrics with their protocol, verdict and limits, all from the run itself.

The head is that of huggingface.co/docs/hub/model-cards.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from antpipe.core.floor import COSINE
from antpipe.core.reranker import POOL
from antpipe.export.score import MEANING
from antpipe.serving.explain import RERANKER
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.request import FORK_MERGE, MERGE

UNKNOWN = "unknown"  # the hub's identifier for a licence that is not stated
COLUMNS = ("recall@10", "ndcg@10", "mrr@10", "recall@50", "ndcg@50")
TAGS = ("antpipe", "recommendation", "sequential-recommendation", "transfer-learning", "cold-start")
PROTOCOLS = {
    "all": "every item of the catalogue is ranked, those of the history too",
    "unseen": "items of the history are left out of the ranking, and a target in the history counts as a miss",
}
SIZES = {"users": "users", "items": "items", "interactions": "interactions"}


@dataclass(frozen=True)
class Shown:
    """What a model card says in addition to the description of the run. name: its title. licence: an identifier of
    the hub. reranks: whether the run uses a re-ranker."""

    name: str
    licence: str = UNKNOWN
    verdicts: Sequence[dict[str, Any]] = ()
    reranks: bool = False


def card(
    described: Checkpoint,
    evaluations: Sequence[Mapping[str, Any]],
    sizes: Mapping[str, Mapping[str, Any]],
    shown: Shown,
) -> str:
    """README.md. evaluations: as `evaluate` wrote them. sizes: statistics by domain."""
    parts = [
        "---\n" + "\n".join(head(evaluations, shown)) + "\n---",
        f"# {shown.name}",
        about(described, reranks=shown.reranks),
        "## Data\n\n" + "\n".join(data(described, sizes)),
        f"## Licence\n\n{licence(shown.licence)}",
        "## Metrics\n\n" + "\n\n".join(metrics(described, evaluations)),
        *(["## Verdict on transfer\n\n" + "\n".join(map(verdict, shown.verdicts))] if shown.verdicts else []),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits(described, evaluations, shown)),
        f"## Use\n\n{use(described)}",
    ]
    return "\n\n".join(parts) + "\n"


def head(evaluations: Sequence[Mapping[str, Any]], shown: Shown) -> Iterator[str]:
    """The lines of the card's YAML, with values that JSON writes, which YAML reads."""
    yield f"license: {shown.licence}"
    yield "library_name: antpipe"
    yield f"tags: {json.dumps(TAGS)}"
    results = [
        {
            "task": {"type": "sequential-recommendation"},
            "dataset": {"name": f"{one['domain']} ({one['split']})", "type": one["domain"]},
            "metrics": [
                {"type": name, "name": f"{name}, protocol {protocol}", "value": round(values[name], 6)}
                for protocol, values in one["protocols"].items()
                for name in COLUMNS
            ],
        }
        for one in evaluations
        if not one["approximate"]
    ]
    if results:
        yield f"model-index: {json.dumps([{'name': shown.name, 'results': results}], ensure_ascii=False)}"


def about(described: Checkpoint, *, reranks: bool) -> str:
    reads = ", ".join(f"{name} ({one['encoder']}, width {one['width']})" for name, one in described.modalities.items())
    if described.refit and described.epochs:
        trained = f"trained for {described.epochs} epochs on training and validation targets together (a refit)"
    elif described.stage == MERGE:
        trained = "the average of two runs that validates best"
    elif not described.epochs:
        trained = "its vectors were not trained: what it knows needs no epochs"
    elif not described.best_epoch:
        trained = f"its floor, to which the vectors of {described.epochs} epochs add too little"
    else:
        trained = f"the best of {described.epochs} epochs by validation, epoch {described.best_epoch}"
    way = described.way()
    again = (
        f" A re-ranker scores the {POOL} best items again: a small network that has learned how texts, words and "
        "transitions lead to the next item, from the shop itself and from those that it was pre-trained on, if any."
    )
    return (
        "A sequential recommender: after a user's history it expects the vector of the next item, and ranks "
        "a catalogue by the inner product with the items' vectors. Architecture ANT (arXiv 2309.10195), made with "
        f"antpipe {described.antpipe}, stage `{way}`; {trained}.\n\n"
        f"It reads of each item: {reads or 'only its id'}. It looks back {described.max_len} items."
        f"{again if reranks else ''}"
    )


def data(described: Checkpoint, sizes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A table of the domains that the run was trained on."""
    yield "| trained on | users | items | interactions | sequences (fingerprint) |"
    yield "|---|---|---|---|---|"
    for domain, artefacts in described.domains.items():
        counts = [f"{sizes[domain][key]:,}" if key in sizes[domain] else "?" for key in SIZES]
        yield f"| {domain} | {' | '.join(counts)} | `{artefacts.get('sequences', '?')[:12]}` |"
    if described.stage == FORK_MERGE:
        yield "\nTraining also took steps on other domains, which fork-merge.json names."
    if described.source and described.stage != MERGE:
        source = f"fingerprint `{described.source[:12]}`"
        yield f"\nTraining started from another run ({source}), which was trained on data of its own."


def licence(name: str) -> str:
    if name == UNKNOWN:
        return "None is stated. Ask the publisher before using the weights; terms of the training data may apply too."
    return f"{name}, as stated by the publisher. Terms of the training data and of the encoders may apply too."


def metrics(described: Checkpoint, evaluations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not evaluations:
        yield "This run was not evaluated."
        if described.metrics:
            best = ", ".join(f"{name} {described.metrics[name]:.4f}" for name in COLUMNS if name in described.metrics)
            yield f"On validation, which chose its epoch (so the figures are too good): {best}."
        return
    yield "Full ranking: each target is ranked among the whole catalogue, without sampled negatives."
    for one in evaluations:
        index = "exact search" if not one["approximate"] else f"approximate search ({one['index']['kind']})"
        title = (
            f"**{one['domain']}, {one['split']} split**: {one['positions']:,} positions of {one['users']:,} users, "
            f"{one['items']:,} items, {index}; {one['target_in_history']:.1%} of targets are in their own history."
        )
        rows = [
            f"| {protocol} | " + " | ".join(f"{values[name]:.4f}" for name in COLUMNS) + " |"
            for protocol, values in one["protocols"].items()
        ]
        yield "\n".join([title, "", f"| protocol | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|", *rows])
    yield "\n".join(f"- `{name}`: {meaning}." for name, meaning in PROTOCOLS.items())


def verdict(one: Mapping[str, Any]) -> str:
    """A line on the arm that a run belongs to."""
    found = one["verdict"]
    says = f"{found['word'] or 'too little data'} ({found['why']})" if found else "not judged"
    return (
        f"- {one['target']}, arm {one['arm']} against {one['control']}, {one['seeds']} seed(s), {one['metric']} under "
        f"protocol {one['protocol']} (mean {one['mean']['mean']:.4f}): {says}."
    )


def limits(described: Checkpoint, evaluations: Sequence[Mapping[str, Any]], shown: Shown) -> Iterator[str]:
    """What a reader must know before use."""
    if described.modalities:
        yield "Items must be described by the features above, of the same encoders; others mean nothing to the weights."
    if described.whitened():
        yield f"It reads whitened features ({', '.join(described.whitened())}), whitened as in training."
    if described.items:
        names = ", ".join(described.domains) or "its own"
        others = "Other items have their content only." if described.modalities else "It knows no other items."
        yield (
            f"It has a learned vector for each of the {described.items:,} items of its catalogue ({names}); "
            f"items-*.parquet has their ids, if it is here. {others}"
        )
    if described.model_config().floor:
        terms = "; ".join(f"{name}: {MEANING[name]}" for name in MEANING if name not in (COSINE, RERANKER))
        yield (
            "Part of its score needs no training and is computed from the interactions and texts of the domain that it "
            f"serves, which are not in this folder ({terms})."
        )
    if described.refit:
        yield "Its epochs were chosen on validation targets that it was then trained on."
    if not any(one["split"] == "test" for one in evaluations):
        yield "It has no figures on test positions."
    elif not shown.verdicts:
        yield "The figures are of one run with one seed: whether a simpler one is as good is not tested."
    yield "Figures are offline: they say which recorded purchases it finds, not what its recommendations would cause."
    yield "Weights can reveal something of the interactions that they were trained on."


def use(described: Checkpoint) -> str:
    domain = next(iter(described.domains), "Shop")
    return (
        f"With a store that has the domain `{domain}` and its features:\n\n"
        "```python\n"
        "import antpipe as ant\n\n"
        'run = ant.Run.open("FOLDER", "STORE")  # this folder, and yours\n'
        f'run.recommend("{domain}", users=["USER"])\n'
        "```"
    )

"""How the weight of trained vectors beside a floor is best chosen: `python -m benchmarks.vector_weight`.

Runs are trained on shops, from scratch and from a pre-trained run, without stopping early. Then validation positions
are split in halves, several times: the epoch, the weight of the vectors and whether they are kept are chosen on one
half, in several ways, and the change from the re-ranked floor is measured on the other. No test position is read.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from antpipe.api.settings import given
from antpipe.core.floor import known_in
from antpipe.core.ranking import share_of_vectors
from antpipe.core.reranker import POOL
from antpipe.core.scoring import unit_vectors
from antpipe.runtime.devices import choose_device
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.loop import fit
from antpipe.training.request import RunRequest
from antpipe.training.run import build_model, teach
from antpipe.training.worth import beyond_chance, fit_cosine, pools_of, use_reranker

PATIENCE = 4
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Figures = tuple[float, float]  # Recall@10 and NDCG@10


@dataclass(frozen=True)
class Trained:
    """Scores of a run for the POOL best items of its floor at the Q validation positions whose target is among them.

    floor, reranked: (Q, C) logits. epochs: (Q, C) cosines of the vectors after each epoch. place: (Q,) of the target.
    positions: the number of all validation positions.
    """

    floor: Doubles
    reranked: Doubles
    epochs: list[Doubles]
    place: Ints
    positions: int

    def some(self, rows: NDArray[np.bool_]) -> "Trained":
        """The scores of these rows (Q,), with the same share of all positions."""
        epochs, positions = [one[rows] for one in self.epochs], math.ceil(self.positions * rows.mean())
        return Trained(self.floor[rows], self.reranked[rows], epochs, self.place[rows], positions)


@dataclass(frozen=True)
class Way:
    """A way to choose. among: items that the weight is fitted to. by_gain: the epoch is chosen by the likelihood, not
    by Recall@10. least: what vectors must add to the log-likelihood. strict: no figure may be lower."""

    among: int
    by_gain: bool
    least: float
    strict: bool


WAYS = {
    "by Recall@10, 200 items, no figure lower": Way(200, by_gain=False, least=20.0, strict=True),
    "by likelihood, 200 items": Way(200, by_gain=True, least=20.0, strict=False),
    "by likelihood, 50 items": Way(50, by_gain=True, least=10.0, strict=False),
    "by likelihood, 20 items": Way(20, by_gain=True, least=5.0, strict=False),
}


def train(request: RunRequest) -> Trained:
    """Train a run, and note the cosines of its vectors after each epoch."""
    plan = request.plan()
    model = build_model(plan)
    data, device = plan.trained_on(), choose_device("cpu")
    ((domain, valid),) = data.validation.items()
    known = known_in(data.catalogue, model.widths, domain, data.sequences[0])
    teach(model, plan, Path(), begun=False)
    use_reranker(model, 1.0)
    floor, again = (pools_of(model, known, valid, reranked=one, size=POOL) for one in (False, True))
    order, other = (np.argsort(one.rows, axis=1, kind="stable") for one in (floor, again))
    logits, reranked = (np.take_along_axis(*one, 1) for one in ((floor.logits, order), (again.logits, other)))
    rows, place = np.take_along_axis(floor.rows, order, 1), (order == floor.place[:, None]).argmax(1)
    epochs: list[Doubles] = []

    def look(done: float, total: int, note: str = "") -> None:  # noqa: ARG001
        if done == len(epochs) + 1:
            vectors = unit_vectors(model, data.catalogue, domain, floor.part, device)
            epochs.append(share_of_vectors(*vectors, rows, model.config.width))

    fit(model, data, plan.training(), pretraining=False, device=device, update=look)
    return Trained(logits, reranked, epochs, place, data.judged())


def figures(logits: Doubles, of: Trained) -> Figures:
    """Recall@10 and NDCG@10 of scores (Q, C)."""
    rank = (logits > logits[np.arange(len(of.place)), of.place][:, None]).sum(1)
    hit = rank < 10
    return hit.sum() / of.positions, (hit / np.log2(rank + 2)).sum() / of.positions


def fitted(logits: Doubles, cosines: Doubles, place: Ints, among: int) -> tuple[float, float]:
    """The weight fitted on the best items by these logits, and what it adds to the log-likelihood."""
    best = np.argpartition(-logits, among - 1, 1)[:, :among] if among < logits.shape[1] else np.arange(logits.shape[1])
    best = np.broadcast_to(best, (len(logits), best.shape[-1]))
    hit = best == place[:, None]
    kept = hit.any(1)
    logits, cosines = (np.take_along_axis(one, best, 1)[kept] for one in (logits, cosines))
    return fit_cosine(logits, cosines, hit[kept].argmax(1))


def chosen_epoch(half: Trained, way: Way) -> int:
    """The epoch that a run with early stopping would choose, with the floor as in training: not re-ranked."""
    best, at = (float("-inf"), 0.0), 0
    for epoch, cosines in enumerate(half.epochs):
        weight, gain = fitted(half.floor, cosines, half.place, way.among)
        value = (gain, 0.0) if way.by_gain else figures(half.floor + weight * cosines, half)
        if value > best:
            best, at = value, epoch
        elif epoch - at >= PATIENCE:
            break
    return at


def change(half: Trained, other: Trained, way: Way) -> tuple[Figures, bool]:
    """The relative change in the other half's figures due to vectors chosen on this one, and whether they are kept."""
    epoch = chosen_epoch(half, way)
    weight, gain = fitted(half.reranked, half.epochs[epoch], half.place, way.among)
    before, after = (figures(half.reranked + one * half.epochs[epoch], half) for one in (0.0, weight))
    lower = any(new < old for new, old in zip(after, before, strict=True))
    worse = lower if way.strict else beyond_chance(before[0], after[0], half.positions)
    if gain <= way.least / 2 or worse:  # half of the positions, half of the likelihood
        return (0.0, 0.0), False
    old, new = (figures(other.reranked + one * other.epochs[epoch], other) for one in (0.0, weight))
    return (new[0] / old[0] - 1, new[1] / old[1] - 1), True


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("domains", nargs="+", help="shops that can start from the run")
    parser.add_argument("--from", dest="source", type=Path, required=True, help="a run of the preset `strong`")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--splits", type=int, default=8)
    arguments = parser.parse_args(argv)
    inherited = checkpoint.describe(arguments.source).model_config()
    rng = np.random.default_rng(0)
    for domain in arguments.domains:
        found = defaultdict[str, list[tuple[Figures, bool]]](list)
        for stage in ("scratch", "finetune"):
            for seed in range(arguments.seeds):
                own = {"epochs": arguments.epochs, "patience": 0, "seed": seed, "modalities": ("text",)}
                settings = given(own, None, "strong")
                model = settings.resolve(ModelConfig, inherited)
                source = arguments.source if stage == "finetune" else None
                place = Store(arguments.store)
                run = train(RunRequest(place, [domain], stage, model, settings.resolve(TrainConfig), source))
                for _ in range(arguments.splits):
                    half = rng.random(len(run.place)) < 0.5
                    for name, way in WAYS.items():
                        found[name].append(change(run.some(half), run.some(~half), way))
        for name, several in found.items():
            recall, ndcg = np.mean([figure for figure, _ in several], 0)
            kept = np.mean([stays for _, stays in several])
            print(f"{domain:<20} {name:<42} {recall:+.1%} {ndcg:+.1%}  kept {kept:.0%}", flush=True)


if __name__ == "__main__":
    main()

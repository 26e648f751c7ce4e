"""What training is worth beside a floor: the weight of its vectors, and whether they are kept.

Vectors of a target are trained without its floor, and added to it. How much they count is one weight, fitted to
validation positions whenever an epoch is judged, as the floor's weights were before training. The best epoch has to
beat the floor, both re-ranked if there is a re-ranker; otherwise the run is that floor.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from antpipe.core.batches import Examples, sample
from antpipe.core.catalogue import Ints
from antpipe.core.floor import COSINE, weights_of
from antpipe.core.ranking import share_of_vectors
from antpipe.core.reranker import POOL, best_of, reranking, reranks
from antpipe.core.scoring import unit_vectors
from antpipe.core.untrained import SCORES_AT_ONCE, TERMS, Doubles, Untrained, blend, most_likely
from antpipe.runtime.devices import uncompiled
from antpipe.runtime.logs import log
from antpipe.training.data import TrainingData
from antpipe.training.rehearsal import SHOPS
from antpipe.training.state import Position, Training
from antpipe.training.validation import Judge, validating

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant

SELECTION = "recall@10"  # of protocol `all` on the validation split: chooses the best epoch
# Breaks ties, before the loss: in a catalogue of hardly more than 10 items, all epochs have the same recall.
TIE_BREAK = "ndcg@10"
# With a floor, this chooses the best epoch: what trained vectors add to the log-likelihood of validation targets. It is
# less noisy than hits among the first ten, and the epochs it chooses did better on other positions (docs/results.md).
GAIN = "gain"
# Prefixes in RUN/metrics.jsonl: of an epoch's figures, of those of a floor before training, alone and as it is kept.
VALID, START, KEPT = "valid_", "start_", "floor_"
RERANKED = "reranked"  # 1 there if the floor is kept re-ranked
MOST_FITTED = 4096  # validation positions that the weight is fitted to
FITTED = 20  # items of a position that it is fitted to: with 200, those far from any list decided (docs/results.md)
SPREAD = 5.0  # of the normal prior around 0 of the weight of trained vectors, in units of the temperature
LOWEST = -60.0  # least logits, also of places without an item
LEAST_GAIN = 5.0  # vectors are kept if they add more to the log-likelihood of validation targets (docs/results.md)
# By chance, a difference exceeds this many standard errors in one of twenty runs. The hits of a floor and of runs with
# it have a correlation of .85 to .93 (docs/results.md).
STANDARD_ERRORS = 1.645
CORRELATION = 0.9
Judging = Callable[[], dict[str, float]]  # gives the figures of a model as it stands


@dataclass(frozen=True)
class Pools:
    """The best items of some examples by a floor without vectors, to which the weight of the vectors is fitted.

    part: Q examples whose target is among these items; rows, logits: (Q, C) the items and their scores divided by the
    temperature, best first; place: (Q,) of the target.
    """

    part: Examples
    rows: Ints
    logits: Doubles
    place: Ints


def pools_of(model: "Ant", known: Untrained, valid: Examples, *, reranked: bool, size: int = FITTED) -> Pools:
    """The `size` best items at some validation positions of a model's target, by its floor, perhaps re-ranked.

    known: that of the target, with texts.
    """
    part = sample(valid, MOST_FITTED).as_read()  # histories as ranking reads them
    temperature = model.config.temperature
    weights = dict.fromkeys(TERMS, 0.0) | {name: value / temperature for name, value in weights_of(model).items()}
    again, block = reranking(model, known) if reranked else None, max(1, SCORES_AT_ONCE // len(known.new))
    found = []
    for begin in range(0, len(part), block):
        some = part.some(slice(begin, begin + block))
        rows, logits = best_of(blend(known, some, weights), POOL)
        if again is not None:
            logits = again(some, rows, logits * temperature, np.zeros(rows.shape)) / temperature
        columns, logits = best_of(logits, size)
        found.append((np.take_along_axis(rows, columns, 1), logits))
    rows, logits = (np.concatenate(one) for one in zip(*found, strict=True))
    hit = rows == part.targets()[:, None]
    kept = np.flatnonzero(hit.any(1))
    return Pools(part.some(kept), rows[kept], logits[kept], hit[kept].argmax(1))


def weighing(model: "Ant", data: TrainingData, judge: Judge) -> Callable[[], float]:
    """A function that gives the trained vectors of a model with a floor the weight that suits validation best, and
    returns what they then add to the log-likelihood of its targets. Call it after training steps."""
    ((domain, valid),) = data.validation.items()
    pools = cache(partial(pools_of, model, judge.floors[domain], valid))

    def weigh() -> float:
        assert model.floor is not None
        cosine, gain, found = 0.0, 0.0, pools(reranked=reranks(model))
        if len(found.place):
            with uncompiled(model):
                vectors = unit_vectors(model, data.catalogue, domain, found.part, judge.device, judge.features())
            cosines = share_of_vectors(*vectors, found.rows, model.config.width)
            cosine, gain = fit_cosine(found.logits, cosines, found.place)
        model.floor[COSINE].detach().fill_(cosine)
        return gain

    return weigh


def weighed(judge: Judge, weigh: Callable[[], float] | None) -> Callable[[], dict[str, float]]:
    """A function that fits the weight of a model's vectors beside its floor, then judges it, with what they add as
    GAIN. weigh: None for a model without a floor."""

    def judged() -> dict[str, float]:
        gain = {} if weigh is None else {GAIN: weigh()}
        return judge() | gain

    return judged


def fit_cosine(logits: Doubles, cosines: Doubles, place: Ints) -> tuple[float, float]:
    """The weight of trained vectors, in units of the temperature, that maximises the likelihood of targets among their
    pools, times a normal prior around 0; and what it adds to the log-likelihood. Neither is below 0.

    logits, cosines: (Q, C), of a floor and of the vectors; place: (Q,) of the target.
    """
    terms = np.stack([np.maximum(logits, LOWEST), cosines], 2)
    usual, spread, least = np.array([1.0, 0.0]), np.array([0.0, SPREAD]), np.array([-np.inf, 0.0])
    weights = most_likely(terms, place, usual, spread, least)
    before, after = (log_likelihood(terms @ one, place) for one in (usual, weights))
    return float(weights[1]), after - before


def log_likelihood(scores: Doubles, place: Ints) -> float:
    """The log-likelihood of targets at these places (Q,), by the softmax over scores (Q, C)."""
    best = scores.max(1, keepdims=True)
    total = np.log(np.exp(scores - best).sum(1)) + best[:, 0]
    return float((scores[np.arange(len(place)), place] - total).sum())


def standing(figures: Mapping[str, float], loss: float, prefix: str = "") -> tuple[float, float, float]:
    """The key for comparing validations. prefix: that of names in metrics.jsonl."""
    return figures[prefix + SELECTION], figures[prefix + TIE_BREAK], -loss


def take_if_best(state: Training, epoch: int, valid: dict[str, float], loss: float) -> None:
    """Keep the weights if no earlier validation was as good. epoch: the number done. loss: that of the last one."""
    at = state.at

    def worth(figures: Mapping[str, float], loss: float) -> tuple[float, ...]:
        return figures.get(GAIN, 0.0), *standing(figures, 0.0 if GAIN in figures else loss)

    if not at.best or worth(valid, loss) > worth(at.best, at.rows[at.best_epoch - 1]["loss"]):
        at.best_epoch, at.best = epoch, valid
        weights = state.model.state_dict()
        state.best_weights = {name: tensor.detach().clone() for name, tensor in weights.items()}


def judge_beginning(state: Training, judge: Judging, data: TrainingData, *, beside_floor: bool) -> None:
    """Judge the floor of a model on a target before the first step: alone, and as it is kept."""
    model, at = state.model, state.at
    if model.floor is not None and beside_floor and not at.begun:
        model.floor[COSINE].detach().zero_()
        alone, kept = judge_floor(model, judge, data.judged())
        at.begun = {f"{START}{name}": value for name, value in alone.items() if name in (SELECTION, TIE_BREAK)}
        at.begun |= {f"{KEPT}{name}": value for name, value in kept.items()} | {RERANKED: float(reranks(model))}
    use_reranker(model, 0.0)  # while it trains


def judge_floor(model: "Ant", judge: Judging, positions: int) -> tuple[dict[str, float], dict[str, float]]:
    """The figures of a floor alone, and as it is kept: re-ranked if there is a re-ranker and it is not better alone.

    positions: how many are judged. In a small shop, the floor alone must be better beyond chance: the positions that
    taught the re-ranker, in shops as small or in the target itself, speak for it too. In a much larger one they do not.
    """
    use_reranker(model, 0.0)
    alone = judge()
    if model.reranker is None or not model.reranker.learned():
        return alone, alone
    use_reranker(model, 1.0)
    again = judge()
    worse = standing(again, 0.0) < standing(alone, 0.0)
    if worse and (positions > 2 * max(SHOPS) or beyond_chance(alone[SELECTION], again[SELECTION], positions)):
        use_reranker(model, 0.0)
        return alone, alone
    return alone, again


def use_reranker(model: "Ant", weight: float) -> None:
    if model.reranker is not None:
        model.reranker.weight.detach().fill_(weight)


def keep_floor_unless_beaten(
    model: "Ant", at: Position, judge: Judging, weigh: Callable[[], float], data: TrainingData
) -> tuple[int, dict[str, float]]:
    """Give trained vectors their weight beside the floor as it is kept, or no weight if they are worth too little.
    Returns the best epoch, 0 for the floor alone, and the figures."""
    assert model.floor is not None
    floor = {name.removeprefix(KEPT): value for name, value in at.begun.items() if name.startswith(KEPT)}
    use_reranker(model, at.begun[RERANKED])
    gain = weigh()
    why = f"add {gain:.1f} to the log-likelihood of validation targets, not more than {LEAST_GAIN:g}"
    if gain > LEAST_GAIN:
        trained = judge()
        if not beyond_chance(floor[SELECTION], trained[SELECTION], data.judged()):
            return at.best_epoch, trained
        why = f"lower {VALID}{SELECTION} from {floor[SELECTION]:.4f} to {trained[SELECTION]:.4f}"
    model.floor[COSINE].detach().zero_()
    log.info(f"the floor alone is kept: the vectors of epoch {at.best_epoch} {why}")
    return 0, floor


def beyond_chance(recall: float, other: float, positions: int) -> bool:
    """Whether a recall is above another one by more than STANDARD_ERRORS of their difference."""
    error = math.sqrt(2 * (1 - CORRELATION) * other * (1 - other) / positions)
    return recall - other > STANDARD_ERRORS * error


def without_training(model: "Ant", data: TrainingData, device: "torch.device", *, choose: bool) -> Position:
    """The position of a run without training steps, which is finished before it begins."""
    judge = validating(model, data, device, lambda: None)
    return Position(best=judge_floor(model, judge, data.judged())[1] if choose else judge(), finished=True)

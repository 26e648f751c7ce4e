"""Averages of weights, chosen greedily on validation (ForkMerge, https://arxiv.org/abs/2301.12618)."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from antpipe.core.stages import GROUPS, group_of
from antpipe.training.worth import SELECTION, TIE_BREAK

if TYPE_CHECKING:
    from torch import Tensor

Weights = Mapping[str, "Tensor"]  # of a model, by name of the parameter
Figures = Mapping[str, float]  # of a validation


def score(figures: Figures) -> tuple[float, float]:
    """The key by which averaged weights are compared. They were not trained, so no training loss can break ties."""
    return figures[SELECTION], figures[TIE_BREAK]


def average(parts: Mapping[str, Weights], shares: Mapping[str, float]) -> dict[str, "Tensor"]:
    """The weighted mean of the parts, by shares that need not add up to 1. A single part is returned as it is."""
    used = {name: share for name, share in shares.items() if share}
    total = sum(used.values())
    first, *others = used
    mean = {name: tensor * (used[first] / total) for name, tensor in parts[first].items()}
    for other in others:
        for name, tensor in parts[other].items():
            mean[name] = mean[name] + tensor * (used[other] / total)
    return mean


def chosen_shares(
    ranked: Sequence[str], best: Figures, judge: Callable[[Mapping[str, float]], Figures], steps: int
) -> tuple[dict[str, float], Figures]:
    """The share of each part in the average, and the validation of that average, which is never below `best`.

    ranked: the parts, best first. best: the validation of the first one. judge: validates the average with such shares.
    The first part has the share 1. The i-th after it gets the best of 0, 1/steps, …, 1 times the mean share per part
    before it, (sum of shares) / i, given the shares before it.
    """
    shares, found = {ranked[0]: 1.0}, best
    for number, name in enumerate(ranked[1:], 1):
        most, chosen = sum(shares.values()) / number, 0.0
        for step in range(1, steps + 1):
            figures = judge({**shares, name: most * step / steps})
            if score(figures) > score(found):
                chosen, found = most * step / steps, figures
        shares[name] = chosen
    return shares, found


def merged_by_group(
    first: Weights, second: Weights, best: Figures, judge: Callable[[Weights], Figures], steps: int
) -> tuple[dict[str, "Tensor"], dict[str, float], Figures]:
    """The first weights with the share of the second that is best on validation, group by group in the order of GROUPS.

    best: the validation of the first weights. judge: validates weights. steps: as in `chosen_shares`. Returns the
    weights, the share of the second by group (for groups that differ), and their validation, never below `best`.
    """
    weights, shares, found = dict(first), dict[str, float](), best
    for group in GROUPS:
        own = [name for name in first if group_of(name) == group and not first[name].equal(second[name])]
        parts = {"first": {name: first[name] for name in own}, "second": {name: second[name] for name in own}}
        for step in range(1, steps + 1) if own else ():
            share = step / steps
            tried = weights | average(parts, {"first": 1 - share, "second": share})
            figures = judge(tried)
            if score(figures) > score(found):
                shares[group], found = share, figures
        if own:
            share = shares.setdefault(group, 0.0)
            weights |= average(parts, {"first": 1 - share, "second": share})
    return weights, shares, found

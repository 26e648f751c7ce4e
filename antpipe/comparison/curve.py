"""The learning curve of `antpipe compare --target-users`: arms by number of users, and what transfer is worth in users.

Each number of users gives a subset of the target (features/subset.py), which is a target of its own for everything
else: runs, resuming, differences and verdicts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antpipe.comparison.arms import arm_names
from antpipe.comparison.plan import CONTROL, ComparisonRequest
from antpipe.evaluation.baselines.judge import BASELINES
from antpipe.features.build_sequences import PARTS
from antpipe.features.subset import require_positions, subsets_of, write_subset
from antpipe.runtime.logs import log

Floats = NDArray[np.float64]


# -- subsets as targets -------------------------------------------------------------------------------------------


def with_subsets(request: ComparisonRequest) -> ComparisonRequest:
    """The request whose targets are the subsets asked for; the same one if there are none. Nothing is written.

    Raises UsageError or DataError for a size that a target does not have, or that leaves nothing to train on or test.
    """
    if not request.config.target_users or request.subsets:
        return request
    parts = PARTS[2:] if set(arm_names(request)) <= {*BASELINES, *request.given} else PARTS
    found = []
    for target in request.targets:
        domain = request.store.domain(target)
        subsets = subsets_of(domain, request.config)
        require_positions(domain, subsets, parts)
        found += subsets
    return replace(request, targets=tuple(one.name for one in found), subsets={one.name: one for one in found})


def write_subsets(request: ComparisonRequest) -> None:
    """Write the subsets that are not fresh."""
    for one in request.subsets.values():
        results = write_subset(request.store, one)
        built = any(result.status == "built" for result in results)
        size = results[0].figures
        log.info(
            f"{one.name}: {size['users']} users and {size['items']} items of {one.of} "
            f"(subset seed {one.seed}, catalogue {one.catalogue}): {'built' if built else 'fresh'}"
        )


# -- the curve ----------------------------------------------------------------------------------------------------


def curves(request: ComparisonRequest, targets: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    """The learning curve of each domain that subsets were drawn from, from what was found on each subset.

    `points`, the smallest first: users, the target with all its figures, its items, and the mean of each metric by arm
    in the protocol of the verdict. `worth`: by judged arm and metric, what it equals at each point (see worth_of).
    """
    result: dict[str, Any] = {}
    for name, one in request.subsets.items():
        found = targets[name]
        means = {
            arm: {metric: facts["protocols"][request.config.protocol][metric]["mean"] for metric in metrics}
            for arm, facts in found["arms"].items()
        }
        curve = result.setdefault(one.of, {"catalogue": one.catalogue, "seed": one.seed, "points": [], "worth": {}})
        curve["points"].append({"users": one.users, "target": name, "items": found["items"], "figures": means})
    for curve in result.values():
        users = [point["users"] for point in curve["points"]]
        first = targets[curve["points"][0]["target"]]["arms"]
        for arm in [name for name, facts in first.items() if facts["verdict"]]:
            for metric in metrics:
                control = [point["figures"][CONTROL][metric] for point in curve["points"]]
                differences = [
                    targets[point["target"]]["arms"][arm]["differences"][request.config.protocol][metric]
                    for point in curve["points"]
                ]
                curve["worth"].setdefault(arm, {})[metric] = worth_of(users, control, differences)
    return result


def worth_of(
    users: Sequence[int], control: Sequence[float], differences: Sequence[Mapping[str, float | None]]
) -> list[dict[str, Any]]:
    """The number of users with which the control equals an arm, for each number of users of the arm.

    users: ascending. control: its means. differences: `difference` of the arm's mean to it, and the interval `low`,
    `high`. The control's curve is made monotone (isotonic regression, weighted by users), and the difference at a point
    moves along it: an arm that equals the control is worth its own users, however noisy the curve. Each entry has
    `equals`, `low` and `high`: users, or `above` or `below` all sizes, or None if it cannot be said (a control that
    does not improve with users, no interval).
    """
    from scipy.optimize import isotonic_regression

    smooth = isotonic_regression(control, weights=[float(one) for one in users]).x
    keys = {"equals": "difference", "low": "low", "high": "high"}
    return [
        {"users": size, **{name: equal_users(users, smooth, at, one[key]) for name, key in keys.items()}}
        for at, (size, one) in enumerate(zip(users, differences, strict=True))
    ]


def equal_users(users: Sequence[int], curve: Floats, at: int, difference: float | None) -> float | str | None:
    """The users at which a curve that never falls is higher by `difference` than at point `at`.

    Between points, the curve is linear in the logarithm of users. On a level stretch, the users nearest to the point
    count. `above` or `below` if the curve does not reach that far, None if it is level everywhere.
    """
    if difference is None or curve[0] == curve[-1]:
        return None
    wanted = curve[at] + difference
    if abs(difference) < 1e-12:  # rounding
        return float(users[at])
    reached = np.flatnonzero(curve >= wanted if difference > 0 else curve <= wanted)
    if not len(reached):
        return "above" if difference > 0 else "below"
    after = int(reached[0] if difference > 0 else reached[-1] + 1)
    share = (wanted - curve[after - 1]) / (curve[after] - curve[after - 1])
    low, high = np.log(users[after - 1]), np.log(users[after])
    return float(np.exp(low + share * (high - low)))

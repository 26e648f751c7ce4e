"""The statistics behind a verdict on transfer, on plain arrays (docs/verdict.md explains them).

Letters in shape comments: K differences (of arms and metrics), S seeds, U users, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

POSITIVE, NONE, NEGATIVE = "POSITIVE", "NONE", "NEGATIVE"
LEAST_P = 1e-50  # smaller ones are not distinguished
AT_ONCE = 1 << 22  # counts of resampled users in memory (32 MB)


@dataclass(frozen=True)
class Difference:
    """An arm minus its control.

    difference: of the means. low, high: its confidence interval. effect: Cohen's d_z, the mean over users in standard
    deviations of the users' differences. seed_share: the share of the variance that is between seeds. All but the
    difference are None if there are too few seeds or users.
    """

    difference: float
    effect: float | None = None
    standard_error: float | None = None
    seed_share: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Verdict:
    """POSITIVE, NONE or NEGATIVE (None if there is too little data), and why, in words."""

    word: str | None
    why: str


def gains(ranks: Floats, metric: str) -> Floats:
    """What a target of each rank (1 is best, infinite means not found) adds to `recall@k`, `ndcg@k` or `mrr@k`."""
    name, _, k = metric.partition("@")
    rank = np.maximum(ranks, 1.0)
    value = {"recall": np.ones_like(rank), "ndcg": 1 / np.log2(rank + 1), "mrr": 1 / rank}[name]
    return np.where(ranks <= int(k), value, 0.0)


def differences(
    arms: Floats, control: Floats, user: Ints, *, resamples: int, seed: int, alpha: float
) -> list[Difference]:
    """K arms against one control, position by position, seed by seed.

    arms: (K, S, Q) gains of each position. control: (S, Q) those of the control with the same seeds, or (K, S, Q) with
    one control per arm. user: (Q,) whose position it is: users are resampled, not positions. All K share the resampled
    users and seeds, so equal data gives equal results whatever else is compared.
    """
    users, row = np.unique(user, return_inverse=True)
    weights = np.bincount(row).astype(np.float64)  # (U,) positions of each user
    per_position = arms - control  # (K, S, Q)
    flat = per_position.reshape(-1, len(row))
    by_user = [np.bincount(row, values, minlength=len(users)).astype(np.float64) for values in flat]
    sums: Floats = np.stack(by_user).reshape(*per_position.shape[:2], len(users))  # (K, S, U)
    means = sums.sum(2).mean(1) / weights.sum()  # (K,)
    if sums.shape[1] < 2 or len(users) < 2:
        return [Difference(float(mean)) for mean in means]
    errors = bootstrap_errors(sums, weights, resamples, seed)
    return [
        interval(
            float(mean),
            float(error),
            seed_share(part, weights),
            (sums.shape[1] - 1, len(users) - 1),
            cohens_dz(part, weights),
            alpha,
        )
        for mean, error, part in zip(means, errors, sums, strict=True)
    ]


def bootstrap_errors(sums: Floats, weights: Floats, resamples: int, seed: int) -> Floats:
    """Standard errors (K,) of mean differences by a bootstrap over users and seeds.

    sums: (K, S, U) differences summed over each user's positions. weights: (U,) their number. A resample
    draws U users with replacement and, crossed with them, S - 1 seeds: drawing all S would make the variance between
    seeds too small by (S - 1) / S (Rao and Wu 1988, section 2, https://doi.org/10.1080/01621459.1988.10478591).
    """
    count, seeds, users = sums.shape
    by_user = np.ascontiguousarray(sums.reshape(count * seeds, users).T)  # (U, K * S)
    rng = np.random.default_rng(seed)
    found = []
    size = max(1, AT_ONCE // users)
    for begin in range(0, resamples, size):
        rows = min(size, resamples - begin)
        drawn = rng.integers(users, size=(rows, users)) + np.arange(rows)[:, None] * users
        times = np.bincount(drawn.ravel(), minlength=rows * users).reshape(rows, users).astype(np.float64)
        seed_drawn = rng.integers(seeds, size=(rows, seeds - 1)) + np.arange(rows)[:, None] * seeds
        share = np.bincount(seed_drawn.ravel(), minlength=rows * seeds).reshape(rows, seeds) / (seeds - 1)
        totals = (times @ by_user).reshape(rows, count, seeds)
        found.append((totals * share[:, None]).sum(2) / (times @ weights)[:, None])  # (r, K)
    errors: Floats = np.concatenate(found).std(0, ddof=1)
    return errors


def seed_share(sums: Floats, weights: Floats) -> float:
    """The share of the variance of the mean that is between seeds, 0 to 1; the rest is between users.

    sums: (S, U). weights: (U,).
    """
    seeds, users = sums.shape
    of_seeds = (sums.sum(1) / weights.sum()).var(ddof=1) / seeds
    average = sums.mean(0)  # (U,)
    off = average - weights * (average.sum() / weights.sum())
    of_users = users / (users - 1) * (off**2).sum() / weights.sum() ** 2
    return float(of_seeds / (of_seeds + of_users)) if of_seeds + of_users > 0 else 1.0


def cohens_dz(sums: Floats, weights: Floats) -> float:
    """The mean of the users' differences, each averaged over seeds and the user's positions, divided by their standard
    deviation; 0 if all differences are 0. sums: (S, U). weights: (U,)."""
    of_user = sums.mean(0) / weights
    spread = of_user.std(ddof=1)
    if spread > 0:
        return float(of_user.mean() / spread)
    return float(np.sign(of_user[0]) * np.inf) if of_user[0] else 0.0


def quantile(p: float, share: float, freedom: tuple[int, int]) -> float:
    """The distance from 0, in standard errors, of a difference with two-sided p.

    `share` of the variance has the first number of degrees of freedom, the rest the second one. The result is the root
    mean square of both quantiles of Student's t, so p is never too small, whatever the true share (Banerjee 1960,
    Sankhya 22, 357-358). With the degrees of freedom of Welch and Satterthwaite it would be too small for 2 or 3 seeds,
    whose estimated variance is often far too small.
    """
    from scipy.stats import t as student

    of_seeds, of_users = (float(student.isf(p / 2, free)) for free in freedom)
    return float(np.hypot(np.sqrt(share) * of_seeds, np.sqrt(1 - share) * of_users))


def interval(
    mean: float, error: float, share: float, freedom: tuple[int, int], effect: float, alpha: float
) -> Difference:
    """Confidence interval at level 1 - alpha and two-sided p. share, freedom: see quantile."""
    half = quantile(alpha, share, freedom) * error
    p = p_of(abs(mean) / error, share, freedom) if error > 0 else float(mean == 0)
    return Difference(mean, effect, error, share, mean - half, mean + half, p)


def p_of(distance: float, share: float, freedom: tuple[int, int]) -> float:
    """The p whose quantile is this distance. It lies between those of both parts alone."""
    from scipy.optimize import brentq
    from scipy.stats import t as student

    ends = [float(2 * student.sf(distance, free)) for free in freedom]
    low, high = max(min(ends) * 0.999, LEAST_P), min(max(ends) * 1.001, 1.0)  # a little wider, because of rounding
    if quantile(low, share, freedom) <= distance:
        return low
    if high == 1.0 and distance == 0:
        return 1.0
    return float(np.exp(brentq(lambda x: quantile(np.exp(x), share, freedom) - distance, np.log(low), np.log(high))))


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected so that the chance of any false finding stays below alpha (Holm 1979,
    https://www.jstor.org/stable/4615733): the smallest times m, the next times m - 1, …, never falling, at most 1."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1)
    return corrected.tolist()


def judge(tested: Mapping[str, tuple[Difference, float | None]], alpha: float) -> Verdict:
    """The verdict on one arm and target. tested: by metric, the difference and its corrected p.

    POSITIVE: at least one metric is better with a corrected p below alpha, and none is worse. NEGATIVE: the opposite.
    NONE otherwise, even if one metric is better and another worse.
    """
    if any(corrected is None for _, corrected in tested.values()):
        return Verdict(None, "no verdict: it takes at least 2 seeds and 2 users")
    clear = {
        metric: found for metric, (found, corrected) in tested.items() if corrected is not None and corrected < alpha
    }
    up = [metric for metric, found in clear.items() if found.difference > 0]
    down = [metric for metric, found in clear.items() if found.difference < 0]
    if up and down:
        return Verdict(NONE, f"mixed: {', '.join(up)} better, {', '.join(down)} worse than the control")
    if up or down:
        return Verdict(POSITIVE if up else NEGATIVE, f"{', '.join(up or down)} {'better' if up else 'worse'}")
    return Verdict(NONE, "no difference beyond chance")

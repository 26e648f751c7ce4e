"""The statistics behind a verdict on transfer, on plain arrays (docs/verdict.md explains them).

Letters in shape comments: K differences (of arms and metrics), S seeds, U users.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

POSITIVE, EQUIVALENT, NONE, NEGATIVE = "POSITIVE", "EQUIVALENT", "NONE", "NEGATIVE"
LEAST_P = 1e-50  # smaller ones are not distinguished
POWER = 0.8  # with which the smallest detectable difference would be found


@dataclass(frozen=True)
class Spread:
    """What the variance of a mean difference consists of, and the degrees of freedom of seeds and of users.

    seeds: the variance of the arm's mean and of the control's over their seeds, as two samples, summed. users: the
    variance over users, paired, without the noise of single (seed, user) pairs. pairs: that noise.
    """

    seeds: float
    users: float
    pairs: float
    freedom: tuple[int, int]

    def variance(self) -> float:
        return max(self.seeds, self.pairs) + self.users

    def times(self, factor: float) -> "Spread":
        """The spread of the same difference in another unit."""
        return Spread(self.seeds * factor**2, self.users * factor**2, self.pairs * factor**2, self.freedom)


@dataclass(frozen=True)
class Difference:
    """An arm minus its control.

    difference: of the means. control: the control's mean. low, high: the confidence interval. effect: Cohen's d_z, the
    mean over users in standard deviations of the users' differences. All but the first two are None if there are too
    few seeds or users.
    """

    difference: float
    control: float = 0.0
    effect: float | None = None
    spread: Spread | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None

    def relative(self, value: float | None) -> float | None:
        """A difference as a share of the control's mean; None if that is 0."""
        return None if value is None or not self.control else value / self.control


@dataclass(frozen=True)
class Verdict:
    """POSITIVE, EQUIVALENT, NONE or NEGATIVE (None if there is too little data), and why, in words."""

    word: str | None
    why: str


def gains(ranks: Floats, metric: str) -> Floats:
    """What a target of each rank (1 is best, infinite means not found) adds to `recall@k`, `ndcg@k` or `mrr@k`."""
    name, _, k = metric.partition("@")
    rank = np.maximum(ranks, 1.0)
    value = {"recall": np.ones_like(rank), "ndcg": 1 / np.log2(rank + 1), "mrr": 1 / rank}[name]
    return np.where(ranks <= int(k), value, 0.0)


def differences(arms: Floats, control: Floats, user: Ints, alpha: float) -> list[Difference]:
    """K arms against one control, position by position, seed by seed.

    arms: (K, S, Q) gains of each position. control: (S, Q) those of the control with the same seeds, or (K, S, Q) with
    one control per arm. user: (Q,) whose position it is: users are the sample, not positions.
    """
    users, row = np.unique(user, return_inverse=True)
    weights = np.bincount(row).astype(np.float64)  # (U,) positions of each user
    found = []
    for arm, against in zip(arms, np.broadcast_to(control, arms.shape), strict=True):
        mean, base = float(arm.mean() - against.mean()), float(against.mean())
        if len(arm) < 2 or len(users) < 2:
            found.append(Difference(mean, base))
            continue
        by_user = [np.bincount(row, values, minlength=len(users)) for values in arm - against]
        sums = np.stack(by_user).astype(np.float64)  # (S, U)
        spread = spread_of(sums, weights, arm.mean(1), against.mean(1))
        half = half_width([spread], alpha)
        p = p_of(abs(mean), [spread])
        found.append(Difference(mean, base, cohens_dz(sums, weights), spread, mean - half, mean + half, p))
    return found


def spread_of(sums: Floats, weights: Floats, arm: Floats, control: Floats) -> Spread:
    """The parts of the variance of a mean difference.

    sums: (S, U) differences summed over each user's positions. weights: (U,) their number. arm, control: (S,) means of
    each run.

    With A the variance between seeds, B that between users and E the residual mean square of the two-way table, all
    divided by the sizes of their samples, the unbiased variance of the mean is A + B - E: the noise of (seed, user)
    pairs is in each of them (Searle, Casella and McCulloch 1992, Variance Components, chapter 4). B - E is what users
    add. Seeds count as two independent samples, which doubles their degrees of freedom: equal seeds of two arms draw
    equal initial values, but do not make their noise alike. An arm that is the same with every seed, such as a baseline
    without training, adds none.
    """
    seeds, users = sums.shape
    # Users are drawn and bring their positions with them, so the mean is a ratio: linearised, per user.
    off = (sums - weights * (sums.sum(1, keepdims=True) / weights.sum())) * (users / weights.sum())
    of_user = off.mean(0)
    between_users = (of_user**2).sum() / (users - 1) / users
    pairs = ((off - of_user) ** 2).sum() / ((seeds - 1) * (users - 1)) / (seeds * users)
    between_seeds = (arm.var(ddof=1) + control.var(ddof=1)) / seeds
    varying = max(1, sum(bool(np.ptp(side) > 0) for side in (arm, control)))
    freedom = (varying * (seeds - 1), users - 1)
    return Spread(float(between_seeds), float(max(between_users - pairs, 0.0)), float(pairs), freedom)


def half_width(spreads: Sequence[Spread], alpha: float) -> float:
    """Half the confidence interval, at level 1 - alpha, of a sum of independent differences.

    Each part of the variance has the quantile of its own degrees of freedom, and half widths add up as squares
    (Banerjee 1960, Sankhya 22, 357-358), so the interval is not too narrow for 2 or 3 seeds. Seeds vary at least by the
    noise of single pairs; a sample of a few means may show less, but is not counted as less.
    """
    from scipy.stats import t as student

    squares = 0.0
    for spread in spreads:
        of_seeds, of_users = (float(student.isf(alpha / 2, free)) for free in spread.freedom)
        squares += max(of_seeds**2 * spread.seeds, of_users**2 * spread.pairs) + of_users**2 * spread.users
    return float(np.sqrt(squares))


def p_of(distance: float, spreads: Sequence[Spread]) -> float:
    """The alpha whose half width is this distance: the two-sided p of a difference that far from 0."""
    from scipy.optimize import brentq

    if distance <= 0:
        return 1.0
    if half_width(spreads, LEAST_P) <= distance:
        return 0.0 if not any(spread.variance() for spread in spreads) else LEAST_P
    return float(np.exp(brentq(lambda x: half_width(spreads, np.exp(x)) - distance, np.log(LEAST_P), 0.0)))


def p_within(found: Difference, margin: float) -> float | None:
    """The p of the difference lying outside ±margin (a share of the control's mean): the smallest alpha whose interval
    lies within. As a pair of one-sided tests (Schuirmann 1987, https://doi.org/10.1007/BF01068419) at half this level,
    it is on the safe side."""
    if found.spread is None:
        return None
    return p_of(margin * found.control - abs(found.difference), [found.spread])


def detectable(found: Difference, alpha: float) -> float | None:
    """The smallest true difference that a test at level alpha finds with probability POWER, in the unit of the metric,
    if the spread is what was measured; None without a spread."""
    from scipy.stats import norm

    if found.spread is None:
        return None
    return half_width([found.spread], alpha) + float(norm.ppf(POWER) * np.sqrt(found.spread.variance()))


def cohens_dz(sums: Floats, weights: Floats) -> float:
    """The mean of the users' differences, each averaged over seeds and the user's positions, divided by their standard
    deviation; 0 if all differences are 0. sums: (S, U). weights: (U,)."""
    of_user = sums.mean(0) / weights
    spread = of_user.std(ddof=1)
    if spread > 0:
        return float(of_user.mean() / spread)
    return float(np.sign(of_user[0]) * np.inf) if of_user[0] else 0.0


@dataclass(frozen=True)
class Pooled:
    """The mean over targets of an arm's relative difference to the control.

    low, high, p: for these targets (users and seeds vary by chance; the control's means count as known).
    shops_low, shops_high, shops_p: for shops of which these are a sample. No p is corrected.
    """

    targets: int
    relative: float
    low: float
    high: float
    p: float
    shops_low: float
    shops_high: float
    shops_p: float


def pooled(found: Sequence[Difference], alpha: float) -> Pooled | None:
    """The mean of relative differences, each target counting the same; None for fewer than two usable targets."""
    from scipy.stats import t as student

    usable = [(one, one.spread) for one in found if one.spread is not None and one.control > 0]
    if len(usable) < 2:
        return None
    relative = np.array([one.difference / one.control for one, _ in usable])
    mean, count = float(relative.mean()), len(usable)
    spreads = [spread.times(1 / (one.control * count)) for one, spread in usable]
    half, error = half_width(spreads, alpha), float(relative.std(ddof=1) / np.sqrt(count))
    wide = float(student.isf(alpha / 2, count - 1)) * error
    shops_p = float(2 * student.sf(abs(mean) / error, count - 1)) if error else float(mean == 0)
    return Pooled(count, mean, mean - half, mean + half, p_of(abs(mean), spreads), mean - wide, mean + wide, shops_p)


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected so that the chance of any false finding stays below alpha (Holm 1979,
    https://www.jstor.org/stable/4615733): the smallest times m, the next times m - 1, …, never falling, at most 1."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1)
    return corrected.tolist()


def judge(
    found: Difference,
    corrected: float | None,
    within: float | None,
    *,
    alpha: float,
    margin: float,
    least: float | None = None,
) -> Verdict:
    """The verdict on one arm and target.

    corrected, within: corrected p values of no difference, and of one beyond the margin. least: the smallest detectable
    difference. A difference beyond chance is POSITIVE or NEGATIVE, however small; without one the arm is EQUIVALENT if
    the difference is shown to lie within the margin, else NONE.
    """
    if corrected is None or within is None:
        return Verdict(None, "no verdict: it takes at least 2 seeds and 2 users")
    small = margin > 0 and within < alpha
    if corrected < alpha:
        extent = f", by less than {margin * 100:g}%" if small else ""
        return Verdict(*((POSITIVE, f"better{extent}") if found.difference > 0 else (NEGATIVE, f"worse{extent}")))
    if small:
        return Verdict(EQUIVALENT, f"differs by less than {margin * 100:g}%")
    share = found.relative(least)
    could = "" if share is None else f"; one of {share:.1%} would be found in {POWER * 10:.0f} of 10 tests"
    return Verdict(NONE, f"no difference beyond chance{could}")

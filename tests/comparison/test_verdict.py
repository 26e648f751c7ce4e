"""Every statistic of a verdict against scipy, a textbook formula, a simulation, or numbers worked out by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from antpipe.comparison.verdict import (
    LEAST_P,
    Difference,
    Spread,
    cohens_dz,
    detectable,
    differences,
    gains,
    half_width,
    holm,
    judge,
    p_of,
    p_within,
    pooled,
    spread_of,
)
from antpipe.core.ranking import metrics
from benchmarks.verdict import NULLS, Case, called_different

ONES = np.ones(4)


def compared(arm: Any, control: Any, alpha: float = 0.05) -> Difference:
    """One arm against its control, (S, U) each, one position per user."""
    arm, control = np.asarray(arm, np.float64), np.asarray(control, np.float64)
    [found] = differences(arm[None], control, np.arange(arm.shape[1]), alpha)
    return found


def with_spread(
    difference: float, users: float, control: float = 1.0, freedom: tuple[int, int] = (4, 99)
) -> Difference:
    """A difference whose variance lies between users alone."""
    spread = Spread(0.0, users, 0.0, freedom)
    return Difference(difference, control, spread=spread, p=p_of(abs(difference), [spread]))


def test_the_mean_of_gains_is_the_metric_of_an_evaluation() -> None:
    ranks = np.array([1.0, 2.5, 10.0, 10.5, 50.0, np.inf])
    for name, value in metrics(ranks).items():
        assert gains(ranks, name).mean() == pytest.approx(value, abs=1e-12)


# -- the parts of the variance ----------------------------------------------------------------------------------


def test_the_parts_of_the_variance_by_hand() -> None:
    """Differences of two seeds and three users. User means are 5, 1 and 0, so their variance is 7, and that of their
    mean 7 / 3. Seed means are equal; the residuals are ±1, ±1 and 0, so their mean square is 4 / 2, and E is 2 / 6."""
    sums = np.array([[6.0, 0, 0], [4.0, 2, 0]])
    found = spread_of(sums, np.ones(3), np.array([0.5, 0.7]), np.array([0.4, 0.6]))
    assert found.seeds == pytest.approx((0.02 + 0.02) / 2)
    assert found.pairs == pytest.approx(1 / 3)
    assert found.users == pytest.approx(7 / 3 - 1 / 3)
    assert found.freedom == (2, 2)
    assert found.variance() == pytest.approx(7 / 3)  # chance of pairs is more than the seeds show, and counts once
    assert half_width([found], 0.05) == pytest.approx(4.3027 * np.sqrt(7 / 3), rel=1e-4)


def test_the_parts_are_those_of_a_two_way_analysis_of_variance() -> None:
    rng = np.random.default_rng(0)
    seeds, users = 4, 30
    arm, control = (rng.normal(0, 0.3, (seeds, 1)) + rng.normal(0, 1, (seeds, users)) for _ in range(2))
    d = arm - control + rng.normal(0, 1, users)
    whole = d.size * d.mean() ** 2
    of_seeds, of_users = users * (d.mean(1) ** 2).sum() - whole, seeds * (d.mean(0) ** 2).sum() - whole
    residual = ((d**2).sum() - whole - of_seeds - of_users) / ((seeds - 1) * (users - 1))
    found = spread_of(d, np.ones(users), arm.mean(1), control.mean(1))
    assert found.pairs == pytest.approx(residual / d.size)
    assert found.users == pytest.approx((of_users / (users - 1) - residual) / d.size)
    assert found.seeds == pytest.approx((arm.mean(1).var(ddof=1) + control.mean(1).var(ddof=1)) / seeds)


def test_the_variance_is_that_of_the_mean_over_many_comparisons() -> None:
    """Every part is estimated without bias, and their sum is the variance of the mean difference; with the chance of
    single pairs counted in all three parts it would be more by twice that."""
    rng = np.random.default_rng(1)
    many, seeds, users = 3000, 3, 12
    shape = (many, seeds, users)
    arm, control = (rng.normal(0, 0.5, (many, seeds, 1)) + rng.normal(0, 1, shape) for _ in range(2))
    arm += rng.normal(0, 2, (many, 1, users))
    found = [
        spread_of(one - other, np.ones(users), one.mean(1), other.mean(1))
        for one, other in zip(arm, control, strict=True)
    ]
    pairs, between_users = 2 / (seeds * users), 4 / users
    between_seeds = 2 * (0.25 + 1 / users) / seeds
    assert np.mean([one.pairs for one in found]) == pytest.approx(pairs, rel=0.02)
    assert np.mean([one.users for one in found]) == pytest.approx(between_users, rel=0.03)
    assert np.mean([one.seeds for one in found]) == pytest.approx(between_seeds, rel=0.03)
    variance = (arm - control).mean((1, 2)).var()
    assert between_seeds + between_users == pytest.approx(variance, rel=0.06)
    assert np.mean([one.seeds + one.users for one in found]) == pytest.approx(variance, rel=0.06)


def test_users_bring_all_their_positions_with_them() -> None:
    """The variance of the mean over positions is that of a jackknife that leaves out user by user."""
    rng = np.random.default_rng(2)
    weights = rng.integers(1, 6, 200).astype(float)
    sums = rng.normal(0.2, 1, 200) * weights
    without = (sums.sum() - sums) / (weights.sum() - weights)
    jackknife = ((without - without.mean()) ** 2).sum() * 199 / 200
    same = np.array([0.2, 0.2])
    found = spread_of(np.stack([sums, sums]), weights, same, same)
    assert found.users == pytest.approx(jackknife, rel=0.02)
    assert found.pairs == pytest.approx(0, abs=1e-12)


def test_the_difference_is_that_of_the_means_over_positions_and_more_positions_of_a_user_are_no_news() -> None:
    rng = np.random.default_rng(0)
    user = np.array([7, 7, 7, 3, 9, 9])
    arm, control = rng.normal(size=(1, 2, 6)), rng.normal(size=(2, 6))
    [found] = differences(arm, control, user, 0.05)
    assert found.difference == pytest.approx((arm - control).mean())
    assert found.control == pytest.approx(control.mean())
    [copies] = differences(np.repeat(arm, 50, 2), np.repeat(control, 50, 1), np.repeat(user, 50), 0.05)
    assert (copies.low, copies.high) == pytest.approx((found.low, found.high))


def test_users_are_paired() -> None:
    """Arm and control vary much over users, but always together."""
    rng = np.random.default_rng(0)
    control = rng.normal(0, 5, 40) + rng.normal(0, 0.01, (3, 40))
    found = compared(control + 0.1, control)
    assert found.difference == pytest.approx(0.1)
    assert found.spread is not None
    assert found.spread.users == pytest.approx(0, abs=1e-9)
    assert found.p is not None
    assert found.p < 1e-4


def test_seeds_are_not_paired() -> None:
    """What two runs have in common because their seeds are equal is not taken off: other seeds would not have it."""
    shared = np.array([[0.1], [0.4], [-0.2]])
    control = np.zeros((3, 30)) + shared
    found = compared(control + 0.1, control)
    assert found.spread is not None
    assert found.spread.seeds == pytest.approx(2 * shared.var(ddof=1) / 3)


# -- intervals and p --------------------------------------------------------------------------------------------


def test_if_only_users_vary_interval_and_p_are_those_of_a_paired_t_test() -> None:
    arm, control = np.random.default_rng(3).normal(0.3, 1, (2, 12))
    found = compared(np.stack([arm] * 3), np.stack([control] * 3), alpha=0.1)
    theirs = stats.ttest_rel(arm, control)
    low, high = theirs.confidence_interval(0.9)
    assert (found.p, found.low, found.high) == pytest.approx((theirs.pvalue, low, high), rel=1e-6)


def test_if_only_seeds_vary_interval_and_p_are_those_of_a_t_test_of_two_samples() -> None:
    arm, control = np.array([0.3, 0.5, 0.1]), np.array([0.2, -0.1, 0.15])
    found = compared(np.repeat(arm[:, None], 20, 1), np.repeat(control[:, None], 20, 1), alpha=0.1)
    theirs = stats.ttest_ind(arm, control)
    low, high = theirs.confidence_interval(0.9)
    assert (found.p, found.low, found.high) == pytest.approx((theirs.pvalue, low, high), rel=1e-6)


def test_a_baseline_that_no_seed_changes_has_the_degrees_of_freedom_of_the_control_alone() -> None:
    control = np.array([0.2, -0.1, 0.15, 0.3])
    found = compared(np.full((4, 20), 0.5), np.repeat(control[:, None], 20, 1))
    theirs = stats.ttest_1samp(control, 0.5)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-6)


def test_half_widths_of_the_parts_add_up_as_squares() -> None:
    seeds, users = (float(stats.t.ppf(0.99, free)) for free in (2, 50))
    few, many = Spread(0.04, 0.09, 0.01, (2, 50)), Spread(0.0001, 0.09, 0.01, (2, 50))
    assert half_width([few], 0.02) == pytest.approx(np.sqrt(seeds**2 * 0.04 + users**2 * 0.09))
    assert half_width([many], 0.02) == pytest.approx(users * np.sqrt(0.01 + 0.09))  # pairs set the least
    assert half_width([few, many], 0.02) ** 2 == pytest.approx(half_width([few], 0.02) ** 2 + users**2 * 0.1)


PARTS = st.floats(0, 10)


@given(
    st.floats(0, 100), PARTS, PARTS, PARTS, st.integers(1, 9), st.integers(1, 500), st.sampled_from([0.2, 0.05, 1e-3])
)
def test_p_and_interval_say_the_same(
    distance: float, of_seeds: float, of_users: float, of_pairs: float, seeds: int, users: int, alpha: float
) -> None:
    spread = Spread(of_seeds, of_users, of_pairs, (seeds, users))
    p, half = p_of(distance, [spread]), half_width([spread], alpha)
    assert 0 <= p <= 1
    if distance and abs(distance - half) > 1e-6 * half:
        assert (p < alpha) == (distance > half)


def test_p_has_a_floor_and_is_nought_only_if_nothing_varies() -> None:
    assert p_of(1.0, [Spread(0, 1e-9, 0, (2, 5000))]) == LEAST_P
    assert p_of(1.0, [Spread(0, 0, 0, (2, 5))]) == 0
    assert p_of(0.0, [Spread(0, 0, 0, (2, 5))]) == 1


def test_ties_everywhere_are_no_evidence() -> None:
    found = compared(np.ones((3, 4)), np.ones((3, 4)))
    assert (found.difference, found.p, found.effect, found.low, found.high) == (0, 1, 0, 0, 0)


def test_a_copy_of_the_control_is_no_evidence_though_its_seeds_vary() -> None:
    control = np.random.default_rng(0).normal(size=(3, 20))
    found = compared(control, control)
    assert (found.difference, found.p) == (0, 1)
    assert found.low is not None
    assert found.high == -found.low > 0


@pytest.mark.parametrize(("seeds", "users"), [(1, 5), (3, 1)])
def test_one_seed_or_one_user_gives_a_number_and_nothing_more(seeds: int, users: int) -> None:
    assert compared(np.full((seeds, users), 0.5), np.full((seeds, users), 0.25)) == Difference(0.25, 0.25)


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_user", "of_pair"),
    [
        (2, 1.0, 0.0, 0.0),
        (2, 0.1, 1.0, 0.1),
        (2, 0.15, 1.0, 0.1),
        (3, 0.3, 1.0, 0.0),
        (5, 1.0, 0.0, 0.0),
        (5, 0.1, 1.0, 1.0),
        (5, 0.0, 0.0, 1.0),
    ],
)
def test_at_most_five_of_a_hundred_true_nulls_are_called_different(
    seeds: int, of_seed: float, of_user: float, of_pair: float
) -> None:
    rng = np.random.default_rng(4)
    many, users = 400, 40
    arms, controls = (
        rng.normal(0, of_seed, (many, seeds, 1)) + rng.normal(0, of_pair, (many, seeds, users)) for _ in range(2)
    )
    found = differences(arms + rng.normal(0, of_user, (many, 1, users)), controls, np.arange(users), 0.05)
    false = sum(one.p is not None and one.p < 0.05 for one in found)
    assert stats.binomtest(false, many, 0.05, alternative="greater").pvalue > 0.01


# -- blind or trigger-happy? ------------------------------------------------------------------------------------


def test_in_simulated_comparisons_without_an_effect_the_test_errs_about_as_often_as_it_says() -> None:
    """Neither much more often nor much less: a test that never errs is blind."""
    cases = [case for case in NULLS if case.users == 6000 and case.seeds in (3, 5) and 0 < case.seed_sd < 0.1]
    assert len(cases) == 3
    shares = [called_different(case, 150, seed=2) for case in cases]
    assert 0.02 <= np.mean([share[0.05] for share in shares]) <= 0.06
    assert np.mean([share[0.0125] for share in shares]) <= 0.02


def test_in_simulated_comparisons_a_sixth_more_is_found_with_three_seeds() -> None:
    shares = called_different(Case(3, 6000, 0.16), 100)
    assert shares[0.05] > 0.8
    assert shares[0.0125] > 0.45


# -- effect sizes, what could be found, equivalence -------------------------------------------------------------


def test_effect_size_is_the_mean_of_users_in_their_standard_deviations() -> None:
    # Two seeds; averaged over them the users differ by 1, 2, 3, 2: mean 2, standard deviation sqrt(2 / 3).
    sums = np.array([[0.0, 2, 4, 2], [2.0, 2, 2, 2]])
    assert cohens_dz(sums, ONES) == pytest.approx(2 / np.sqrt(2 / 3))
    assert cohens_dz(2 * sums, 2 * ONES) == pytest.approx(2 / np.sqrt(2 / 3))  # two positions a user


def test_the_smallest_detectable_difference_by_hand() -> None:
    spread = Spread(0.0, 0.04, 0.0, (4, 10**9))
    found = Difference(0.0, 1.0, spread=spread, p=1.0)
    assert detectable(found, 0.05) == pytest.approx((1.95996 + 0.84162) * 0.2, rel=1e-4)
    assert detectable(Difference(0.0, 1.0), 0.05) is None


@pytest.mark.parametrize(("seeds", "of_seed"), [(3, 0.02), (5, 0.05), (5, 0.0)])
def test_the_smallest_detectable_difference_is_found_in_eight_of_ten_comparisons(seeds: int, of_seed: float) -> None:
    rng = np.random.default_rng(5)
    many, users, of_user, of_pair = 500, 400, 0.5, 0.7
    pairs = 2 * of_pair**2 / (seeds * users)
    truth = Spread(2 * of_seed**2 / seeds + pairs, of_user**2 / users, pairs, (2 * (seeds - 1), users - 1))
    effect = detectable(Difference(0.0, spread=truth), 0.05)
    assert effect is not None
    arms, controls = (
        rng.normal(0, of_seed, (many, seeds, 1)) + rng.normal(0, of_pair, (many, seeds, users)) for _ in range(2)
    )
    arms += effect + rng.normal(0, of_user, (many, 1, users))
    found = differences(arms, controls, np.arange(users), 0.05)
    power = np.mean([one.p is not None and one.p < 0.05 for one in found])
    assert 0.74 < power < 0.88


def test_the_p_of_equivalence_is_twice_that_of_the_weaker_of_two_one_sided_tests() -> None:
    values, control, margin = np.random.default_rng(6).normal(0.02, 0.3, 50), 2.0, 0.05
    found = compared(np.stack([values + control] * 2), np.full((2, 50), control))
    below = stats.ttest_1samp(values, margin * control, alternative="less").pvalue
    above = stats.ttest_1samp(values, -margin * control, alternative="greater").pvalue
    assert p_within(found, margin) == pytest.approx(2 * max(below, above), rel=1e-6)


@given(st.floats(-0.3, 0.3), st.floats(1e-6, 0.01), st.floats(0, 0.5))
def test_equivalence_is_shown_where_the_interval_lies_within_the_margin(
    mean: float, users: float, margin: float
) -> None:
    found = with_spread(mean, users)
    assert found.spread is not None
    p, half = p_within(found, margin), half_width([found.spread], 0.05)
    assert p is not None
    if abs(abs(mean) + half - margin) > 1e-6:
        assert (p < 0.05) == (abs(mean) + half < margin)


@pytest.mark.parametrize(("margin", "control"), [(0.0, 1.0), (0.05, 0.0)])
def test_nothing_is_equivalent_within_a_margin_of_nothing(margin: float, control: float) -> None:
    assert p_within(Difference(0.0, control, spread=Spread(0, 0, 0, (2, 5))), margin) == 1


# -- several targets --------------------------------------------------------------------------------------------


def test_the_mean_over_targets_as_a_sample_of_shops_is_that_of_a_t_test() -> None:
    controls, relative = (0.1, 0.2, 0.4), np.array([0.1, 0.3, -0.05])
    found = [with_spread(share * base, 1e-4, base) for share, base in zip(relative, controls, strict=True)]
    mean = pooled(found, 0.1)
    assert mean is not None
    theirs = stats.ttest_1samp(relative, 0)
    low, high = theirs.confidence_interval(0.9)
    assert (mean.targets, mean.relative) == (3, pytest.approx(relative.mean()))
    assert (mean.shops_p, mean.shops_low, mean.shops_high) == pytest.approx((theirs.pvalue, low, high))


def test_the_mean_over_these_targets_has_the_errors_of_each_as_shares_of_its_control() -> None:
    """Standard errors of .01 of a control of .1, and of .03 of one of .2, are 10 and 15%; halved by averaging two."""
    many = (4, 10**9)
    mean = pooled([with_spread(0.02, 0.01**2, 0.1, many), with_spread(-0.02, 0.03**2, 0.2, many)], 0.05)
    assert mean is not None
    assert mean.relative == pytest.approx((0.2 - 0.1) / 2)
    half = 1.95996 * np.hypot(0.1, 0.15) / 2
    assert (mean.low, mean.high) == pytest.approx((0.05 - half, 0.05 + half), rel=1e-4)
    assert mean.p == pytest.approx(2 * stats.norm.sf(0.05 / (np.hypot(0.1, 0.15) / 2)), rel=1e-4)


def test_a_target_without_a_spread_or_with_a_control_of_nothing_is_left_out_of_the_mean() -> None:
    usable = with_spread(0.02, 1e-4, 0.1)
    for other in (Difference(0.5, 0.1), with_spread(0.5, 1e-4, 0.0)):
        assert pooled([usable, other], 0.05) is None
        mean = pooled([usable, other, usable], 0.05)
        assert mean is not None
        assert (mean.targets, mean.relative) == (2, pytest.approx(0.2))


@pytest.mark.parametrize(("difference", "p"), [(0.0, 1.0), (0.25, 0.0)])
def test_targets_that_agree_exactly_have_a_p_too(difference: float, p: float) -> None:
    mean = pooled([with_spread(difference, 1e-4)] * 2, 0.05)
    assert mean is not None
    assert (mean.shops_p, mean.shops_low, mean.shops_high) == (p, difference, difference)


# -- many tests, and the verdict --------------------------------------------------------------------------------


def test_holm_multiplies_the_smallest_by_their_number_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_no_correction_and_that_of_bonferroni_and_keeps_the_order(p: list[float]) -> None:
    corrected = holm(p)
    assert all(one <= found <= min(1, one * len(p)) + 1e-12 for one, found in zip(p, corrected, strict=True))
    assert [corrected[place] for place in np.argsort(p, kind="stable")] == sorted(corrected)


@pytest.mark.parametrize(
    ("difference", "corrected", "within", "margin", "word", "why"),
    [
        (0.01, 0.01, 0.9, 0.05, "POSITIVE", "better"),
        (-0.01, 0.049, 0.9, 0.05, "NEGATIVE", "worse"),
        (0.01, 0.01, 0.02, 0.05, "POSITIVE", "better, by less than 5%"),
        (0.01, 0.2, 0.02, 0.05, "EQUIVALENT", "differs by less than 5%"),
        (0.01, 0.2, 0.02, 0.025, "EQUIVALENT", "differs by less than 2.5%"),
        (0.01, 0.2, 0.02, 0.0, "NONE", "no difference beyond chance; one of 12.0% would be found in 8 of 10 tests"),
        (0.01, 0.05, 0.05, 0.05, "NONE", "no difference beyond chance; one of 12.0% would be found in 8 of 10 tests"),
        (0.01, None, None, 0.05, None, "no verdict: it takes at least 2 seeds and 2 users"),
    ],
)
def test_the_verdict_follows_its_rule(
    difference: float, corrected: float | None, within: float | None, margin: float, word: str | None, why: str
) -> None:
    found = Difference(difference, control=0.25)
    verdict = judge(found, corrected, within, alpha=0.05, margin=margin, least=0.03)
    assert (verdict.word, verdict.why) == (word, why)


def test_without_a_mean_of_the_control_there_is_no_share_to_name() -> None:
    verdict = judge(Difference(0.0), 1.0, 1.0, alpha=0.05, margin=0.05, least=0.03)
    assert (verdict.word, verdict.why) == ("NONE", "no difference beyond chance")

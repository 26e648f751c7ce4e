"""Every statistic of a verdict against scipy, an enumeration, or numbers worked out by hand."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from antpipe.comparison.verdict import (
    Difference,
    bootstrap_errors,
    cohens_dz,
    differences,
    gains,
    holm,
    interval,
    judge,
    quantile,
    seed_share,
)
from antpipe.core.ranking import metrics

SETTINGS = {"resamples": 400, "seed": 0, "alpha": 0.05}
ONES = np.ones(4)


def test_the_mean_of_gains_is_the_metric_of_an_evaluation() -> None:
    ranks = np.array([1.0, 2.5, 10.0, 10.5, 50.0, np.inf])
    for name, value in metrics(ranks).items():
        assert gains(ranks, name).mean() == pytest.approx(value, abs=1e-12)


def test_the_bootstrap_error_is_that_of_all_resamples_there_are() -> None:
    sums, weights = np.array([[[3.0, 0, 2], [1, 4, -2]]]), np.array([1.0, 2, 1])
    means = [
        sums[0, seed, list(users)].sum() / weights[list(users)].sum()
        for seed in range(2)  # one of two seeds a resample
        for users in product(range(3), repeat=3)
    ]
    [error] = bootstrap_errors(sums, weights, 40_000, seed=1)
    assert error == pytest.approx(np.std(means), rel=0.02)


def test_with_seeds_that_agree_the_bootstrap_error_is_that_of_scipy() -> None:
    of_user = np.random.default_rng(0).normal(0.1, 1, 60)
    [error] = bootstrap_errors(np.stack([of_user, of_user])[None], np.ones(60), 20_000, seed=1)
    theirs = stats.bootstrap([of_user], np.mean, n_resamples=20_000, rng=np.random.default_rng(2))
    assert error == pytest.approx(theirs.standard_error, rel=0.03)


def test_with_users_that_agree_the_bootstrap_error_is_the_standard_error_of_the_seeds() -> None:
    of_seed = np.array([0.1, 0.4, -0.2, 0.3, 0.9])
    [error] = bootstrap_errors(np.repeat(of_seed[:, None], 30, 1)[None], np.ones(30), 20_000, seed=1)
    assert error == pytest.approx(stats.sem(of_seed), rel=0.03)


def test_resamples_are_the_same_for_equal_seeds_and_whatever_else_is_compared() -> None:
    sums = np.random.default_rng(0).normal(size=(3, 4, 20))
    together = bootstrap_errors(sums, np.ones(20), 300, seed=5)
    alone = bootstrap_errors(sums[1:2], np.ones(20), 300, seed=5)
    assert together[1] == pytest.approx(alone[0], rel=1e-12)
    assert alone[0] != bootstrap_errors(sums[1:2], np.ones(20), 300, seed=6)[0]


@pytest.mark.parametrize(("between", "expected"), [("seeds", 1.0), ("users", 0.0)])
def test_the_variance_is_where_the_differences_are(between: str, expected: float) -> None:
    varied = np.random.default_rng(0).normal(size=(4, 1) if between == "seeds" else (1, 6))
    assert seed_share(np.broadcast_to(varied, (4, 6)), np.ones(6)) == pytest.approx(expected)


def test_the_share_of_seeds_is_that_of_the_variances_of_two_means() -> None:
    rng = np.random.default_rng(3)
    of_seed, of_user = rng.normal(0, 0.3, 4), rng.normal(0, 1, 12)
    seeds, users = stats.sem(of_seed) ** 2, stats.sem(of_user) ** 2  # no interaction: two independent samples
    assert seed_share(of_seed[:, None] + of_user, np.ones(12)) == pytest.approx(seeds / (seeds + users))


@pytest.mark.parametrize(("share", "freedom"), [(1.0, (5, 90)), (0.0, (1, 5)), (0.4, (5, 5))])
def test_interval_and_p_are_those_of_a_t_test_if_only_one_thing_varies(share: float, freedom: tuple[int, int]) -> None:
    values = np.array([0.3, 0.1, -0.2, 0.4, 0.5, 0.2])
    theirs = stats.ttest_1samp(values, 0)
    ours = interval(values.mean(), stats.sem(values), share, freedom, effect=0.0, alpha=0.1)
    low, high = theirs.confidence_interval(0.9)
    assert (ours.p, ours.low, ours.high) == pytest.approx((theirs.pvalue, low, high), rel=2e-3)


def test_a_quantile_is_the_root_mean_square_of_both() -> None:
    expected = np.sqrt(0.25 * stats.t.ppf(0.975, 1) ** 2 + 0.75 * stats.t.ppf(0.975, 50) ** 2)
    assert quantile(0.05, 0.25, (1, 50)) == pytest.approx(expected)


@given(st.floats(0, 1e6), st.floats(0, 1), st.integers(1, 9), st.integers(1, 500))
def test_p_and_interval_say_the_same(mean: float, share: float, seeds: int, users: int) -> None:
    found = interval(mean, 1.0, share, (seeds, users), effect=0.0, alpha=0.05)
    assert found.low is not None
    assert found.p is not None
    assert 0 < found.p <= 1
    if abs(found.low) > 1e-2:
        assert (found.p < 0.05) == (found.low > 0)


def test_no_difference_is_no_evidence() -> None:
    [found] = differences(np.ones((1, 3, 4)), np.ones((3, 4)), np.arange(4), **SETTINGS)
    assert (found.difference, found.p, found.effect, found.low, found.high) == (0, 1, 0, 0, 0)


def test_effect_size_is_the_mean_of_users_in_their_standard_deviations() -> None:
    # Two seeds; averaged over them the users differ by 1, 2, 3, 2: mean 2, standard deviation sqrt(2 / 3).
    sums = np.array([[0.0, 2, 4, 2], [2.0, 2, 2, 2]])
    assert cohens_dz(sums, ONES) == pytest.approx(2 / np.sqrt(2 / 3))
    assert cohens_dz(2 * sums, 2 * ONES) == pytest.approx(2 / np.sqrt(2 / 3))  # two positions a user


def test_differences_are_paired_by_seed_and_user() -> None:
    """Arm and control vary much over seeds and users, but always together."""
    rng = np.random.default_rng(0)
    control = rng.normal(0, 5, (3, 1)) + rng.normal(0, 5, 40) + rng.normal(0, 0.01, (3, 40))
    [found] = differences((control + 0.1)[None], control, np.arange(40), **SETTINGS)
    assert found.difference == pytest.approx(0.1)
    assert found.standard_error == pytest.approx(0, abs=1e-9)
    assert found.p == pytest.approx(0, abs=1e-9)


def test_the_difference_is_that_of_the_means_over_positions_and_users_are_resampled_whole() -> None:
    rng = np.random.default_rng(0)
    user = np.array([7, 7, 7, 3, 9, 9])
    arm, control = rng.normal(size=(1, 2, 6)), rng.normal(size=(2, 6))
    [found] = differences(arm, control, user, **SETTINGS)
    assert found.difference == pytest.approx((arm - control).mean())
    [copies] = differences(np.repeat(arm, 50, 2), np.repeat(control, 50, 1), np.repeat(user, 50), **SETTINGS)
    assert copies.standard_error == pytest.approx(found.standard_error)  # more positions of the same users: no news


@pytest.mark.parametrize(("seeds", "users"), [(1, 5), (3, 1)])
def test_one_seed_or_one_user_gives_a_number_and_nothing_more(seeds: int, users: int) -> None:
    arm = np.full((1, seeds, users), 0.5)
    assert differences(arm, np.zeros((seeds, users)), np.arange(users), **SETTINGS) == [Difference(0.5)]


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_user", "of_both"),
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
    seeds: int, of_seed: float, of_user: float, of_both: float
) -> None:
    rng = np.random.default_rng(4)
    many, users = 500, 40
    arms = (
        rng.normal(0, of_seed, (many, seeds, 1))
        + rng.normal(0, of_user, (many, 1, users))
        + rng.normal(0, of_both, (many, seeds, users))
    )
    found = differences(arms, np.zeros((seeds, users)), np.arange(users), **SETTINGS)
    false = sum(one.p is not None and one.p < 0.05 for one in found)
    assert stats.binomtest(false, many, 0.05, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize("seeds", [2, 3])
def test_few_seeds_do_not_raise_the_error_rate_at_the_levels_holm_asks_for(seeds: int) -> None:
    """Chance of seeds and users alone, where the standard error has a closed form; Welch's degrees of freedom fail."""
    rng = np.random.default_rng(5)
    many, users = 3000, 60
    sums = rng.normal(0, 0.3, (many, seeds, 1)) + rng.normal(0, 1, (many, 1, users))
    means = sums.mean(2)
    errors = np.sqrt(means.var(1, ddof=1) / seeds + sums.mean(1).var(1, ddof=1) / users)
    distances = np.abs(means.mean(1)) / errors
    shares = [seed_share(one, np.ones(users)) for one in sums]
    for alpha in (0.05, 0.0025):
        wide = [quantile(alpha, share, (seeds - 1, users - 1)) for share in shares]
        false = int((distances > wide).sum())
        assert stats.binomtest(false, many, alpha, alternative="greater").pvalue > 0.01


def test_a_clear_difference_is_found() -> None:
    arm = np.random.default_rng(0).normal(0.5, 1, (1, 5, 200))
    [found] = differences(arm, np.zeros((5, 200)), np.arange(200), **SETTINGS)
    assert found.p is not None
    assert found.low is not None
    assert found.p < 1e-3
    assert found.low > 0.3


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


def by_metric(*found: tuple[float, float | None]) -> dict[str, tuple[Difference, float | None]]:
    return {name: (Difference(mean), p) for name, (mean, p) in zip(("recall@10", "ndcg@10"), found, strict=False)}


@pytest.mark.parametrize(
    ("found", "word", "why"),
    [
        (((0.1, 0.01), (0.1, 0.01)), "POSITIVE", "recall@10, ndcg@10 better"),
        (((0.1, 0.01), (0.1, 0.5)), "POSITIVE", "recall@10 better"),
        (((0.1, 0.2), (-0.1, 0.049)), "NEGATIVE", "ndcg@10 worse"),
        (((0.1, 0.05), (0.1, 0.9)), "NONE", "no difference beyond chance"),
        (((0.1, 0.01), (-0.1, 0.01)), "NONE", "mixed: recall@10 better, ndcg@10 worse than the control"),
        (((0.1, None), (0.1, None)), None, "no verdict: it takes at least 2 seeds and 2 users"),
    ],
)
def test_the_verdict_follows_its_rule(found: tuple[tuple[float, float | None], ...], word: str, why: str) -> None:
    verdict = judge(by_metric(*found), 0.05)
    assert (verdict.word, verdict.why) == (word, why)

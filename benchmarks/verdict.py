"""Error rate and power of the verdict's test: simulated comparisons with a known truth.

    python -m benchmarks.verdict [--repeats 700]

Each user's target is a hit of a run or not (Recall@10 of about .05), by a probit model: hits of the same user correlate
within an arm (`same_arm`) and a little less between arms (`between_arms`), and an arm's true recall varies from seed to
seed by the relative standard deviation `seed_sd` (marked `*`: the control's does not). A row gives the share of
comparisons called different, at level .05 and at .0125 (the smallest of four under Holm): without an effect, this is
the error rate; with one, the power.
"""

import argparse
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from antpipe.comparison.verdict import differences

LEVELS = (0.05, 0.0125)


@dataclass(frozen=True)
class Case:
    """A kind of comparison. effect: how much higher the arm's true recall is, as a share of the control's."""

    seeds: int
    users: int
    effect: float = 0.0
    seed_sd: float = 0.02
    same_arm: float = 0.91  # as measured between seeds of scratch
    between_arms: float = 0.9
    recall: float = 0.05
    steady_control: bool = False  # its recall does not vary from seed to seed


NULLS = (
    Case(2, 1000, seed_sd=0.0),
    Case(2, 1000, seed_sd=0.06),
    Case(2, 6000, seed_sd=0.1),
    Case(3, 1000, seed_sd=0.03),
    Case(3, 6000, seed_sd=0.0),
    Case(3, 6000, seed_sd=0.03),
    Case(3, 6000, seed_sd=0.06, between_arms=0.8),
    Case(3, 6000, seed_sd=0.1, steady_control=True),
    Case(5, 6000, seed_sd=0.03),
    Case(5, 6000, seed_sd=0.1, between_arms=0.8),
    Case(8, 3000, seed_sd=0.06),
)
EFFECTS = (
    Case(3, 1000, 0.16),
    Case(3, 6000, 0.05),
    Case(3, 6000, 0.1),
    Case(3, 6000, 0.16),
    Case(3, 6000, 0.16, between_arms=0.8),
    Case(5, 1000, 0.16),
    Case(5, 6000, 0.05),
    Case(5, 6000, 0.1),
    Case(5, 6000, 0.16),
    Case(5, 6000, 0.16, between_arms=0.8),
)


def hits(case: Case, rng: np.random.Generator) -> NDArray[np.float64]:
    """(2, S, U) zeros and ones: the control's hits and the arm's."""
    from scipy.stats import norm

    of_user = np.sqrt(case.between_arms) * rng.standard_normal(case.users)
    found = []
    density = norm.pdf(norm.ppf(case.recall))  # a shift of the threshold by x changes the recall by x times this
    for recall, steady in ((case.recall, case.steady_control), (case.recall * (1 + case.effect), False)):
        of_seed = rng.standard_normal((case.seeds, 1)) * (0.0 if steady else case.seed_sd * case.recall / density)
        of_arm = np.sqrt(max(case.same_arm - case.between_arms, 0.0)) * rng.standard_normal(case.users)
        of_pair = np.sqrt(1 - case.same_arm) * rng.standard_normal((case.seeds, case.users))
        found.append(norm.ppf(recall) + of_seed + of_user + of_arm + of_pair > 0)
    return np.array(found, np.float64)


def called_different(case: Case, repeats: int, seed: int = 0) -> dict[float, float]:
    """The share of `repeats` simulated comparisons with a p below the level, by level."""
    rng, user = np.random.default_rng(seed), np.arange(case.users)
    counts = dict.fromkeys(LEVELS, 0)
    for _ in range(repeats):
        control, arm = hits(case, rng)
        [found] = differences(arm[None], control, user, min(LEVELS))
        for level in LEVELS:
            counts[level] += found.p is not None and found.p < level
    return {level: count / repeats for level, count in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=700, help="simulated comparisons per row")
    repeats = parser.parse_args().repeats
    print("seeds  users  effect  seed sd  between arms  called different at .05  at .0125")
    for case in (*NULLS, *EFFECTS):
        shares = called_different(case, repeats)
        seed_sd = f"{case.seed_sd:.0%}{'*' if case.steady_control else ' '}"
        print(
            f"{case.seeds:5} {case.users:6} {case.effect:7.0%} {seed_sd:>8} {case.between_arms:13} "
            f"{shares[0.05]:23.1%} {shares[0.0125]:9.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()

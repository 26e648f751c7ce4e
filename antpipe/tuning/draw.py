"""Which settings come next: Optuna's tree-structured Parzen estimator (Bergstra et al. 2011), from the trials so far.

A study is rebuilt from the trials each time. So trials.jsonl is the only record, and a search that was interrupted
draws what it would have drawn without: the random numbers of a trial follow from the seed and its number.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from antpipe.errors import UsageError
from antpipe.settings.tuning import Choice, Dimension, Value
from antpipe.store.next_command import shell
from antpipe.tuning.trials import FAILED, FINISHED, Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

ATTEMPTS = 50  # at drawing settings that no trial had, before the space counts as searched
DIGITS = 3  # of a drawn number
OF_EQUAL_RECALL = 1e-6  # weight of NDCG, below the smallest difference of recall among a million positions


def require_optuna() -> None:
    """Raise UsageError unless Optuna is installed."""
    if find_spec("optuna") is None:
        raise UsageError("tune needs optuna, which is not installed", shell("pip", "install", "antpipe[tune]"))


def draw(space: Mapping[str, Dimension], seed: int, trials: Sequence[Trial]) -> dict[str, Value] | None:
    """Settings for the next trial that no trial before had; None if none are left."""
    import optuna

    number, had = len(trials), [one.settings for one in trials]
    ranges = {name: distribution(one) for name, one in space.items()}
    told = [as_optuna(one, ranges) for one in trials if holds(space, one.settings)]
    for attempt in range(ATTEMPTS):
        random = int(np.random.default_rng([seed, number, attempt]).integers(2**32))
        with quiet():
            study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=random))
            study.add_trials(told)
            drawn = {name: rounded(value) for name, value in study.ask(ranges).params.items()}
        if drawn not in had:
            return drawn
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna from reporting each study and trial."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def distribution(one: Dimension) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(one, Choice):
        return CategoricalDistribution(one.values)
    return FloatDistribution(one.low, one.high, log=one.log)


def rounded(value: Value) -> Value:
    """A number as people write it; the bounds of a range have fewer digits, so it stays within them."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def holds(space: Mapping[str, Dimension], settings: Mapping[str, Value]) -> bool:
    """Whether settings are within the ranges; those that a user gives for the first trial need not be."""
    return all(
        settings[name] in one.values if isinstance(one, Choice) else one.low <= settings[name] <= one.high
        for name, one in space.items()
    )


def as_optuna(one: Trial, ranges: "Mapping[str, BaseDistribution]") -> "FrozenTrial":
    """A trial as Optuna knows it. One that failed counts as pruned without figures, which is the worst of all."""
    from optuna.trial import TrialState, create_trial

    finished, rungs = one.state == FINISHED, [] if one.state == FAILED else one.rungs
    return create_trial(
        state=TrialState.COMPLETE if finished else TrialState.PRUNED,
        value=worth(one.score()) if finished else None,
        params=dict(one.settings),
        distributions=dict(ranges),
        intermediate_values={rung.epochs: worth(rung.score()) for rung in rungs},
    )


def worth(score: tuple[float, float]) -> float:
    """Recall and NDCG as the one number that Optuna takes."""
    recall, ndcg = score
    return recall + OF_EQUAL_RECALL * ndcg

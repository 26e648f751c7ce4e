"""The steps of a branch of fork-merge: each on the target or on one of its auxiliaries (docs/method.md)."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count, islice
from typing import TYPE_CHECKING

import numpy as np

from antpipe.core.batches import Batch, step_windows
from antpipe.training.data import TrainingData
from antpipe.training.loop import ExactSteps, candidates_of, no_negatives, windows_to_train
from antpipe.training.replay import Setup

if TYPE_CHECKING:
    from antpipe.core.model import Ant

DRAW = 17  # seeds, with others, the random numbers that choose the domain of each step


def shares_of(auxiliaries: Sequence[str]) -> list[float]:
    """The probabilities that a step of a branch is on the target, and on each of its k auxiliaries: 1 and 1/k, divided
    by their sum."""
    weights = [1.0, *(1 / len(auxiliaries) for _ in auxiliaries)]
    return [weight / sum(weights) for weight in weights]


class MixedSteps:
    """Takes the steps of a branch, each on one domain with its own catalogue and softmax, drawn by `shares_of`.

    An epoch has as many steps as one on the target alone. In each epoch, every domain passes over its positions in a
    new order, as often as its steps need.
    """

    late, features = 0, None

    def __init__(self, setup: Setup, others: Mapping[str, TrainingData]) -> None:
        self.setup, self.shares = setup, shares_of(list(others))
        self.domains = [ExactSteps(setup), *(ExactSteps(auxiliary(setup, data)) for data in others.values())]
        self.current = self.domains[0]

    def batches(self, epoch: int, start: int, stop: int | None) -> Iterator[Batch]:
        """The steps of an epoch, from number `start` on."""
        for domain in self.domains[1:]:
            domain.setup.model.train()
        drawn = self.drawn(epoch)
        before = np.bincount(drawn[:start], minlength=len(self.domains)).tolist()
        steps = [self.endless(domain, epoch, skipped) for domain, skipped in zip(self.domains, before, strict=True)]
        for number in drawn[start:stop]:
            self.current = self.domains[number]
            yield next(steps[number])

    def drawn(self, epoch: int) -> list[int]:
        """The domain of each step of an epoch."""
        setup, config = self.setup, self.setup.config
        passes = range((epoch - 1) * setup.passes + 1, epoch * setup.passes + 1)
        steps = sum(1 for one in passes for _ in step_windows(setup.windows, config.batch_size, config.seed, one))
        rng = np.random.default_rng([config.seed, epoch, DRAW])
        found: list[int] = rng.choice(len(self.domains), steps, p=self.shares).tolist()
        return found

    def endless(self, domain: ExactSteps, epoch: int, skipped: int) -> Iterator[Batch]:
        """The steps of a domain in an epoch, without end, from number `skipped` on."""
        passes = (domain.batches(epoch + again * self.setup.config.epochs, 0, None) for again in count())
        return islice(chain.from_iterable(passes), skipped, None)

    def take(self, batch: Batch, check: Callable[[float], None]) -> Callable[[], float]:
        """Do a step on the domain of the batch that `batches` yielded last."""
        return self.current.take(batch, check)

    def features_mb(self) -> float:
        return 0.0


def auxiliary(setup: Setup, data: TrainingData) -> Setup:
    """The setup of steps on an auxiliary: the target's model without its ids, and its optimiser."""
    windows = windows_to_train(data, setup.config, in_batch=False)
    model, catalogue = without_ids(setup.model), data.catalogue
    new, drawn = no_negatives(data, setup.config), candidates_of(data, False, setup.config)
    return replace(setup, model=model, catalogue=catalogue, windows=windows, candidates=drawn, passes=1, new=new)


def without_ids(model: "Ant") -> "Ant":
    """The same model without its ids; all other parameters are shared."""
    shared = copy.copy(model)
    shared._modules = {**model._modules, "ids": None}
    return shared

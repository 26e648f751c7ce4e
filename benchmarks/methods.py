"""The seconds of a step of re-learning, plain and with each method beyond ANT: `python -m benchmarks.methods`.

All ways take turns in one process, step by step, and each turn gives a ratio to its plain step. The shop is that of
benchmarks/train_step.py, with made-up marks of weak positives. With `balance` the step is one of a later epoch: the
losses that it adds need no gradients in the first.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

from antpipe.runtime.process import tune_process

if __name__ == "__main__" and "--help" not in sys.argv:
    tune_process()  # part of antpipe's way; before torch is loaded

import numpy as np
import torch

from antpipe.core.batches import training_windows
from antpipe.settings.methods import METHODS, NO_METHOD
from antpipe.settings.training import TrainConfig
from antpipe.training.data import TrainingData
from antpipe.training.loop import ExactSteps, candidates_of, trained_by
from antpipe.training.methods.choose import method_of
from antpipe.training.methods.weak_positives import LOW_RATED, UNVERIFIED
from antpipe.training.replay import Setup, adam
from benchmarks.synthetic_shops import training_data
from benchmarks.train_sizes import FULL, QUICK, Sizes
from benchmarks.train_worker import model_of

CPU = torch.device("cpu")
SHARES = {LOW_RATED: 0.2, UNVERIFIED: 0.1}  # of the interactions


def marked(data: TrainingData, seed: int = 0) -> TrainingData:
    """The same data with some interactions low-rated and some unverified, independently."""
    rng, [part] = np.random.default_rng(seed), data.sequences
    marks = sum(mark * (rng.random(len(part.items)) < share) for mark, share in SHARES.items())
    return replace(data, marks=np.asarray(marks, np.int8))


def steps_of(method: str, data: TrainingData, sizes: Sizes, *, quick: bool) -> Callable[[], float]:
    """A function that takes a step of re-learning with a method and returns its seconds; the first step is done."""
    config = replace(TrainConfig(), method=method, batch_size=sizes.batch, precision="fp32")
    model = model_of("relearn", quick).train()
    windows = training_windows(data.sequences, data.catalogue.offsets)
    chosen = method_of(model, data, windows, config, CPU)
    optimiser = adam([*trained_by(model), *chosen.parameters], config.lr, CPU, recorded=False)
    drawn = candidates_of(data, False, config)
    steps = ExactSteps(Setup(model, data.catalogue, windows, drawn, config, optimiser, CPU, False, method=chosen))
    order = (batch for epoch in count(1) for batch in steps.batches(epoch, 0, None))

    def take() -> float:
        batch, began = next(order), time.perf_counter()
        steps.take(batch, lambda _: None)()
        return time.perf_counter() - began

    take()
    chosen.figures()
    return take


def compare(sizes: Sizes, turns: int, *, quick: bool) -> list[str]:
    """A row for each way, the plain one first."""
    data = marked(training_data(sizes.items, sizes.users, sizes.prefixes))
    ways = {name: steps_of(name, data, sizes, quick=quick) for name in (NO_METHOD, *METHODS)}
    for take in ways.values():
        take()
    took = [{name: take() for name, take in ways.items()} for _ in range(turns)]
    return [row(name, took) for name in ways]


def row(name: str, took: Sequence[dict[str, float]]) -> str:
    """Median seconds, and the median and the range over turns of the ratio to a plain step."""
    seconds, ratios = [turn[name] for turn in took], [turn[name] / turn[NO_METHOD] for turn in took]
    middle, spread = statistics.median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"{name:12}{statistics.median(seconds):10.3f}{middle:8.2f}  {spread}"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=11, help="steps of each way")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    asked = parser.parse_args(words)
    print("method        s/step   times  range")
    for line in compare((QUICK if asked.quick else FULL)["relearn"], asked.turns, quick=asked.quick):
        print(line, flush=True)


if __name__ == "__main__":
    main()

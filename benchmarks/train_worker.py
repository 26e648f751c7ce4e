"""One process of the training benchmark, which takes steps on request.

`python -m benchmarks.train_worker STAGE WAY TARGETS [quick]` prints the loss without dropout, then takes a step per
number that it reads from stdin, and prints its cost. WAY is `plain`, `plain-tuned` (the same in a process that keeps
freed memory, as antpipe does), `fp32` or `bf16`.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from antpipe.runtime.process import tune_process

if __name__ == "__main__" and sys.argv[2] != "plain":
    tune_process()  # part of antpipe's way; before torch is loaded

import numpy as np
import torch
from numpy.typing import NDArray

from antpipe.core.batches import Candidates, Windows, make_batch, training_windows
from antpipe.core.catalogue import item_inputs
from antpipe.core.model import Ant
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import TrainConfig
from antpipe.training.data import TrainingData
from antpipe.training.step_loss import pretraining_loss, target_loss
from benchmarks import plain_training as plain
from benchmarks.synthetic_shops import MAX_LEN, WIDTHS, training_data
from benchmarks.train_sizes import FULL, QUICK

CPU = torch.device("cpu")
Loss = Callable[[NDArray[np.int64]], tuple["torch.Tensor", int, int]]  # windows -> loss, targets, projected items


def model_of(stage: str, quick: bool) -> Ant:
    """The same weights for each way. Nothing is zero, not even the gates, so that a comparison checks all of them."""
    torch.manual_seed(0)
    model = Ant(replace(ModelConfig(), **({"width": 32} if quick else {})), WIDTHS, MAX_LEN)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    if stage == "relearn":
        model.encoder.requires_grad_(False)
    return model


def plain_loss(stage: str, model: Ant, data: TrainingData, windows: Windows) -> Loss:
    """The straightforward way: raw features in memory, one table per modality."""
    whole = item_inputs(data.catalogue, WIDTHS, np.arange(len(data.catalogue)), CPU)
    tables = {name: torch.cat([x, torch.zeros_like(x[:1])]) for name, x in whole.features.items()}

    def loss(chosen: NDArray[np.int64]) -> tuple[torch.Tensor, int, int]:
        rows = plain.rows_of(windows, chosen, MAX_LEN)
        if stage == "relearn":
            value = plain.plain_target_loss(model, tables, rows)
        else:
            weight = TrainConfig().image_text_weight
            value = plain.plain_pretraining_loss(model, tables, whole.present["image"], rows, weight)
        return value, len(rows.target), rows.items.size

    return loss


def our_loss(stage: str, model: Ant, data: TrainingData, windows: Windows, precision: str = "fp32") -> Loss:
    """A step of antpipe's training loop."""
    n = len(data.catalogue)
    inputs_of = partial(item_inputs, data.catalogue, WIDTHS, device=CPU, precision=precision)
    whole = inputs_of(np.arange(n)) if stage == "relearn" else None
    candidates = Candidates(n, n if stage == "relearn" else 0)

    def loss(chosen: NDArray[np.int64]) -> tuple[torch.Tensor, int, int]:
        batch = make_batch(windows, chosen, candidates, np.random.default_rng(0))
        inputs = whole or inputs_of(batch.items)
        value = (target_loss if stage == "relearn" else pretraining_loss)(model, inputs, batch, TrainConfig())
        return value, len(batch.targets), len(batch.items)

    return loss


def windows_of_step(windows: Windows, order: NDArray[np.int64], step: int, targets: int) -> NDArray[np.int64]:
    """Whole windows with at least `targets` targets in total, different ones in each step."""
    ends = np.cumsum(windows.targets[order])
    start = int(np.searchsorted(ends, step * targets % max(1, int(ends[-1]) - targets)))
    before = int(ends[start - 1]) if start else 0
    return order[start : int(np.searchsorted(ends, before + targets)) + 1]


def main(stage: str, way: str, targets: int, quick: bool) -> None:
    sizes = (QUICK if quick else FULL)[stage]
    data = training_data(sizes.items, sizes.users, sizes.prefixes)
    windows = training_windows(data.sequences, data.catalogue.offsets)
    order = np.random.default_rng(0).permutation(len(windows.first))
    model = model_of(stage, quick)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=1e-3, fused=not way.startswith("plain"))
    loss_of = (plain_loss if way.startswith("plain") else partial(our_loss, precision=way))(stage, model, data, windows)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=way == "bf16"):
        value, _, _ = loss_of_without_dropout(model, loss_of, windows_of_step(windows, order, 0, targets))
    print(json.dumps({"loss": value}), flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "bf16"):
            loss, done, items = loss_of(windows_of_step(windows, order, int(line), targets))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(took | {"targets": done, "items": items, "peak": peak}), flush=True)


def loss_of_without_dropout(model: Ant, loss_of: Loss, chosen: NDArray[np.int64]) -> tuple[float, int, int]:
    model.eval()
    value, targets, items = loss_of(chosen)
    model.train()
    return float(value), targets, items


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), "quick" in sys.argv[4:])

"""A training step of antpipe beside the straightforward one: `python -m benchmarks.train_step`.

Each way runs in a process of its own, so that its peak memory is its own; they take turns, step by step. The
straightforward way is timed on few rows, of which time and memory of the whole batch follow: both are a constant (the
catalogue) plus a part for each row, so two sizes give the line. `--plain-rows 2048` times the whole batch instead.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

from antpipe.process import tune_process

STAGES = ("relearn", "pretrain")
EXACT = {"item_dropout": 0.0, "hidden_dropout": 0.0, "attention_dropout": 0.0, "gate_noise": False}


@dataclass(frozen=True)
class Sizes:
    """A stage's shop: items of each domain, users and prefixes in all, targets a step."""

    items: tuple[int, ...]
    users: int
    prefixes: int
    batch: int


# As large as Amazon Scientific, the paper's target of middle size; and a mix of four sources.
FULL = {
    "relearn": Sizes((5282,), 8442, 44_000, 2048),
    "pretrain": Sizes((5000,) * 4, 19_000, 100_000, 2048),
}
QUICK = {"relearn": Sizes((120,), 60, 240, 64), "pretrain": Sizes((60,) * 4, 80, 320, 64)}


def work(stage: str, way: str, rows: int, quick: bool) -> None:
    """A process of one way: prints the loss without dropout, then takes a step for each line on stdin.

    rows: targets a step; windows are whole, so a step has up to a window more.
    """
    tune_process()
    import numpy as np
    import torch

    from antpipe.config import ModelConfig, TrainConfig
    from antpipe.data import Candidates, item_inputs, make_batch, training_windows
    from antpipe.model import Ant
    from antpipe.train import pretraining_loss, target_loss
    from benchmarks import plain_training as plain
    from benchmarks.synthetic_shops import MAX_LEN, WIDTHS, training_data

    sizes = (QUICK if quick else FULL)[stage]
    data = training_data(sizes.items, sizes.users, sizes.prefixes)
    n, device = sum(sizes.items), torch.device("cpu")
    config = TrainConfig(precision="bf16" if way == "bf16" else "fp32")
    model_config = replace(ModelConfig(), **({"width": 32} if quick else {}))
    torch.manual_seed(0)
    model = Ant(model_config, WIDTHS, MAX_LEN)
    with torch.no_grad():  # first values are zeros here and there; a comparison needs others
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    if stage == "relearn":
        model.encoder.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=1e-3, fused=way != "plain")
    windows = training_windows(data.sequences, data.catalogue.offsets)
    order = np.random.default_rng(0).permutation(len(windows.first))
    candidates = Candidates(n, n if stage == "relearn" else 0)
    whole = item_inputs(data.catalogue, WIDTHS, np.arange(n), device) if way == "plain" or stage == "relearn" else None
    tables = {name: torch.cat([x, torch.zeros_like(x[:1])]) for name, x in whole.features.items()} if whole else {}

    def chosen(step: int) -> Any:
        ends = np.cumsum(windows.targets()[order])
        start = int(np.searchsorted(ends, step * rows % max(1, int(ends[-1]) - rows)))
        stop = int(np.searchsorted(ends, (ends[start - 1] if start else 0) + rows)) + 1
        return order[start:stop]

    def loss_of(step: int) -> tuple[torch.Tensor, int]:
        if way == "plain":
            prefixes = plain.rows_of(windows, chosen(step), MAX_LEN)
            if stage == "relearn":
                return plain.plain_target_loss(model, tables, prefixes), len(prefixes.target)
            assert whole is not None
            there = whole.present["image"]
            return plain.plain_pretraining_loss(
                model, tables, there, prefixes, config.image_text_weight
            ), len(prefixes.target)  # fmt: skip
        batch = make_batch(windows, chosen(step), candidates, np.random.default_rng(0))
        if stage == "relearn":
            assert whole is not None
            return target_loss(model, whole, batch, config), len(batch.targets)
        inputs = item_inputs(data.catalogue, WIDTHS, batch.items, device)
        return pretraining_loss(model, inputs, batch, config), len(batch.targets)

    def take(step: int) -> tuple[float, int]:
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "bf16"):
            loss, targets = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return float(loss.detach()), targets

    model.config = replace(model_config, **EXACT)
    model.eval()
    with torch.no_grad():
        print(json.dumps({"loss": float(loss_of(0)[0])}), flush=True)
    model.config = model_config
    model.train()
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        _, targets = take(int(line))
        figures = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "targets": targets}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(figures | {"peak": peak}), flush=True)


class Worker:
    """A process that takes steps when asked to."""

    def __init__(self, stage: str, way: str, rows: int, quick: bool) -> None:
        words = ["--worker", way, "--stage", stage, "--rows", str(rows), *(["--quick"] if quick else [])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.train_step", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=os.environ,
        )  # fmt: skip
        self.loss: float = self._answer()["loss"]
        self.steps: list[dict[str, float]] = []

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a benchmark process ended early with exit code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def step(self, number: int) -> None:
        assert self.process.stdin is not None
        print(number, file=self.process.stdin, flush=True)
        self.steps.append(self._answer())

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def best(self, figure: str) -> float:
        """Of all steps but the first, which warms up: the least is the one that others disturbed least."""
        return min(step[figure] for step in self.steps[1:])


def matmul_rate(precision: str) -> float:
    """Measured floating-point operations a second of a (5282, 768) by (768, 2048) product."""
    import torch

    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(5282, 768).to(kind), torch.randn(768, 2048).to(kind)
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * 5282 * 768 * 2048 / best


def least_operations(stage: str, sizes: Sizes) -> float:
    """Floating-point operations that a step cannot do without: each item once, each position once, every score."""
    from antpipe.config import ModelConfig
    from benchmarks.synthetic_shops import WIDTHS

    model, p = ModelConfig(), sizes.batch
    n = sum(sizes.items) if stage == "relearn" else 1_800  # distinct items of a batch of this mix
    items = 2 * n * model.experts * model.width * sum(WIDTHS.values()) * 2  # forward, and the weights' gradient
    layers = (
        2 * p * 6 * model.width**2 * model.layers * (2 if stage == "relearn" else 3)
    )  # frozen: no weights' gradient
    scores = 2 * p * (n if stage == "relearn" else 2 * p) * model.width * 3
    return float(items + layers + scores)


def compare(stage: str, plain_rows: tuple[int, ...], repeats: int, quick: bool) -> list[dict[str, Any]]:
    """The ways in alternation. Returns a row a way."""
    from antpipe.devices import cpu_multiplies_bf16

    sizes = (QUICK if quick else FULL)[stage]
    ways = ["fp32", *(["bf16"] if cpu_multiplies_bf16() else [])]
    exact = [Worker(stage, way, plain_rows[0], quick) for way in ("plain", "fp32")]
    difference = abs(exact[0].loss / exact[1].loss - 1)
    for worker in exact:
        worker.end()
    print(f"{stage}: loss of the same {plain_rows[0]} rows without dropout: straightforward {exact[0].loss:.7f}, "
          f"antpipe {exact[1].loss:.7f}, relative difference {difference:.1e}")  # fmt: skip
    if difference > 1e-5:
        raise SystemExit("the two ways do not compute the same loss")
    plains = [Worker(stage, "plain", rows, quick) for rows in plain_rows]
    ours = {way: Worker(stage, way, sizes.batch, quick) for way in ways}
    for number in range(repeats + 1):
        for worker in (*plains, *ours.values()):
            worker.step(number)
    table = [{"way": "straightforward", **extrapolated(plains, sizes.batch)}]
    for way, worker in ours.items():
        figures = {name: worker.best(name) for name in ("wall", "cpu")}
        bound = least_operations(stage, sizes) / matmul_rate(way)
        table.append({"way": f"antpipe {way}", **figures, "peak": worker.steps[-1]["peak"], "bound": bound})
    for worker in (*plains, *ours.values()):
        worker.end()
    steps = -(-sizes.prefixes // sizes.batch)
    return [row | {"steps": steps, "epoch": steps * row["wall"]} for row in table]


def extrapolated(workers: list[Worker], batch: int) -> dict[str, float]:
    """Time and memory of a whole batch, on the line through one or two smaller ones."""
    found = {}
    for name in ("wall", "cpu", "peak"):
        last = workers[-1]
        values = [worker.steps[-1]["peak"] if name == "peak" else worker.best(name) for worker in workers]
        targets = [worker.steps[-1]["targets"] for worker in workers]
        slope = (values[1] - values[0]) / (targets[1] - targets[0]) if len(workers) > 1 else 0.0
        found[name] = values[-1] + slope * (batch - last.steps[-1]["targets"])
    return found


def show(stage: str, table: list[dict[str, Any]]) -> None:
    plain = table[0]
    print(f"{'way':18}{'CPU s/step':>12}{'wall s/step':>13}{'steps':>7}{'epoch s':>10}{'times':>8}"
          f"{'peak MB':>9}{'share':>7}{'of bound':>10}")  # fmt: skip
    for row in table:
        bound = f"{row['wall'] / row['bound']:.1f}x" if "bound" in row else ""
        print(f"{row['way']:18}{row['cpu']:12.3f}{row['wall']:13.3f}{row['steps']:7}{row['epoch']:10.1f}"
              f"{plain['wall'] / row['wall']:8.1f}{row['peak']:9.0f}{row['peak'] / plain['peak']:7.2f}{bound:>10}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=STAGES, help="only this one")
    parser.add_argument("--plain-rows", default="128,256", help="rows of the straightforward steps: one or two sizes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        work(asked.stage, asked.worker, asked.rows, asked.quick)
        return
    rows = (16, 32) if asked.quick else tuple(int(part) for part in asked.plain_rows.split(","))
    for precision in ("fp32", "bf16"):
        print(f"matrix products in {precision}: {matmul_rate(precision) / 1e9:.0f} GFLOP/s")
    for stage in [asked.stage] if asked.stage else STAGES:
        show(stage, compare(stage, rows, asked.repeats, asked.quick))


if __name__ == "__main__":
    main()

"""A training step of antpipe and the straightforward one: `python -m benchmarks.train_step`.

Each way runs in its own process, to measure its own peak memory; they take turns, step by step. The straightforward
way, with the system's memory settings and with antpipe's, is timed on few rows and extrapolated to the whole batch:
time and memory are a constant (the catalogue) plus a part per row, so two sizes determine the line. `--plain-rows 2048`
times the whole batch instead.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

from benchmarks.train_sizes import FULL, QUICK, Sizes

STAGES = ("relearn", "pretrain")
PLAIN = {"plain": "straightforward", "plain-tuned": "  memory kept"}


class Worker:
    """A process that takes steps on request."""

    def __init__(self, stage: str, way: str, rows: int, quick: bool) -> None:
        words = [stage, way, str(rows), *(["quick"] if quick else [])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.train_worker", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
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
        """The minimum over all steps (the least disturbed one), without the first, which warms up."""
        return min(step[figure] for step in self.steps[1:])


def matmul_rate(precision: str) -> float:
    """Measured floating-point operations per second of a (5282, 768) by (768, 2048) product."""
    import torch

    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(5282, 768).to(kind), torch.randn(768, 2048).to(kind)
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * 5282 * 768 * 2048 / best


def least_operations(stage: str, sizes: Sizes, items: float) -> float:
    """The minimum floating-point operations of a step: each item once, each position once, each score once."""
    from antpipe.settings.model import ModelConfig
    from benchmarks.synthetic_shops import WIDTHS

    model, p = ModelConfig(), sizes.batch
    passes = 2 if stage == "relearn" else 3  # a frozen layer needs no weight gradients
    projections = 2 * items * model.experts * model.width * sum(WIDTHS.values()) * 2  # forward, gradient of weights
    layers = 2 * p * 6 * model.width**2 * model.layers * passes
    scores = 2 * p * (items if stage == "relearn" else 2 * p) * model.width * 3
    return float(projections + layers + scores)


def compare(stage: str, plain_rows: tuple[int, ...], repeats: int, quick: bool) -> list[dict[str, Any]]:
    """Let the ways take turns. Returns one row per way."""
    from antpipe.runtime.devices import cpu_multiplies_bf16

    sizes = (QUICK if quick else FULL)[stage]
    ways = ["fp32", *(["bf16"] if cpu_multiplies_bf16() else [])]
    exact = [Worker(stage, way, plain_rows[0], quick) for way in ("plain", "fp32")]
    difference = abs(exact[0].loss / exact[1].loss - 1)
    for worker in exact:
        worker.end()
    print(
        f"{stage}: loss of the same {plain_rows[0]} rows without dropout: straightforward {exact[0].loss:.7f}, "
        f"antpipe {exact[1].loss:.7f}, relative difference {difference:.1e}"
    )
    if difference > 1e-5:
        raise SystemExit("the two ways do not compute the same loss")
    plains = {way: [Worker(stage, way, rows, quick) for rows in plain_rows] for way in PLAIN}
    ours = {way: Worker(stage, way, sizes.batch, quick) for way in ways}
    everyone = [*(worker for group in plains.values() for worker in group), *ours.values()]
    for number in range(repeats + 1):
        for worker in everyone:
            worker.step(number)
    table: list[dict[str, Any]] = [{"way": PLAIN[way], **extrapolated(plains[way], sizes.batch)} for way in PLAIN]
    for way, worker in ours.items():
        figures = {name: worker.best(name) for name in ("wall", "cpu")}
        bound = least_operations(stage, sizes, worker.steps[-1]["items"]) / matmul_rate(way)
        table.append({"way": f"antpipe {way}", **figures, "peak": worker.steps[-1]["peak"], "bound": bound})
    for worker in everyone:
        worker.end()
    steps = -(-sizes.prefixes // sizes.batch)
    return [row | {"steps": steps, "epoch": steps * row["wall"]} for row in table]


def extrapolated(workers: list[Worker], batch: int) -> dict[str, float]:
    """Time and memory of a whole batch, on the line through one or two smaller batches."""
    found = {}
    for name in ("wall", "cpu", "peak"):
        last = workers[-1]
        values = [worker.steps[-1]["peak"] if name == "peak" else worker.best(name) for worker in workers]
        targets = [worker.steps[-1]["targets"] for worker in workers]
        slope = (values[1] - values[0]) / (targets[1] - targets[0]) if len(workers) > 1 else 0.0
        found[name] = values[-1] + slope * (batch - last.steps[-1]["targets"])
    return found


def show(table: list[dict[str, Any]]) -> None:
    plain = table[0]
    print(
        f"{'way':18}{'CPU s/step':>12}{'wall s/step':>13}{'steps':>7}{'epoch s':>10}{'times':>8}"
        f"{'peak MB':>9}{'share':>7}{'of bound':>10}"
    )
    for row in table:
        bound = f"{row['wall'] / row['bound']:.1f}x" if "bound" in row else ""
        print(
            f"{row['way']:18}{row['cpu']:12.3f}{row['wall']:13.3f}{row['steps']:7}{row['epoch']:10.1f}"
            f"{plain['wall'] / row['wall']:8.1f}{row['peak']:9.0f}{row['peak'] / plain['peak']:7.2f}"
            f"{bound:>10}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=STAGES, help="only this stage")
    parser.add_argument("--plain-rows", default="128,256", help="rows of the straightforward steps: one or two sizes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    asked = parser.parse_args()
    rows = (16, 32) if asked.quick else tuple(int(part) for part in asked.plain_rows.split(","))
    for precision in ("fp32", "bf16"):
        print(f"matrix products in {precision}: {matmul_rate(precision) / 1e9:.0f} GFLOP/s")
    for stage in [asked.stage] if asked.stage else STAGES:
        show(compare(stage, rows, asked.repeats, asked.quick))


if __name__ == "__main__":
    main()

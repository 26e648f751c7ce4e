"""Ranking a test split with antpipe and the straightforward way: `python -m benchmarks.evaluate`.

Straightforward: scores by numpy in blocks of users, a full argsort per row, and a Python loop over users that looks up
the target in that order, once among all items and once without the user's history. antpipe: `rank_examples` and
`metrics`. Each runs in its own process, to measure its own peak memory, and they take turns. Their metrics must agree.
The last line times everything that `antpipe evaluate` computes, including item and history vectors.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZES = {"scientific": (8_442, 5_282), "large": (20_000, 50_000)}  # users, items; Amazon Scientific, and a larger shop
QUICK = (60, 400)
WIDTH = 256
SCORES_AT_ONCE = 1 << 26  # scores held at once by the straightforward way, 256 MB
Floats = NDArray[np.float32]
# Positions that may differ: in float32, the straightforward way may put an item with nearly the same score on the wrong
# side of the target; antpipe scores such items again in float64.
NEAR_TIES = 5
Figures = dict[str, dict[str, float]]


def split_of(users: int, items: int) -> Any:
    """One test position per user, with histories and item popularity like those of a real shop."""
    from antpipe.core.batches import examples
    from benchmarks.synthetic_shops import sequences

    return examples(sequences(np.random.default_rng(0), items, users, int(5.2 * users)), "test")


def vectors_of(users: int, items: int, part: Any) -> tuple[Floats, Floats]:
    """Unit vectors; queries lean towards their targets, so the metrics are similar to those of a real model."""
    rng = np.random.default_rng(1)
    catalogue = rng.standard_normal((items, WIDTH), dtype=np.float32)
    queries = rng.standard_normal((users, WIDTH), dtype=np.float32) + 0.2 * catalogue[part.targets()]
    return tuple(rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, catalogue))  # type: ignore[return-value]


def plain_metrics(queries: Floats, items: Floats, part: Any) -> Figures:
    """Metrics computed the straightforward way."""
    from antpipe.core.ranking import CUTOFFS, PROTOCOLS

    totals = {
        name: {f"{metric}@{k}": 0.0 for k in CUTOFFS for metric in ("recall", "ndcg", "mrr")} for name in PROTOCOLS
    }
    targets, step = part.targets(), max(1, SCORES_AT_ONCE // len(items))
    for begin in range(0, len(queries), step):
        orders = np.argsort(-(queries[begin : begin + step] @ items.T), axis=1)
        for q, order in enumerate(orders, begin):
            history = set(part.items[part.start[q] : part.end[q]].tolist())
            ranked = order[: max(CUTOFFS) + len(history)].tolist()
            unseen = [item for item in ranked if item not in history]
            for name, listed in (("all", ranked), ("unseen", unseen)):
                for k in CUTOFFS:
                    top = listed[:k]
                    if targets[q] in top:
                        rank = top.index(targets[q]) + 1
                        totals[name][f"recall@{k}"] += 1
                        totals[name][f"ndcg@{k}"] += 1 / np.log2(rank + 1)
                        totals[name][f"mrr@{k}"] += 1 / rank
    return {
        name: {metric: float(value / len(queries)) for metric, value in row.items()} for name, row in totals.items()
    }


def our_metrics(queries: Floats, items: Floats, part: Any) -> Figures:
    from antpipe.core.ranking import metrics, rank_examples

    return {name: metrics(ranks) for name, ranks in rank_examples(queries, items, part).by_protocol.items()}


def encoder(users: int, items: int) -> Callable[[], Figures]:
    """A whole evaluation with a model: item vectors, history vectors, ranks and metrics."""
    import torch

    from antpipe.core.batches import examples
    from antpipe.core.model import Ant
    from antpipe.core.ranking import metrics
    from antpipe.core.scoring import scoring
    from antpipe.settings.model import ModelConfig
    from benchmarks.synthetic_shops import MAX_LEN, WIDTHS, training_data

    data = training_data((items,), users, int(5.2 * users))
    model, part = Ant(ModelConfig(width=WIDTH), WIDTHS, MAX_LEN), examples(data.sequences[0], "test")

    def whole() -> Figures:
        ranks = scoring(model, data.catalogue, "shop-0", part, torch.device("cpu")).ranks(part)
        return {name: metrics(values) for name, values in ranks.by_protocol.items()}

    return whole


def work(way: str, users: int, items: int) -> None:
    """One process: evaluates whenever it reads a line, and prints seconds, memory and figures."""
    from antpipe.runtime.process import tune_process

    if way != "plain":
        tune_process()
    if way == "whole":
        run = encoder(users, items)
    else:
        part = split_of(users, items)
        vectors = vectors_of(users, items, part)
        chosen = plain_metrics if way == "plain" else our_metrics

        def run() -> Figures:
            return chosen(*vectors, part)

    for _ in sys.stdin:
        before = peak_mb()
        wall, cpu = time.perf_counter(), time.process_time()
        figures = run()
        answer = {
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            "figures": figures,
            "peak": peak_mb(),
            "before": before,
        }
        print(json.dumps(answer), flush=True)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Worker:
    """A process that evaluates on request."""

    def __init__(self, way: str, users: int, items: int) -> None:
        words = ["--work", way, "--users", str(users), "--items", str(items)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.evaluate", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
        self.answers: list[dict[str, Any]] = []

    def turn(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        print("again", file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a benchmark process ended early with exit code {self.process.wait()}")
        self.answers.append(json.loads(line))

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def best(self, figure: str) -> float:
        """The minimum over all turns (the least disturbed one); of the peak, the maximum."""
        values = [answer[figure] for answer in self.answers]
        return max(values) if figure == "peak" else min(values)


def compare(users: int, items: int, repeats: int) -> None:
    workers = {"straightforward": Worker("plain", users, items), "antpipe": Worker("ours", users, items)}
    for _ in range(repeats):
        for worker in workers.values():
            worker.turn()
    plain, ours = workers.values()
    theirs, mine = plain.answers[0]["figures"], ours.answers[0]["figures"]
    most = max(abs(value - mine[name][metric]) for name, row in theirs.items() for metric, value in row.items())
    if most > NEAR_TIES / users:
        raise SystemExit(f"the two ways do not compute the same metrics: {theirs}, {mine}")
    print(
        f"{users:,} users x {items:,} items, width {WIDTH}: recall@10 {mine['all']['recall@10']:.4f} (all), "
        f"{mine['unseen']['recall@10']:.4f} (unseen); metrics differ by at most {most:.1e}"
    )
    print(f"{'way':18}{'CPU s':>9}{'wall s':>9}{'times':>8}{'peak MB':>9}{'added MB':>10}")
    for name, worker in workers.items():
        added = worker.best("peak") - worker.answers[0]["before"]
        times = plain.best("wall") / worker.best("wall")
        print(
            f"{name:18}{worker.best('cpu'):9.2f}{worker.best('wall'):9.2f}{times:8.1f}"
            f"{worker.best('peak'):9.0f}{added:10.0f}"
        )
        worker.end()


def whole(users: int, items: int, repeats: int) -> None:
    """Time everything that `antpipe evaluate` computes, except loading."""
    worker = Worker("whole", users, items)
    for _ in range(repeats + 1):  # the first turn warms up
        worker.turn()
    print(
        f"{users:,} users x {items:,} items with encoding: CPU {worker.best('cpu'):.2f} s, wall "
        f"{worker.best('wall'):.2f} s, peak memory {worker.best('peak'):.0f} MB"
    )
    worker.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, help="only this size")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--work", choices=("plain", "ours", "whole"), help=argparse.SUPPRESS)
    parser.add_argument("--users", type=int, help="with --items: another size")
    parser.add_argument("--items", type=int)
    asked = parser.parse_args()
    if asked.work:
        work(asked.work, asked.users, asked.items)
        return
    sizes = [QUICK] if asked.quick else [SIZES[asked.size]] if asked.size else list(SIZES.values())
    if asked.users and asked.items:
        sizes = [(asked.users, asked.items)]
    for users, items in sizes:
        compare(users, items, asked.repeats)
    whole(*sizes[0], asked.repeats)


if __name__ == "__main__":
    main()

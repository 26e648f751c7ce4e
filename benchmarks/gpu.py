"""Training on a GPU: `python -m benchmarks.gpu`.

Steps in exact blocks (the layout of a CPU), in fixed shapes (recorded and replayed, the layout of a GPU), and written
the straightforward way take turns, on the sizes of `benchmarks.train_step`. `--quick` runs tiny sizes on any device,
to see that it works. A part that fails is reported, and the others continue.
"""

import argparse
import gc
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import torch

from antpipe.core.batches import Candidates, examples, training_windows
from antpipe.core.catalogue import item_inputs
from antpipe.core.model import Ant
from antpipe.runtime.devices import choose_device
from antpipe.settings.model import ModelConfig
from antpipe.settings.presets import PRESETS
from antpipe.settings.training import TrainConfig
from antpipe.training.data import TrainingData
from antpipe.training.loop import ExactSteps, drawn_items, fit, no_negatives
from antpipe.training.replay import Setup, StaticSteps, adam
from benchmarks import plain_training as plain
from benchmarks.synthetic_shops import MAX_LEN, WIDTHS, training_data
from benchmarks.train_sizes import FULL, QUICK, Sizes
from benchmarks.train_step import least_operations
from benchmarks.train_worker import windows_of_step

STRONG = PRESETS["strong"]
SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


@dataclass(frozen=True)
class Work:
    """A row of the table: ANT, or the preset `strong`. drawn: negatives of a pre-training step."""

    stage: str
    precision: str
    name: str = "ANT"
    drawn: int = 0

    def model(self) -> dict[str, Any]:
        if self.name == "ANT":
            return {}
        return {**STRONG["model"], "transductive": self.stage == "relearn"}


WORKS = (
    Work("relearn", "fp32"),
    Work("relearn", "bf16"),
    Work("relearn", "bf16", "strong"),
    Work("pretrain", "fp32"),
    Work("pretrain", "bf16"),
    Work("pretrain", "bf16", "strong", 4096),
)
Steps = Callable[[int], tuple[float, int]]  # takes a number of steps; returns seconds and targets


@lru_cache
def shop(sizes: Sizes) -> TrainingData:
    made = training_data(sizes.items, sizes.users, sizes.prefixes)
    valid = {name: examples(part, "valid") for name, part in zip(made.catalogue.domains, made.sequences, strict=True)}
    return replace(made, validation=valid)


def settings_of(work: Work, sizes: Sizes, quick: bool) -> tuple[ModelConfig, TrainConfig]:
    model = replace(ModelConfig(), **work.model(), **({"width": 32} if quick else {}))
    unsold = work.name == "ANT" or STRONG["train"]["unsold_negatives"]
    config = TrainConfig(
        batch_size=sizes.batch, precision=work.precision, pretrain_drawn=work.drawn, unsold_negatives=unsold
    )
    return model, config


def model_of(work: Work, data: TrainingData, config: ModelConfig, device: torch.device) -> Ant:
    torch.manual_seed(0)
    model = Ant(config, WIDTHS, MAX_LEN, len(data.catalogue) if config.transductive else None).to(device)
    if work.stage == "relearn" and work.name == "ANT":
        model.encoder.requires_grad_(False)
    return model.train()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def trained_by(layout: str, work: Work, sizes: Sizes, device: torch.device, *, quick: bool) -> tuple[Steps, Any]:
    """A function that takes steps of the training loop in one layout, `blocks` or `static`; and the loop itself."""
    data, (model_config, config) = shop(sizes), settings_of(work, sizes, quick)
    model, pretraining, n = model_of(work, data, model_config, device), work.stage == "pretrain", len(data.catalogue)
    windows = training_windows(data.sequences, data.catalogue.offsets)
    candidates = Candidates(n, drawn_items(n, pretraining, config))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = adam(trained, config.lr, device, recorded=layout == "static")
    new = no_negatives(data, config)
    setup = Setup(model, data.catalogue, windows, candidates, config, optimiser, device, pretraining, new=new)
    steps: Any = StaticSteps(setup) if layout == "static" else ExactSteps(setup)
    order = (batch for epoch in count(1) for batch in steps.batches(epoch, 0, None))

    def take(number: int) -> tuple[float, int]:
        wait(device)
        began, targets, under_way = time.perf_counter(), 0, list[Callable[[], float]]()
        for _ in range(number):
            batch = next(order)
            targets += len(batch.targets)
            under_way.append(steps.take(batch, lambda _: None))
            if len(under_way) > steps.late:
                under_way.pop(0)()
        for read in under_way:
            read()
        wait(device)
        return time.perf_counter() - began, targets

    return take, steps


def plainly(work: Work, sizes: Sizes, device: torch.device, *, quick: bool) -> Steps:
    """Steps written the straightforward way, on the device."""
    data, (model_config, config) = shop(sizes), settings_of(work, sizes, quick)
    model = model_of(work, data, model_config, device)
    windows = training_windows(data.sequences, data.catalogue.offsets)
    whole = item_inputs(data.catalogue, WIDTHS, np.arange(len(data.catalogue)), device)
    tables = {name: torch.cat([x, torch.zeros_like(x[:1])]) for name, x in whole.features.items()}
    optimiser = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3)
    order, numbers = np.random.default_rng(0).permutation(len(windows.first)), count()

    def take(steps: int) -> tuple[float, int]:
        wait(device)
        began, targets = time.perf_counter(), 0
        for _ in range(steps):
            rows = plain.rows_of(windows, windows_of_step(windows, order, next(numbers), sizes.batch), MAX_LEN)
            with torch.autocast(device.type, torch.bfloat16, enabled=work.precision == "bf16"):
                if work.stage == "relearn":
                    loss = plain.plain_target_loss(model, tables, rows)
                else:
                    weight = config.image_text_weight
                    loss = plain.plain_pretraining_loss(model, tables, whole.present["image"], rows, weight)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            float(loss.detach())
            targets += len(rows.target)
        return time.perf_counter() - began, targets

    return take


def matmul_rate(device: torch.device, size: int) -> float:
    """Floating-point operations per second of a bf16 product."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / best_of(lambda: a @ b, device)


def copy_rate(device: torch.device, size: int) -> float:
    """Bytes per second read and written by a copy within the device's memory."""
    a = torch.empty(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * size / best_of(lambda: b.copy_(a), device)


def best_of(work: Callable[[], Any], device: torch.device) -> float:
    best = float("inf")
    for _ in range(10):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        best = min(best, time.perf_counter() - began)
    return best


def compare(
    work: Work, sizes: Sizes, device: torch.device, rate: float, turns: int, steps: dict[str, int], *, quick: bool
) -> str:
    """A row of the table: the layouts take turns; the median turn counts."""
    static, taking = trained_by("static", work, sizes, device, quick=quick)
    ways: dict[str, Steps] = {"static": static, "blocks": trained_by("blocks", work, sizes, device, quick=quick)[0]}
    items = len(next(taking.batches(1, 0, None)).items) or len(shop(sizes).catalogue)
    if work.name == "ANT":
        ways["plain"] = plainly(work, sizes, device, quick=quick)
    for take in ways.values():  # warm up
        take(steps["warm"])
    took: dict[str, list[float]] = {name: [] for name in ways}
    targets = 1.0
    for _ in range(turns):
        for name, take in ways.items():
            seconds, done = take(steps[name])
            took[name].append(seconds / steps[name])
            targets = done / steps[name]
    middle = {name: statistics.median(values) for name, values in took.items()}
    least = least_operations(work.stage, sizes, items) / rate
    bound = f"{least / middle['static']:10.1%}" if work.name == "ANT" else ""
    shown = [f"{1e3 * middle[name]:9.2f}" if name in middle else f"{'':9}" for name in ("plain", "blocks", "static")]
    name = f"{work.stage} {work.name}{f' {work.drawn} drawn' if work.drawn else ''}"
    return (
        f"{name:29}{work.precision:5}{''.join(shown)}{middle['blocks'] / middle['static']:8.1f}x"
        f"{targets / middle['static']:14,.0f}{bound}"
    )


def profile(work: Work, sizes: Sizes, device: torch.device, layout: str, *, quick: bool) -> str:
    """Kernels, launches and waits of a step, and how much of the time the GPU is busy."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiling

    take, _ = trained_by(layout, work, sizes, device, quick=quick)
    take(8)
    wall, number = take(10)[0] / 10, 10
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profiling(activities=activities) as found:
        take(number)
    events = found.key_averages()
    device_time = sum(event.self_device_time_total for event in events if event.device_type.name == "CUDA")
    kernels = sum(event.count for event in events if event.device_type.name == "CUDA")
    launches, waits = (sum(e.count for e in events if e.key in names) for names in (LAUNCHES, SYNCS))
    return (
        f"{work.stage:9}{work.name:7}{layout:8}{work.precision}{kernels / number:8.0f} events"
        f"{launches / number:8.1f} launches{waits / number:6.1f} waits"
        f"{device_time / 1e3 / number:8.2f} ms busy of {1e3 * wall:.2f} ms a step"
        f" ({device_time / 1e6 / number / wall:.0%})"
    )


def epochs(work: Work, sizes: Sizes, device: torch.device, number: int, *, quick: bool) -> str:
    """A whole run with a validation after each epoch."""
    data, (model_config, config) = shop(sizes), settings_of(work, sizes, quick)
    model = model_of(work, data, model_config, device)
    began = time.perf_counter()
    at = fit(model, data, replace(config, epochs=number), pretraining=work.stage == "pretrain", device=device)
    seconds = time.perf_counter() - began
    users = len(data.validation[data.catalogue.domains[0]])
    return (
        f"{number} epochs of {work.stage} {work.name} ({users:,} users, {work.precision}) with a validation each: "
        f"{seconds:.2f} s, of which {at.all_seconds:.2f} s training "
        f"({at.all_positions / at.all_seconds:,.0f} targets/s); "
        f"best recall@10 {at.best['recall@10']:.4f}"
    )


def attempted(part: Callable[[], str]) -> bool:
    """Print the results of a part, or how it failed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        print(part(), flush=True)
    except Exception:
        print(traceback.format_exc(), flush=True)
        return False
    return True


def parts(device: torch.device, *, quick: bool) -> Iterator[Callable[[], str]]:
    sizes = QUICK if quick else FULL
    rate = 0.0

    def rates() -> str:
        nonlocal rate
        rate = matmul_rate(device, 256 if quick else 8192)
        copied = copy_rate(device, 1 << (20 if quick else 30))
        return (
            f"bf16 products: {rate / 1e12:,.1f} TFLOP/s; copies: {copied / 1e9:,.0f} GB/s\n"
            f"{'milliseconds per step':34}{'plain':>9}{'blocks':>9}{'static':>9}{'times':>9}{'targets/s':>14}"
            f"{'of bound':>10}"
        )

    yield rates
    number = (
        {"warm": 1, "plain": 1, "blocks": 1, "static": 2}
        if quick
        else {"warm": 6, "plain": 1, "blocks": 12, "static": 40}
    )
    for work in WORKS:
        yield lambda work=work: compare(work, sizes[work.stage], device, rate, 1 if quick else 3, number, quick=quick)
    ant, strong = (Work("relearn", "bf16"), Work("pretrain", "bf16")), (WORKS[3], WORKS[-1])
    for works, layout in ((ant, "static"), (strong, "static"), (ant, "blocks")):
        for work in works:
            yield lambda work=work, layout=layout: profile(work, sizes[work.stage], device, layout, quick=quick)
    for work in (ant[0], strong[0]):
        yield lambda work=work: epochs(work, sizes["relearn"], device, 2 if quick else 100, quick=quick)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, on any device")
    asked = parser.parse_args()
    device = choose_device("auto")
    if device.type != "cuda" and not asked.quick:
        raise SystemExit("no CUDA device: nothing is measured (--quick runs tiny sizes on the CPU)")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{name}; torch {torch.__version__}, Python {platform.python_version()}, {torch.get_num_threads()} threads")
    began = time.perf_counter()
    well = [attempted(part) for part in parts(device, quick=asked.quick)]
    print(f"{time.perf_counter() - began:.0f} s in all; {well.count(False)} of {len(well)} parts failed")
    if not all(well):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

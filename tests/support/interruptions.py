"""A small run that is interrupted in every way, and what must not depend on it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from antpipe.runtime.progress import Progress, Update
from antpipe.settings.training import TrainConfig
from antpipe.store.store import Store
from antpipe.training import loop
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.request import RunRequest
from antpipe.training.run import run_stage
from tests.support.trainable import MODEL, TRAINING, make_trainable

CONFIG = replace(TRAINING, epochs=3, batch_size=48, save_every=0.0)  # a state after each step
STEPS = 9  # of CONFIG: 3 epochs of 3 batches
TIMES = ("seconds", "positions_per_second")


class Killed(BaseException):
    """An error that no code of the package catches by accident."""


def two_shops(folder: Path) -> Store:
    store = Store(folder / "store")
    make_trainable(store, "Source", seed=1)
    make_trainable(store, "Target", seed=2)
    return store


def asked(store: Store, config: TrainConfig = CONFIG, stage: str = "scratch", source: Path | None = None) -> RunRequest:
    return RunRequest(store, ["Source" if stage == "pretrain" else "Target"], stage, MODEL, config, source)


def trained(
    store: Store,
    out: Path,
    config: TrainConfig = CONFIG,
    stage: str = "scratch",
    source: Path | None = None,
    **more: Any,
) -> tuple[Checkpoint, bool]:
    return run_stage(asked(store, config, stage, source), out, **more)


def watching(look: Callable[[float], None]) -> Progress:
    """A progress that passes the epochs done to a function."""

    @contextmanager
    def progress(_: str) -> Iterator[Update]:
        yield lambda done, _total, _note="": look(done)

    return progress


def command(store: Store, run: Path) -> list[str]:
    """The command line that asks for what `trained` trains."""
    words = f"--width {MODEL.width} --experts 2 --item-dropout 0 --hidden-dropout 0.1 --attention-dropout 0.1"
    words += f" --epochs 3 --batch-size 48 --save-every 0 --device cpu --store {store.root} --out {run}"
    return ["train", "--stage", "scratch", "--domains", "Target", *words.split()]


def result(run: Path) -> dict[str, Any]:
    """What a run leaves that must not depend on interruptions: description, weights and the figures of its epochs."""
    [weights] = run.glob("model-*.safetensors")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "described": json.loads((run / "checkpoint.json").read_text()),
        "weights": {name: tensor.numpy().tobytes() for name, tensor in load_file(weights).items()},
        "rows": [{name: value for name, value in row.items() if name not in TIMES} for row in rows],
    }


def failing_at(call: int, function: Callable[..., Any], error: BaseException, *, after: bool) -> Callable[..., Any]:
    """The function, but its n-th call raises, before or after doing its work."""
    calls = 0

    def instead(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise error
        done = function(*arguments, **more)
        if calls == call:
            raise error
        return done

    return instead


def interrupted(store: Store, out: Path, config: TrainConfig = CONFIG) -> None:
    """Leave a run that was killed in its second epoch."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "target_loss", failing_at(5, loop.target_loss, Killed(), after=False))
        trained(store, out, config)

"""Figures of each epoch in TensorBoard or Weights & Biases, if they are installed."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from antpipe.errors import UsageError
from antpipe.training.checkpoint import Checkpoint

Row = dict[str, Any]
TENSORBOARD = "tensorboard"  # the tracker, and its folder in that of a run


def require_tracker(name: str) -> None:
    """Raises UsageError if a tracker is not installed."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UsageError(f"--track {name}: {name} is not installed", f"pip install 'antpipe[{name}]'")


@contextmanager
def tracking(name: str, run: Path, described: Checkpoint, done: int) -> Iterator[Callable[[Row], None]]:
    """Yields a function that takes the row of an epoch.

    name: `none`, `tensorboard` or `wandb`. done: epochs that are already in the run. TensorBoard's files go to
    RUN/tensorboard. A resumed run continues the same curves; their points after epoch `done` are replaced.
    """
    if name == TENSORBOARD:
        yield from _tensorboard(run, done)
    elif name == "wandb":
        yield from _wandb(run, described)
    else:
        yield lambda _: None


def figures_of(row: Row) -> dict[str, float]:
    return {key: value for key, value in row.items() if key != "epoch"}


def _tensorboard(run: Path, done: int) -> Iterator[Callable[[Row], None]]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(run / TENSORBOARD, purge_step=done + 1)

    def write(row: Row) -> None:
        for key, value in figures_of(row).items():
            writer.add_scalar(key.replace("valid_", "valid/"), value, row["epoch"])
        writer.flush()

    try:
        yield write
    finally:
        writer.close()


def _wandb(run: Path, described: Checkpoint) -> Iterator[Callable[[Row], None]]:
    import wandb

    settings = {"stage": described.stage, "domains": list(described.domains), **described.model, **described.train}
    with wandb.init(
        project="antpipe", name=run.name, id=described.fingerprint[:16], resume="allow", dir=run, config=settings
    ) as shown:
        yield lambda row: shown.log(figures_of(row), step=row["epoch"])

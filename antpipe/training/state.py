"""The state of an unfinished run in RUN/state.safetensors, and continuing from it.

The file holds everything that decides what comes next: weights, Adam's moments, the states of the random generators,
the best weights so far and, as JSON in its header, the position, the running sums and the figures of the epochs done.
It is replaced in one step, so at any moment it is complete or absent: every `--save-every` seconds, and at the end of
an epoch if writing takes little time compared with the training since the last state. The learning rate and the order
of the batches follow from the epoch, so they are not in it.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from antpipe.errors import IntegrityError, UsageError
from antpipe.runtime.files import atomic
from antpipe.settings.base import from_json
from antpipe.settings.training import TrainConfig
from antpipe.store.documents import Count, NewerFormatError, Sha256, converted, parse_json, refuse_newer, seal
from antpipe.training.checkpoint import (
    Checkpoint,
    checked,
    damaged,
    keeping,
    read_tensors,
    tensors_sha256,
    write_tensors,
)
from antpipe.training.folder import TRAIN_AGAIN, RunFolder
from antpipe.training.parallel import ALONE, World, of_all, of_first

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from antpipe.core.model import Ant

FORMAT = 2
# An epoch ends with a state if training since the last one took this many times as long as writing that one did.
# Otherwise short epochs would be spent on writing states.
TRAINING_PER_WRITING = 20
Row = dict[str, Any]  # the figures of an epoch


@dataclass
class Position:
    """Where training stands, and what it found so far.

    epoch: the one in progress, from 1. step: batches of it that are done. loss, positions, seconds: sums over these,
    the loss weighted by positions. steps, all_positions, all_seconds: of the whole run. rows: figures of epochs done.
    gpu_features_mb: size of the features kept on a GPU. begun: figures of the floor alone, before the first step.
    """

    epoch: Count = 1
    step: Count = 0
    steps: Count = 0
    loss: float = 0.0
    positions: Count = 0
    seconds: float = 0.0
    all_positions: Count = 0
    all_seconds: float = 0.0
    best_epoch: Count = 0
    best: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    finished: bool = False
    gpu_features_mb: float = 0.0
    begun: dict[str, float] = field(default_factory=dict)

    def step_done(self, loss: float, positions: int, seconds: float) -> None:
        self.step += 1
        self.steps += 1
        self.loss += loss * positions
        self.positions += positions
        self.seconds += seconds
        self.all_positions += positions
        self.all_seconds += seconds

    def epoch_done(self, row: Row) -> None:
        self.rows.append(row)
        self.epoch += 1
        self.step, self.loss, self.positions, self.seconds = 0, 0.0, 0, 0.0

    def figures(self) -> dict[str, float]:
        """Figures of the epoch so far."""
        return {"loss": self.loss / self.positions, "positions_per_second": self.positions / self.seconds}

    def __str__(self) -> str:
        if self.finished:
            return f"all {in_epochs(len(self.rows))}"
        return f"epoch {self.epoch}, step {self.step}" if self.step else in_epochs(len(self.rows))


class Header(TypedDict):
    """The JSON in the header of a state file. tensors: their hash; states of antpipe 0.1.0 have none."""

    format: int
    described: Checkpoint
    position: Position
    processes: int
    tensors: NotRequired[Sha256]


def in_epochs(count: int) -> str:
    return f"{count} epoch" if count == 1 else f"{count} epochs"


@dataclass
class Training:
    """Everything that training changes. beside: tensors that a method changes besides the model, in place."""

    model: "Ant"
    optimiser: "torch.optim.Adam"
    beside: Mapping[str, "Tensor"]
    at: Position = field(default_factory=Position)
    best_weights: dict[str, "Tensor"] = field(default_factory=dict)


class Paused(Exception):  # noqa: N818 -- not an error
    """Training stopped after as many epochs as were asked for; its state is in the folder."""


@dataclass
class Keeping:
    """Keeps a run on disk while it trains, and says when it is to stop.

    save_every: seconds between states within an epoch. begun: continue from the state in the folder. asked_to_stop:
    whether Ctrl-C was pressed. track: takes the row of an epoch. pause_after: epochs (0: never).
    """

    folder: RunFolder
    described: Checkpoint
    save_every: float
    begun: bool
    asked_to_stop: Callable[[], bool]
    track: Callable[[Row], None]
    pause_after: int = 0
    world: World = ALONE
    saved_at: float = field(default_factory=time.monotonic)
    writing: float = 0.0  # seconds that the last state took

    def begin(self, model: "Ant", optimiser: "torch.optim.Adam", beside: Mapping[str, "Tensor"]) -> Training:
        """Where training starts, or where the run in the folder stands."""
        state = Training(model, optimiser, beside)
        if self.begun:
            load_state(state, self.folder, self.world)
        return state

    def save(self, state: Training) -> None:
        """Replace the state file in one step. Raises AntpipeError if writing fails; the earlier file is then kept.

        The first of several processes writes it, with the random generators of all.
        """
        began = time.monotonic()
        generators = of_all(random_states(), self.world)
        if self.world.rank:
            return
        tensors = {f"model/{name}": tensor for name, tensor in state.model.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in state.best_weights.items()}
        tensors |= {f"beside/{name}": tensor for name, tensor in state.beside.items()}
        for number, moments in state.optimiser.state_dict()["state"].items():
            tensors |= {f"adam/{number}/{name}": tensor for name, tensor in moments.items()}
        for rank, states in enumerate(generators):
            tensors |= {f"random/{rank}/{name}": generator for name, generator in states.items()}
        header = {
            "format": FORMAT,
            "described": asdict(self.described),
            "position": asdict(state.at),
            "processes": self.world.size,
            "tensors": tensors_sha256(tensors),
        }
        path, there = self.folder.state, self.folder.is_unfinished()
        kept = f"the earlier state is kept: {position_of(self.folder)}" if there else "there was no earlier state"
        with keeping(path, kept), atomic(path, durable=True) as scratch:
            write_tensors(scratch, tensors, {"antpipe": json.dumps(seal(header), allow_nan=False)})
        self.saved_at = time.monotonic()
        self.writing = self.saved_at - began

    def after_step(self, state: Training, settle: Callable[[], None]) -> None:
        """Save the state if it is due, and raise KeyboardInterrupt if Ctrl-C was pressed.

        settle: counts the steps that are in progress on a GPU, and refuses their losses if they are not finite.
        """
        asked = self.asked_to_stop()
        stop, due = of_first(lambda: (asked, asked or time.monotonic() - self.saved_at >= self.save_every), self.world)
        if due:
            settle()
            self.save(state)
        if stop:
            raise KeyboardInterrupt

    def after_epoch(self, state: Training) -> None:
        """Record the epoch's row. Save the state too, unless training since the last one was short compared with
        writing it; the last epoch's is always saved. Raises Paused if this was the last epoch for now."""
        if not self.world.rank:
            add_row(self.folder, state.at.rows[-1])
            self.track(state.at.rows[-1])
        least = min(self.save_every, TRAINING_PER_WRITING * self.writing)
        pause = self.pause_after == len(state.at.rows) and not state.at.finished
        if of_first(lambda: state.at.finished or pause or time.monotonic() - self.saved_at >= least, self.world):
            self.save(state)
        if pause:
            raise Paused


def random_states() -> dict[str, "Tensor"]:
    """The states of this process's random generators."""
    import torch

    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def load_state(state: Training, folder: RunFolder, world: World) -> None:
    """Restore everything that training changes, and the random generators, from the state file.

    Raises IntegrityError if the file is damaged, or belongs to another model.
    """
    header, tensors = read_header(folder), read_tensors(folder.state)
    if "tensors" in header and tensors_sha256(tensors) != header["tensors"]:
        raise damaged(f"{folder.state}: its content differs from what was written")
    try:
        _take(state, tensors, world)
    except (RuntimeError, LookupError, ValueError, TypeError) as error:  # what torch raises
        raise damaged(f"{folder.state}: not the state of this model: {error}") from None
    state.at = header["position"]


def _take(state: Training, tensors: "dict[str, Tensor]", world: World) -> None:
    import torch

    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "adam": {}, "random": {}, "beside": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    state.model.load_state_dict(parts["model"])
    for name, tensor in state.beside.items():
        tensor.copy_(parts["beside"][name])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["adam"].items():
        number, _, moment = name.partition("/")
        moments.setdefault(int(number), {})[moment] = tensor
    state.optimiser.load_state_dict({"state": moments, "param_groups": state.optimiser.state_dict()["param_groups"]})
    own = f"{world.rank}/"
    torch.set_rng_state(parts["random"][f"{own}cpu"])
    if f"{own}cuda" in parts["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(parts["random"][f"{own}cuda"])
    state.best_weights = parts["best"]


def read_header(folder: RunFolder) -> Header:
    """The header of the state file.

    Raises IntegrityError if the file is damaged or of another format.
    """
    from safetensors import SafetensorError, safe_open

    path = folder.state
    try:
        with safe_open(path, "pt") as stream:
            text = (stream.metadata() or {})["antpipe"]
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise damaged(f"{path}: not a training state: {error}") from None
    try:
        found = parse_json(text, dict[str, Any], str(path), TRAIN_AGAIN)
        refuse_newer(path, found.get("format"), FORMAT)
        if found.get("format") != FORMAT:
            raise ValueError(f"its format is {found.get('format')}, not {FORMAT}")
        header = converted(found, Header)
        described = checked(header["described"])
        at, plan = header["position"], from_json(TrainConfig, described.train)
        done = len(at.rows)
        if not (at.epoch == done + 1 and at.best_epoch <= done <= plan.epochs and header["processes"] >= 1):
            raise ValueError(f"epoch {at.epoch} after {done} of {plan.epochs}")
    except (ValueError, UsageError) as error:
        raise damaged(f"{path}: not a training state: {error}") from None
    except IntegrityError as error:
        raise error if isinstance(error, NewerFormatError) else damaged(error.message) from None
    return header


def position_of(folder: RunFolder) -> Position:
    """The position of the state in the folder."""
    return read_header(folder)["position"]


def begin(folder: RunFolder, *, begun: bool) -> int:
    """Prepare the folder and return the number of epochs done; metrics.jsonl holds exactly those afterwards."""
    folder.path.mkdir(parents=True, exist_ok=True)
    if not begun:
        remove_state(folder)
    folder.bad_batch.unlink(missing_ok=True)
    rows = position_of(folder).rows if begun else []
    with keeping(folder.metrics, "nothing is lost"), atomic(folder.metrics) as scratch:
        scratch.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def add_row(folder: RunFolder, row: Row) -> None:
    """Add an epoch to metrics.jsonl. If a kill cuts the row in half, resuming writes it again (see begin)."""
    with keeping(folder.metrics, "the training state is untouched"), folder.metrics.open("a", encoding="utf-8") as log:
        log.write(json.dumps(row) + "\n")


def remove_state(folder: RunFolder) -> None:
    folder.state.unlink(missing_ok=True)


def cost_of(at: Position, device: "torch.device") -> dict[str, float]:
    """What a run took: seconds of training without validation, and the peak memory of this process in MB."""
    import torch

    unit = 1 if sys.platform == "darwin" else 1024  # bytes per unit of getrusage
    cost = {
        "epochs": len(at.rows),
        "steps": at.steps,
        "seconds": at.all_seconds,
        "positions_per_second": at.all_positions / at.all_seconds if at.steps else 0.0,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6,
    }
    if device.type == "cuda":
        cost["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
        cost["gpu_features_mb"] = at.gpu_features_mb
    return cost

"""Training that survives: the state of an unfinished run in RUN/state.safetensors, and going on from it.

The file holds everything that decides what comes next: weights, Adam's moments, the states of the random generators,
the best weights so far and, as JSON in its header, the position, the running sums and the figures of the epochs done.
It is replaced in one step, so at any moment it is complete or absent: every `--save-every` seconds and at the end of an
epoch, where that takes little time beside the training since the last one. The learning rate and the order of the
batches follow from the epoch and need no place in it.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antpipe.errors import IntegrityError, UsageError
from antpipe.runtime.files import atomic
from antpipe.settings.base import flag_name
from antpipe.settings.training import WITHOUT_EFFECT
from antpipe.training.checkpoint import DESCRIPTION, Checkpoint, describe, keeping, write_tensors
from antpipe.training.parallel import ALONE, World, of_all, of_first

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from antpipe.core.model import Ant

STATE = "state.safetensors"
FORMAT = 2
METRICS = "metrics.jsonl"  # a row an epoch
COST = "cost.json"  # time and memory: apart from the checkpoint, which the same run writes byte for byte again
BAD_BATCH = "nan-batch.npz"  # of a run that diverged
# Epochs end with a state where training took this many times as long as writing the last one did: short epochs are
# then not spent on writing states.
TRAINING_PER_WRITING = 20
NOTHING, UNFINISHED, FINISHED = "nothing", "unfinished", "finished"


@dataclass
class Position:
    """Where training stands, and what it found so far.

    epoch: the one under way, from 1. step: batches of it that are done. loss, positions, seconds: sums of it, the loss
    weighted by positions. steps, all_positions, all_seconds: of the whole run. rows: the figures of the epochs done.
    """

    epoch: int = 1
    step: int = 0
    steps: int = 0
    loss: float = 0.0
    positions: int = 0
    seconds: float = 0.0
    all_positions: int = 0
    all_seconds: float = 0.0
    best_epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False

    def step_done(self, loss: float, positions: int, seconds: float) -> None:
        self.step += 1
        self.steps += 1
        self.loss += loss * positions
        self.positions += positions
        self.seconds += seconds
        self.all_positions += positions
        self.all_seconds += seconds

    def epoch_done(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.epoch += 1
        self.step, self.loss, self.positions, self.seconds = 0, 0.0, 0, 0.0

    def __str__(self) -> str:
        if self.finished:
            return f"all {len(self.rows)} epochs"
        return f"epoch {self.epoch}, step {self.step}" if self.step else f"{len(self.rows)} whole epochs"


@dataclass
class Keeping:
    """What a run on disk adds to training: where it is, what it is, and when to stop or to save."""

    run: Path
    described: Checkpoint
    save_every: float  # seconds within an epoch
    begun: bool  # go on from the state in the folder
    asked_to_stop: Callable[[], bool]
    show: Callable[[Position, float], None]  # gets the share of the epoch that is done
    world: World = ALONE
    pause_after: int = 0  # epochs (0: never)
    saved_at: float = field(default_factory=time.monotonic)
    writing: float = 0.0  # seconds that the last state took


class Paused(Exception):  # noqa: N818 -- no error
    """Training stopped after as many epochs as it was asked for; its state is in the folder."""


def has_state(run: Path) -> bool:
    """Whether the folder holds an unfinished run."""
    return (run / STATE).is_file()


def save_state(
    keep: Keeping, model: "Ant", optimiser: "torch.optim.Adam", at: Position, best_weights: Mapping[str, "Tensor"]
) -> None:
    """Replace the state in one step. Raises AntpipeError where the disk refuses; the one before is then still there.

    Of several processes the first writes, with the random generators of all.
    """
    began = time.monotonic()
    generators = of_all(random_states(), keep.world)
    if keep.world.rank:
        return
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best_weights.items()}
    for number, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"adam/{number}/{name}": tensor for name, tensor in moments.items()}
    for rank, states in enumerate(generators):
        tensors |= {f"random/{rank}/{name}": state for name, state in states.items()}
    header = {
        "format": FORMAT,
        "described": asdict(keep.described),
        "position": asdict(at),
        "processes": keep.world.size,
    }
    path = keep.run / STATE
    kept = f"the state before it is kept: {at_of(keep.run)}" if has_state(keep.run) else "no state was there before"
    with keeping(path, kept), atomic(path, durable=True) as scratch:
        write_tensors(scratch, tensors, {"antpipe": json.dumps(header, allow_nan=False)})
    keep.saved_at = time.monotonic()
    keep.writing = keep.saved_at - began


def after_epoch(
    keep: Keeping, model: "Ant", optimiser: "torch.optim.Adam", at: Position, best_weights: Mapping[str, "Tensor"]
) -> None:
    """Save the state, unless training since the last one took hardly longer than writing it would; always the last.

    Raises Paused where this was the last epoch for now.
    """
    least = min(keep.save_every, TRAINING_PER_WRITING * keep.writing)
    pause = keep.pause_after == len(at.rows) and not at.finished
    if of_first(lambda: at.finished or pause or time.monotonic() - keep.saved_at >= least, keep.world):
        save_state(keep, model, optimiser, at, best_weights)
    if pause:
        raise Paused


def random_states() -> dict[str, "Tensor"]:
    """Where this process's random generators stand."""
    import torch

    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def between_steps(
    keep: Keeping,
    model: "Ant",
    optimiser: "torch.optim.Adam",
    at: Position,
    best_weights: Mapping[str, "Tensor"],
    share: float,
) -> None:
    """Show where training stands, save what is due, and raise KeyboardInterrupt where Ctrl-C was pressed.

    share: of the epoch's positions that are done, below 1.
    """
    keep.show(at, share)
    asked = keep.asked_to_stop()
    stop, due = of_first(lambda: (asked, asked or time.monotonic() - keep.saved_at >= keep.save_every), keep.world)
    if due:
        save_state(keep, model, optimiser, at, best_weights)
    if stop:
        raise KeyboardInterrupt


def load_state(keep: Keeping, model: "Ant", optimiser: "torch.optim.Adam") -> tuple[Position, dict[str, "Tensor"]]:
    """Put model, optimiser and random generators back where the state has them; the position and the best weights."""
    import torch
    from safetensors.torch import load_file

    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "adam": {}, "random": {}}
    for name, tensor in load_file(keep.run / STATE).items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    model.load_state_dict(parts["model"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["adam"].items():
        number, _, moment = name.partition("/")
        moments.setdefault(int(number), {})[moment] = tensor
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    own = f"{keep.world.rank}/"
    torch.set_rng_state(parts["random"][f"{own}cpu"])
    if f"{own}cuda" in parts["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(parts["random"][f"{own}cuda"])
    return position_of(keep.run), parts["best"]


def read_header(run: Path) -> dict[str, Any]:
    """What the state says of itself: `described` and `position`. IntegrityError where the file is none of ours."""
    from safetensors import SafetensorError, safe_open

    path = run / STATE
    try:
        with safe_open(path, "pt") as stream:
            header: dict[str, Any] = json.loads((stream.metadata() or {})["antpipe"])
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise IntegrityError(f"{path}: not a training state: {error}", f"antpipe train --out {run} --force …") from None
    if header["format"] != FORMAT:
        raise IntegrityError(
            f"{path}: a training state of format {header['format']}, not {FORMAT}",
            f"antpipe train --out {run} --force …",
        )
    return header


def position_of(run: Path) -> Position:
    return Position(**read_header(run)["position"])


def at_of(run: Path) -> str:
    """Where the state in the folder stands, in words."""
    return str(position_of(run))


def check_resume(run: Path, described: Checkpoint, *, resume: bool, command: str, processes: int = 1) -> None:
    """Refuse to go on from the state of another run or of another number of processes, and to begin again over a state
    unless that is said.

    command: trains this run. An unfinished run is never thrown away without --force, nor continued without --resume,
    because either may surprise: the first loses hours, the second trusts settings that one may have forgotten.
    """
    there = read_header(run)["described"]
    if there["fingerprint"] != described.fingerprint:
        raise UsageError(
            f"{run} holds an unfinished run ({at_of(run)}) with other settings: "
            f"{'; '.join(differences(there, asdict(described))) or 'the weights it started from'}. "
            "Name another folder, or add --force to give it up",
            f"{command} --force",
        )
    if not resume:
        raise UsageError(
            f"{run} holds this run, unfinished ({at_of(run)}): --resume goes on from there, --force begins again",
            f"{command} --resume",
        )
    if read_header(run)["processes"] != processes:
        there = read_header(run)["processes"]
        raise UsageError(
            f"{run} is a run of {there} process(es), not of {processes}; each has random numbers of its own",
            f"torchrun --nproc-per-node {there} -m {command} --resume" if there > 1 else f"{command} --resume",
        )


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What two descriptions of runs differ in, one phrase each, of all that determines a run."""
    found = []
    for key in ("stage", "max_len", "items", "source"):
        if there[key] != here[key]:
            found.append(f"{key} {there[key]} (now {here[key]})")
    before, now = (",".join(side["domains"]) for side in (there, here))
    if before != now and there["domains"].keys() == here["domains"].keys():
        found.append(f"domains {before} (now {now})")
    for group in ("groups", "model", "train", "modalities", "domains"):
        old, new = (json.loads(json.dumps(side[group])) for side in (there, here))  # tuples as lists, like on disk
        for name in old | new:
            if old.get(name) != new.get(name) and not (group == "train" and name in WITHOUT_EFFECT):
                shown = f"--{flag_name(name)}" if group in ("model", "train") else f"{group} {name}"
                is_new = group in ("model", "train") and name not in old
                was = ", which it was made without" if is_new else f" {old.get(name)}"
                found.append(f"{shown}{was} (now {new.get(name)})")
    return found


def what_is_there(out: Path, described: Checkpoint, *, resume: bool, command: str, processes: int = 1) -> str:
    """NOTHING, or this run: UNFINISHED or FINISHED. Raises UsageError where the folder holds another one, or this one
    unfinished and that is not to be gone on with."""
    if has_state(out):
        check_resume(out, described, resume=resume, command=command, processes=processes)
        return UNFINISHED
    if not (out / DESCRIPTION).exists():
        return NOTHING
    existing = describe(out)
    if existing.fingerprint != described.fingerprint:
        told = f"stage {existing.stage}"
        if existing.stage == described.stage:
            told = "; ".join(differences(asdict(existing), asdict(described))) or "the weights it started from"
        raise UsageError(f"--out {out}: holds another run: {told}", "name another folder, or add --force")
    return FINISHED


def begin(out: Path, *, begun: bool) -> int:
    """Make the folder ready and return the number of epochs done: metrics.jsonl holds exactly those afterwards."""
    out.mkdir(parents=True, exist_ok=True)
    if not begun:
        remove_state(out)
    (out / BAD_BATCH).unlink(missing_ok=True)
    rows = position_of(out).rows if begun else []
    with keeping(out / METRICS, "nothing is lost"), atomic(out / METRICS) as scratch:
        scratch.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def add_row(out: Path, row: dict[str, Any]) -> None:
    """Add an epoch to metrics.jsonl. A row half written by a kill is written again on resuming (see begin)."""
    with keeping(out / METRICS, "the training state is untouched"), (out / METRICS).open("a", encoding="utf-8") as log:
        log.write(json.dumps(row) + "\n")


def remove_state(run: Path) -> None:
    (run / STATE).unlink(missing_ok=True)


def cost_of(at: Position, device: "torch.device") -> dict[str, float]:
    """What a run took: seconds of training without validation, and the peak memory of this process in MB."""
    import torch

    unit = 1 if sys.platform == "darwin" else 1024  # bytes in what getrusage counts
    cost = {
        "epochs": len(at.rows),
        "steps": at.steps,
        "seconds": at.all_seconds,
        "positions_per_second": at.all_positions / at.all_seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6,
    }
    if device.type == "cuda":
        cost["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return cost


def read_cost(run: Path) -> dict[str, float]:
    """What `cost_of` found for a finished run."""
    cost: dict[str, float] = json.loads((run / COST).read_text(encoding="utf-8"))
    return cost

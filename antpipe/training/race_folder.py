"""The folder of a race (racing.py): its candidates while it goes on, then the winner's run and why it won."""

import json
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from antpipe.errors import UsageError
from antpipe.runtime.files import atomic
from antpipe.store.files import write_json
from antpipe.store.lock import alone
from antpipe.training import checkpoint
from antpipe.training.checkpoint import DESCRIPTION
from antpipe.training.state import COST, FINISHED, METRICS, NOTHING, UNFINISHED, has_state

DECISION = "auto.json"
FOLDER = "candidates"  # in the run, until the race is over
RACE = "race.json"  # in that folder: whose race it is


def lock(out: Path, force: bool) -> AbstractContextManager[None]:
    """Hold the folder as its only writer. A finished race, which is only looked at, needs no lock."""
    only_look = not force and (out / DESCRIPTION).exists() and not (out / FOLDER).exists()
    return nullcontext() if only_look else alone(out, "run")


def is_finished(out: Path, fingerprint: str) -> bool:
    """Whether the folder holds the winner of this race, and still the same weights."""
    there = read_decision(out)
    return (
        there.get("fingerprint") == fingerprint
        and (out / DESCRIPTION).exists()
        and checkpoint.describe(out).weights_sha256 == there.get("weights_sha256")
    )


def race_there(out: Path, fingerprint: str, *, resume: bool) -> str:
    """NOTHING, or this race: UNFINISHED or FINISHED. Raises UsageError where the folder holds another run or race, or
    this one unfinished and that is not to be gone on with."""
    if is_finished(out, fingerprint):
        return FINISHED
    if (out / FOLDER).exists():
        path = out / FOLDER / RACE
        if not resume:
            raise UsageError(f"{out} holds an unfinished race: --resume goes on from there, --force begins again")
        if not path.exists() or json.loads(path.read_text(encoding="utf-8"))["fingerprint"] != fingerprint:
            raise UsageError(
                f"{out} holds an unfinished race of other candidates, settings or data",
                "name another folder, or add --force",
            )
        return UNFINISHED
    if (out / DESCRIPTION).exists() or has_state(out):
        raise UsageError(f"--out {out}: holds another run", "name another folder, or add --force")
    return NOTHING


def begin_race(out: Path, fingerprint: str, *, force: bool) -> None:
    """Write down whose race is in the folder. force: without what an earlier one left there."""
    if force:
        shutil.rmtree(out / FOLDER, ignore_errors=True)
        (out / DECISION).unlink(missing_ok=True)
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    write_json(out / FOLDER / RACE, {"fingerprint": fingerprint})


def read_decision(out: Path) -> dict[str, Any]:
    """What an earlier race in this folder decided; empty where there was none."""
    path = out / DECISION
    decision: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return decision


def take_over(winner: Path, out: Path, decision: dict[str, Any]) -> None:
    """The run in the folder of the winner becomes that of `out`, and the decision names its weights; the candidates go
    once that is on the disk."""
    decision["weights_sha256"] = checkpoint.describe(winner).weights_sha256
    weights = checkpoint.weights_path(winner, decision["weights_sha256"])
    for name in (weights.name, METRICS, COST, DESCRIPTION):  # the description last: it names the weights
        with atomic(out / name) as scratch:
            shutil.copyfile(winner / name, scratch)
    for leftover in out.glob("model-*.safetensors"):
        if leftover.name != weights.name:
            leftover.unlink()
    write_json(out / DECISION, decision)
    shutil.rmtree(out / FOLDER)

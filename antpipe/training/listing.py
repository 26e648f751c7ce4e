"""The runs that were trained on domains of a store, and what to do next with store and runs."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from antpipe.errors import AntpipeError
from antpipe.runtime.logs import log
from antpipe.settings.model import MODALITIES
from antpipe.store.artefacts import ARTEFACTS, State
from antpipe.store.next_command import spell
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.folder import RunFolder
from antpipe.training.request import PRETRAIN

DEEPEST = 4  # levels below the folder that is searched
MOST = 20_000  # folders that are searched at most


@dataclass(frozen=True)
class RunSummary:
    """A finished run on domains of the store.

    way: STAGE or STAGE+METHOD. changed: domains whose features or sequences changed since it read them.
    """

    folder: str
    stage: str
    way: str
    domains: tuple[str, ...]
    modalities: tuple[str, ...]
    refit: bool
    changed: tuple[str, ...]


def runs_of(store: Store, folder: Path) -> list[RunSummary]:
    """The runs in a folder and below it that were trained on domains of the store, sorted by folder.

    Hidden folders and the store are left out. A damaged run is logged and skipped.
    """
    there = set(store.domains())
    found = []
    for path in sorted(run_folders(folder, store.root)):
        try:
            described = checkpoint.describe(path)
            if described.domains and set(described.domains) <= there:
                found.append(_summary(path, described, store))
        except AntpipeError as error:
            log.warning(error.message)
    return found


def _summary(path: Path, described: Checkpoint, store: Store) -> RunSummary:
    now = {name: store.domain(name).manifest() for name in described.domains}
    changed = [
        name
        for name, read in described.domains.items()
        if any(now[name].get(artefact, {}).get("fingerprint") != stamp for artefact, stamp in read.items())
    ]
    modalities = tuple(name for name in MODALITIES if name in described.modalities)
    refit = described.refit is not None
    way, domains = described.way(), tuple(described.domains)
    return RunSummary(str(path), described.stage, way, domains, modalities, refit, tuple(changed))


def run_folders(folder: Path, without: Path, *, unfinished: bool = False) -> Iterator[Path]:
    """Folders with a finished run, at most DEEPEST levels below `folder`. Inside a run, only its refit is searched.

    without: the store. unfinished: also folders that hold only a training state, and the candidates of a race.
    """
    store, looked = without.resolve(), 0
    for place, names, files in os.walk(folder):
        path, looked = Path(place), looked + 1
        if looked > MOST:
            log.warning(f"{folder}: only {MOST:,} folders were searched for runs; name a smaller one with --runs")
            return
        here = RunFolder(path)
        if here.description.name in files or (unfinished and here.state.name in files):
            yield path
            names[:] = [name for name in names if name == here.refit.name]
            continue
        deep = len(path.relative_to(folder).parts) >= DEEPEST
        racing = () if unfinished or not here.race.exists() else (here.candidates.name,)
        kept = [name for name in names if not name.startswith(".") and name not in racing]
        names[:] = [] if deep else sorted(name for name in kept if (path / name).resolve() != store)


def next_step(store: Store, states: Mapping[str, Sequence[State]], runs: Sequence[RunSummary]) -> str:
    """The command that comes next: build, train, compare or recommend; '' for a store of catalogues alone.

    states: those of the domains to consider. runs: those of the store.
    """
    states = {name: own for name, own in states.items() if all(state.artefact in ARTEFACTS for state in own)}
    items = {name: store.domain(name).manifest().get("items", {}) for name in states}
    sizes = {name: entry.get("statistics", {}).get("users", 0) for name, entry in items.items()}
    shops = sorted((name for name in states if sizes[name]), key=lambda name: -sizes[name])
    ready = [name for name in shops if _trainable(states[name])]
    usable = [run for run in runs if not run.changed and set(run.domains) & set(ready)]
    on_target = [run for run in usable if run.stage != PRETRAIN and not run.refit]
    for name in shops if not ready else ():
        if command := next((state.next_command for state in _wanted(states[name]) if state.next_command), ""):
            return command
    for own in states.values():
        for state in own:
            if state.artefact == "items" and state.status == "stale" and state.next_command:
                return state.next_command
    if on_target:
        run = on_target[-1]
        flags = ["--run", run.folder, *_somebody(store, run)]
        return spell("recommend", domains=run.domains, store=store.root, flags=flags)
    sources = [run for run in usable if run.stage == PRETRAIN and not run.refit]
    others = [name for name in ready if not sources or name not in sources[-1].domains]
    if sources and others:
        flags = ["--target", others[-1], "--from", sources[-1].folder, "--out", _free("compare")]
        return spell("compare", store=store.root, flags=flags)
    if not ready:
        return ""
    stage, on = (PRETRAIN, ready[:-1]) if len(ready) > 1 else ("scratch", ready)
    return spell(f"train --stage {stage}", domains=on, store=store.root, flags=["--out", _free(f"runs/{stage}")])


def _trainable(states: Sequence[State]) -> bool:
    """Whether there are sequences and features of some modality to train on."""
    usable = {state.artefact for state in states if state.status in ("fresh", "partial")}
    return "sequences" in usable and bool(usable & set(MODALITIES))


def _wanted(states: Sequence[State]) -> list[State]:
    """Artefacts in the order in which training wants them: items, sequences, then features."""
    first = {name: place for place, name in enumerate(("items", "sequences", "text", "pictures", "image", "price"))}
    pending = [state for state in states if state.status in ("stale", "missing")]
    return sorted(pending, key=lambda state: first.get(state.artefact, len(first)))


def _somebody(store: Store, run: RunSummary) -> list[str]:
    """--user with the first user of the run's domain."""
    users = store.domain(run.domains[0]).table("users", ["user_id"])["user_id"]
    return ["--user", users[0].as_py()]


def _free(folder: str) -> str:
    """A folder that does not exist yet."""
    number, path = 2, Path(folder)
    while path.exists():
        path, number = Path(f"{folder}-{number}"), number + 1
    return str(path)

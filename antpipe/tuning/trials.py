"""The trials of a search and their folder: one row per trial in trials.jsonl, and one run folder for each."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from antpipe.errors import SameCommand, UsageError
from antpipe.runtime.files import atomic
from antpipe.settings.tuning import Value
from antpipe.store.documents import parse_json, read_json, refuse_newer, seal, write_json
from antpipe.training.folder import RunFolder, another_folder
from antpipe.training.worth import SELECTION, TIE_BREAK

FORMAT = 1
RUNNING, FINISHED, PRUNED, FAILED = "running", "finished", "pruned", "failed"
SEARCH_AGAIN = "antpipe tune --help"  # a damaged folder does not say what it searched


class Described(TypedDict):
    """The content of search.json. about: the search in readable words."""

    format: int
    fingerprint: str
    about: dict[str, str]


@dataclass(frozen=True)
class Rung:
    """The best validation figures of a trial up to some epoch."""

    epochs: int
    recall: float
    ndcg: float

    def score(self) -> tuple[float, float]:
        return self.recall, self.ndcg


@dataclass(frozen=True)
class Trial:
    """One trial. settings: those that are searched. metrics: on validation, of its best epoch, once it is finished.

    epochs: those trained. rungs: where it was compared with the others. why: the reason if it failed.
    """

    trial: int
    state: str
    settings: dict[str, Value]
    metrics: dict[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    epochs: int = 0
    seconds: float = 0.0
    rungs: list[Rung] = field(default_factory=list)
    fingerprint: str = ""
    why: str = ""

    def score(self) -> tuple[float, float]:
        """The key by which finished trials are compared, like the epochs of a run."""
        return self.metrics[SELECTION], self.metrics[TIE_BREAK]

    def last_score(self) -> tuple[float, float]:
        """That of a finished trial, or that of its last rung."""
        return self.score() if self.state == FINISHED else self.rungs[-1].score()


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The best of the finished trials; of equal ones the first."""
    done = [one for one in trials if one.state == FINISHED]
    return max(done, key=Trial.score) if done else None


class SearchFolder:
    """Where the files of a search are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.search = path / "search.json"  # which search it is
        self.rows = path / "trials.jsonl"  # one row per trial; rewritten whole, and the only record of what was drawn
        self.best = path / "best.toml"  # the settings of the best trial, for `train --config`

    def trial(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.path / f"trial-{number:03}"

    def trials(self) -> list[Trial]:
        """The trials so far. Raises IntegrityError if the file is damaged."""
        if not self.rows.exists():
            return []
        lines = enumerate(self.rows.read_bytes().splitlines(), 1)
        return [parse_json(line, Trial, f"{self.rows}:{number}", SEARCH_AGAIN) for number, line in lines]

    def write(self, trials: Sequence[Trial]) -> None:
        with atomic(self.rows) as scratch:
            scratch.write_text("".join(json.dumps(seal(asdict(one))) + "\n" for one in trials), encoding="utf-8")

    def forget_pruned(self, trials: Sequence[Trial]) -> None:
        """Remove the training states of pruned trials, which are not continued; their figures by epoch stay.

        trials: as written to disk, so that no state is removed that a killed search would still need.
        """
        for one in trials:
            if one.state == PRUNED:
                RunFolder(self.trial(one.trial)).state.unlink(missing_ok=True)

    def begin(self, fingerprint: str, about: dict[str, str]) -> None:
        """Record which search the folder belongs to."""
        write_json(self.search, {"format": FORMAT, "fingerprint": fingerprint, "about": about})

    def clear(self) -> None:
        """Remove the search that is here, if there is one: the files that name its runs first, its own last."""
        if not self.search.exists():
            return
        for file in (self.best, self.rows):
            file.unlink(missing_ok=True)
        for path in self.path.glob("trial-*"):
            shutil.rmtree(path)
        self.search.unlink()

    def refuse_run(self) -> None:
        """Refuse the folder of a run."""
        if RunFolder(self.path).holds_something():
            raise UsageError(
                f"--out {self.path}: holds a run; a search needs a folder of its own", another_folder(self.path)
            )

    def check(
        self,
        fingerprint: str,
        about: dict[str, str],
        count: int,
        exhausted: Callable[[Sequence[Trial]], bool],
        *,
        resume: bool,
    ) -> None:
        """Refuse a folder that holds another search, or this one unfinished if it is not to be resumed.

        exhausted: whether no settings are left that these trials did not have.
        """
        if not self.search.exists():
            return
        refuse_newer(self.search, read_json(self.search, dict[str, Any], SEARCH_AGAIN).get("format"), FORMAT)
        there = read_json(self.search, Described, SEARCH_AGAIN)
        if there["fingerprint"] != fingerprint:
            old = there["about"]
            names = [name for name in old | about if old.get(name) != about.get(name)]
            found = [f"{name} {old.get(name)} (now {about.get(name)})" for name in names] or ["of other data"]
            raise UsageError(
                f"--out {self.path}: holds another search: {'; '.join(found)}; --force replaces it",
                another_folder(self.path),
            )
        trials = self.trials()
        done = sum(one.state != RUNNING for one in trials)
        if done < count and not resume and not (trials and done == len(trials) and exhausted(trials)):
            raise UsageError(
                f"{self.path} holds {done} of {count} trials of this search: --resume continues, --force starts over",
                SameCommand({"--resume": None}),
            )

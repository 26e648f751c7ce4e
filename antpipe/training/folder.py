"""The folder of a run: the name of every file in it, and who may write there."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NotRequired, Required, TypedDict, TypeVar

from antpipe.errors import IntegrityError, SameCommand
from antpipe.runtime.files import sweep
from antpipe.store.documents import parse_json, read_json
from antpipe.store.lock import alone
from antpipe.store.manifest import digest

T = TypeVar("T")
METRICS = "metrics_sha256"  # in cost.json, the hash of metrics.jsonl
TRAIN_AGAIN = "antpipe train --help"  # a damaged folder does not say with which settings


class Rung(TypedDict):
    epochs: int
    scores: dict[str, float]
    ties: NotRequired[dict[str, dict[str, float]]]  # not of 0.1.0
    kept: list[str]


class Decision(TypedDict, total=False):
    """What a race decided: the content of RUN/auto.json."""

    fingerprint: Required[str]
    chosen: Required[str]
    why: Required[str]
    selection: str
    epochs: Required[int]
    seconds: Required[dict[str, float]]
    rungs: list[Rung]
    left_out: dict[str, str]
    weights_sha256: str


class RunFolder:
    """Where the files of a run are.

    A finished run is `description` and the weights file it names; an unfinished one is `state`. A race among stages
    keeps its candidates in run folders of their own until the winner's files move up here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.description = path / "checkpoint.json"  # what the finished run is; written last, so the rest is complete
        self.state = path / "state.safetensors"  # everything that decides how an unfinished run continues
        self.published = path / "model.safetensors"  # the weights of a run that was exported for a model hub
        self.metrics = path / "metrics.jsonl"  # one row per epoch
        self.cost = path / "cost.json"  # time and memory; the description is the same byte for byte in equal runs
        self.bad_batch = path / "nan-batch.npz"  # the batch whose loss was not finite
        self.decision = path / "auto.json"  # which stage a race chose, and why
        self.candidates = path / "candidates"  # those of a race in progress, each in a run folder
        self.refit = path / "refit"  # the run trained again on training and validation, a run folder of its own
        self.race = self.candidates / "race.json"  # the fingerprint of that race

    def weights(self, sha256: str) -> Path:
        """The weights file with this content."""
        return self.path / f"model-{sha256[:12]}.safetensors"

    def items(self, id_tables: Mapping[str, str]) -> Path:
        """The ids of the items of these domains, by the hashes of their id tables (trained_items.py)."""
        return self.path / f"items-{digest(id_tables)[:12]}.parquet"

    def leftovers(self, sha256: str, id_tables: Mapping[str, str]) -> list[Path]:
        """Weights with any other content, and ids of any other items."""
        named = (self.weights(sha256), self.items(id_tables))
        return [
            path
            for kind in ("model-*.safetensors", "items-*.parquet")
            for path in self.path.glob(kind)
            if path not in named
        ]

    def evaluation(self, domain: str, split: str, index: str = "exact") -> Path:
        """Figures of an evaluation. Those of an approximate index have a file of their own."""
        return self.path / f"evaluation-{_name(domain, split, index)}.json"

    def ranks(self, domain: str, split: str, index: str = "exact") -> Path:
        """The rank of every position in an evaluation."""
        return self.path / f"ranks-{_name(domain, split, index)}.parquet"

    def is_finished(self) -> bool:
        """Whether a complete checkpoint is here, perhaps beside a newer, unfinished run."""
        return self.description.exists()

    def is_unfinished(self) -> bool:
        """Whether a training state is here."""
        return self.state.is_file()

    def holds_something(self) -> bool:
        """Whether a run or race is here, finished or not."""
        return self.is_finished() or self.is_unfinished() or self.candidates.exists()

    @contextmanager
    def lock(self, force: bool) -> Iterator[None]:
        """Hold the folder as its only writer, and remove what killed writers left there. A finished run is only read
        unless `force`, so it needs no lock.

        Raises AntpipeError if another process holds it.
        """
        reads_only = not force and self.is_finished() and not (self.is_unfinished() or self.candidates.exists())
        if reads_only:
            yield
            return
        with alone(self.path, "run"):
            sweep(self.path)
            for leftover in (*self.path.glob(".tmp??????"), self.path / ".weights"):  # the former come from safetensors
                leftover.unlink(missing_ok=True)
            yield

    def read_rows(self) -> list[dict[str, Any]]:
        """The figures of each epoch so far. Raises IntegrityError if the file of a finished run is damaged."""
        if not self.metrics.exists():
            return []
        content = self.metrics.read_bytes()
        recorded = None if self.is_unfinished() else _read(self.cost, dict[str, Any]).get(METRICS)
        if recorded is not None and recorded != hashlib.sha256(content).hexdigest():
            raise IntegrityError(f"{self.metrics}: its content differs from what was written", TRAIN_AGAIN)
        lines = enumerate(content.splitlines(), 1)
        return [parse_json(line, dict[str, Any], f"{self.metrics}:{number}", TRAIN_AGAIN) for number, line in lines]

    def read_cost(self) -> dict[str, float]:
        """What a finished run took (see state.cost_of); empty for an imported one. Raises IntegrityError if damaged."""
        found = _read(self.cost, dict[str, float | str])
        return {name: value for name, value in found.items() if not isinstance(value, str)}

    def read_decision(self) -> dict[str, Any]:
        """What a race in this folder decided; empty if there was none. Raises IntegrityError if damaged."""
        _read(self.decision, Decision)
        return _read(self.decision, dict[str, Any])


def _name(domain: str, split: str, index: str) -> str:
    return f"{domain}-{split}" + ("" if index == "exact" else f"-{index}")


def _read(path: Path, kind: type[T]) -> T:
    """The content of a JSON file, empty if it is not there."""
    return read_json(path, kind, TRAIN_AGAIN) if path.exists() else kind()


def another_folder(out: Path) -> SameCommand:
    """The command that failed, with a folder that does not exist yet."""
    free = next(path for number in count(2) if not (path := out.with_name(f"{out.name}-{number}")).exists())
    return SameCommand({"--out": str(free)})

"""A folder with a small store and two runs, to be treated badly: what is refused, and that nothing is changed."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from antpipe.store.store import Store
from tests.support.commands import TINY, Outcome, run
from tests.support.releases import snapshot
from tests.support.trainable import WIDTHS, make_trainable, train_quickly

# Command lines; {store}, {runs} and {folder} are those of a Place.
TRAIN = f"train --stage scratch --domains Target --out {{runs}}/new {TINY} --store {{store}}"
EVALUATE = "evaluate --run {runs}/scratch --domains Target --device cpu --store {store}"
RECOMMEND = "recommend --run {runs}/scratch --domains Target --items i001 --store {store}"
# All commands that take --domains, without them.
WITH_DOMAINS = {
    "embed-text": "embed-text --encoder packaged/all-MiniLM-L6-v2 --store {store}",
    "fetch-images": "fetch-images --store {store}",
    "embed-image": "embed-image --encoder packaged/efficientnet-lite0 --store {store}",
    "quantize-price": "quantize-price --store {store}",
    "whiten": "whiten --modality text --store {store}",
    "build-sequences": "build-sequences --store {store}",
    "train": f"train --stage scratch --out {{runs}}/new {TINY} --store {{store}}",
    "compare": f"compare --arms scratch --out {{runs}}/new {TINY} --store {{store}}",
    "evaluate": "evaluate --run {runs}/pretrain --store {store}",
    "recommend": "recommend --run {runs}/pretrain --items i001 --store {store}",
    "status": "status --store {store}",
    "stats": "stats --store {store}",
}


@dataclass(frozen=True)
class Place:
    """A folder with a store and runs, and what a command line does to them."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def copy(self, to: Path) -> "Place":
        return Place(Path(shutil.copytree(self.folder, to)))

    def run(self, line: str, *more: str | Path) -> Outcome:
        """A command line; {store}, {runs} and {folder} stand for these folders."""
        words = [word.format(store=self.store, runs=self.runs, folder=self.folder) for word in line.split()]
        return run(*words, *more)

    def refuses(self, code: int, line: str, *names: str, next_command: str) -> None:
        """The command line ends with this code, names these things in one line, and changes no file.

        next_command: part of the line that says how to go on.
        """
        before = snapshot(self.folder)
        outcome = self.run(line)
        check_refusal(outcome, code, *names, next_command=next_command)
        after = {name: content for name, content in snapshot(self.folder).items() if not name.endswith(".lock")}
        assert after == {name: content for name, content in before.items() if not name.endswith(".lock")}


def check_refusal(outcome: Outcome, code: int, *names: str, next_command: str) -> None:
    lines = outcome.err.splitlines()
    errors = [line for line in lines if line.startswith("antpipe: error: ")]
    following = [line for line in lines if line.startswith("antpipe: next: ")]
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert len(errors) == 1
    for name in names:
        assert name in errors[0]
    assert len(following) == 1
    assert next_command in following[0]


def make_place(folder: Path) -> Place:
    """The shops Source, Target (all features) and Wide (a wider text encoder), a run pretrain of Source and a run
    scratch of Target."""
    store = Store(folder / "store")
    make_trainable(store, "Source", seed=1)
    make_trainable(store, "Target", seed=2)
    make_trainable(store, "Wide", seed=3, widths={**WIDTHS, "text": 20})
    train_quickly(store, "pretrain", ["Source"], folder / "runs" / "pretrain", epochs=1)
    train_quickly(store, "scratch", ["Target"], folder / "runs" / "scratch", epochs=1)
    return Place(folder)

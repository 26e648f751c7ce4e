"""Command lines run in this process, and a small release of two shops to run them on."""

import contextlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from antpipe.cli import main
from tests.support.releases import product, publish, review

ITEMS, USERS, DAY = 24, 20, 86_400
GOODS = ("wool scarf", "steel kettle", "garden hose", "desk lamp")
# Enough to go through every line of the trainer; nothing is learned.
TINY = "--width 16 --experts 2 --layers 1 --epochs 2 --batch-size 32 --device cpu"
ENCODER = "packaged/all-MiniLM-L6-v2"

# The path of a user. {} is the folder that holds source, store and runs.
COMMANDS = {
    "ingest": "ingest amazon --source {}/source --domains Ring,Loop --min-user 1 --min-item 1 --store {}/store",
    "quantize-price": "quantize-price --domains Ring,Loop --store {}/store",
    "build-sequences": "build-sequences --domains Ring,Loop --store {}/store",
    "embed-text": f"embed-text --domains Ring,Loop --encoder {ENCODER} --device cpu --store {{}}/store",
    "pretrain": f"train --stage pretrain --domains Loop --out {{}}/runs/pretrain {TINY} --store {{}}/store",
    "scratch": f"train --stage scratch --domains Ring --out {{}}/runs/scratch {TINY} --store {{}}/store",
    "finetune": "train --stage finetune --domains Ring --from {}/runs/pretrain --out {}/runs/finetune --epochs 2 "
    "--batch-size 32 --device cpu --store {}/store",
    "relearn": "train --stage relearn --domains Ring --from {}/runs/pretrain --out {}/runs/relearn --epochs 2 "
    "--batch-size 32 --device cpu --store {}/store",
    "evaluate": "evaluate --run {}/runs/relearn --domains Ring --device cpu --store {}/store",
    "recommend": "recommend --run {}/runs/relearn --domains Ring --user U03 --k 5 --store {}/store",
    "status": "status --store {}/store",
}
BUILDING = ("ingest", "quantize-price", "build-sequences", "embed-text")
TRAINING = ("pretrain", "scratch", "finetune", "relearn")


@dataclass(frozen=True)
class Outcome:
    """How a command line ended: exit code, and what it wrote."""

    code: object
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def unfolded(text: str) -> str:
    """Sentences that were folded to fit a terminal, in one line each."""
    return re.sub(r"\n {4}(?! )", " ", text)


def states_of(text: str) -> list[list[str]]:
    """Domain or run, artefact or stage, and state of each result that was printed."""
    return [line.split("  ")[:3] for line in text.splitlines() if not line.startswith(" ")]


def leave(*words: str | Path) -> object:
    """The exit code of a command line; its output goes where output goes."""
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return left.value.code


def run(*words: str | Path) -> Outcome:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = leave(*words)
    return Outcome(code, out.getvalue(), err.getvalue())


def words_of(command: str, folder: Path) -> list[str]:
    return [word.replace("{}", str(folder)) for word in COMMANDS[command].split()]


def run_named(command: str, folder: Path, *more: str | Path) -> Outcome:
    """One of COMMANDS, with more flags."""
    return run(*words_of(command, folder), *more)


def item_id(number: int) -> str:
    return f"B{number % ITEMS:03}"


def title(number: int) -> str:
    return f"{GOODS[number % len(GOODS)].capitalize()} no. {number}"


def bought(user: int) -> list[str]:
    """Items of user U<user>, the oldest first."""
    return [item_id(user * 5 + step) for step in range(5 + user % 3)]


def publish_shop(folder: Path, name: str, first_day: int) -> None:
    """The review and metadata files of a shop whose users walk around a ring of items, one a day."""
    reviews = [
        review(f"U{user:02}", item, DAY * (first_day + step))
        for user in range(USERS)
        for step, item in enumerate(bought(user))
    ]
    products = [product(item_id(n), title=title(n), price=f"${n + 1}.50") for n in range(ITEMS)]
    publish(folder / f"{name}_5.json.gz", *reviews)
    publish(folder / f"meta_{name}.json.gz", *products)


def publish_shops(folder: Path) -> Path:
    """Ring and Loop; they do not overlap in time."""
    publish_shop(folder, "Loop", first_day=100)
    publish_shop(folder, "Ring", first_day=200)
    return folder


def ingested(folder: Path) -> Path:
    """The folder, after publishing the shops and ingesting them."""
    publish_shops(folder / "source")
    outcome = run_named("ingest", folder)
    assert outcome.code == 0, outcome.err
    return folder


def names_of(group: typer.Typer, before: str = "") -> Iterator[str]:
    """All commands of the app, as they are typed."""
    yield from (f"{before}{part.name}" for part in group.registered_commands)
    for part in group.registered_groups:
        assert part.typer_instance is not None
        yield from names_of(part.typer_instance, f"{before}{part.name} ")

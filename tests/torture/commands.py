"""A small store and run, commands that read and write them, and how a command ended."""

import hashlib
import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer.main

from antpipe.cli import app
from antpipe.evaluation.evaluate import evaluate_run
from antpipe.features.shards import compute
from antpipe.features.whiten import whiten
from antpipe.serving import batch
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.settings.features import WhitenConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.files import file_sha256
from antpipe.store.store import Store
from antpipe.store.tables import rows_sha256
from antpipe.training import loop
from antpipe.training.request import RunRequest
from antpipe.training.run import run_stage
from tests.support.commands import Outcome, run
from tests.support.fake_text_encoder import FakeEncoder
from tests.support.interruptions import failing_at
from tests.support.next_commands import fault_of
from tests.support.shops import make_domain
from tests.support.trainable import MODEL, make_trainable
from tests.torture.trial import CODES

NARROW = {"text": 6, "price": 4}
SMALL = "--epochs {} --batch-size 64 --width 8 --experts 2 --layers 1 --device cpu --save-every 0"
TINY = SMALL.format(1)
AGAIN = f"train --stage scratch --domains A --store s {SMALL.format(3)} --modalities text,price"
COMPARE = f"compare --target A --from p --arms scratch,relearn,markov --seeds 2 {TINY} --modalities text,price"
EMBED = "embed-text --domains E --store e --encoder fake --precision bf16 --device cpu --shard-size 4"
PLACES = ("s", "r", "e", "u", "p", "c", "out.parquet", "out.html")
PART = 8  # histories per part of recommendations, instead of thousands


@dataclass(frozen=True)
class Command:
    """words: OUT is a new file or folder. template: the folder in a copy of which it is run; see TEMPLATES."""

    words: str
    template: str = "shop"


# What is run on a copy. Each is one process of its own work, and says all in its output.
COMMANDS = {
    "train": Command(
        f"train --stage scratch --domains A --store s {TINY} --modalities text,price --out OUT --resume --json"
    ),
    "relearn": Command(
        "train --stage relearn --from r --domains A --store s --epochs 1 --device cpu --out OUT --resume --json"
    ),
    "evaluate": Command("evaluate --run r --domains A --store s --device cpu --json"),
    "recommend": Command("recommend --run r --domains A --store s --user u001 --k 5 --json"),
    "recommend-all": Command("recommend --run r --domains A --store s --users all --k 5 --out OUT.parquet --json"),
    "whiten": Command("whiten --modality text --domains A --store s --dims 3 --force --json"),
    "subset": Command("subset --domains A --target-users 9 --store s --json"),
    "build-sequences": Command("build-sequences --domains A --store s --max-len 7 --json"),
    "quantize-price": Command("quantize-price --domains A --store s --force --json"),
    "stats": Command("stats --domains A --store s --json"),
    "export": Command("export huggingface --run r --store s --out OUT --json"),
    "ingest": Command(
        "ingest table --domain N --interactions tables/orders.csv --items tables/items.csv --min-user 1 --min-item 1 "
        "--store s --json"
    ),
    "resume": Command(f"{AGAIN} --out u --resume --json", "unfinished"),
    "embed-text": Command(f"{EMBED} --json", "embedding"),
    "continue": Command("recommend --run r --domains A --store s --users all --k 5 --out out.parquet --json", "parts"),
    "compare": Command(f"{COMPARE} --out c --store s --json", "compared"),
    "compare-on": Command(f"{COMPARE} --out c --store s --json", "comparing"),
    "report": Command("report --compare c --store s --out out.html --users 2 --json", "compared"),
}
UNTOLD = ("seconds", "peak_memory_mb", "positions_per_second", "written", "folder", "checksum", "antpipe", "run")
UNTOLD += ("items_per_second", "bytes", "computed", "reused", "shared")


@dataclass(frozen=True)
class Ending:
    """What a command came to: its exit code, what it said, the result without times, and what it left in files."""

    code: object
    said: str
    result: str
    made: str

    def fault(self) -> str:
        """What no command may end with, whatever happened to its files; '' if there is nothing of this."""
        if "unexpected" in self.said or "Traceback" in self.said:
            return self.said
        if self.code not in CODES:
            return f"exit code {self.code}: {self.said}"
        proposed = re.findall(r"^antpipe: next: (.*)$", self.said, re.MULTILINE)
        return next((fault for line in proposed if "$'" not in line and (fault := fault_of(line))), "")


def small_store(folder: Path) -> None:
    """A domain with whitened text in FOLDER/s, a judged run in FOLDER/r, and tables of another shop."""
    store = Store(folder / "s")
    make_trainable(store, "A", widths=NARROW)
    whiten(store, ["A"], "text", WhitenConfig(dims=4))
    training = TrainConfig(epochs=2, batch_size=64, device="cpu", modalities=("text", "price"))
    model = type(MODEL)(width=8, experts=2, layers=1, heads=2, transductive=False)
    run_stage(RunRequest(store, ("A",), "scratch", model, training), folder / "r")
    evaluate_run(store, folder / "r", "A", EvaluateConfig(device="cpu"))
    (folder / "tables").mkdir()
    items = [f"i{item},Thing {item},{item}.5" for item in range(12)]
    orders = [
        f"u{user},i{(user * 5 + step) % 12},{1600000000 + 86400 * step}" for user in range(9) for step in range(5)
    ]
    for name, lines in (("items", ["item_id,title,price", *items]), ("orders", ["user_id,item_id,timestamp", *orders])):
        (folder / "tables" / f"{name}.csv").write_text("\n".join([*lines, ""]))


def unfinished(folder: Path) -> None:
    """FOLDER/u: a run that was killed within its second epoch."""
    make_trainable(Store(folder / "s"), "A", widths=NARROW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "target_loss", failing_at(6, loop.target_loss, KeyboardInterrupt(), after=False))
        assert run_in(f"{AGAIN} --out u", folder).code == 130
    assert (folder / "u" / "state.safetensors").exists()


def embedding(folder: Path) -> None:
    """FOLDER/e: texts of which some are embedded, in an earlier catalogue, and others lie in finished shards."""
    store = Store(folder / "e")
    make_domain(store, "E", [{"item_id": f"i{n:02}", "text": f"text {n}"} for n in range(6)])
    assert run_in(EMBED, folder).code == 0
    make_domain(store, "E", [{"item_id": f"i{n:02}", "text": f"text {n}"} for n in range(22)])
    with pytest.MonkeyPatch.context() as patch:
        stop = failing_at(3, compute.compute_shard, KeyboardInterrupt(), after=False)
        patch.setattr(compute, "compute_shard", stop)
        assert run_in(EMBED, folder).code == 130
    assert len(list(folder.glob("e/E/.shards-*/shard-*"))) == 2


def parts(folder: Path) -> None:
    """FOLDER/out.parquet.parts: some of the parts of recommendations for all users."""
    shutil.copytree(folder.with_name("shop"), folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        stop = failing_at(3, batch.write_part, KeyboardInterrupt(), after=False)
        patch.setattr(batch, "write_part", stop)
        assert run_in(COMMANDS["continue"].words, folder).code == 130
    assert len(list(folder.glob("out.parquet.parts/part-*"))) == 2


def compared(folder: Path) -> None:
    """FOLDER/c: a finished comparison on two shops, of runs that start from FOLDER/p."""
    for seed, name in enumerate("AB"):
        make_trainable(Store(folder / "s"), name, seed=seed, widths=NARROW)
    pretrain = f"train --stage pretrain --domains B --store s {TINY} --modalities text,price --out p"
    for words in (pretrain, COMMANDS["compare"].words):
        outcome = run_in(words, folder)
        assert outcome.code == 0, outcome.err


def comparing(folder: Path) -> None:
    """The same, of which a run is missing."""
    shutil.copytree(folder.with_name("compared"), folder, dirs_exist_ok=True)
    for name in ("c/comparison.json", "c/comparison.md", "c/results/A/scratch-1.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "c/A/scratch-1")


# Folders that commands are run in, in the order in which they are made.
TEMPLATES = {
    "shop": small_store,
    "unfinished": unfinished,
    "embedding": embedding,
    "parts": parts,
    "compared": compared,
    "comparing": comparing,
}


def in_small_pieces() -> None:
    """Make this process, and its forks, embed texts by hand and cut recommendations into small parts.

    They also build the tree of commands once, which takes longer than most commands do.
    """
    patch, tree = pytest.MonkeyPatch(), typer.main.get_command(app)
    FakeEncoder().install(patch)
    patch.setattr(batch, "LARGEST_PART", PART)
    patch.setattr(typer.main, "get_command", lambda _: tree)


def files_of(folder: Path) -> list[Path]:
    """All files of stores, runs and unfinished work, relative to the folder; locks are empty."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size)
    return [name for path in found if (name := path.relative_to(folder)).parts[0] != "tables"]


def run_in(words: str, folder: Path) -> Outcome:
    """Run a command line in a folder: the names of what is in it, and OUT, become paths."""
    return run(*(placed(word, folder) for word in words.split()))


def placed(word: str, folder: Path) -> str:
    if word in PLACES:
        return str(folder / word)
    return word.replace("OUT", str(folder / "out")).replace("tables/", f"{folder}/tables/")


def ending_of(command: str, folder: Path) -> Ending:
    """Run one of COMMANDS in a copy of its template."""
    found = run_in(COMMANDS[command].words, folder)
    told, page = without_times(json.loads(found.out), folder) if found.out else None, folder / "out.html"
    if found.code == 0 and page.exists():
        told = [told, hashlib.sha256(page.read_text().replace(str(folder), "").encode()).hexdigest()]
    try:
        made = json.dumps(made_in(folder), sort_keys=True)
    except OSError as error:
        made = str(error)
    return Ending(found.code, found.err, json.dumps(told, sort_keys=True), made)


def made_in(folder: Path) -> list[object]:
    """What the stores hold, and what a command wrote elsewhere: hashes and names of all that does not tell a time."""
    rows = folder / "out.parquet"
    places = [folder / name for name in ("out", "u", "c")]
    found = sorted(path for place in places for path in place.rglob("*.safetensors") if "state" not in path.name)
    weights = [path.name if path.name.startswith("model-") else file_sha256(path) for path in found]
    recommended = rows_sha256(pq.read_table(rows)) if rows.exists() else ""
    return [contents(folder), weights, recommended]


def right_ending(command: str, whole: Path) -> Ending:
    """How a command ends if nothing happens."""
    return Ending(**json.loads((whole / f"{command}.json").read_text()))


def remember(command: str, ending: Ending, whole: Path) -> None:
    (whole / f"{command}.json").write_text(json.dumps(asdict(ending)))


def contents(folder: Path) -> dict[str, str]:
    """The hashes of what the manifests of the stores in a folder describe."""
    found = {}
    for path in sorted(folder.glob("[se]/*/manifest.json")):
        try:
            entries = json.loads(path.read_bytes())["artefacts"]
            found |= {f"{path.parent.name}/{name}": str(entries[name]["files"]) for name in entries}
        except (ValueError, LookupError, TypeError):
            found[path.parent.name] = "?"
        except OSError as error:
            found[path.parent.name] = str(error.strerror)
    return found


def without_times(value: object, folder: Path) -> object:
    """A result without what differs from run to run."""
    if isinstance(value, dict):
        return {key: without_times(part, folder) for key, part in value.items() if key not in UNTOLD}
    if isinstance(value, list):
        return [without_times(part, folder) for part in value]
    return value.replace(str(folder), "") if isinstance(value, str) else value

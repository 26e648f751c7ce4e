"""A small store and run, commands that read and write them, and how a command ended."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.parquet as pq

from antpipe.evaluation.evaluate import evaluate_run
from antpipe.features.whiten import whiten
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.settings.features import WhitenConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.files import file_sha256
from antpipe.store.store import Store
from antpipe.store.tables import rows_sha256
from antpipe.training.request import RunRequest
from antpipe.training.run import run_stage
from tests.support.commands import run
from tests.support.next_commands import fault_of
from tests.support.trainable import MODEL, make_trainable
from tests.torture.trial import CODES

NARROW = {"text": 6, "price": 4}
TINY = "--epochs 1 --batch-size 64 --width 8 --experts 2 --layers 1 --device cpu --save-every 0"
# What is run on a copy; OUT is a new file or folder. Each is one process of its own work, and says all in its output.
COMMANDS = {
    "train": f"train --stage scratch --domains A --store s {TINY} --modalities text,price --out OUT --resume --json",
    "relearn": "train --stage relearn --from r --domains A --store s --epochs 1 --device cpu --out OUT --resume --json",
    "evaluate": "evaluate --run r --domains A --store s --device cpu --json",
    "recommend": "recommend --run r --domains A --store s --user u001 --k 5 --json",
    "recommend-all": "recommend --run r --domains A --store s --users all --k 5 --out OUT.parquet --json",
    "whiten": "whiten --modality text --domains A --store s --dims 3 --force --json",
    "subset": "subset --domains A --target-users 9 --store s --json",
    "build-sequences": "build-sequences --domains A --store s --max-len 7 --json",
    "quantize-price": "quantize-price --domains A --store s --force --json",
    "stats": "stats --domains A --store s --json",
    "export": "export huggingface --run r --store s --out OUT --json",
    "ingest": "ingest table --domain N --interactions tables/orders.csv --items tables/items.csv --min-user 1 "
    "--min-item 1 --store s --json",
}
UNTOLD = ("seconds", "peak_memory_mb", "positions_per_second", "written", "folder", "checksum", "antpipe")


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


def files_of(folder: Path) -> list[Path]:
    """All files of the store and the run, relative to the folder; locks are empty."""
    found = (path for name in "sr" for path in sorted((folder / name).rglob("*")))
    return [path.relative_to(folder) for path in found if path.is_file() and path.stat().st_size]


def ending_of(command: str, folder: Path) -> Ending:
    """Run one of COMMANDS in a folder that holds `s`, `r` and `tables`."""
    out, places = folder / "out", {"s": folder / "s", "r": folder / "r"}
    words = [
        str(places.get(word, word.replace("OUT", str(out)).replace("tables/", f"{folder}/tables/")))
        for word in COMMANDS[command].split()
    ]
    found = run(*words)
    told = without_times(json.loads(found.out), folder) if found.out else None
    try:
        made = json.dumps(made_in(folder), sort_keys=True)
    except OSError as error:
        made = str(error)
    return Ending(found.code, found.err, json.dumps(told, sort_keys=True), made)


def made_in(folder: Path) -> list[object]:
    """What the store holds, and what a command wrote to OUT: hashes and names of all that does not tell a time."""
    out, rows = folder / "out", folder / "out.parquet"
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.suffix == ".safetensors")
    weights = [name if name.startswith("model-") else file_sha256(out / name) for name in found]
    recommended = rows_sha256(pq.read_table(rows)) if rows.exists() else ""
    return [contents(folder / "s"), weights, recommended]


def right_ending(command: str, whole: Path) -> Ending:
    """How a command ends if nothing happens."""
    return Ending(**json.loads((whole / f"{command}.json").read_text()))


def remember(command: str, ending: Ending, whole: Path) -> None:
    (whole / f"{command}.json").write_text(json.dumps(asdict(ending)))


def contents(store: Path) -> dict[str, str]:
    """The hashes of what the manifests of a store describe."""
    found = {}
    for path in sorted(store.glob("*/manifest.json")):
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

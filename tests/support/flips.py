"""A small store and run, the commands that read them, and what becomes of these when one byte is another.

`python -m tests.support.flips FOLDER ROUNDS SEED` flips ROUNDS bytes per file and prints what was used in silence.
"""

import json
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from antpipe.evaluation.evaluate import evaluate_run
from antpipe.features.whiten import whiten
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.settings.features import WhitenConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.store import Store
from antpipe.training.request import RunRequest
from antpipe.training.run import run_stage
from tests.support.commands import run
from tests.support.trainable import MODEL, make_trainable

NARROW = {"text": 6, "price": 4}
TINY = "--epochs 1 --batch-size 64 --width 8 --experts 2 --layers 1 --device cpu"
# What is run on a damaged copy; OUT is a new folder. Each is one process of its own work, and says all in its output.
CONSUMERS = {
    "train": f"train --stage scratch --domains A --store s {TINY} --modalities text,price --out OUT --json",
    "relearn": "train --stage relearn --from r --domains A --store s --epochs 1 --device cpu --out OUT --json",
    "evaluate": "evaluate --run r --domains A --store s --device cpu --json",
    "recommend": "recommend --run r --domains A --store s --user u001 --k 5 --json",
    "whiten": "whiten --modality text --domains A --store s --dims 3 --force --json",
    "subset": "subset --domains A --target-users 9 --store s --json",
    "build-sequences": "build-sequences --domains A --store s --max-len 7 --json",
    "quantize-price": "quantize-price --domains A --store s --force --json",
    "stats": "stats --domains A --store s --json",
    "export": "export huggingface --run r --store s --out OUT --json",
}
UNTOLD = ("seconds", "peak_memory_mb", "positions_per_second", "written", "folder", "checksum", "antpipe")


@dataclass(frozen=True)
class Ending:
    """What a command came to: its exit code, what it said, and the result without times."""

    code: object
    said: str
    result: str


def small_store(folder: Path) -> None:
    """A domain with whitened text in FOLDER/s, and a judged run with learned ids in FOLDER/r."""
    store = Store(folder / "s")
    make_trainable(store, "A", widths=NARROW)
    whiten(store, ["A"], "text", WhitenConfig(dims=4))
    training = TrainConfig(epochs=2, batch_size=64, device="cpu", modalities=("text", "price"))
    model = type(MODEL)(width=8, experts=2, layers=1, heads=2, transductive=False)
    run_stage(RunRequest(store, ("A",), "scratch", model, training), folder / "r")
    evaluate_run(store, folder / "r", "A", EvaluateConfig(device="cpu"))


def files_of(folder: Path) -> list[Path]:
    """All files of the store and the run, relative to the folder; locks are empty."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size)
    return [path.relative_to(folder) for path in found]


def flipped(folder: Path, name: Path, draw: random.Random) -> str:
    """Flip one bit of a file, anywhere in it; says which."""
    path = folder / name
    content = bytearray(path.read_bytes())
    place, bit = draw.randrange(len(content)), draw.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"{name}, byte {place}, bit {bit}"


def ending_of(command: str, folder: Path) -> Ending:
    """Run one of CONSUMERS in a folder that holds `s` and `r`."""
    out = folder / "out"
    places = {"OUT": out, "s": folder / "s", "r": folder / "r"}
    found = run(*(places.get(word, word) for word in CONSUMERS[command].split()))
    told = without_times(json.loads(found.out), folder) if found.out else None
    weights = sorted(path.name for path in out.glob("model-*")) if out.exists() else []
    return Ending(found.code, found.err, json.dumps([told, weights, contents(folder / "s")], sort_keys=True))


def contents(store: Path) -> dict[str, str]:
    """The hashes of what the manifests of a store describe."""
    found = {}
    for path in sorted(store.glob("*/manifest.json")):
        try:
            entries = json.loads(path.read_bytes())["artefacts"]
            found |= {f"{path.parent.name}/{name}": str(entries[name]["files"]) for name in entries}
        except (ValueError, LookupError, TypeError):
            found[path.parent.name] = "?"
    return found


def without_times(value: object, folder: Path) -> object:
    """A result without what differs from run to run."""
    if isinstance(value, dict):
        return {key: without_times(part, folder) for key, part in value.items() if key not in UNTOLD}
    if isinstance(value, list):
        return [without_times(part, folder) for part in value]
    return value.replace(str(folder), "") if isinstance(value, str) else value


def silently_wrong(found: Ending, right: Ending, name: Path) -> str:
    """What is wrong with how a command ended on a damaged file; '' if it refused it by name or gave the same."""
    if "unexpected" in found.said or "Traceback" in found.said:
        return found.said
    if found.code == 5:
        return "" if name.name in found.said else f"the file is not named: {found.said}"
    if (found.code, found.result) == (right.code, right.result):
        return ""
    return f"exit {found.code}: {found.said or 'another result'}"


def main(folder: Path, rounds: int, seed: int) -> None:
    whole, copy = folder / "whole", folder / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    whole.mkdir(parents=True)
    small_store(whole)
    right = {}
    for command in CONSUMERS:
        shutil.copytree(whole, copy)
        right[command] = ending_of(command, copy)
        assert right[command].code == 0, right[command].said
        shutil.rmtree(copy)
    draw, count = random.Random(seed), 0
    for _ in range(rounds):
        for name in files_of(whole):
            for command in CONSUMERS:
                shutil.copytree(whole, copy)
                what = flipped(copy, name, draw)
                if wrong := silently_wrong(ending_of(command, copy), right[command], name):
                    print(f"{command} with {what}: {wrong}", flush=True)
                shutil.rmtree(copy)
                count += 1
    print(f"{count} flips")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

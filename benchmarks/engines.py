"""`embed-text` with the local engine and on Ray, on this machine: `python -m benchmarks.engines`.

Generates a catalogue of product texts in a temporary folder and embeds copies of it with the packaged encoder. The ways
take turns, each in a process of its own. Prints per way the texts per second while embedding, the seconds of the whole
command, and whether the artefact has the same bytes as the first one.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import polars as pl

from antpipe.features.ingest.domain import INTERACTIONS, ITEMS, REJECTS, write_domain
from antpipe.store.store import Store
from benchmarks.embed_text import made_up

SHOP = "shop"


@dataclass(frozen=True)
class Run:
    """The cost of one embedding. rate: texts per second, without loading; seconds: of the whole command."""

    rate: float
    seconds: float
    sha256: str


def make_shop(store: Store, items: int) -> None:
    """A catalogue of generated texts, without interactions."""
    texts = made_up(items)
    empty = {"title": "", "price": None, "currency": None, "category": [], "image_urls": [], "image_files": []}
    table = pl.DataFrame({"item_id": [f"{number:08}" for number in range(items)], "text": texts}).with_columns(
        pl.lit(value, dtype=ITEMS[column]).alias(column) for column, value in empty.items()
    )
    write_domain(
        store.new_domain(SHOP),
        parameters={"format": "random", "items": items},
        items=table.select(list(ITEMS)),
        interactions=pl.DataFrame(schema=INTERACTIONS),
        rejects=pl.DataFrame(schema=REJECTS),
        report={},
        flags=[],
    )


def ways(cores: int) -> dict[str, list[str]]:
    """Flags of each way; each uses all cores."""
    one = ["--threads", "1", "--ray-cpus", "1", "--ray-workers"]
    return {
        f"local, {cores} threads": ["--threads", str(cores)],
        f"ray, {cores} workers of 1 thread": ["--engine", "ray", *one, str(cores)],
        f"ray, 1 worker of {cores} threads": ["--engine", "ray", "--threads", str(cores), "--ray-workers", "1"],
    }


def embed(root: Path, flags: Sequence[str], shard_size: int) -> Run:
    """Run the command on a copy of the store."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(shutil.copytree(root, Path(folder) / "store"))
        words = ["embed-text", "--domains", SHOP, "--encoder", "packaged/all-MiniLM-L6-v2", "--device", "cpu"]
        words += ["--shard-size", str(shard_size), "--store", str(store), "--json", *flags]
        begun = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "antpipe", *words], check=False, stdout=subprocess.PIPE)
        seconds = time.monotonic() - begun
        if done.returncode:
            raise SystemExit(f"antpipe {' '.join(words)} ended with exit code {done.returncode}")
        [result] = json.loads(done.stdout)
        sha256 = hashlib.sha256((store / SHOP / "text.arrow").read_bytes()).hexdigest()
        return Run(result["figures"]["items_per_second"], seconds, sha256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--shard-size", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="64 items, once, without Ray")
    asked = parser.parse_args()
    tried = ways(len(os.sched_getaffinity(0)))
    if asked.quick:
        asked.items, asked.shard_size, asked.repeats = 64, 32, 1
        tried = {way: flags for way, flags in tried.items() if "ray" not in flags}
    runs: dict[str, list[Run]] = {way: [] for way in tried}
    with tempfile.TemporaryDirectory() as folder:
        make_shop(Store(Path(folder)), asked.items)
        for _ in range(asked.repeats):
            for way, flags in tried.items():
                runs[way].append(embed(Path(folder), flags, asked.shard_size))
    first = next(iter(runs.values()))[0]
    print(f"{asked.items:,} texts in shards of {asked.shard_size:,}; medians of {asked.repeats}")
    print(f"{'way':28}  texts/s  seconds  bytes")
    for way, found in runs.items():
        same = "the same" if {run.sha256 for run in found} == {first.sha256} else "OTHERS"
        rate, seconds = median(run.rate for run in found), median(run.seconds for run in found)
        print(f"{way:28} {rate:8,.0f} {seconds:8.1f}  {same}")


if __name__ == "__main__":
    main()

"""Pre-training on a mix of a million items: `python -m benchmarks.large_mix`. Prints time per step and peak memory.

Generates a store of four shops (250,000 items each, random text vectors of width 768, 100,000 users in total) in a
temporary folder, 1.6 GB on disk. Runs `antpipe train --stage pretrain` on it in a process of its own, with one
validation at the end, and `--stage scratch` on one of the shops, whose catalogue is above `--sampled-above`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from antpipe.features.build_sequences import build_sequences
from antpipe.features.ingest.domain import INTERACTIONS, ITEMS, REJECTS, write_domain
from antpipe.settings.features import SequenceConfig
from antpipe.store.store import Store

SHOPS = 4
WIDTH = 768
ROWS_AT_ONCE = 20_000
VALIDATED = 1_000  # positions per shop, ranked among all its items


def make_shop(store: Store, name: str, items: int, users: int, seed: int) -> None:
    """A shop with a random text vector per item, and histories of 5 to 15 items."""
    rng = np.random.default_rng(seed)
    ids = pl.Series("item_id", [f"{number:07}" for number in range(items)])
    lengths = rng.integers(5, 16, users)
    user = np.repeat(np.arange(users), lengths)
    met = rng.choice(items, len(user))
    interactions = pl.DataFrame(
        {
            "user_id": pl.Series(user).cast(pl.String),
            "item_id": ids.gather(met),
            "timestamp": np.arange(len(user), dtype=np.int64),
            "rating": np.full(len(user), 5, np.float32),
        },
        schema=INTERACTIONS,
    )
    empty = {
        "title": "",
        "text": "",
        "price": None,
        "currency": None,
        "category": [],
        "image_urls": [],
        "image_files": [],
    }
    table = pl.DataFrame({"item_id": ids}).with_columns(
        pl.lit(value, dtype=ITEMS[column]).alias(column) for column, value in empty.items()
    )
    domain = store.new_domain(name)
    write_domain(
        domain,
        parameters={"format": "random", "seed": seed, "items": items, "users": users},
        items=table,
        interactions=interactions,
        rejects=pl.DataFrame(schema=REJECTS),
        report={},
        flags=[],
    )
    with domain.writing("text", {"width": WIDTH}) as out:
        with out.feature("text", items, WIDTH) as feature:
            for start in range(0, items, ROWS_AT_ONCE):
                some = rng.standard_normal((min(ROWS_AT_ONCE, items - start), WIDTH), dtype=np.float32)
                feature.values[start : start + len(some)] = some / np.sqrt(WIDTH)
            feature.present[:] = True
        out.details["encoder"] = {"name": "random", "revision": "1"}
    build_sequences(store, [name], SequenceConfig())


def train(store: Store, stage: str, domains: list[str], steps: int) -> dict[str, float]:
    """The cost that `antpipe train` reports for this many steps, with one validation at the end."""
    run = store.root.parent / stage
    words = ["train", "--stage", stage, "--domains", ",".join(domains), "--limit-steps", str(steps)]
    words += ["--valid-sample", str(VALIDATED)]
    done = subprocess.run(
        [sys.executable, "-m", "antpipe", *words, "--out", str(run), "--store", str(store.root)], check=False
    )
    if done.returncode:
        raise SystemExit(f"antpipe {' '.join(words)} ended with exit code {done.returncode}")
    cost: dict[str, float] = json.loads((run / "cost.json").read_text(encoding="utf-8"))
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000, help="items of all shops together")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=30)
    asked = parser.parse_args()
    names = [f"shop-{number}" for number in range(SHOPS)]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        for number, name in enumerate(names):
            make_shop(store, name, asked.items // SHOPS, asked.users // SHOPS, number)
        for stage, domains in (("pretrain", names), ("scratch", names[:1])):
            cost = train(store, stage, domains, asked.steps)
            size = len(domains) * (asked.items // SHOPS)
            print(
                f"{stage:9} {size:>9,} items  {cost['seconds'] / cost['steps']:.3f} s/step  "
                f"peak memory {cost['peak_memory_mb']:,.0f} MB"
            )


if __name__ == "__main__":
    main()

"""What inherited transitions add to the floor of small shops: `python -m benchmarks.inherited STORE DOMAIN...`.

Small shops are drawn, fitted and judged as in benchmarks/zero_shot.py, once with counted transitions alone and once
with those that an item inherits from items with common words (core/untrained.py). No test position is read.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from antpipe.core.batches import examples
from antpipe.core.untrained import from_sequences, unit_texts
from antpipe.core.words import word_neighbours
from antpipe.store.store import Store
from benchmarks.zero_shot import draw, figures, fit, row


def compare(store: Store, name: str, users: int, draws: int) -> str:
    """The row of a size: means over shops, and the change with its standard error over them."""
    domain, found = store.domain(name), []
    texts, words = unit_texts(domain), domain.table("items", ["text"])["text"].to_pylist()
    for seed in range(draws):
        shop, rows = draw(domain.sequences(), users, seed)
        known = from_sequences(shop, texts[rows], word_neighbours([words[row] for row in rows]))
        counted = known.counts.copy()
        counted.data = np.log1p(counted.data)
        fitted = examples(shop, "valid")
        judged = examples(replace(shop, train_end=shop.valid_end, valid_end=shop.valid_end + 1), "valid")
        both = (replace(known, steps=counted), known)
        found.append([figures(one, judged, None, fit(one, fitted, None)) for one in both])
    return row(users, np.array(found))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("domains", nargs="+")
    parser.add_argument("--users", default="500,1000", help="sizes of the small shops")
    parser.add_argument("--draws", type=int, default=8, help="shops of each size, at least 2")
    asked = parser.parse_args(words)
    print("domain  users  counted          with inherited   Recall@10     NDCG@10")
    for name in asked.domains:
        for users in map(int, asked.users.split(",")):
            print(f"{name:6} {compare(Store(asked.store), name, users, asked.draws)}", flush=True)


if __name__ == "__main__":
    main()

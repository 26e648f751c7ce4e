"""How much each part of the floor adds on small shops: `python -m benchmarks.floor_terms STORE DOMAIN...`.

Small shops are drawn, fitted and judged as in benchmarks/zero_shot.py: with the whole floor (core/untrained.py), and
with one part left out at a time. No test position is read.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from unittest.mock import patch

import numpy as np
from scipy.sparse import csr_array

from antpipe.core import untrained
from antpipe.core.batches import examples
from antpipe.core.untrained import Doubles, Floats, from_sequences, unit_texts
from antpipe.core.words import word_neighbours
from antpipe.store.files import Sequences
from antpipe.store.store import Store
from antpipe.training.rehearsal import draw
from benchmarks import zero_shot

WHOLE = "the whole floor"
EVERYTHING = 1 << 30  # items: more than there are
# The constants of core/untrained.py by which a part is left out.
PARTS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        WHOLE: {},
        "without words": {},
        "nothing inherited": {"INHERITED": 0.0},
        "no taste": {"RECENT": 1.0},
        "nothing typical": {"TYPICAL": 0.0},
        "no popularity": {},
        "fitted to all items": {"BEST": EVERYTHING},
    }
)


@contextmanager
def leaving_out(part: str) -> Iterator[None]:
    """Within this block, leave a part out by changing the constants of the floor and of the fit."""
    with ExitStack() as stack:
        for name, value in PARTS[part].items():
            for module in (untrained, zero_shot):
                if hasattr(module, name):
                    stack.enter_context(patch.object(module, name, value))
        if part == "no popularity":
            for weights in (zero_shot.USUAL, zero_shot.SPREADS):
                stack.enter_context(patch.dict(weights, {untrained.POPULARITY: 0.0}))
        yield


def judged(shop: Sequences, later: Sequences, texts: Floats, words: csr_array, part: str) -> Doubles:
    """Recall@10 and NDCG@10 of a shop with these texts (N, d) and words (N, N). later: one position later."""
    with leaving_out(part):
        known = from_sequences(shop, texts, csr_array(words.shape) if part == "without words" else words)
        weights = zero_shot.fit(known, examples(shop, "valid"), None)
        return zero_shot.figures(known, examples(later, "valid"), None, weights)


def compare(store: Store, name: str, users: int, draws: int) -> Iterator[str]:
    """A row for each part: means over shops, and the change from the whole floor with its standard error over them."""
    domain = store.domain(name)
    texts, words = unit_texts(domain), domain.table("items", ["text"])["text"].to_pylist()
    found: dict[str, list[Doubles]] = {part: [] for part in PARTS}
    for seed in range(draws):
        shop, later, rows = draw(domain.sequences(), users, seed)
        near = word_neighbours([words[row] for row in rows])
        for part, figures in found.items():
            figures.append(judged(shop, later, texts[rows], near, part))
    whole = np.array(found[WHOLE])
    for part, figures in found.items():
        means, changes = np.array(figures).mean(0), np.array(figures) - whole
        error = changes.std(0, ddof=1) / np.sqrt(draws)
        shown = [
            f"{change:+.1%} ± {part:.1%}"
            for change, part in zip(changes.mean(0) / whole.mean(0), error / whole.mean(0), strict=True)
        ]
        yield f"{name:6} {users:6}  {part:19}  {means[0]:.4f} / {means[1]:.4f}  {shown[0]:14}  {shown[1]}"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("domains", nargs="+")
    parser.add_argument("--users", default="500,1000", help="sizes of the small shops")
    parser.add_argument("--draws", type=int, default=6, help="shops of each size, at least 2")
    asked = parser.parse_args(words)
    print("domain  users  floor                Recall / NDCG@10  of Recall       of NDCG")
    for name in asked.domains:
        for users in map(int, asked.users.split(",")):
            for row in compare(Store(asked.store), name, users, asked.draws):
                print(row, flush=True)


if __name__ == "__main__":
    main()

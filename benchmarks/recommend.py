"""Recommendations for all users of a large shop, without loading: `python -m benchmarks.recommend`.

Straightforward: scores by numpy in blocks of users, seen items set to minus infinity, a full argsort per row. antpipe:
`best_after`, shard by shard, for a model of the default width, for one with a floor, whose transitions and history are
added per user, and for one with a re-ranker. Both must find the same items. The straightforward way is timed on fewer
users and scaled.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from antpipe.core.batches import Examples
from antpipe.core.floor import items_with_floor
from antpipe.core.model import Ant
from antpipe.core.reranker import POOL
from antpipe.core.scoring import catalogue_vectors, unit_rows
from antpipe.core.untrained import from_sequences, unit
from antpipe.evaluation.vectors import OpenRun
from antpipe.serving.batch import LARGEST_PART
from antpipe.serving.offer import offer_of
from antpipe.serving.recommend import Wishes, best_after
from antpipe.settings.model import ModelConfig
from antpipe.store.domain import Domain
from benchmarks.synthetic_shops import MAX_LEN, WIDTHS, training_data

SIZES, QUICK = (200_000, 50_000), (60, 400)  # users, items
PLAIN_USERS = 2_000
FLOOR_WIDTHS = WIDTHS | {"text": 384}  # of all-MiniLM-L6-v2
WAYS = ("ANT", "with a floor", "re-ranked")


def opened(users: int, items: int, way: str) -> tuple[OpenRun, Examples]:
    """A model with random weights, opened for a made-up shop, and the histories of its users."""
    torch.manual_seed(0)
    floor = way != WAYS[0]
    data = training_data((items,), users, int(5.2 * users))
    catalogue, sequences = data.catalogue, data.sequences[0]
    config = ModelConfig(floor=floor, history_score=floor, reranker=way == WAYS[2])
    model = Ant(config, WIDTHS, MAX_LEN).eval()
    if model.reranker is not None:
        torch.nn.init.normal_(model.reranker.last.weight)
        model.reranker.weight.detach().fill_(1.0)
    encoded = catalogue_vectors(model, catalogue, "shop-0", torch.device("cpu"))
    vectors, known = unit_rows(encoded.clone()), None
    if floor:
        texts, _ = catalogue.gather(np.arange(items), "text", WIDTHS["text"])
        short = unit(np.ascontiguousarray(texts[:, : FLOOR_WIDTHS["text"]]))
        known = from_sequences(sequences, short, catalogue.words_of("shop-0"))
        vectors = items_with_floor(model, vectors, known)
    ids = [f"i{row}" for row in range(items)]
    run = OpenRun(Path("run"), Domain(Path("store"), "shop-0"), ids, model, MAX_LEN, encoded, vectors, catalogue, known)
    ends = sequences.offsets[1:]
    return run, Examples(sequences.user, sequences.items, sequences.offsets[:-1], ends, MAX_LEN)


def plain(run: OpenRun, part: Examples, k: int) -> np.ndarray[Any, Any]:
    """The straightforward way: rows (Q, k)."""
    queries, added, found = run.after(part), run.added(part), []
    for start in range(0, len(part), 256):
        block = np.arange(start, min(start + 256, len(part)))
        scores = queries[block] @ run.items.T
        more = added(block)
        scores.reshape(-1)[more.keys] += more.scores.astype(np.float32)
        for row, number in enumerate(block.tolist()):
            scores[row, part.items[part.start[number] : part.end[number]]] = -np.inf
        rows = np.argsort(-scores, axis=1, kind="stable")[:, : max(k, POOL if run.rerank else k)]
        if run.rerank is not None:
            some, values = part.some(block), np.take_along_axis(scores, rows, 1).astype(np.float64)
            again = run.rerank(some, rows, values, run.of_vectors(queries[block], rows))
            rows = np.take_along_axis(rows, np.lexsort((rows, -again), 1), 1)
        found.append(rows[:, :k])
    return np.concatenate(found)


def ours(run: OpenRun, part: Examples, k: int) -> np.ndarray[Any, Any]:
    """antpipe's way: rows (Q, k)."""
    offer, wishes, found = offer_of(run), Wishes(k), []
    spans = list(zip(part.start.tolist(), part.end.tolist(), strict=True))
    for start in range(0, len(part), LARGEST_PART):
        histories = [part.items[a:b] for a, b in spans[start : start + LARGEST_PART]]
        found.append(best_after(run, histories, offer, wishes).rows)
    return np.concatenate(found)


def compare(users: int, items: int, k: int, way: str) -> str:
    """The row of one way, after checking that both find the same items for some users."""
    run, part = opened(users, items, way)
    few = part.some(slice(0, min(users, PLAIN_USERS)))
    began = time.perf_counter()
    theirs = plain(run, few, k)
    slow = (time.perf_counter() - began) * users / len(few)
    same = float((theirs == ours(run, few, k)).mean())
    if same < 0.99:  # near ties, which float32 cannot tell apart
        raise SystemExit(f"{way}: only {same:.1%} of the items found are the same")
    wall, cpu = time.perf_counter(), time.process_time()
    ours(run, part, k)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    rate = users / wall * 60
    return f"{way:14}{run.items.shape[1]:>6}{slow:>19.0f}{wall:>9.1f}{cpu:>9.1f}{rate:>18,.0f}{same:>8.2%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=SIZES[0])
    parser.add_argument("--items", type=int, default=SIZES[1])
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    asked = parser.parse_args()
    users, items = QUICK if asked.quick else (asked.users, asked.items)
    print(
        f"{users:,} users x {items:,} items, k = {asked.k}, {torch.get_num_threads()} threads of {os.cpu_count()} CPUs"
    )
    print(
        f"{'way':14}{'width':>6}{'straightforward s':>19}{'wall s':>9}{'CPU s':>9}{'users per minute':>18}{'same':>8}"
    )
    for way in [asked.way] if asked.way else WAYS:
        print(compare(users, items, asked.k, way))


if __name__ == "__main__":
    main()

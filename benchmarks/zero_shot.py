"""What a pre-trained run adds to the floor of small shops, untrained on them: `python -m benchmarks.zero_shot`.

Small shops are drawn from a domain: some of its users, with the items that they met. Each gets the weights of its floor
(core/untrained.py), and of its floor with one term more, the cosine of the run's vectors. They are fitted to the last
training position of each user, whose transitions are left out, and judged by the validation position. No test
position is read.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from antpipe.core.batches import Examples, examples
from antpipe.core.ranking import catalogue_vectors, history_vectors, unit_rows
from antpipe.core.untrained import (
    BEST,
    LEAST,
    ROUNDS,
    SPREAD,
    TERMS,
    TYPICAL,
    Doubles,
    Floats,
    Untrained,
    cosines,
    from_sequences,
    history_matrix,
    most_likely,
    step_rows,
    text_queries,
    unit_texts,
    word_rows,
)
from antpipe.core.words import word_neighbours
from antpipe.runtime.arrays import within_groups
from antpipe.settings.model import FLOOR
from antpipe.store.files import Sequences
from antpipe.store.store import Store
from antpipe.training.run import open_run

RUN = "run"  # the further term
USUAL = FLOOR | {RUN: 0.0}  # mean and standard deviation of the normal distribution around which a weight is fitted
SPREADS = SPREAD | {RUN: 5.0}
POSITIONS_AT_ONCE = 250
Ints = NDArray[np.int64]
Cosines = Callable[[Examples], Floats]  # (Q, N) of the run's vectors


def draw(sequences: Sequences, users: int, seed: int) -> tuple[Sequences, Ints]:
    """Random users as a shop whose last training position is the one for validation, and the rows of its items."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(sequences.user))[:users])
    count = np.diff(sequences.offsets)[chosen]
    places = np.repeat(sequences.offsets[:-1][chosen], count) + within_groups(count)
    rows, items = np.unique(sequences.items[places], return_inverse=True)
    end = sequences.train_end[chosen]
    shop = Sequences(
        np.arange(len(chosen), dtype=np.int32),
        np.concatenate([[0], np.cumsum(count)]),
        items.astype(np.int32),
        np.maximum(end - 1, 1).astype(np.int32),
        end,
        sequences.max_len,
    )
    return shop, rows.astype(np.int64)


def terms_of(known: Untrained, part: Examples, run: Cosines | None) -> list[Floats]:
    """The terms (Q, N) of each position and item, in the order of TERMS; that of the run comes last."""
    n = len(known.new)
    found = [
        cosines(known.texts, text_queries(known, part)) - TYPICAL * known.typical,
        *(rows.toarray() for rows in (word_rows(known, part), step_rows(known, part), history_matrix(part, n))),
        *(np.broadcast_to(one, (len(part), n)) for one in (known.new.astype(np.float32), known.popularity)),
    ]
    return found if run is None else [*found, run(part)]


def fit(known: Untrained, part: Examples, run: Cosines | None) -> Doubles:
    """The weights that `fit_weights` would find, with a further one for the run."""
    names = TERMS if run is None else (*TERMS, RUN)
    usual, spread = (np.array([numbers[name] for name in names]) for numbers in (USUAL, SPREADS))
    least = np.array([LEAST.get(name, -np.inf) for name in names])
    terms, weights = terms_of(known, part, run), usual
    for _ in range(ROUNDS):
        scores = sum(np.float32(weight) * term for weight, term in zip(weights, terms, strict=True))
        best = np.argpartition(-scores, min(BEST, len(known.new)) - 1, 1)[:, :BEST]
        hit = best == part.targets()[:, None]
        kept = np.flatnonzero(hit.any(1))
        some = np.stack([np.take_along_axis(term[kept], best[kept], 1) for term in terms], 2).astype(np.float64)
        weights = most_likely(some, hit[kept].argmax(1), usual, spread, least)
    return weights


def figures(known: Untrained, part: Examples, run: Cosines | None, weights: Doubles) -> Doubles:
    """Recall@10 and NDCG@10 among all items."""
    ranks = []
    for start in range(0, len(part), POSITIONS_AT_ONCE):
        some = part.some(slice(start, start + POSITIONS_AT_ONCE))
        terms = terms_of(known, some, run)
        scores = sum(np.float32(weight) * term for weight, term in zip(weights, terms, strict=True))
        own = scores[np.arange(len(some)), some.targets()][:, None]
        ranks.append((scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2 + 1)
    rank = np.concatenate(ranks)
    hit = rank <= 10
    return np.array([hit.mean(), np.where(hit, 1 / np.log2(rank + 1), 0).mean()])


def compare(store: Store, name: str, run: Path, users: int, draws: int) -> str:
    """The row of a size: means over shops, and the change with its standard error over them."""
    import torch

    model, _, catalogue = open_run(store, run, name)
    encoded = catalogue_vectors(model.eval(), catalogue, name, torch.device("cpu"))
    items, domain = unit_rows(encoded.clone()), store.domain(name)
    texts, words = unit_texts(domain), domain.table("items", ["text"])["text"].to_pylist()
    found = []
    for seed in range(draws):
        shop, rows = draw(domain.sequences(), users, seed)
        known = from_sequences(shop, texts[rows], word_neighbours([words[row] for row in rows]))

        def by_run(part: Examples, rows: Ints = rows) -> Floats:
            queries = unit_rows(history_vectors(model, encoded[torch.from_numpy(rows)], part))
            return queries @ items[rows].T

        fitted = examples(shop, "valid")
        judged = examples(replace(shop, train_end=shop.valid_end, valid_end=shop.valid_end + 1), "valid")
        found.append([figures(known, judged, more, fit(known, fitted, more)) for more in (None, by_run)])
    return row(users, np.array(found))


def row(users: int, found: Doubles) -> str:
    """found: (draws, without and with the run, metrics)."""
    floor, more = found.mean(0)
    error = (found[:, 1] - found[:, 0]).std(0, ddof=1) / np.sqrt(len(found)) / floor
    changes = [f"{new / old - 1:+.1%} ± {part:.1%}" for old, new, part in zip(floor, more, error, strict=True)]
    return f"{users:6}  {floor[0]:.4f} / {floor[1]:.4f}  {more[0]:.4f} / {more[1]:.4f}  {'  '.join(changes)}"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("domain")
    parser.add_argument("run", type=Path, help="a pre-trained run that has not seen the domain")
    parser.add_argument("--users", default="500,1000", help="sizes of the small shops")
    parser.add_argument("--draws", type=int, default=8, help="shops of each size, at least 2")
    asked = parser.parse_args(words)
    print(" users  floor            with the run     Recall@10     NDCG@10")
    for users in map(int, asked.users.split(",")):
        print(compare(Store(asked.store), asked.domain, asked.run, users, asked.draws), flush=True)


if __name__ == "__main__":
    main()

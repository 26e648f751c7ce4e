"""What a pre-trained run adds to the floor of small shops, untrained on them: `python -m benchmarks.zero_shot`.

Small shops are drawn from a domain: some of its users, with the items that they met. Each gets the weights of its floor
(core/untrained.py), and of its floor with one more term, the cosine of the run's vectors. They are fitted to the last
training position of each user, whose transitions are left out, and judged by the validation position. If the run has a
re-ranker (core/reranker.py), the re-ranked floor is judged too: with a re-ranker that learned from the shop alone, with
the run's own as it is, and with the run's own after it learned from the shop. No test position is read.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from antpipe.core.batches import Examples, examples
from antpipe.core.reranker import POOL, best_of, features_of
from antpipe.core.reranker_network import Reranker
from antpipe.core.scoring import catalogue_vectors, history_vectors, unit_rows
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
    blend,
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
from antpipe.settings.model import FLOOR
from antpipe.store.store import Store
from antpipe.training.opening import open_run
from antpipe.training.rehearsal import (
    ALONE_EPOCHS,
    ALONE_POSITIONS,
    EPOCHS,
    LEAST_POSITIONS,
    Lessons,
    draw,
    gathered,
    learn,
    lessons_among,
)

RUN = "run"  # the additional term
USUAL = FLOOR | {RUN: 0.0}  # mean and standard deviation of the normal distribution around which a weight is fitted
SPREADS = SPREAD | {RUN: 5.0}
POSITIONS_AT_ONCE = 250
Ints = NDArray[np.int64]
Cosines = Callable[[Examples], Floats]  # (Q, N) of the run's vectors


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
    """The weights that `fit_weights` would find, with an additional one for the run."""
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
    return recall_and_ndcg(np.concatenate(ranks))


def recall_and_ndcg(rank: Doubles) -> Doubles:
    hit = rank <= 10
    return np.array([hit.mean(), np.where(hit, 1 / np.log2(rank + 1), 0).mean()])


def named(weights: Doubles) -> dict[str, float]:
    return dict(zip(TERMS, weights.tolist(), strict=True))


def taught_by(lessons: Lessons, reranker: Reranker, least: int, epochs: int) -> Reranker:
    """The re-ranker after it has learned from a shop, as it does in a run."""
    if len(lessons.place) >= least:
        learn(reranker, lessons, 0, epochs)
    return reranker


def reranked_figures(known: Untrained, part: Examples, weights: Doubles, reranker: Reranker) -> Doubles:
    """The same after re-ranking the best items."""
    import torch

    ranks = []
    for start in range(0, len(part), POSITIONS_AT_ONCE):
        some = part.some(slice(start, start + POSITIONS_AT_ONCE))
        rows, logits = best_of(blend(known, some, named(weights)), POOL)
        with torch.inference_mode():
            scores = logits + reranker(torch.from_numpy(features_of(known, some, rows, logits))).numpy()
        own = rows == some.targets()[:, None]
        goal = np.where(own, scores, np.inf).min(1, keepdims=True)
        ranks.append(np.where(own.any(1), (scores > goal).sum(1) + ((scores == goal).sum(1) - 1) / 2 + 1, np.inf))
    return recall_and_ndcg(np.concatenate(ranks))


def compare(store: Store, name: str, run: Path, users: int, draws: int) -> str:
    """The row of a size: means over shops, and the changes with their standard errors over them."""
    import torch

    model, _, catalogue = open_run(store, run, name)
    encoded = catalogue_vectors(model.eval(), catalogue, name, torch.device("cpu"))
    items, domain = unit_rows(encoded.clone()), store.domain(name)
    texts, words = unit_texts(domain), domain.table("items", ["text"])["text"].to_pylist()
    found = []
    for seed in range(draws):
        shop, later, rows = draw(domain.sequences(), users, seed)
        known = from_sequences(shop, texts[rows], word_neighbours([words[row] for row in rows]))

        def by_run(part: Examples, rows: Ints = rows) -> Floats:
            queries = unit_rows(history_vectors(model, encoded[torch.from_numpy(rows)], part))
            return queries @ items[rows].T

        fitted = examples(shop, "valid")
        judged, weights = examples(later, "valid"), fit(known, fitted, None)
        ways = [figures(known, judged, None, weights), figures(known, judged, by_run, fit(known, fitted, by_run))]
        if model.reranker is not None:
            parts = lessons_among(known, fitted.some(np.flatnonzero(fitted.end > fitted.start)), named(weights))
            lessons = gathered(parts)
            rerankers = (
                taught_by(lessons, Reranker(), ALONE_POSITIONS, ALONE_EPOCHS),
                model.reranker,
                taught_by(lessons, copy.deepcopy(model.reranker), LEAST_POSITIONS, EPOCHS),
            )
            ways += [reranked_figures(known, judged, weights, reranker) for reranker in rerankers]
        found.append(ways)
    return row(users, np.array(found))


def row(users: int, found: Doubles) -> str:
    """found: (draws, the floor and other ways, metrics)."""
    floor, *others = found.mean(0)
    shown = [f"{users:6}", f"{floor[0]:.4f} / {floor[1]:.4f}"]
    for number, other in enumerate(others, 1):
        error = (found[:, number] - found[:, 0]).std(0, ddof=1) / np.sqrt(len(found)) / floor
        changes = [f"{new / old - 1:+.1%} ± {part:.1%}" for old, new, part in zip(floor, other, error, strict=True)]
        shown.append(f"{other[0]:.4f} / {other[1]:.4f}  {', '.join(changes):30}")
    return "  ".join(shown).rstrip()


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("domain")
    parser.add_argument("run", type=Path, help="a pre-trained run that has not seen the domain")
    parser.add_argument("--users", default="500,1000", help="sizes of the small shops")
    parser.add_argument("--draws", type=int, default=8, help="shops of each size, at least 2")
    asked = parser.parse_args(words)
    ways = ("with the run's vectors", "re-ranked by itself", "by other shops", "by other shops and itself")
    print("  ".join([" users", f"{'floor':15}", *(f"{way:47}" for way in ways)]).rstrip())
    for users in map(int, asked.users.split(",")):
        print(compare(Store(asked.store), asked.domain, asked.run, users, asked.draws), flush=True)


if __name__ == "__main__":
    main()

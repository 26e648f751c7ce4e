"""Beyond accuracy: what the lists of recommendations are like, whoever the target is (docs/verdict.md has the sources).

All figures are about the first k items of one list per position, at the cutoffs of the ranking, under both protocols.

    coverage    share of the catalogue that is in at least one list (Ge, Delgado-Battenfeld and Jannach 2010)
    gini        how unequally items are recommended: 0 equally often, 1 always the same (Shani and Gunawardana 2011)
    popularity  mean over lists of the mean number of training interactions of their items
    novelty     mean over lists of the mean of -log2 p, in bits; p is the item's share of the training interactions,
                after adding one for each item of the catalogue (Vargas and Castells 2011, free discovery)
    distance    mean over lists of the mean of 1 - cosine over pairs of items (Ziegler et al. 2005), by the domain's own
                item vectors, the same for every model; lists with fewer than two items with a vector are left out
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antpipe.core.batches import Examples, examples
from antpipe.core.catalogue import Ints
from antpipe.core.ranking import CUTOFFS, DEPTH, PROTOCOLS, Floats, nearest
from antpipe.core.reranker import POOL, Rerank, best_of
from antpipe.core.untrained import history_matrix
from antpipe.evaluation.baselines.judge import BASELINES
from antpipe.evaluation.ranks import read_evaluation
from antpipe.evaluation.slices import training_counts
from antpipe.evaluation.vectors import OpenRun, with_vectors
from antpipe.settings.model import EMBEDDED
from antpipe.store.documents import write_json
from antpipe.store.domain import Domain
from antpipe.store.next_command import spell
from antpipe.store.store import Store
from antpipe.training.folder import RunFolder
from antpipe.training.opening import open_run

AT_ONCE = 256  # lists; the vectors of their items are in memory
SCORES_AT_ONCE = 1 << 22  # of baselines
Best = Callable[[Examples], dict[str, Ints]]  # examples -> by protocol, item rows (B, DEPTH), best first; -1: no more


def beyond_accuracy(store: Store, run: Path, domain: str, split: str) -> dict[str, Any]:
    """The figures of a run, also added to the JSON file that evaluate_run wrote. Raises DataError as `open_run`."""
    opened = with_vectors(store, run, domain, *open_run(store, run, domain))
    return _added(run, store.domain(domain), split, lambda part: best_of_run(opened, part))


def beyond_accuracy_of_baseline(store: Store, name: str, domain: str, folder: Path, split: str) -> dict[str, Any]:
    """The figures of a baseline, also added to the JSON file that judge_baseline wrote."""
    here = store.domain(domain)
    score, _ = BASELINES[name].fit(here)
    return _added(folder, here, split, lambda part: best_of_scores(np.asarray(score(part), np.float64), part))


def _added(folder: Path, domain: Domain, split: str, best: Best) -> dict[str, Any]:
    path = RunFolder(folder).evaluation(domain.name, split, "exact")
    found = figures_of(domain, examples(domain.sequences(), split), best)
    figures = read_evaluation(
        path, spell("evaluate", domains=[domain.name], store=domain.root, flags=["--run", folder])
    )
    write_json(path, {**figures, "beyond": found})
    return found


def figures_of(domain: Domain, part: Examples, best: Best) -> dict[str, Any]:
    """`protocols`: by protocol the figures named `coverage@10` and so on; `vectors`: their modality.

    Without a modality of vectors, `vectors` is None and there are no distances.
    """
    n = domain.core_rows()
    there = domain.manifest()
    modality = next((name for name in EMBEDDED if name in there), None)
    vectors = _unit(domain, modality) if modality else None
    counts = training_counts(domain.sequences(), n)
    lists = Lists(n, counts, vectors)
    for rows in _blocks(len(part), n):
        for protocol, found in best(part.some(rows)).items():
            lists.add(protocol, found)
    return {"vectors": modality, "protocols": {protocol: lists.figures(protocol) for protocol in PROTOCOLS}}


class Lists:
    """Sums over lists of recommendations, by protocol and cutoff.

    counts: (N,) training interactions of each item. vectors: (N, D) of length 1, or 0 for an item that has none.
    """

    def __init__(self, n: int, counts: Ints, vectors: Floats | None) -> None:
        self.n, self.counts, self.vectors = n, counts.astype(np.float64), vectors
        self.bits = -np.log2((self.counts + 1) / (self.counts.sum() + n))
        self.times = {(p, k): np.zeros(n, np.int64) for p in PROTOCOLS for k in CUTOFFS}
        # of popularity, novelty and distance: the sum over lists, and how many lists have one
        self.sums = {(p, k): np.zeros((3, 2)) for p in PROTOCOLS for k in CUTOFFS}

    def add(self, protocol: str, found: Ints) -> None:
        """found: (B, DEPTH) item rows, best first; -1: no more."""
        for k in CUTOFFS:
            some = found[:, :k]
            real = some >= 0
            self.times[protocol, k] += np.bincount(some[real], minlength=self.n)
            filled = np.maximum(real.sum(1), 1)
            rows = [np.where(real, values[some], 0).sum(1) / filled for values in (self.counts, self.bits)]
            sums = self.sums[protocol, k]
            any_item = real.any(1)
            for number, values in enumerate(rows):
                sums[number] += values[any_item].sum(), any_item.sum()
            if self.vectors is not None:
                apart = distances(self.vectors, some)
                sums[2] += np.nansum(apart), np.isfinite(apart).sum()

    def figures(self, protocol: str) -> dict[str, float]:
        found = {}
        for k in CUTOFFS:
            times, sums = self.times[protocol, k], self.sums[protocol, k]
            found[f"coverage@{k}"] = float((times > 0).mean())
            found[f"gini@{k}"] = gini(times)
            for name, (total, lists) in zip(("popularity", "novelty", "distance"), sums, strict=True):
                if lists:
                    found[f"{name}@{k}"] = float(total / lists)
        return found


def gini(times: NDArray[Any]) -> float:
    """The Gini coefficient of how often each item is recommended: 0 all equally often, 1 only one item."""
    n, total = len(times), times.sum()
    if n < 2 or not total:
        return 0.0
    rank = 2 * np.arange(1, n + 1) - n - 1
    return float((rank * np.sort(times)).sum() / ((n - 1) * total))


def distances(vectors: Floats, lists: Ints) -> NDArray[np.float64]:
    """(B,) mean of 1 - cosine over the pairs of each list, NaN if fewer than two of its items have a vector.

    The sum of all cosines is the squared length of the sum of the vectors. lists: (B, k) item rows; -1: none.
    """
    filled: NDArray[np.bool_] = np.any(vectors != 0, axis=1)
    there = (lists >= 0) & filled[lists]
    total = np.einsum("bk,bkd->bd", there.astype(np.float32), vectors[lists], dtype=np.float64)
    count = there.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = ((total**2).sum(1) - count) / (count * (count - 1))
    return np.where(count > 1, 1 - mean, np.nan)


def best_of_run(opened: OpenRun, part: Examples) -> dict[str, Ints]:
    """The best items after each history, by protocol."""
    if (rerank := opened.rerank) is not None:
        return reranked_best_of_run(opened, part, rerank)
    n = len(opened.items)
    queries, hidden = opened.after(part), history_matrix(part, n).tocsr()
    more = opened.added(part)(np.arange(len(part)))
    longest = int(np.diff(hidden.indptr).max(initial=0))
    scores, rows = nearest(queries, opened.items, min(n, DEPTH + longest))
    owner, item = np.divmod(more.keys, n)
    dots = np.einsum("sd,sd->s", queries[owner], opened.items[item], dtype=np.float64) + more.scores
    found: dict[str, Ints] = {protocol: np.full((len(part), DEPTH), -1) for protocol in PROTOCOLS}
    ends = np.searchsorted(owner, np.arange(len(part) + 1))
    for number in range(len(part)):
        score = dict(zip(rows[number].tolist(), scores[number].tolist(), strict=True))
        own = slice(ends[number], ends[number + 1])
        score.update(zip(item[own].tolist(), dots[own].tolist(), strict=True))
        ordered = sorted(score, key=lambda one: (-score[one], one))
        seen = set(hidden.indices[hidden.indptr[number] : hidden.indptr[number + 1]].tolist())
        unseen = [one for one in ordered if one not in seen]
        for protocol, kept in (("all", ordered), ("unseen", unseen)):
            found[protocol][number, : min(DEPTH, len(kept))] = kept[:DEPTH]
    return found


def reranked_best_of_run(opened: OpenRun, part: Examples, rerank: Rerank) -> dict[str, Ints]:
    """The same for a run with a re-ranker, which re-scores, for each protocol, the best items that it allows, as in
    `rerank_examples` (core/ranking.py)."""
    queries = opened.after(part)
    scores = queries.astype(np.float64) @ opened.items.T.astype(np.float64)
    more = opened.added(part)(np.arange(len(part)))
    scores.ravel()[more.keys] += more.scores
    hidden = history_matrix(part, len(opened.items)).toarray() > 0
    found: dict[str, Ints] = {protocol: np.full((len(part), DEPTH), -1) for protocol in PROTOCOLS}
    for protocol, allowed in (("all", scores), ("unseen", np.where(hidden, -np.inf, scores))):
        rows, values = best_of(allowed.astype(np.float32), POOL)
        again = rerank(part, rows, values, opened.of_vectors(queries, rows))
        order = np.lexsort((rows, -again), 1)[:, :DEPTH]  # places without an item come last
        found[protocol][:, : order.shape[1]] = np.take_along_axis(rows, order, 1)
    return found


def best_of_scores(scores: NDArray[np.float64], part: Examples) -> dict[str, Ints]:
    """The best items by dense scores (B, N), by protocol; ties go to the first row."""
    hidden = history_matrix(part, scores.shape[1]).toarray() > 0
    found = {}
    for protocol, values in (("all", scores), ("unseen", np.where(hidden, -np.inf, scores))):
        best = np.argsort(-values, axis=1, kind="stable")[:, :DEPTH]
        left_out = np.take_along_axis(values, best, axis=1) == -np.inf
        wide = np.full((len(scores), DEPTH), -1)
        wide[:, : best.shape[1]] = np.where(left_out, -1, best)
        found[protocol] = wide
    return found


def _unit(domain: Domain, modality: str) -> Floats:
    """(N, D) vectors of a modality scaled to length 1, zero for items without one."""
    feature = domain.core_feature(modality)
    values = np.asarray(feature.values, np.float32) * np.asarray(feature.present, np.float32)[:, None]
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _blocks(positions: int, n: int) -> Iterator[slice]:
    size = max(1, min(AT_ONCE, SCORES_AT_ONCE // n))
    return (slice(begin, begin + size) for begin in range(0, positions, size))


def means(found: list[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By protocol, the means over the seeds of an arm."""
    return {
        protocol: {
            name: float(np.mean([one["protocols"][protocol][name] for one in found]))
            for name in found[0]["protocols"][protocol]
        }
        for protocol in found[0]["protocols"]
    }

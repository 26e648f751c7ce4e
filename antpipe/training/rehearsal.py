"""What pre-training learns for shops that are still small: how to rank again what a floor ranks best.

Small shops are drawn from each source: some of its users, with the items that they met. Each gets a floor of its own
(core/untrained.py), as if it were a target, with weights fitted to the last training position of its users, which is
left out of the transitions. From the features of core/reranker.py at these positions and at the next ones, those of
validation, a network learns by the softmax over each pool what to add to the scores of a floor. No test position is
read.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from antpipe.core.batches import Examples, examples
from antpipe.core.reranker import EXAMPLES_AT_ONCE, FEATURES, POOL, best_of, features_of
from antpipe.core.untrained import Floats, Ints, Untrained, blend, fit_weights, from_sequences, unit
from antpipe.core.words import word_neighbours
from antpipe.runtime.arrays import within_groups
from antpipe.runtime.logs import log
from antpipe.store.files import Sequences
from antpipe.store.store import Store
from antpipe.training.data import TrainingData

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant
    from antpipe.core.reranker_network import Reranker

# Users of a shop: how many such a source gives. Without those of 8,000, a whole table of 48,000 gained nothing.
SHOPS: Mapping[int, int] = {500: 16, 1000: 8, 2000: 4, 4000: 2, 8000: 1}
MOST_POSITIONS = 75_000  # of all sources, with 12 kB each
LEAST_POSITIONS = 300  # from fewer, nothing is learned
EPOCHS, BATCH, LR, WEIGHT_DECAY = 3, 64, 1e-3, 1e-2
BELOW_BEST = FEATURES.index("below best")
SAMPLED, LEAST_SPREAD = 2000, 1e-3  # positions from which features are standardised, and the least that they vary
LOWEST = -60.0  # logits below the best, as a feature: a place of the pool without an item is further below


@dataclass(frozen=True)
class Lessons:
    """Positions whose target is in the pool. features: (P, POOL, F); place: (P,) of the target in the pool."""

    features: NDArray[np.float16]
    place: Ints


@dataclass(frozen=True)
class Source:
    """A domain to draw shops from. texts: (N, d) unit vectors; raw: the text of each item; None if it reads none."""

    sequences: Sequences
    texts: Floats
    raw: list[str | None] | None


def rehearse(model: "Ant", store: Store, data: TrainingData, seed: int, *, words: bool) -> None:
    """Teach the re-ranker of a model on shops drawn from the domains of its pre-training.

    words: whether its floors read the words of items. Where the domains give too few positions, it stays unused.
    """
    import torch

    assert model.reranker is not None
    quota, where = MOST_POSITIONS // len(data.catalogue.domains), ", ".join(data.catalogue.domains)
    sources = sources_of(model, store, data, words=words)
    lessons = gathered(one for source in sources for one in lessons_of(source, seed, quota))
    count = len(lessons.place)
    if count < LEAST_POSITIONS:
        log.info(f"{where}: only {count} positions to learn re-ranking from: nothing is learned")
        return
    learned = copy.deepcopy(model.reranker).cpu()  # small products, fast enough there
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        before, after = learn(learned, lessons, seed)
    model.reranker.load_state_dict(learned.state_dict())
    log.info(f"{where}: re-ranking learned from {count:,} positions of small shops: loss {before:.4f} -> {after:.4f}")


def gathered(parts: Iterator[Lessons]) -> Lessons:
    """Lessons, at most MOST_POSITIONS, as one."""
    features, place = np.empty((MOST_POSITIONS, POOL, len(FEATURES)), np.float16), np.empty(MOST_POSITIONS, np.int64)
    end = 0
    for one in parts:
        begin, end = end, end + len(one.place)
        features[begin:end], place[begin:end] = one.features, one.place
    return Lessons(features[:end], place[:end])


def sources_of(model: "Ant", store: Store, data: TrainingData, *, words: bool) -> Iterator[Source]:
    catalogue = data.catalogue
    for name, sequences in zip(catalogue.domains, data.sequences, strict=True):
        rows = catalogue.rows(name)
        texts = np.zeros((len(rows), 0), np.float32)
        if "text" in model.widths:
            texts = unit(catalogue.gather(rows, "text", model.widths["text"])[0])
        raw = store.domain(name).table("items", ["text"])["text"].to_pylist()[: len(rows)] if words else None
        yield Source(sequences, texts, raw)


def lessons_of(source: Source, seed: int, quota: int) -> Iterator[Lessons]:
    """What the shops of one source teach, at most `quota` positions. Sizes take turns, as often as they have shops."""
    users, left = len(source.sequences.user), quota
    sizes = [size for size in SHOPS if 2 * size <= users] or [max(1, users // 2)]
    shops = [
        ((number + 0.5) / SHOPS.get(size, 1), size, number) for size in sizes for number in range(SHOPS.get(size, 1))
    ]
    for _, size, number in sorted(shops):
        if left <= 0:
            break
        for one in shop_lessons(source, size, hash_of(seed, size, number)):
            yield Lessons(one.features[:left], one.place[:left])
            left -= len(one.place[:left])


def hash_of(seed: int, size: int, number: int) -> int:
    """The seed of a draw."""
    return int(np.random.SeedSequence([seed, size, number]).generate_state(1)[0])


def shop_lessons(source: Source, users: int, seed: int) -> Iterator[Lessons]:
    """What one shop of so many users teaches: at the positions that its floor is fitted to, and at the next ones."""
    shop, later, rows = draw(source.sequences, users, seed)
    words = word_neighbours([None if source.raw is None else source.raw[row] for row in rows.tolist()])
    known = from_sequences(shop, source.texts[rows], words)
    fitted = examples(shop, "valid")
    weights = fit_weights(known, fitted)
    for everything in (fitted, examples(later, "valid")):
        part = everything.some(np.flatnonzero(everything.end > everything.start))
        for begin in range(0, len(part), EXAMPLES_AT_ONCE):
            yield lessons_at(known, part.some(slice(begin, begin + EXAMPLES_AT_ONCE)), weights)


def lessons_at(known: Untrained, part: Examples, weights: Mapping[str, float]) -> Lessons:
    rows, logits = best_of(blend(known, part, weights), POOL)
    hit = rows == part.targets()[:, None]
    kept = np.flatnonzero(hit.any(1))
    features = features_of(known, part.some(kept), rows[kept], logits[kept])
    wide = np.zeros((len(kept), POOL, features.shape[2]), np.float16)
    wide[:, : features.shape[1]] = features
    wide[:, features.shape[1] :, BELOW_BEST] = -np.inf
    return Lessons(wide, hit[kept].argmax(1))


def draw(sequences: Sequences, users: int, seed: int) -> tuple[Sequences, Sequences, Ints]:
    """Random users as a shop whose last training position is the one for validation, the same shop one position later,
    and the rows of its items."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(sequences.user))[:users])
    count = np.diff(sequences.offsets)[chosen]
    places = np.repeat(sequences.offsets[:-1][chosen], count) + within_groups(count)
    rows, items = np.unique(sequences.items[places], return_inverse=True)
    end, offsets = sequences.train_end[chosen], np.concatenate([[0], np.cumsum(count)])

    def shop(train_end: Any, valid_end: Any) -> Sequences:
        users_of = np.arange(len(chosen), dtype=np.int32)
        return Sequences(users_of, offsets, items.astype(np.int32), train_end, valid_end, sequences.max_len)

    earlier = np.maximum(end - 1, 1).astype(np.int32)
    return shop(earlier, end), shop(end, sequences.valid_end[chosen]), rows.astype(np.int64)


def learn(reranker: "Reranker", lessons: Lessons, seed: int) -> tuple[float, float]:
    """Fit the network, which is then used. Returns the mean loss of the floors alone and of the last epoch."""
    import torch
    from torch.nn.functional import cross_entropy

    features, place = lessons.features, torch.from_numpy(lessons.place)
    middle, spread = standard(features)
    initialise(reranker)
    layers = (reranker.first, reranker.second, reranker.last)
    parameters = [one.requires_grad_() for layer in layers for one in layer.parameters()]
    optimiser = torch.optim.AdamW(parameters, LR, weight_decay=WEIGHT_DECAY)
    rng, steps, done, before, after = np.random.default_rng(seed), EPOCHS * -(-len(place) // BATCH), 0, 0.0, 0.0
    for _ in range(EPOCHS):
        before = after = 0.0
        for some in np.array_split(rng.permutation(len(place)), -(-len(place) // BATCH)):
            read = torch.from_numpy(features[some]).float()
            scores, targets = read[..., BELOW_BEST], place[some]
            loss = cross_entropy(scores + reranker((read.clamp(min=LOWEST) - middle) / spread), targets)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for group in optimiser.param_groups:
                group["lr"] = LR * (1 - done / steps)
            optimiser.step()
            done += 1
            before += float(cross_entropy(scores, targets)) * len(some) / len(place)
            after += float(loss.detach()) * len(some) / len(place)
    fold(reranker, middle, spread)
    for one in parameters:
        one.requires_grad_(False)
    return before, after


def initialise(reranker: "Reranker") -> None:
    """Values as torch draws them, with which nothing is added to any score yet."""
    for layer in (reranker.first, reranker.second, reranker.last):
        layer.reset_parameters()
    reranker.reset()
    reranker.weight.detach().fill_(1.0)


def standard(features: NDArray[np.float16]) -> "tuple[torch.Tensor, torch.Tensor]":
    """Mean and standard deviation (F,) of features (P, C, F), from some of the positions."""
    import torch

    some = features[:: max(1, len(features) // SAMPLED)].reshape(-1, features.shape[2]).astype(np.float32)
    some = np.maximum(some, LOWEST)
    return torch.from_numpy(some.mean(0)), torch.from_numpy(np.maximum(some.std(0), LEAST_SPREAD))


def fold(reranker: "Reranker", middle: "torch.Tensor", spread: "torch.Tensor") -> None:
    """Let a network that learned from (features - middle) / spread read the features themselves."""
    import torch

    with torch.no_grad():
        reranker.first.weight /= spread
        reranker.first.bias.sub_(reranker.first.weight @ middle)

"""How re-rankers learn to re-rank the best items of a floor: from small shops in pre-training, then from the target.

In pre-training, small shops are drawn from each source: some of its users, with the items that they met. Each gets a
floor of its own (core/untrained.py), as if it were a target, with weights fitted to the last training position of its
users, which is left out of the transitions. From the features of core/reranker.py at these positions and at the next
ones, those of validation, a network learns what to add to the scores of a floor; its loss is a softmax over each pool.

A target teaches by the last training position of each user, with a floor that does not know these positions yet. Its
network starts from what other shops taught, if the run starts from one that has learned. No test position is read, and
on a target no validation position.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from antpipe.core.batches import Examples, examples, sample
from antpipe.core.catalogue import Catalogue
from antpipe.core.reranker import EXAMPLES_AT_ONCE, FEATURES, POOL, best_of, features_of
from antpipe.core.untrained import SCORES_AT_ONCE, Floats, Ints, Untrained, blend, fit_weights, from_sequences, unit
from antpipe.core.words import word_neighbours
from antpipe.runtime.arrays import within_groups
from antpipe.runtime.logs import log
from antpipe.store.files import Sequences
from antpipe.store.store import Store
from antpipe.training.data import TrainingData

if TYPE_CHECKING:
    import torch
    from scipy.sparse import csr_array

    from antpipe.core.model import Ant
    from antpipe.core.reranker_network import Reranker

    Weights = dict[str, torch.Tensor]

# Users per shop: number of such shops per source. Without those of 8,000, a whole table (48,000) gained nothing.
SHOPS: Mapping[int, int] = {500: 16, 1000: 8, 2000: 4, 4000: 2, 8000: 1}
MOST_POSITIONS = 75_000  # of all sources, or of a target, with 12 kB each
LEAST_POSITIONS = 300  # with fewer, nothing is learned
ALONE_POSITIONS = 1000  # the same for a target whose re-ranker no other shop has taught
MOST_SCORES = 1 << 31  # of a target's positions among all its items: some minutes on one core
EPOCHS, BATCH, LR, WEIGHT_DECAY = 3, 64, 1e-3, 1e-2
ALONE_EPOCHS = 10  # over the lessons of such a target
BELOW_BEST = FEATURES.index("below best")
SAMPLED, LEAST_SPREAD = 2000, 1e-3  # positions to standardise features with; standard deviation of one that varies
LOWEST = -60.0  # lower bound of the feature "below best", in logits; places of the pool without an item are below it


@dataclass(frozen=True)
class Lessons:
    """Positions whose target is in the pool. features: (P, POOL, F); place: (P,) of the target in the pool."""

    features: NDArray[np.float16]
    place: Ints


@dataclass(frozen=True)
class Source:
    """A domain to draw shops from. texts: (N, d) unit vectors; raw: the text of each item, None to read no words."""

    sequences: Sequences
    texts: Floats
    raw: list[str | None] | None


def rehearse(model: "Ant", store: Store, data: TrainingData, seed: int, *, words: bool) -> "Weights":
    """What the re-ranker of a model learns from small shops drawn from the domains of its pre-training.

    words: whether their floors read the words of items.
    """
    domains = data.catalogue.domains
    quota, sources = MOST_POSITIONS // len(domains), sources_of(model, store, data, words=words)
    lessons = gathered(one for source in sources for one in lessons_of(source, seed, quota))
    return taught(model, lessons, seed, ", ".join(domains), itself=False)


def rehearse_itself(model: "Ant", data: TrainingData, seed: int) -> "Weights":
    """What the re-ranker of a target's model learns from the target, starting from what it has learned elsewhere."""
    ((name, sequences),) = zip(data.catalogue.domains, data.sequences, strict=True)
    log.info(f"{name}: teaching the re-ranker")  # which may take minutes
    lessons = own_lessons(sequences, texts_of(model, data.catalogue, name), data.catalogue.words_of(name))
    return taught(model, gathered(lessons), seed, name, itself=True)


def taught(model: "Ant", lessons: Lessons, seed: int, where: str, *, itself: bool) -> "Weights":
    """The values of a model's re-ranker after some lessons, by name; its present values if there are too few lessons.

    where: names their domains in the log. itself: whether they come from the target itself.
    """
    import torch

    assert model.reranker is not None
    reranker, count = copy.deepcopy(model.reranker).cpu(), len(lessons.place)  # small products, fast enough there
    what = f"{where}: {count:,} positions of {'its own' if itself else 'small shops'}"
    alone = itself and not reranker.learned()
    if count < (ALONE_POSITIONS if alone else LEAST_POSITIONS):
        log.info(f"{what} are too few to learn re-ranking from")
        return reranker.state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        before, after = learn(reranker, lessons, seed, ALONE_EPOCHS if alone else EPOCHS)
    log.info(f"{what} taught re-ranking: loss {before:.4f} -> {after:.4f}")
    return reranker.state_dict()


def gathered(parts: Iterator[Lessons]) -> Lessons:
    """Lessons, at most MOST_POSITIONS in all, concatenated."""
    features, place = np.empty((MOST_POSITIONS, POOL, len(FEATURES)), np.float16), np.empty(MOST_POSITIONS, np.int64)
    end = 0
    for one in parts:
        begin, end = end, end + len(one.place)
        features[begin:end], place[begin:end] = one.features, one.place
    return Lessons(features[:end], place[:end])


def sources_of(model: "Ant", store: Store, data: TrainingData, *, words: bool) -> Iterator[Source]:
    catalogue = data.catalogue
    for name, sequences in zip(catalogue.domains, data.sequences, strict=True):
        texts = texts_of(model, catalogue, name)
        raw = store.domain(name).table("items", ["text"])["text"].to_pylist()[: len(texts)] if words else None
        yield Source(sequences, texts, raw)


def texts_of(model: "Ant", catalogue: Catalogue, name: str) -> Floats:
    """The texts (N, d) of a domain that a floor compares; d is 0 if the model reads none."""
    rows = catalogue.rows(name)
    if "text" not in model.widths:
        return np.zeros((len(rows), 0), np.float32)
    return unit(catalogue.gather(rows, "text", model.widths["text"])[0])


def lessons_of(source: Source, seed: int, quota: int) -> Iterator[Lessons]:
    """What the shops of one source teach, at most `quota` positions. Shops of all sizes are spread evenly."""
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


def own_lessons(sequences: Sequences, texts: Floats, words: "csr_array") -> Iterator[Lessons]:
    """What a target teaches about itself, as it was before the last training position of each user."""
    end = np.maximum(sequences.train_end - 1, 1).astype(np.int32)
    shop = replace(sequences, train_end=end, valid_end=sequences.train_end)
    known, fitted = from_sequences(shop, texts, words), examples(shop, "valid")
    weights, part = fit_weights(known, fitted), fitted.some(np.flatnonzero(fitted.end > fitted.start))
    most = max(1, min(MOST_POSITIONS, MOST_SCORES // len(texts)))
    return lessons_among(known, sample(part, most), weights)


def hash_of(seed: int, size: int, number: int) -> int:
    """The seed of a draw."""
    return int(np.random.SeedSequence([seed, size, number]).generate_state(1)[0])


def shop_lessons(source: Source, users: int, seed: int) -> Iterator[Lessons]:
    """What one shop of `users` users teaches: at the positions that its floor is fitted to, and at the next ones."""
    shop, later, rows = draw(source.sequences, users, seed)
    words = word_neighbours([None if source.raw is None else source.raw[row] for row in rows.tolist()])
    known = from_sequences(shop, source.texts[rows], words)
    fitted = examples(shop, "valid")
    weights = fit_weights(known, fitted)
    for everything in (fitted, examples(later, "valid")):
        yield from lessons_among(known, everything.some(np.flatnonzero(everything.end > everything.start)), weights)


def lessons_among(known: Untrained, part: Examples, weights: Mapping[str, float]) -> Iterator[Lessons]:
    """What some examples teach, in parts of bounded size."""
    size = max(1, min(EXAMPLES_AT_ONCE, SCORES_AT_ONCE // len(known.new)))
    for begin in range(0, len(part), size):
        yield lessons_at(known, part.some(slice(begin, begin + size)), weights)


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
    """A shop of random users, with their last training positions for validation; the same shop one position later; and
    the rows of its items."""
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


def learn(reranker: "Reranker", lessons: Lessons, seed: int, epochs: int = EPOCHS) -> tuple[float, float]:
    """Fit the network, and put it to use (weight 1). Returns the mean loss of the floors alone and of the last epoch.

    epochs: passes over the lessons. A network that has learned before continues from its values.
    """
    import torch
    from torch.nn.functional import cross_entropy

    features, place = lessons.features, torch.from_numpy(lessons.place)
    middle, spread, varies = standard(features)
    if reranker.learned():
        unfold(reranker, middle, spread)
    else:
        initialise(reranker, varies)
    reranker.weight.detach().fill_(1.0)
    layers = (reranker.first, reranker.second, reranker.last)
    parameters = [one.requires_grad_() for layer in layers for one in layer.parameters()]
    optimiser = torch.optim.AdamW(parameters, LR, weight_decay=WEIGHT_DECAY)
    rng, steps, done, before, after = np.random.default_rng(seed), epochs * -(-len(place) // BATCH), 0, 0.0, 0.0
    for _ in range(epochs):
        before = after = 0.0
        for some in np.array_split(rng.permutation(len(place)), -(-len(place) // BATCH)):
            read = torch.from_numpy(features[some]).float()
            scores, targets = read[..., BELOW_BEST], place[some]
            loss = cross_entropy(scores + reranker((read.clamp(min=LOWEST) - middle) / spread * varies), targets)
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


def initialise(reranker: "Reranker", varies: "torch.Tensor") -> None:
    """Draw values as torch does, but so that nothing is added to any score yet, and with weights of 0 for features that
    do not vary here: nothing can be learned about them, and elsewhere they may have any value."""
    for layer in (reranker.first, reranker.second, reranker.last):
        layer.reset_parameters()
    reranker.first.weight.detach().mul_(varies)
    reranker.reset()


def standard(features: NDArray[np.float16]) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Mean and standard deviation (F,) of features (P, C, F) over the items of some positions, and whether each varies,
    as 1 or 0. The standard deviation of a feature that does not vary is given as 1."""
    import torch

    some = features[:: max(1, len(features) // SAMPLED)].reshape(-1, features.shape[2]).astype(np.float32)
    some = np.maximum(some[some[:, BELOW_BEST] > -np.inf], LOWEST)
    middle, spread = some.mean(0, np.float64), some.std(0, np.float64)  # in float32, constants seem to vary
    varies = spread >= LEAST_SPREAD
    found = torch.from_numpy(np.stack([middle, np.where(varies, spread, 1.0), varies])).float()
    return found[0], found[1], found[2]


def fold(reranker: "Reranker", middle: "torch.Tensor", spread: "torch.Tensor") -> None:
    """Let a network that learned from (features - middle) / spread read the features themselves."""
    import torch

    with torch.no_grad():
        reranker.first.weight /= spread
        reranker.first.bias.sub_(reranker.first.weight @ middle)


def unfold(reranker: "Reranker", middle: "torch.Tensor", spread: "torch.Tensor") -> None:
    """The reverse of `fold`."""
    import torch

    with torch.no_grad():
        reranker.first.bias.add_(reranker.first.weight @ middle)
        reranker.first.weight *= spread

"""Re-ranking: its features by loops over pairs, its ranks by dense scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from antpipe.core.batches import Examples, examples
from antpipe.core.model import Ant
from antpipe.core.ranking import DEPTH, PairScores, Ranks, rerank_examples
from antpipe.core.reranker import FEATURES, POOL, WAYS, best_of, features_of, reranking, reranks
from antpipe.core.untrained import DECAY, LAST, TERMS, Untrained, blend, from_sequences
from antpipe.settings.model import FLOOR, RERANKER_FEATURES, ModelConfig
from antpipe.store.files import Sequences

WEIGHTS = {name: FLOOR[name] for name in TERMS}


def shop(seed: int = 0, users: int = 60, n: int = 30) -> tuple[Untrained, Sequences]:
    """Random walks in which items come again; items 0 and 1 are alike in text and words, item 2 has neither."""
    rng = np.random.default_rng(seed)
    walks = [rng.integers(2, n, rng.integers(4, 14)) for _ in range(users)]
    lengths = np.array([len(walk) for walk in walks])
    texts = rng.normal(size=(n, 4)).astype(np.float32)
    texts[1], texts[2] = texts[0], 0
    texts /= np.maximum(np.linalg.norm(texts, axis=1, keepdims=True), 1e-9)
    words = rng.random((n, n)) * (rng.random((n, n)) < 0.3)
    words[:, 1], words[1], words[2], words[:, 2] = words[:, 0], words[0], 0, 0
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ends = ((lengths - 2).astype(np.int32), (lengths - 1).astype(np.int32))
    sequences = Sequences(np.arange(users, dtype=np.int32), offsets, np.concatenate(walks).astype(np.int32), *ends, 8)
    return from_sequences(sequences, texts, csr_array(words)), sequences


def pools(known: Untrained, part: Examples, size: int = POOL) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    return best_of(blend(known, part, WEIGHTS), size)


def feature(features: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    return features[..., FEATURES.index(name)]


def test_the_network_reads_as_many_features_as_there_are() -> None:
    assert len(FEATURES) == len(set(FEATURES)) == RERANKER_FEATURES


def test_features_are_what_loops_over_histories_and_items_find() -> None:
    known, sequences = shop()
    part = examples(sequences, "valid")
    rows, logits = pools(known, part, 12)
    found = features_of(known, part, rows, logits)
    tables = {
        "text": known.texts.astype(np.float64) @ known.texts.astype(np.float64).T,
        "words": known.words.toarray(),
        "transitions": known.steps.toarray(),
    }
    counts = known.counts.toarray()
    for q in range(len(part)):
        history = part.items[part.start[q] : part.end[q]][-part.max_len :][::-1].tolist()
        decay = [DECAY**back if back < LAST else 0.0 for back in range(len(history))]
        for c, item in enumerate(rows[q].tolist()):
            expected: dict[str, float] = {}
            for name, table in tables.items():
                links = [table[row, item] for row in history]
                recent = sum(share * link for share, link in zip(decay, links, strict=True))
                ways = (
                    links[0],
                    links[1] if len(links) > 1 else 0.0,
                    recent / sum(decay) if name == "text" else recent,
                    max(links),
                    sum(links) / len(links),
                )
                expected |= {f"{name} {way}": value for way, value in zip(WAYS, ways, strict=True)}
            own = [np.log1p(counts[row, item]) for row in history]
            expected |= {
                "typical": known.typical[item],
                "counts last": own[0],
                "counts recent": sum(share * one for share, one in zip(decay, own, strict=True)),
                "times in history": history.count(item),
                "is last": history[0] == item,
                "lately in history": 1 / (1 + history.index(item)) if item in history else 0.0,
                "new": known.sold[item] == 0,
                "popularity": np.log1p(known.sold[item]),
                "word neighbours": np.log1p((known.words.toarray()[item] > 0).sum()),
                "length of history": np.log(len(history)),
                "transitions of last": np.log1p(tables["transitions"][history[0]].sum()),
                "interactions of shop": np.log1p(known.sold.sum()),
                "below best": logits[q, c] - logits[q, 0],
                "best": logits[q, 0],
                "lead over tenth": logits[q, 0] - logits[q, 9],
                "rank": np.log1p((logits[q] > logits[q, c]).sum()),
            }
            assert list(expected) == list(FEATURES)
            assert found[q, c] == pytest.approx(np.array(list(expected.values())), abs=2e-5)


def test_without_texts_words_and_transitions_their_features_are_zero() -> None:
    known, sequences = shop()
    bare = from_sequences(replace(sequences, train_end=np.ones(60, np.int32)), known.texts[:, :0], csr_array((30, 30)))
    part = examples(sequences, "valid")
    found = features_of(bare, part, *pools(bare, part, 5))
    for name in ("text", "words", "transitions"):
        assert not any(feature(found, f"{name} {way}").any() for way in WAYS)


def test_features_of_an_example_do_not_depend_on_the_others() -> None:
    known, sequences = shop()
    part = examples(sequences, "valid")
    rows, logits = pools(known, part)
    whole = features_of(known, part, rows, logits)
    for q in (0, 17, 59):
        alone = features_of(known, part.some(slice(q, q + 1)), rows[q : q + 1], logits[q : q + 1])
        assert alone[0] == pytest.approx(whole[q], abs=1e-6)


# -- ranks ------------------------------------------------------------------------------------------------------------


def model_that_reranks(seed: int = 0, weight: float = 1.0) -> Ant:
    torch.manual_seed(seed)
    model = Ant(ModelConfig(width=4, experts=0, floor=True, reranker=True), {"text": 4}, 8)
    assert model.reranker is not None
    with torch.no_grad():
        for parameter in model.reranker.parameters():
            parameter.normal_(std=0.5)
        model.reranker.weight.fill_(weight)
    return model


def dense(known: Untrained, part: Examples) -> tuple[NDArray[np.float32], NDArray[np.float32], PairScores]:
    """Any scores (Q, N) as queries, items and pairs: the vectors are those of the identity."""
    scores = blend(known, part, WEIGHTS) * 0.1
    n = scores.shape[1]
    keys = np.arange(scores.size)
    return np.zeros((len(part), n), np.float32), np.eye(n, dtype=np.float32), PairScores(scores.ravel() * 1.0, keys)


def ranked(known: Untrained, part: Examples, model: Ant) -> Ranks:
    rerank = reranking(model, known)
    assert rerank is not None
    queries, items, added = dense(known, part)
    n = len(items)

    def pairs(rows: NDArray[np.int64]) -> PairScores:
        keys = np.arange(len(rows) * n)
        return PairScores(added.scores[(rows[:, None] * n + np.arange(n)).ravel()], keys)

    return rerank_examples(queries, items, part, pairs, rerank)


def test_ranks_are_those_of_the_pools_that_are_scored_again() -> None:
    known, sequences = shop()
    part, model = examples(sequences, "valid"), model_that_reranks()
    found = ranked(known, part, model)
    scores = (blend(known, part, WEIGHTS) * np.float32(0.1)).astype(np.float32)
    rerank = reranking(model, known)
    assert rerank is not None
    for protocol in ("all", "unseen"):
        for q, target in enumerate(part.targets().tolist()):
            history = set(part.items[part.start[q] : part.end[q]].tolist())
            offered = [row for row in range(30) if protocol == "all" or row not in history]
            offered.sort(key=lambda row: (-scores[q, row], row))
            rows = np.array([offered])
            here = scores[q, rows].astype(np.float64)
            again = rerank(part.some(slice(q, q + 1)), rows, here, np.zeros(rows.shape))[0]
            mine = [again[place] for place, row in enumerate(offered) if row == target]
            expected = 1 + (again > mine[0]).sum() + ((again == mine[0]).sum() - 1) / 2 if mine else np.inf
            assert found.by_protocol[protocol][q] == expected
            assert found.seen[q] == (target in history)


def test_a_target_beyond_the_pool_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    known, sequences = shop()
    part = examples(sequences, "valid")
    monkeypatch.setattr("antpipe.core.ranking.POOL", 3)
    scores = blend(known, part, WEIGHTS)
    places = (scores > scores[np.arange(len(part)), part.targets()][:, None]).sum(1)
    found = ranked(known, part, model_that_reranks()).by_protocol["all"]
    assert np.isinf(found[places >= 3]).all()
    assert (found[places < 3] <= 3).all()
    assert DEPTH < POOL


def test_items_that_are_alike_tie_after_they_are_scored_again() -> None:
    known, sequences = shop()  # nobody bought 0 and 1
    part, model = examples(sequences, "valid"), model_that_reranks()
    rerank = reranking(model, known)
    assert rerank is not None
    scores = blend(known, part, WEIGHTS)
    assert (scores[:, 0] == scores[:, 1]).all()
    rows, logits = pools(known, part)
    again = rerank(part, rows, logits * 0.1, np.zeros(rows.shape))
    for q in range(len(part)):
        assert again[q][rows[q] == 0] == again[q][rows[q] == 1]


def test_scores_do_not_depend_on_how_many_are_asked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    known, sequences = shop()
    part, model = examples(sequences, "valid"), model_that_reranks()
    rows, logits = pools(known, part)
    rerank = reranking(model, known)
    assert rerank is not None
    whole = rerank(part, rows, logits, np.zeros(rows.shape))
    monkeypatch.setattr("antpipe.core.reranker.EXAMPLES_AT_ONCE", 7)
    assert rerank(part, rows, logits, np.zeros(rows.shape)) == pytest.approx(whole, abs=1e-6)


def test_trained_vectors_are_added_to_what_the_network_makes_of_the_floor_alone() -> None:
    known, sequences = shop()
    part, model = examples(sequences, "valid"), model_that_reranks()
    rows, logits = pools(known, part)
    floor, vectors = (logits * 0.1).round(4), np.random.default_rng(1).normal(size=rows.shape)
    rerank = reranking(model, known)
    assert rerank is not None
    alone = rerank(part, rows, floor, np.zeros(rows.shape))
    order = np.argsort(-(floor + vectors), axis=1)  # pools are sorted by the whole scores
    mixed, scores, added, wanted = (
        np.take_along_axis(one, order, 1) for one in (rows, floor + vectors, vectors, alone + vectors)
    )
    assert rerank(part, mixed, scores, added) == pytest.approx(wanted, abs=2e-6)


def test_ranks_take_the_share_of_vectors_from_the_first_numbers() -> None:
    """A dense way to the same ranks, with vectors in the first three numbers."""
    known, sequences = shop()
    part, model, rng = examples(sequences, "valid"), model_that_reranks(), np.random.default_rng(2)
    left, right = (rng.normal(size=(size, 3)).astype(np.float32) * 0.2 for size in (len(part), 30))
    floor = (blend(known, part, WEIGHTS) * 0.1).round(4).astype(np.float32)
    queries, items = np.hstack([left, floor]), np.hstack([right, np.eye(30, dtype=np.float32)])
    rerank = reranking(model, known)
    assert rerank is not None
    nothing = PairScores(np.empty(0), np.empty(0, np.int64))
    found = rerank_examples(queries, items, part, lambda _: nothing, rerank, 3).by_protocol["all"]
    rows = np.argsort(-floor, axis=1, kind="stable")
    vectors = left.astype(np.float64) @ right.T.astype(np.float64)
    alone = rerank(part, rows, np.take_along_axis(floor, rows, 1).astype(np.float64).round(4), np.zeros(rows.shape))
    again = np.empty_like(alone)
    np.put_along_axis(again, rows, alone, 1)
    again += vectors
    own = again[np.arange(len(part)), part.targets()][:, None]
    assert found.tolist() == (1 + (again > own + 2e-6).sum(1)).tolist()


def test_a_place_without_an_item_stays_without() -> None:
    known, sequences = shop()
    part = examples(sequences, "valid").some(slice(0, 2))
    rows, logits = pools(known, part, 6)
    rows[1, 4:], logits[1, 4:] = -1, -np.inf
    rerank = reranking(model_that_reranks(), known)
    assert rerank is not None
    again = rerank(part, rows, logits, np.zeros(rows.shape))
    assert np.isneginf(again[1, 4:]).all()
    assert np.isfinite(again[1, :4]).all()


def test_of_items_with_equal_scores_a_pool_has_the_first() -> None:
    scores = np.array([[1.0, 3.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0, 5.0]], np.float32)
    rows, values = best_of(scores, 3)
    assert rows.tolist() == [[1, 3, 0], [4, 0, 1]]
    assert values.tolist() == [[3.0, 2.0, 1.0], [5.0, 0.0, 0.0]]


def test_a_pool_has_no_item_that_must_not_be_there() -> None:
    scores = np.array([[1.0, -np.inf, 2.0, -np.inf]], np.float32)
    assert best_of(scores, 3)[0].tolist() == [[2, 0, -1]]


def test_missing_places_count_as_the_last_item_for_the_lead() -> None:
    known, sequences = shop()
    part = examples(sequences, "valid").some(slice(0, 1))
    rows, logits = pools(known, part, 4)
    rerank = reranking(model_that_reranks(), known)
    assert rerank is not None
    wide = np.hstack([rows, np.full((1, 8), -1)]), np.hstack([logits, np.full((1, 8), -np.inf)])
    assert rerank(part, *wide, np.zeros((1, 12)))[0, :4] == pytest.approx(
        rerank(part, rows, logits, np.zeros(rows.shape))[0], abs=1e-9
    )


def test_a_model_re_ranks_only_with_a_weight() -> None:
    known, _ = shop()
    assert reranks(model_that_reranks())
    assert not reranks(model_that_reranks(weight=0.0))
    assert reranking(model_that_reranks(weight=0.0), known) is None
    assert reranking(model_that_reranks(), None) is None


def test_a_new_model_adds_nothing_whatever_the_features_are() -> None:
    model = Ant(ModelConfig(width=4, experts=0, floor=True, reranker=True), {"text": 4}, 8)
    assert model.reranker is not None
    assert not model.reranker.learned()
    model.reranker.weight.detach().fill_(1.0)
    assert not model.reranker(torch.randn(3, 5, RERANKER_FEATURES)).any()


def test_a_model_without_a_floor_has_no_re_ranker() -> None:
    assert Ant(ModelConfig(width=4, experts=0, reranker=True), {"text": 4}, 8).reranker is None

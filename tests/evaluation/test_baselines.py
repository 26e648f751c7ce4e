"""Baselines against scores computed by hand, and their ranks against brute force."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from antpipe.core.batches import Examples, examples
from antpipe.core.ranking import DEPTH, metrics
from antpipe.errors import DataError
from antpipe.evaluation.baselines import scores
from antpipe.evaluation.baselines.item_knn import item_knn, nearest_only, similarities
from antpipe.evaluation.baselines.judge import BASELINES, baseline_fingerprint, judge_baseline
from antpipe.evaluation.baselines.markov import markov
from antpipe.evaluation.baselines.popularity import popularity
from antpipe.evaluation.baselines.scores import rank_scores, training_items
from antpipe.evaluation.baselines.text_nearest import nearest_to_last, tfidf, tfidf_nearest
from antpipe.evaluation.evaluate import evaluate_run
from antpipe.features.build_sequences import build_sequences
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.settings.features import SequenceConfig
from antpipe.store.files import Sequences
from antpipe.store.store import Store
from tests.support.commands import run
from tests.support.shops import make_domain
from tests.support.trainable import make_trainable, train_quickly


def make_sequences(walks: list[list[int]]) -> Sequences:
    """Leave-one-out: the last item of each walk is the test target, the one before it the validation target."""
    lengths = np.array([len(walk) for walk in walks])
    return Sequences(
        np.arange(len(walks), dtype=np.int32),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.array([item for walk in walks for item in walk], np.int32),
        (lengths - 2).astype(np.int32),
        (lengths - 1).astype(np.int32),
        50,
    )


# Training parts: 0 1 2, 1 2 0 1, 3 1. Nothing is learned from the rest.
WALKS = make_sequences([[0, 1, 2, 4, 4], [1, 2, 0, 1, 4, 3], [3, 1, 4, 2]])
TEST = examples(WALKS, "test")


def after(history: list[int]) -> Examples:
    items = np.array([*history, 0], np.int32)
    return Examples(np.zeros(1, np.int32), items, np.array([0]), np.array([len(history)]), 50)


def test_baselines_learn_from_training_parts_only() -> None:
    item, row = training_items(WALKS)
    assert item.tolist() == [0, 1, 2, 1, 2, 0, 1, 3, 1]
    assert row.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_popularity_counts_occurrences_in_training() -> None:
    assert popularity(WALKS, 5)(TEST).tolist() == [[2, 4, 2, 1, 0]] * 3


def test_a_markov_chain_counts_what_came_right_after_the_last_item() -> None:
    chain, popular = markov(WALKS, 5), np.array([2, 4, 2, 1, 0]) / 5
    assert chain(after([0]))[0].tolist() == pytest.approx(np.add(popular, [0, 2, 0, 0, 0]))
    assert chain(after([0, 1]))[0].tolist() == pytest.approx(np.add(popular, [0, 0, 2, 0, 0]))
    assert chain(after([2]))[0].tolist() == pytest.approx(np.add(popular, [1, 0, 0, 0, 0]))
    assert chain(after([4]))[0].tolist() == pytest.approx(popular)  # occurs only after the training parts


def test_the_similarity_of_items_is_the_cosine_of_their_users() -> None:
    # Item 0 has users 0 and 1, item 1 all three, item 2 users 0 and 1, item 3 user 2.
    similar = similarities(WALKS, 5).toarray()
    assert similar[0].tolist() == pytest.approx([0, 2 / np.sqrt(6), 1, 0, 0])
    assert similar[1, 3] == pytest.approx(1 / np.sqrt(3))
    assert similar.T.tolist() == similar.tolist()


def test_item_knn_adds_up_the_similarities_to_the_distinct_items_of_the_history() -> None:
    expected = [2 / np.sqrt(6), 1 / np.sqrt(3), 2 / np.sqrt(6), 1 / np.sqrt(3), 0]
    assert item_knn(WALKS, 5)(after([1, 3, 3]))[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_only_the_nearest_neighbours_of_an_item_count() -> None:
    similar = csr_array(np.array([[0, 0.2, 0.9, 0.2], [0.2, 0, 0, 0], [0.9, 0, 0, 0.5], [0.2, 0, 0.5, 0]]))
    assert nearest_only(similar, 2).toarray().tolist() == [
        [0, 0.2, 0.9, 0],
        [0.2, 0, 0, 0],
        [0.9, 0, 0, 0.5],
        [0.2, 0, 0.5, 0],
    ]


def test_the_nearest_text_is_that_of_the_last_two_items() -> None:
    vectors = np.array([[2.0, 0, 0], [0, 3, 0], [1, 1, 0], [0, 0, 0]])  # the last one has no text
    for form in (vectors, csr_array(vectors)):
        score = nearest_to_last(form)
        assert score(after([2, 0, 1]))[0].tolist() == pytest.approx([1, 1, np.sqrt(2), 0])
        assert score(after([0]))[0].tolist() == pytest.approx([1, 0, np.sqrt(0.5), 0])


def test_words_are_weighted_as_in_scikit_learn(tmp_path: Path) -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    texts = ["Red scarf, red wool", "blue scarf", "", "kettle 3 l, blue"]
    theirs = text.TfidfVectorizer(norm=None)
    expected = theirs.fit_transform(texts).toarray()
    domain = make_domain(Store(tmp_path), "shop", [{"item_id": "a"}])
    order = [theirs.vocabulary_[word] for word in ("red", "scarf", "wool", "blue", "kettle")]
    assert np.allclose(tfidf(texts, domain).toarray(), expected[:, order], atol=1e-12)


def test_tfidf_refuses_a_shop_without_texts(tmp_path: Path) -> None:
    domain = make_domain(Store(tmp_path), "shop", [{"item_id": "a"}])
    with pytest.raises(DataError, match="domain shop: no item has a text"):
        tfidf(["", ""], domain)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_ranks_of_scores_equal_brute_force_with_ties_and_histories(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 150))
    walks = data.draw(st.lists(st.lists(st.integers(0, n - 1), min_size=2, max_size=12), min_size=1, max_size=9))
    sequences = make_sequences(walks)
    part = examples(sequences, "test")
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    table = rng.integers(0, 4, (len(walks), n)).astype(float)  # few values: many ties
    ranks = rank_scores(lambda block: table[block.user], part, n)
    for q, walk in enumerate(walks):
        target, history = walk[-1], set(walk[:-1])
        for protocol, values in ranks.by_protocol.items():
            others = [i for i in range(n) if i != target and not (protocol == "unseen" and i in history)]
            better = sum(table[q, i] > table[q, target] for i in others)
            equal = sum(table[q, i] == table[q, target] for i in others)
            miss = better >= DEPTH or (protocol == "unseen" and target in history)
            assert values[q] == (np.inf if miss else 1 + better + equal / 2)
        assert ranks.seen[q] == (target in history)


def test_ranks_do_not_depend_on_the_size_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rank_scores(item_knn(WALKS, 5), TEST, 5)
    monkeypatch.setattr(scores, "AT_ONCE", 7)
    pieces = rank_scores(item_knn(WALKS, 5), TEST, 5)
    for protocol, values in whole.by_protocol.items():
        assert pieces.by_protocol[protocol].tolist() == values.tolist()


def test_a_baseline_writes_the_files_of_an_evaluated_run(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Ring")
    for name in BASELINES:
        result = judge_baseline(store, name, "Ring", tmp_path / name)
        assert result == json.loads((tmp_path / name / "evaluation-Ring-test.json").read_text())
        assert set(result["protocols"]) == {"all", "unseen"}
        ranks = pq.read_table(tmp_path / name / "ranks-Ring-test.parquet")
        assert ranks.column_names == ["user", "position", "target", "seen", "occurrences", "rank_all", "rank_unseen"]
        assert len(ranks) == result["positions"] == result["users"] == 40
        assert sum(part["positions"] for part in result["slices"]["item"].values()) == 40
    train_quickly(store, "scratch", ["Ring"], tmp_path / "run", epochs=1)
    evaluated = evaluate_run(store, tmp_path / "run", "Ring", EvaluateConfig(device="cpu"))
    assert set(result) - {"seconds"} == set(evaluated)
    assert set(evaluated["slices"]) - set(result["slices"]) == {"text", "image", "price"}
    walking = json.loads((tmp_path / "markov" / "evaluation-Ring-test.json").read_text())
    assert walking["protocols"]["all"]["recall@10"] == 1.0  # the next item on the ring always comes next


def test_the_fingerprint_of_a_baseline_depends_on_its_name_and_its_inputs(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Ring")
    before = baseline_fingerprint(store, "markov", "Ring")
    assert before != baseline_fingerprint(store, "popularity", "Ring")
    build_sequences(store, ["Ring"], SequenceConfig(max_len=9))
    assert before != baseline_fingerprint(store, "markov", "Ring")


@pytest.mark.realdata
@pytest.mark.slow
def test_known_floors_are_reached_on_the_beauty_table(real_data: Path, tmp_path: Path) -> None:
    tables = real_data / "tables"
    store = tmp_path / "store"
    files = ("--interactions", tables / "Beauty.interactions.csv.gz", "--items", tables / "Beauty.items.csv.gz")
    assert run("ingest", "table", "--domain", "Beauty", *files, "--store", store).code == 0
    assert run("build-sequences", "--domains", "Beauty", "--store", store).code == 0
    # The known figures are for 2,500 sampled users, from models fitted on everything before the test item. Ours are for
    # all users, so they must lie within three standard errors of such a sample.
    domain = Store(store).domain("Beauty")
    sequences, items = domain.sequences(), domain.rows()
    part, before = examples(sequences, "test"), replace(sequences, train_end=sequences.valid_end)
    words = tfidf_nearest(domain)
    for score, known in ((popularity(before, items), 0.012), (markov(before, items), 0.074), (words, 0.048)):
        found = metrics(rank_scores(score, part, items).by_protocol["all"])["recall@10"]
        assert found == pytest.approx(known, abs=3 * np.sqrt(known * (1 - known) / 2500))

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
from antpipe.core.transitions import training_items, transitions
from antpipe.core.untrained import TERMS
from antpipe.errors import DataError
from antpipe.evaluation.baselines import scores
from antpipe.evaluation.baselines.item_knn import item_knn, nearest_only, similarities
from antpipe.evaluation.baselines.judge import BASELINES, baseline_fingerprint, judge_baseline
from antpipe.evaluation.baselines.markov import markov
from antpipe.evaluation.baselines.popularity import popularity
from antpipe.evaluation.baselines.scores import rank_scores
from antpipe.evaluation.baselines.text_nearest import nearest_to_last, tfidf, tfidf_nearest
from antpipe.evaluation.baselines.tgh import tgh
from antpipe.evaluation.evaluate import evaluate_run
from antpipe.features.build_sequences import build_sequences
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.settings.features import SequenceConfig
from antpipe.settings.model import FLOOR
from antpipe.store.domain import Domain
from antpipe.store.files import Sequences
from antpipe.store.store import Store
from tests.support.commands import run
from tests.support.documents import plain
from tests.support.shops import make_domain
from tests.support.trainable import make_trainable, train_quickly, write_feature


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


def test_tfidf_refuses_a_shop_without_texts(tmp_path: Path) -> None:
    domain = make_domain(Store(tmp_path), "shop", [{"item_id": "a"}])
    with pytest.raises(DataError, match="domain shop: no item has a text"):
        tfidf(["", ""], domain)


def small_domain(store: Store, walks: list[str], texts: list[list[float]] | None, name: str = "shop") -> Domain:
    """Users walk through the items named by letters. texts: a vector per item but the first, which has none."""
    rows = [(f"u{user}", item, time) for user, walk in enumerate(walks) for time, item in enumerate(walk)]
    domain = make_domain(store, name, [{"item_id": item} for item in sorted(set("".join(walks)))], rows)
    if texts:
        write_feature(domain, "text", np.array([[0.0] * len(texts[0]), *texts]))
    build_sequences(store, [name], SequenceConfig())
    return domain


def test_tgh_adds_half_the_logarithm_of_transitions_to_the_cosine_of_texts(tmp_path: Path) -> None:
    # Training parts abac, abb, ad: a -> b twice, a -> c and a -> d once, b -> a and b -> b once.
    domain = small_domain(Store(tmp_path), ["abacdd", "abbdd", "adcc"], [[3.0, 0], [1, 1], [0, 2]])
    score, root = tgh(domain), np.sqrt(0.5)
    first = [-1, 0.5 * 1, 0.5 * np.log(2) / np.log(3), 0.5 * np.log(2) / np.log(3)]  # a has no text, no a -> a
    assert score(after([0]))[0].tolist() == pytest.approx(first)
    second = [0.5, 1 + 0.5 - 1, root, 0]  # b -> a and b -> b as often; cosines 0, 1, root, 0
    assert score(after([1]))[0].tolist() == pytest.approx(second)
    assert score(after([0, 3, 1]))[0].tolist() == pytest.approx([0.5 - 1, 0.5, root, -1])  # only b counts, all are seen
    nothing_after_c = [0, root, 0, root]
    assert score(after([2]))[0].tolist() == pytest.approx(nothing_after_c, abs=1e-6)


def test_tgh_needs_texts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    small_domain(store, ["abab"], None)
    with pytest.raises(DataError, match="domain shop: no text"):
        judge_baseline(store, "tgh", "shop", tmp_path / "out")


def test_floor_says_which_weights_it_chose_and_on_what(tmp_path: Path, messages: list[str]) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Ring")
    result = judge_baseline(store, "floor", "Ring", tmp_path / "floor")
    assert set(result["weights"]) == set(TERMS)
    assert f"Ring  floor: weights fitted to validation: text {result['weights']['text']:.2f}, words" in messages[-1]


def test_floor_on_a_shop_without_texts_ranks_by_transitions_and_says_so(tmp_path: Path, messages: list[str]) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Ring", widths={"price": 6})
    result = judge_baseline(store, "floor", "Ring", tmp_path / "floor")
    assert result["protocols"]["all"]["recall@10"] == 1.0  # the next item on the ring always comes next
    no_texts = "domain Ring: floor without texts, because it has no text features; next: antpipe embed-text"
    assert any(message.startswith(no_texts) for message in messages)
    before = baseline_fingerprint(store, "floor", "Ring")
    write_feature(store.domain("Ring"), "text", np.eye(24))
    assert baseline_fingerprint(store, "floor", "Ring") != before


def test_floor_on_a_shop_without_transitions_ranks_by_texts_and_says_so(tmp_path: Path, messages: list[str]) -> None:
    store = Store(tmp_path / "store")
    # Training parts of one item. Texts of b and c are alike, and so are those of d and e.
    small_domain(store, ["abc", "ade"], [[1.0, 0.1], [1, 0], [0, 1], [0.1, 1]])
    result = judge_baseline(store, "floor", "shop", tmp_path / "floor")
    assert "domain shop: floor without transitions, no training part has two items" in messages
    assert result["weights"]["text"] == pytest.approx(6, abs=1)
    assert result["protocols"]["all"]["ndcg@10"] == 1.0


@pytest.mark.parametrize("name", ["tgh", "floor"])
@pytest.mark.parametrize("walks", [["abcd"], ["aaaa"], ["aaaa", "aaa", "aaa"]])
def test_one_user_and_one_item_are_ranked(tmp_path: Path, name: str, walks: list[str]) -> None:
    store = Store(tmp_path / "store")
    items = len(set("".join(walks)))
    domain = small_domain(store, walks, [[1.0, float(item)] for item in range(1, items)] or None)
    if items == 1:
        write_feature(domain, "text", np.ones((1, 2)))
    result = judge_baseline(store, name, "shop", tmp_path / "out")
    assert result["positions"] == len(walks)
    assert result["protocols"]["all"]["recall@10"] == 1.0


def test_floor_takes_its_usual_weights_where_there_is_no_validation_position(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    small_domain(store, ["ab", "ba", "bc"], [[1.0, 0], [1, 1]])
    weights = judge_baseline(store, "floor", "shop", tmp_path / "out")["weights"]
    assert weights == {name: FLOOR[name] for name in TERMS}


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
        assert result == plain(tmp_path / name / "evaluation-Ring-test.json")
        assert set(result["protocols"]) == {"all", "unseen"}
        ranks = pq.read_table(tmp_path / name / "ranks-Ring-test.parquet")
        assert ranks.column_names == ["user", "position", "target", "seen", "occurrences", "rank_all", "rank_unseen"]
        assert len(ranks) == result["positions"] == result["users"] == 40
        assert sum(part["positions"] for part in result["slices"]["item"].values()) == 40
    train_quickly(store, "scratch", ["Ring"], tmp_path / "run", epochs=1)
    evaluated = evaluate_run(store, tmp_path / "run", "Ring", EvaluateConfig(device="cpu"))
    assert set(result) - {"seconds", "weights"} == set(evaluated)
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
@pytest.mark.parametrize(
    ("table", "users", "known"),
    [
        ("Beauty", 2500, {"popularity": 0.012, "markov": 0.074, "words": 0.048}),
        ("Games", 2500, {"popularity": 0.011, "markov": 0.072, "words": 0.042}),
        ("Sports", 35598 // 8, {"counts": 0.032}),
        ("Toys", 19412 // 8, {"counts": 0.055}),
    ],
)
def test_known_floors_are_reached_on_the_tables(
    real_data: Path, tmp_path: Path, table: str, users: int, known: dict[str, float]
) -> None:
    """The known figures are for a sample of so many users. Ours are for every other user, so they must lie within three
    standard errors of such a sample."""
    folder, store = real_data / "tables", tmp_path / "store"
    files = ("--interactions", folder / f"{table}.interactions.csv.gz", "--items", folder / f"{table}.items.csv.gz")
    assert run("ingest", "table", "--domain", table, *files, "--keep-without-metadata", "--store", store).code == 0
    assert run("build-sequences", "--domains", table, "--store", store).code == 0
    domain = Store(store).domain(table)
    sequences, items = domain.sequences(), domain.rows()
    everything_before = replace(sequences, train_end=sequences.valid_end)
    followed = transitions(sequences, items)
    scorers = {
        "popularity": lambda: popularity(everything_before, items),
        "markov": lambda: markov(everything_before, items),
        "words": lambda: tfidf_nearest(domain),
        "counts": lambda: lambda part: followed[part.items[part.end - 1]].toarray(),  # a chain without popularity
    }
    part = examples(sequences, "test").some(slice(0, None, 2))
    for name, figure in known.items():
        found = metrics(rank_scores(scorers[name](), part, items).by_protocol["all"])["recall@10"]
        assert found == pytest.approx(figure, abs=3 * np.sqrt(figure * (1 - figure) / users)), name

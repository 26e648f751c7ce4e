"""Vectors and FAISS indices, read back as another program reads them."""

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

import antpipe as ant
from antpipe.core.scoring import floor_pairs
from antpipe.evaluation.vectors import as_examples, open_for
from tests.support.commands import run as command
from tests.support.trainable import write_feature


def ids_of(folder: Path, of: str) -> list[str]:
    found: list[str] = json.loads((folder / f"{of}_ids.json").read_text(encoding="utf-8"))
    return found


def test_vectors_in_every_file_are_those_of_the_run_in_the_order_of_the_ids(plain: ant.Run, tmp_path: Path) -> None:
    ant.export_vectors(plain, "Ring", out=tmp_path / "out")
    for of, (ids, values) in (("item", plain.item_vectors("Ring")), ("user", plain.user_vectors("Ring"))):
        array = np.load(tmp_path / "out" / f"{of}s.npy")
        assert (array.dtype, array.tolist()) == (np.float32, values.tolist())
        assert ids_of(tmp_path / "out", of) == ids
        table = pq.read_table(tmp_path / "out" / f"{of}s.parquet")
        assert table[f"{of}_id"].to_pylist() == ids
        assert np.array(table["vector"].to_pylist(), np.float32).tolist() == values.tolist()


def test_a_run_whose_score_is_a_cosine_leaves_nothing_out(plain: ant.Run, tmp_path: Path, messages: list[str]) -> None:
    score = ant.export_vectors(plain, "Ring", out=tmp_path / "out").about["score"]
    assert score == {"inner_product": {"cosine": 1.0}, "left_out": {}}
    assert "the whole score" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert not any("rank without" in message for message in messages)


def test_what_vectors_of_a_run_with_a_floor_leave_out_is_said_with_its_weights(
    floored: ant.Run, tmp_path: Path, messages: list[str]
) -> None:
    """Vectors, and the terms left out with the weights of export.json, add up to the scores of recommend."""
    out = tmp_path / "out"
    score = ant.export_vectors(floored, "Ring", out=out).about["score"]
    assert set(score["inner_product"]) == {"cosine", "text", "novelty", "popularity"}
    assert set(score["left_out"]) == {"words", "transitions", "history"}
    assert any("rank without" in message and "transitions" in message for message in messages)
    assert all(name in (out / "README.md").read_text(encoding="utf-8") for name in score["left_out"])
    opened = open_for(floored.store, floored.folder, "Ring")
    sequences = opened.domain.sequences()
    part = as_examples([sequences.items[sequences.offsets[0] : sequences.offsets[1]]], opened.max_len)
    assert opened.known is not None
    added = floor_pairs(opened.known, part, score["left_out"])(np.array([0]))
    scores = (np.load(out / "items.npy") @ np.load(out / "users.npy")[0]).astype(np.float64)
    scores[added.keys] += added.scores
    user, items = ids_of(out, "user")[0], ids_of(out, "item")
    rows = floored.recommend("Ring", users=user, k=len(items), include_seen=True)
    expected = dict(rows.select("item_id", "score").iter_rows())
    assert scores == pytest.approx([expected[item] for item in items], abs=1e-5)


@pytest.mark.parametrize("kind", [ant.export_vectors, ant.export_faiss])
def test_exports_say_that_they_rank_without_re_ranking(
    reranked: ant.Run, tmp_path: Path, messages: list[str], kind: Any
) -> None:
    score = kind(reranked, "Ring", out=tmp_path / "out").about["score"]
    assert score["left_out"]["reranker"] == 1
    assert "reranker" not in score["inner_product"]
    assert any("rank without" in message and "reranker" in message for message in messages)
    readme = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "reranker (weight 1): the 200 best items are scored again" in readme


def test_the_flat_index_finds_what_the_run_recommends(plain: ant.Run, tmp_path: Path) -> None:
    ant.export_faiss(plain, "Ring", out=tmp_path / "out")
    index = faiss.read_index(str(tmp_path / "out" / "flat.faiss"))
    items, users = ids_of(tmp_path / "out", "item"), ids_of(tmp_path / "out", "user")
    scores, rows = index.search(np.load(tmp_path / "out" / "users.npy"), 10)
    best = plain.recommend("Ring", users=users, k=10, include_seen=True)
    assert [items[row] for row in rows.ravel()] == best["item_id"].to_list()
    assert scores.ravel() == pytest.approx(best["score"].to_numpy(), abs=1e-5)


def test_the_hnsw_index_has_the_recall_that_the_export_states(plain: ant.Run, tmp_path: Path) -> None:
    found = ant.export_faiss(plain, "Ring", out=tmp_path / "out")
    queries = np.load(tmp_path / "out" / "users.npy")
    kinds: dict[str, Any] = {
        name: faiss.read_index(str(tmp_path / "out" / f"{name}.faiss")) for name in ("flat", "hnsw")
    }
    exact, near = (kinds[name].search(queries, 10)[1] for name in ("flat", "hnsw"))
    shared = sum(len(set(a) & set(b)) for a, b in zip(exact.tolist(), near.tolist(), strict=True)) / exact.size
    assert found.figures["hnsw_recall@10"] == pytest.approx(shared, abs=1e-3)


@pytest.mark.parametrize("export", [ant.export_vectors, ant.export_faiss])
def test_a_catalogue_without_interactions_has_items_and_no_users(export: Any, plain: ant.Run, tmp_path: Path) -> None:
    store = ant.Store(tmp_path / "store")
    ant.ingest_table(store, "Alone", items=pl.DataFrame({"item": list("abcdef"), "title": list("uvwxyz")}))
    for modality, width in (("text", 12), ("image", 10), ("price", 6)):
        write_feature(store.domain("Alone"), modality, np.random.default_rng(0).normal(size=(6, width)))
    found = export(ant.Run.open(plain.folder, store), "Alone", out=tmp_path / "out")
    assert (found.figures["items"], found.figures["users"]) == (6, 0)
    assert not (tmp_path / "out" / "users.npy").exists()


def test_an_unknown_domain_leaves_no_folder(plain: ant.Run, tmp_path: Path) -> None:
    with pytest.raises(ant.DataError, match="no domain 'Rong'"):
        ant.export_vectors(plain, "Rong", out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_and_prints_what_the_function_returns(plain: ant.Run, tmp_path: Path) -> None:
    words = ["export", "faiss", "--run", plain.folder, "--domains", "Ring", "--store", plain.store.root]
    printed = command(*words, "--out", tmp_path / "one", "--json")
    found = ant.export_faiss(plain, "Ring", out=tmp_path / "two")
    assert printed.json() == {"folder": str(tmp_path / "one"), **found.about}
    again = command(*words, "--out", tmp_path / "one")
    assert again.code == 3
    assert f"--out {tmp_path / 'one'}: already exists" in again.err
    assert command(*words, "--out", tmp_path / "one", "--force").code == 0


def test_a_product_that_nobody_bought_is_in_the_index(plain: ant.Run, tmp_path: Path) -> None:
    store = ant.Store(tmp_path / "store")
    orders = pl.DataFrame({"user": ["u", "u", "v", "v"], "item": ["a", "b", "b", "a"], "time": [1, 2, 3, 4]})
    products = pl.DataFrame({"item": ["a", "b", "new"], "title": ["Red kite", "Blue kite", "Green kite"]})
    ant.ingest_table(store, "Kites", interactions=orders, items=products, min_user=1, min_item=1, time_unit="s")
    for modality, width in (("text", 12), ("image", 10), ("price", 6)):
        write_feature(store.domain("Kites"), modality, np.random.default_rng(0).normal(size=(3, width)))
    ant.build_sequences(store, "Kites", max_len=10)
    ant.export_faiss(ant.Run.open(plain.folder, store), "Kites", out=tmp_path / "out")
    index = faiss.read_index(str(tmp_path / "out" / "flat.faiss"))
    assert (ids_of(tmp_path / "out", "item"), index.ntotal) == (["a", "b", "new"], 3)

"""Vectors and ranks of a run, as a Python user reads them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from antpipe.errors import DataError, UsageError
from antpipe.evaluation.evaluate import evaluate_run
from antpipe.evaluation.ranks import read_ranks, write_per_user
from antpipe.evaluation.vectors import item_vectors, open_for, user_vectors
from antpipe.serving.recommend import history_of, recommend, recommend_after, user_histories
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.store.documents import read_json, write_json
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.folder import RunFolder
from tests.support.trainable import make_trainable, train_quickly

CONFIG = EvaluateConfig(device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the shop Ring, and an evaluated run of it."""
    folder = tmp_path_factory.mktemp("vectors")
    store = Store(folder / "store")
    make_trainable(store, "Ring", items=90)
    train_quickly(store, "scratch", ["Ring"], folder / "run", epochs=1)
    evaluate_run(store, folder / "run", "Ring", CONFIG)
    return folder


def asked(folder: Path) -> tuple[Store, Path, str]:
    return Store(folder / "store"), folder / "run", "Ring"


def test_item_and_user_vectors_are_unit_vectors_in_the_order_of_the_ids(folder: Path) -> None:
    item_ids, items = item_vectors(*asked(folder))
    user_ids, users = user_vectors(*asked(folder))
    assert (items.dtype, items.shape) == (np.float32, (90, 16))
    assert (users.dtype, users.shape) == (np.float32, (40, 16))
    assert np.linalg.norm(items, axis=1) == pytest.approx(1, abs=1e-6)
    assert np.linalg.norm(users, axis=1) == pytest.approx(1, abs=1e-6)
    assert item_ids == Store(folder / "store").domain("Ring").item_ids()
    assert sorted(user_ids) == [f"u{number:03}" for number in range(40)]


@pytest.mark.parametrize("user", ["u000", "u007", "u039"])
def test_recommended_scores_are_item_vectors_times_user_vectors(folder: Path, user: str) -> None:
    item_ids, items = item_vectors(*asked(folder))
    user_ids, users = user_vectors(*asked(folder))
    expected = dict(zip(item_ids, items @ users[user_ids.index(user)], strict=True))
    rows = recommend(*asked(folder), user=user, k=90, include_seen=True)
    assert {row["item_id"] for row in rows} == set(item_ids)
    assert [row["score"] for row in rows] == pytest.approx([expected[row["item_id"]] for row in rows], abs=1e-5)


def test_several_histories_are_ranked_like_each_of_them_alone(folder: Path) -> None:
    users = ["u000", "u007", "u039"]
    opened = open_for(*asked(folder))
    together = recommend_after(opened, user_histories(opened, users), 5)
    for user, rows in zip(users, together, strict=True):
        alone = recommend(*asked(folder), user=user, k=5)
        assert [row["item_id"] for row in rows] == [row["item_id"] for row in alone]


def test_without_histories_nothing_is_recommended_and_an_empty_history_is_refused(folder: Path) -> None:
    opened = open_for(*asked(folder))
    assert recommend_after(opened, user_histories(opened, [])) == []
    with pytest.raises(UsageError, match="at least one item"):
        history_of(opened, [])


def test_ranks_recompute_the_recall_of_the_evaluation(folder: Path) -> None:
    figures = json.loads((folder / "run" / "evaluation-Ring-test.json").read_text(encoding="utf-8"))
    ranks = read_ranks(*asked(folder))
    for protocol, values in figures["protocols"].items():
        assert (ranks[f"rank_{protocol}"].fill_null(np.inf) <= 10).mean() == pytest.approx(values["recall@10"])


def test_ranks_have_the_original_ids_of_users_and_targets(folder: Path) -> None:
    ranks, domain = read_ranks(*asked(folder)), Store(folder / "store").domain("Ring")
    bought = pl.DataFrame(domain.table("interactions")).sort("timestamp", maintain_order=True)
    users, items = domain.table("users")["user_id"].to_pylist(), domain.item_ids()
    last = {users[row["user"]]: items[row["item"]] for row in bought.iter_rows(named=True)}
    assert dict(zip(ranks["user_id"], ranks["item_id"], strict=True)) == last  # leave-one-out
    assert ranks.columns == ["user_id", "item_id", "position", "seen", "occurrences", "rank_all", "rank_unseen"]


def test_the_metrics_of_each_user_average_to_the_figures(folder: Path, tmp_path: Path) -> None:
    figures = json.loads((folder / "run" / "evaluation-Ring-test.json").read_text(encoding="utf-8"))
    write_per_user(read_ranks(*asked(folder)), tmp_path / "users.parquet")
    found = pl.read_parquet(tmp_path / "users.parquet")
    assert found.columns[:2] == ["user_id", "item_id"]
    for protocol, values in figures["protocols"].items():
        for metric, value in values.items():
            assert found[f"{metric}_{protocol}"].mean() == pytest.approx(value)


def test_ranks_of_another_split_are_refused_with_the_command_that_computes_them(folder: Path) -> None:
    with pytest.raises(DataError, match=r"run was not evaluated on Ring \(split valid, index exact\)") as caught:
        read_ranks(*asked(folder), split="valid")
    assert "antpipe evaluate --domains Ring" in str(caught.value.next_command)
    assert "--split valid" in str(caught.value.next_command)


def test_ranks_of_sequences_that_changed_since_are_refused(folder: Path, tmp_path: Path) -> None:
    store, run, domain = asked(folder)
    shutil.copytree(run, tmp_path / "run")
    path = RunFolder(tmp_path / "run").evaluation(domain, "test", "exact")
    write_json(path, read_json(path, dict[str, Any], None) | {"sequences": "others"})
    with pytest.raises(DataError, match="the run or the catalogue of Ring changed since"):
        read_ranks(store, tmp_path / "run", domain)


def test_ranks_of_a_run_that_was_replaced_since_are_refused(folder: Path, tmp_path: Path) -> None:
    store = Store(folder / "store")
    train_quickly(store, "scratch", ["Ring"], tmp_path / "run", epochs=1)
    evaluate_run(store, tmp_path / "run", "Ring", CONFIG)
    assert_frame_equal(read_ranks(store, tmp_path / "run", "Ring"), read_ranks(*asked(folder)))
    model, described = checkpoint.load(tmp_path / "run")
    checkpoint.save(tmp_path / "run", model, replace(described, fingerprint="another"))
    with pytest.raises(DataError, match="changed since this evaluation"):
        read_ranks(store, tmp_path / "run", "Ring")

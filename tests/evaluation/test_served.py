"""A run serves the catalogue as it is now: cold items, new ones, and known ones by their original ids."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from antpipe.errors import DataError
from antpipe.evaluation.evaluate import evaluate_run
from antpipe.evaluation.vectors import OpenRun, open_for
from antpipe.features.build_sequences import build_sequences
from antpipe.features.splits import held_out_items
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.settings.features import SequenceConfig
from antpipe.settings.model import ModelConfig
from antpipe.store.domain import Domain
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.folder import RunFolder
from antpipe.training.race import take_over
from antpipe.training.request import RunRequest
from antpipe.training.run import run_stage
from tests.support.shops import make_domain
from tests.support.trainable import MODEL, TRAINING, WIDTHS, make_trainable, write_feature

IDS = replace(MODEL, transductive=True)
FLOOR = replace(IDS, floor=True, history_score=True)
IDS_ONLY = replace(IDS, experts=0)


def train(store: Store, out: Path, model: ModelConfig, domains: Sequence[str] = ("Shop",), **more: object) -> Path:
    stage = "scratch" if len(domains) == 1 else "pretrain"
    run_stage(RunRequest(store, domains, stage, model, replace(TRAINING, epochs=1, **more)), out)  # type: ignore[arg-type]
    return out


def grow(store: Store, *, first: Sequence[str] = (), cold: int = 3, without: Sequence[str] = ()) -> Domain:
    """Ingest Shop again with new items: `first` come before all others in the core, and others are cold. Features of
    known items are as they were."""
    shop = store.domain("Shop")
    before, features = pl.DataFrame(shop.table("items")), {name: shop.feature(name).values.copy() for name in WIDTHS}
    met = pl.DataFrame(shop.table("interactions"))
    users = pl.DataFrame(shop.table("users"))["user_id"]
    visits = [
        (users[user], before["item_id"][item], time)
        for user, item, time in met.select("user", "item", "timestamp").rows()
        if before["item_id"][item] not in without
    ]
    core = [row for row in before.select("item_id", "title", "text").to_dicts() if row["item_id"] not in without]
    core += [{"item_id": item, "title": item, "text": item} for item in first]
    visits += [("u000", item, 5000 + n) for n, item in enumerate(first)]
    unsold = [{"item_id": f"z{n:03}", "title": f"new {n}", "text": f"new {n}"} for n in range(cold)]
    shop = make_domain(store, "Shop", core, visits, cold=unsold)
    old_rows = {item: row for row, item in enumerate(before["item_id"])}
    for name, width in WIDTHS.items():
        values = np.random.default_rng(99).normal(size=(shop.rows(), width))
        for row, item in enumerate(shop.item_ids()):
            if item in old_rows:
                values[row] = features[name][old_rows[item]]
        write_feature(shop, name, values)
    build_sequences(store, ["Shop"], SequenceConfig(max_len=10))
    return shop


def vector_of(opened: OpenRun, item: str) -> np.ndarray:
    return np.asarray(opened.encoded[opened.item_ids.index(item)])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    make_trainable(store, "Shop")
    return store


# -- cold items -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MODEL, IDS, FLOOR])
def test_a_run_offers_cold_items_by_their_content(tmp_path: Path, model: ModelConfig) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Shop", cold=4)
    opened = open_for(store, train(store, tmp_path / "run", model), "Shop")
    assert opened.item_ids[24:] == ["c000", "c001", "c002", "c003"]
    assert len(opened.items) == len(opened.encoded) == 28
    if opened.model.ids is not None:
        assert not opened.model.ids.weight[24:].any()
        assert opened.model.ids.weight[:24].any(1).all()
    assert np.linalg.norm(np.asarray(opened.encoded[24:]), axis=1).min() > 0


@pytest.mark.parametrize("earlier", [False, True])
def test_an_item_that_did_not_occur_in_training_is_offered_without_the_id_it_was_pushed_away_by(
    tmp_path: Path, earlier: bool
) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Shop")
    build_sequences(store, ["Shop"], SequenceConfig(max_len=10, split="cold-items", cold_share=0.25))
    held = held_out_items(24, 0.25, 0)
    run = train(store, tmp_path / "run", IDS)
    if earlier:
        as_before(run)
    opened = open_for(store, run, "Shop")
    assert opened.model.ids is not None
    assert opened.model.ids.weight.any(1).tolist() == (~held).tolist()


def test_a_run_that_knows_items_by_their_ids_only_offers_those_it_was_trained_on(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Shop", cold=4)
    opened = open_for(store, train(store, tmp_path / "run", IDS_ONLY, modalities=("none",)), "Shop")
    assert (len(opened.item_ids), len(opened.items)) == (24, 24)


# -- a catalogue that changed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MODEL, IDS])
def test_known_items_keep_their_vectors_when_the_catalogue_grows(
    store: Store, tmp_path: Path, model: ModelConfig, messages: list[str]
) -> None:
    run = train(store, tmp_path / "run", model)
    before = open_for(store, run, "Shop")
    grow(store, first=["a000", "a001"], without=["i005"])
    after = open_for(store, run, "Shop")
    assert after.item_ids[:3] == ["a000", "a001", "i000"]
    for item in set(before.item_ids) - {"i000", "i005", "a000"}:  # the first row of a test shop has no features
        np.testing.assert_allclose(vector_of(after, item), vector_of(before, item), atol=1e-6)
    said = [line for line in messages if "changed since" in line]
    assert len(said) == 1
    assert "28 items: 5 new since training, 1 gone" in said[0]


def test_a_new_item_has_no_learned_id(store: Store, tmp_path: Path) -> None:
    run = train(store, tmp_path / "run", IDS)
    grow(store, first=["a000"])
    opened = open_for(store, run, "Shop")
    assert opened.model.ids is not None
    there = opened.model.ids.weight.any(1).tolist()
    assert [item for item, one in zip(opened.item_ids, there, strict=True) if not one] == [
        "a000",
        "z000",
        "z001",
        "z002",
    ]


def test_an_unchanged_catalogue_is_served_without_a_word(store: Store, tmp_path: Path, messages: list[str]) -> None:
    open_for(store, train(store, tmp_path / "run", IDS), "Shop")
    assert not [line for line in messages if "changed since" in line]


def test_a_changed_catalogue_is_not_evaluated(store: Store, tmp_path: Path) -> None:
    run = train(store, tmp_path / "run", MODEL)
    grow(store)
    with pytest.raises(DataError, match="of Shop changed since"):
        evaluate_run(store, run, "Shop", EvaluateConfig(device="cpu"))


def test_ids_of_several_domains_are_found_by_domain(store: Store, tmp_path: Path) -> None:
    make_trainable(store, "First", seed=5)
    run = train(store, tmp_path / "run", IDS, ["First", "Shop"])
    before = open_for(store, run, "Shop")
    grow(store, first=["a000"])
    after = open_for(store, run, "Shop")
    assert before.model.ids is not None
    assert after.model.ids is not None
    row = after.item_ids.index("i007")
    assert after.model.ids.weight[row].tolist() == before.model.ids.weight[7].tolist()
    weights = checkpoint.load_weights(run, checkpoint.describe(run))["ids.weight"]
    assert before.model.ids.weight[7].tolist() == weights[24 + 7].tolist()


def as_before(run: Path) -> None:
    """What a run of an earlier version has: no ids of its items."""
    described = checkpoint.describe(run)
    RunFolder(run).items(described.id_tables).unlink()


def test_an_earlier_run_with_ids_serves_an_unchanged_catalogue(store: Store, tmp_path: Path) -> None:
    run = train(store, tmp_path / "run", IDS)
    expected = open_for(store, run, "Shop").items
    as_before(run)
    assert np.array_equal(open_for(store, run, "Shop").items, expected)


def test_an_earlier_run_with_ids_refuses_a_changed_catalogue(store: Store, tmp_path: Path) -> None:
    run = train(store, tmp_path / "run", IDS)
    grow(store)
    as_before(run)
    with pytest.raises(DataError, match="does not say to which items its learned ids belong") as caught:
        open_for(store, run, "Shop")
    assert str(caught.value.next_command).startswith("antpipe train --stage scratch --domains Shop")


def test_other_features_are_refused(store: Store, tmp_path: Path) -> None:
    run = train(store, tmp_path / "run", MODEL)
    shop = grow(store)
    write_feature(shop, "text", np.ones((shop.rows(), WIDTHS["text"])), encoder="another")
    with pytest.raises(DataError, match="reads text of width 12 by test"):
        open_for(store, run, "Shop")


# -- the record -------------------------------------------------------------------------------------------------------


def test_a_run_writes_down_the_ids_of_the_core(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    shop = make_trainable(store, "Shop", cold=2)
    run = train(store, tmp_path / "run", MODEL)
    described = checkpoint.describe(run)
    assert described.id_tables == {"Shop": shop.entry("items")["id_table"]}
    table = pl.read_parquet(RunFolder(run).items(described.id_tables))
    assert table.rows() == [("Shop", f"i{number:03}", True) for number in range(24)]


def test_a_run_that_replaces_another_leaves_only_its_own_ids(store: Store, tmp_path: Path) -> None:
    run = train(store, tmp_path / "run", MODEL)
    grow(store)
    run_stage(RunRequest(store, ["Shop"], "scratch", MODEL, replace(TRAINING, epochs=1)), run, force=True)
    assert len(list(run.glob("items-*.parquet"))) == 1


def test_the_winner_of_a_race_takes_its_ids_along(store: Store, tmp_path: Path) -> None:
    winner, folder = RunFolder(train(store, tmp_path / "won", IDS)), RunFolder(tmp_path / "race")
    folder.candidates.mkdir(parents=True)
    take_over(winner, folder, {})
    grow(store)
    assert len(open_for(store, folder.path, "Shop").items) == 27

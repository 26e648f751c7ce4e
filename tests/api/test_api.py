"""What the Python API returns, and that the command line gives the same."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import antpipe as ant
from tests.support.commands import run as command

pytestmark = pytest.mark.usefixtures("here")
TWO = pl.DataFrame({"user": ["u", "u", "v"], "item": ["a", "b", "a"], "time": [1, 2, 3]})
THINGS = pl.DataFrame({"item": ["a", "b"], "title": ["Red kite", "Blue kite"]})
RULES = {"min_user": 1, "min_item": 1, "time_unit": "s"}


def test_a_table_of_arrow_and_one_of_polars_give_the_same_domain(tmp_path: Path) -> None:
    for name, table in (("Polars", TWO), ("Arrow", TWO.to_arrow())):
        ant.ingest_table(tmp_path, name, interactions=table, items=THINGS, **RULES)
    store = ant.Store(tmp_path)
    tables = [store.domain(name).table("interactions") for name in ("Polars", "Arrow")]
    assert isinstance(tables[0], pa.Table)
    assert tables[0].to_pydict() == tables[1].to_pydict()


def test_the_command_proposed_for_a_table_in_memory_works(tmp_path: Path) -> None:
    ant.ingest_table(tmp_path, "Two", interactions=TWO, items=THINGS, **RULES)
    with pytest.raises(ant.DataError) as refused:
        ant.ingest_table(tmp_path, "Two", items=THINGS)
    assert refused.value.next_command is not None
    assert command(*refused.value.next_command.split()[1:]).code == 0


def test_a_dry_run_of_a_table_in_memory_writes_nothing(tmp_path: Path) -> None:
    ant.ingest_table(tmp_path / "shop", "Two", interactions=TWO, items=THINGS, dry_run=True, **RULES)
    assert list(tmp_path.rglob("*.parquet")) == []


def test_a_table_in_memory_for_a_domain_of_an_impossible_name_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ant.UsageError, match="domain name"):
        ant.ingest_table(tmp_path / "shop", "../Two", interactions=TWO, items=THINGS, **RULES)
    assert list(tmp_path.rglob("*")) == []


def test_a_refit_of_a_run_that_was_replaced_is_not_that_of_the_new_one() -> None:
    asked = {"out": "runs/replaced", "epochs": 1, "device": "cpu"}
    ant.train("shop", "scratch", "Toys", refit=True, **asked)
    ant.train("shop", "scratch", "Toys", force=True, **asked | {"epochs": 2})
    assert ant.Run.open("runs/replaced", "shop").refit is None


def test_a_path_and_a_string_name_the_same_store(tmp_path: Path) -> None:
    assert ant.Store(str(tmp_path)).root == ant.Store(tmp_path).root == tmp_path


def test_evaluate_returns_what_the_command_prints() -> None:
    found = ant.Run.open("runs/toys", "shop").evaluate("Toys", device="cpu")
    printed = command(
        "evaluate", "--run", "runs/toys", "--domains", "Toys", "--device", "cpu", "--store", "shop", "--json"
    )
    assert printed.json() == [json.loads(json.dumps(found.figures))]


def test_recommendations_are_those_the_command_prints() -> None:
    rows = ant.Run.open("runs/toys", "shop").recommend("Toys", users="u03", k=4)
    printed = command(
        "recommend", "--run", "runs/toys", "--domains", "Toys", "--user", "u03", "--k", "4", "--store", "shop", "--json"
    )
    assert rows.select("rank", "item_id", "title", "score").to_dicts() == [
        {key: row[key] for key in ("rank", "item_id", "title", "score")} for row in printed.json()
    ]


def test_the_best_recommendation_has_the_largest_product_of_vectors() -> None:
    run = ant.Run.open("runs/toys", "shop")
    users, items = run.user_vectors("Toys"), run.item_vectors("Toys")
    scores = users.values @ items.values.T
    rows = run.recommend("Toys", users=users.ids, k=1, include_seen=True)
    assert rows["item_id"].to_list() == [items.ids[best] for best in scores.argmax(1)]
    assert np.allclose(rows["score"].to_numpy(), scores.max(1), atol=1e-5)


def test_a_history_is_recommended_for_like_a_user_with_that_history() -> None:
    run = ant.Run.open("runs/toys", "shop")
    interactions = pl.DataFrame(run.store.domain("Toys").table("interactions").filter(pa.compute.field("user") == 0))
    ids = run.store.domain("Toys").item_ids()
    history = [ids[item] for item in interactions.sort("timestamp")["item"]]
    rows = run.recommend("Toys", users=["u00"], histories=[history], k=3)
    one, other = (rows.filter(pl.col("history") == number).drop("user_id", "history") for number in (0, 1))
    assert one.equals(other)


def test_a_run_trained_again_is_fresh() -> None:
    asked = {"start": "runs/beauty", "out": "runs/again", "epochs": 1, "device": "cpu"}
    assert ant.train("shop", "relearn", ["Toys"], **asked).status == "trained"
    assert ant.train("shop", "relearn", ["Toys"], **asked).status == "fresh"


def test_a_refit_comes_with_its_run_and_is_found_again() -> None:
    asked = {"out": "runs/refitted", "epochs": 2, "device": "cpu", "refit": True}
    run = ant.train("shop", "scratch", ["Toys"], **asked)
    assert run.refit is not None
    assert (run.refit.folder, run.refit.status) == (run.folder / "refit", "trained")
    assert run.refit.checkpoint.refit == {"of": run.checkpoint.fingerprint, "epochs": run.checkpoint.best_epoch}
    assert run.refit.evaluate("Toys").metrics["all"]["recall@50"] == 1
    again = ant.train("shop", "scratch", ["Toys"], **asked)
    assert again.refit is not None
    assert (again.status, again.refit.status) == ("fresh", "fresh")
    opened = ant.Run.open("runs/refitted", "shop")
    assert opened.refit is not None
    assert opened.refit.checkpoint.fingerprint == run.refit.checkpoint.fingerprint
    assert ant.Run.open("runs/toys", "shop").refit is None


def test_auto_returns_its_decision() -> None:
    run = ant.train("shop", "auto", ["Toys"], start="runs/beauty", out="runs/auto", epochs=2, device="cpu")
    assert run.decision["chosen"] in run.decision["rungs"][-1]["kept"]


def test_a_comparison_of_several_targets_asks_for_one(here: Path) -> None:
    found = ant.Comparison(here, {"targets": {"A": {"arms": {}}, "B": {"arms": {}}}})
    with pytest.raises(ant.UsageError, match="several targets"):
        found.verdicts  # noqa: B018
    assert found.verdicts_of("A") == {}


def test_a_comparison_has_its_metrics_as_a_frame() -> None:
    found = ant.compare(
        "shop", ["Toys"], start="runs/beauty", arms=["scratch", "relearn"], seeds=2, epochs=1, out="cmp2", device="cpu"
    )
    table = found.table()
    assert set(table["arm"]) == {"scratch", "relearn"}
    row = table.filter(arm="relearn", protocol="all", metric="recall@10").row(0, named=True)
    assert row["mean"] == found.figures["targets"]["Toys"]["arms"]["relearn"]["protocols"]["all"]["recall@10"]["mean"]


def test_messages_reach_the_logger_and_nothing_is_printed(
    messages: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    ant.train("shop", "scratch", ["Toys"], out="runs/quiet", epochs=1, width=16, experts=0, device="cpu")
    assert any("image" in message for message in messages)  # the shop has none
    assert capfd.readouterr() == ("", "")


def test_a_domain_that_is_only_partly_covered_does_not_stop_the_others() -> None:
    with pytest.raises(ant.PartialError, match="Half") as partial:
        ant.embed_image(
            "shop", ["Half", "Pictured"], encoder="packaged/efficientnet-lite0", min_coverage=1.0, device="cpu"
        )
    assert [(result.domain, result.status) for result in partial.value.results] == [("Pictured", "built")]

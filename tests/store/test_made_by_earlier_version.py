"""A store, runs and shards made by antpipe 0.1.0 open unchanged, and nothing is built or trained again unasked."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from antpipe.features.shards.folder import ShardFolder, local
from antpipe.store.artefacts import ARTEFACTS
from antpipe.store.store import Store
from tests.support.commands import run
from tests.support.earlier import unpack

SMALL = "--width 8 --experts 2 --layers 1 --heads 1 --batch-size 64 --device cpu --precision fp32"
# The commands that made what is in the archive; {} is its folder.
STAGES = {
    "items of ShopA": "ingest table --domain ShopA --interactions {}/A-orders.csv --items {}/A-items.csv",
    "items of ShopB": "ingest table --domain ShopB --interactions {}/B-orders.csv --items {}/B-items.csv",
    "items of a catalogue": "ingest table --domain Catalogue --items {}/C-items.csv",
    "text": "embed-text --domains ShopA,ShopB --encoder packaged/all-MiniLM-L6-v2",
    "price": "quantize-price --domains ShopA,ShopB --bins 4",
    "sequences": "build-sequences --domains ShopA,ShopB",
    "whitened text": "whiten --modality text --domains ShopA --dims 8",
}
RUNS = {
    "pretrain": f"train --stage pretrain --domains ShopA --out {{}}/runs/pretrain --epochs 2 {SMALL}",
    "relearn": f"train --stage relearn --from {{}}/runs/pretrain --domains ShopB --out {{}}/runs/relearn "
    f"--epochs 2 {SMALL}",
    "auto": f"train --stage auto --from {{}}/runs/pretrain --domains ShopB --out {{}}/runs/auto --epochs 4 {SMALL}",
}
RESUMED = f"train --resume --stage scratch --domains ShopB --out {{}}/runs/unfinished --epochs 4 {SMALL}"


@pytest.fixture(scope="session")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all of it; tests that change something work on a copy."""
    return unpack(tmp_path_factory.mktemp("made-by-0.1.0"))


@pytest.fixture
def copy(earlier: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(earlier, tmp_path / "copy"))


def words(command: str, folder: Path) -> list[str]:
    return [*command.replace("{}", str(folder)).split(), "--store", str(folder / "store")]


def test_every_artefact_is_fresh_and_its_content_is_intact(earlier: Path) -> None:
    store = Store(earlier / "store")
    states = {
        (name, artefact): store.domain(name).verify(artefact).status
        for name in store.domains()
        for artefact in ARTEFACTS
    }
    fresh = {key for key, status in states.items() if status == "fresh"}
    shop = ["items", "text", "price", "sequences"]
    assert fresh == {
        ("Catalogue", "items"),
        ("ShopA", "text-white"),
        *((d, a) for d in ("ShopA", "ShopB") for a in shop),
    }
    assert set(states.values()) == {"fresh", "missing"}


def test_the_order_and_the_cold_targets_of_an_earlier_store_are_measured(earlier: Path) -> None:
    figures = run("stats", "--json", "--store", earlier / "store").json()["domains"]
    by_name = {row["domain"]: row for row in figures}
    assert by_name["Catalogue"]["order"] is None
    for shop in ("ShopA", "ShopB"):
        assert by_name[shop]["order"]["judged_users"] > 0
        assert by_name[shop]["order"]["tied"] is not None
        assert by_name[shop]["cold"]["split"] == "leave-one-out"
        assert by_name[shop]["cold"]["test"] is not None


@pytest.mark.parametrize("stage", STAGES)
def test_the_stage_that_made_it_has_nothing_to_do(earlier: Path, stage: str) -> None:
    before = manifests(earlier)
    outcome = run(*words(STAGES[stage], earlier), "--json")
    assert outcome.code == 0, outcome.err
    assert {result["status"] for result in outcome.json()} == {"fresh"}
    assert manifests(earlier) == before


def manifests(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("store/*/manifest.json"))]


@pytest.mark.parametrize("name", ["relearn", "auto"])
def test_the_command_that_trained_a_run_on_a_target_has_nothing_to_do(earlier: Path, name: str) -> None:
    outcome = run(*words(RUNS[name], earlier))
    assert outcome.code == 0, outcome.err
    assert "  fresh\n" in outcome.out


def test_a_source_with_the_old_negatives_is_not_taken_for_one_with_the_new(copy: Path) -> None:
    before = (copy / "runs/pretrain/checkpoint.json").read_bytes()
    refused = run(*words(RUNS["pretrain"], copy))
    assert refused.code == 2
    assert "another run: negatives that include the user's own next items, as in antpipe 0.1.0" in refused.err
    assert (copy / "runs/pretrain/checkpoint.json").read_bytes() == before
    assert run(*words(RUNS["pretrain"], copy), "--force").code == 0
    assert json.loads((copy / "runs/pretrain/checkpoint.json").read_text())["negatives"] == "other users"
    again = run(*words(RUNS["relearn"], copy))
    assert "holds another run" in again.err  # what it started from is another one now


@pytest.mark.parametrize("flags", ["--reference", "--pretrain-drawn 5"])
def test_a_source_with_other_negatives_is_still_that_of_0_1_0(copy: Path, flags: str) -> None:
    folder = copy / "runs/other"
    line = f"{RUNS['pretrain'].replace('runs/pretrain', 'runs/other')} {flags}"
    assert run(*words(line, copy)).code == 0
    described = json.loads((folder / "checkpoint.json").read_text())
    assert described["negatives"] == ""
    del described["negatives"], described["checksum"]  # as 0.1.0 wrote it
    (folder / "checkpoint.json").write_text(json.dumps(described))
    assert "  fresh\n" in run(*words(line, copy)).out


def test_the_stored_evaluation_is_reproduced(copy: Path) -> None:
    before = json.loads((copy / "runs/relearn/evaluation-ShopB-test.json").read_text())
    ranks = pl.read_parquet(copy / "runs/relearn/ranks-ShopB-test.parquet")
    line = "evaluate --run {}/runs/relearn --domains ShopB --device cpu"
    outcome = run(*words(line, copy), "--json")
    assert outcome.code == 0, outcome.err
    [after] = outcome.json()
    for protocol in ("all", "unseen"):
        assert after["protocols"][protocol]["recall@10"] == before["protocols"][protocol]["recall@10"]
        assert after["protocols"][protocol] == pytest.approx(before["protocols"][protocol], abs=1e-6)
    assert after["run_fingerprint"] == before["run_fingerprint"]
    assert pl.read_parquet(copy / "runs/relearn/ranks-ShopB-test.parquet").equals(ranks)


def test_a_user_gets_the_recommendations_of_then(earlier: Path) -> None:
    line = "recommend --run {}/runs/relearn --domains ShopB --user u03 --k 3"
    outcome = run(*words(line, earlier), "--json")
    assert outcome.code == 0, outcome.err
    rows = outcome.json()
    assert [row["item_id"] for row in rows] == ["B00", "B05", "B08"]
    assert [row["score"] for row in rows] == pytest.approx([0.598361, 0.547339, 0.430628], abs=1e-4)


def test_an_unfinished_run_continues_after_its_second_epoch(copy: Path) -> None:
    folder = copy / "runs/unfinished"
    before = (folder / "metrics.jsonl").read_text().splitlines()
    outcome = run(*words(RESUMED, copy))
    assert outcome.code == 0, outcome.err
    after = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in after] == [1, 2, 3, 4]
    assert after[:2] == before
    assert (folder / "checkpoint.json").is_file()


def test_finished_shards_of_an_unfinished_embedding_are_read(earlier: Path) -> None:
    [path] = (earlier / "store/Catalogue").glob(".shards-text-*")
    folder = ShardFolder(local(), str(path), "ba999e9904ca7505e2707dd9eb7fa41127514b8a068dd90de46786f9694253cd")
    assert folder.notes()["recipe"]["source"] == "packaged"
    for number in range(2):
        vectors = folder.read(number, np.arange(10 * number, 10 * number + 10))
        assert vectors.values.shape == (10, 384)
        assert vectors.present.all()
        assert np.linalg.norm(vectors.values.astype(np.float32), axis=1) == pytest.approx(np.ones(10), abs=1e-2)

"""What a newer antpipe wrote is refused by name, with the command that upgrades; damage is not taken for that."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from antpipe.errors import DataError, IntegrityError
from antpipe.export.hub import read_about
from antpipe.export.model_folder import verdicts_on
from antpipe.features.shards.folder import FORMAT, ShardFolder, ShardVectors, local
from antpipe.report.findings import read_outcome
from antpipe.store.documents import UPGRADE, NewerFormatError, read_json, seal, sealed_format, unsealed, write_json
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.folder import RunFolder
from tests.support.commands import run
from tests.support.earlier import unpack
from tests.support.places import check_refusal
from tests.support.shops import make_domain

KEY, ROWS = "0" * 64, np.arange(2)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return unpack(tmp_path)


def renew(path: Path, **entries: Any) -> None:
    """The JSON object in a file with other entries, sealed again as a newer antpipe would."""
    document = read_json(path, dict[str, Any], None) if path.exists() else {}
    write_json(path, document | entries)


def newer_state(path: Path, *, sealed: bool = True) -> None:
    """A training state whose header names another format."""
    with safe_open(path, "pt") as stream:
        header = json.loads(stream.metadata()["antpipe"])
    header.pop("checksum", None)
    new = seal(header | {"format": 3}) if sealed else seal(header) | {"format": 3}
    save_file(load_file(path), path, {"antpipe": json.dumps(new)})


REFUSED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a manifest": (
        "store/ShopB/manifest.json",
        lambda path: renew(path, **sealed_format(2)),
        "build-sequences --domains ShopB --store {}/store",
    ),
    "a description": (
        "runs/relearn/checkpoint.json",
        lambda path: renew(path, format=2),
        "evaluate --run {}/runs/relearn --domains ShopB --store {}/store",
    ),
    "a training state": (
        "runs/unfinished/state.safetensors",
        newer_state,
        "train --resume --stage scratch --domains ShopB --out {}/runs/unfinished --epochs 4 --width 8 --experts 2 "
        "--layers 1 --heads 1 --batch-size 64 --device cpu --precision fp32 --store {}/store",
    ),
    "parts of recommendations": (
        "recs.csv.parts/plan.json",
        lambda path: write_json(path, {"format": 2, "query": "…"}),
        "recommend --run {}/runs/relearn --domains ShopB --users all --out {}/recs.csv --store {}/store",
    ),
    "an export": (
        "out/export.json",
        lambda path: write_json(path, {"format": 2, "sort": "…"}),
        "hub push --path {}/out --repo somebody/name --store {}/store",
    ),
    "the outcome of a comparison": (
        "cmp/comparison.json",
        lambda path: write_json(path, {"format": 2, "verdict": "…"}),
        "report --compare {}/cmp --out {}/report.html --store {}/store",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_newer_format_is_refused_by_name_with_the_upgrade(here: Path, kind: str) -> None:
    name, change, line = REFUSED[kind]
    (here / name).parent.mkdir(exist_ok=True)
    change(here / name)
    before = (here / name).read_bytes()
    outcome = run(*line.replace("{}", str(here)).split())
    check_refusal(outcome, 5, name, "written by a newer antpipe", next_command=UPGRADE)
    assert (here / name).read_bytes() == before


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        (sealed_format(3), NewerFormatError, "written by a newer antpipe, as it names format 3; this version reads"),
        (sealed_format(1) | {"format": 3}, IntegrityError, "its format is damaged; without it, every stage runs again"),
        ({"format": 3}, NewerFormatError, "written by a newer antpipe, or damaged, as it names format 3"),  # no hash
    ],
)
def test_a_manifest_is_called_newer_only_if_its_format_is_what_was_written(
    here: Path, more: dict[str, Any], error: type[IntegrityError], says: str
) -> None:
    path = here / "store" / "ShopB" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    with pytest.raises(IntegrityError, match=says) as caught:
        Store(here / "store").domain("ShopB").manifest()
    assert type(caught.value) is error


def test_a_manifest_has_the_checksum_of_its_format(tmp_path: Path) -> None:
    make_domain(Store(tmp_path), "A", [{"item_id": "x"}])
    assert json.loads((tmp_path / "A" / "manifest.json").read_text()).items() >= sealed_format(1).items()


def test_a_comparison_of_a_newer_format_is_refused_for_a_model_card_too(here: Path) -> None:
    (here / "cmp").mkdir()
    write_json(here / "cmp" / "comparison.json", {"format": 2})
    with pytest.raises(NewerFormatError, match=r"cmp/comparison\.json: written by a newer"):
        verdicts_on(here / "cmp", checkpoint.describe(here / "runs" / "relearn"))


def shard(folder: Path, form: int, *, sealed: bool = True) -> ShardFolder:
    """A folder with a shard that names this format."""
    shards = ShardFolder(local(), str(folder), KEY)
    shards.write(0, ShardVectors(np.ones((2, 3)), np.ones(2, np.bool_)), ROWS)
    path = folder / "shard-000000.arrow"
    with pa.OSFile(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
    facts = unsealed(json.loads(batch.schema.metadata[b"shard"]))
    facts = seal({**facts, "format": form}) if sealed else seal(facts) | {"format": form}
    batch = batch.replace_schema_metadata({"shard": json.dumps(facts)})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return shards


def test_a_newer_shard_is_refused_and_not_removed(tmp_path: Path) -> None:
    shards = shard(tmp_path, FORMAT + 1)
    with pytest.raises(NewerFormatError, match=r"shard-000000\.arrow: written by a newer") as caught:
        shards.finished([ROWS])
    assert (caught.value.exit_code, caught.value.next_command) == (5, UPGRADE)
    assert (tmp_path / "shard-000000.arrow").exists()


def test_the_plan_of_newer_shards_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "plan.json", {"format": FORMAT + 1})
    with pytest.raises(NewerFormatError, match=r"plan\.json: written by a newer"):
        ShardFolder(local(), str(tmp_path), KEY).notes()


def test_a_shard_whose_format_is_damaged_is_computed_again(tmp_path: Path) -> None:
    assert shard(tmp_path, FORMAT + 1, sealed=False).finished([ROWS]) == []


def test_a_description_with_entries_that_only_a_newer_antpipe_knows_is_refused(here: Path) -> None:
    path = here / "runs" / "relearn" / "checkpoint.json"
    renew(path, negatives="", refit=None, id_tables={}, later=1)
    with pytest.raises(NewerFormatError, match=r"checkpoint\.json: later is of a newer antpipe"):
        checkpoint.describe(path.parent)


@pytest.mark.parametrize(("sealed", "error"), [(True, NewerFormatError), (False, IntegrityError)])
def test_an_artefact_that_only_a_newer_antpipe_knows_is_refused(
    here: Path, sealed: bool, error: type[IntegrityError]
) -> None:
    path = here / "store" / "ShopB" / "manifest.json"
    document = json.loads(path.read_text())
    entry = {"fingerprint": "f"}
    document["artefacts"]["sound"] = seal(entry, "sound" if sealed else "smell")
    path.write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match="sound") as caught:
        Store(here / "store").domain("ShopB").manifest()
    assert type(caught.value) is error


@pytest.mark.parametrize("name", ["runs/relearn/checkpoint.json", "cmp/comparison.json", "out/export.json"])
def test_a_document_whose_format_is_damaged_is_damaged_and_not_newer(here: Path, name: str) -> None:
    path = here / name
    path.parent.mkdir(exist_ok=True)
    renew(path, format=1)
    path.write_text(path.read_text().replace('"format": 1', '"format": 3'))
    readers = {"checkpoint.json": checkpoint.describe, "comparison.json": read_outcome, "export.json": read_about}
    with pytest.raises(IntegrityError) as caught:
        readers[path.name](path.parent)
    assert type(caught.value) is IntegrityError


def test_a_state_whose_format_is_damaged_is_damaged_and_not_newer(here: Path) -> None:
    from antpipe.training.state import read_header

    folder = RunFolder(here / "runs" / "unfinished")
    newer_state(folder.state, sealed=False)
    with pytest.raises(IntegrityError) as caught:
        read_header(folder)
    assert type(caught.value) is IntegrityError


def test_an_artefact_of_a_newer_stage_is_stale_and_the_upgrade_comes_next(here: Path) -> None:
    path = here / "store" / "ShopB" / "manifest.json"
    document = json.loads(path.read_text())
    document["artefacts"]["price"]["stage_version"] = 99
    path.write_text(json.dumps(document))
    domain = Store(here / "store").domain("ShopB")
    assert (domain.state("price").why, domain.state("price").next_command) == (
        "made by a newer version of the stage",
        UPGRADE,
    )
    with pytest.raises(DataError, match="newer version") as caught:
        domain.feature("price")
    assert caught.value.next_command == UPGRADE


def test_a_comparison_without_a_format_as_0_1_0_wrote_it_is_read(tmp_path: Path) -> None:
    arms = {"scratch": {}}
    found = {"control": "scratch", "protocol": "all", "metric": "ndcg@10", "alpha": 0.05, "margin": 0.05}
    (tmp_path / "comparison.json").write_text(json.dumps({**found, "targets": {"A": {"arms": arms}}}))
    assert read_outcome(tmp_path)["targets"]["A"]["arms"] == arms

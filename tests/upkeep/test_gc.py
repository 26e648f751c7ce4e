"""`store gc`: what nothing refers to is listed, and removed if asked; nothing else is touched."""

import json
import os
import socket
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest
import torch

import antpipe as ant
from antpipe.errors import DataError
from antpipe.features.fetch.ledger import FOLDER, OK, Entry, keep_picture, write_ledger
from antpipe.settings.base import to_json
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.documents import write_json
from antpipe.store.domain import Domain
from antpipe.store.files import file_sha256
from antpipe.store.lock import alone
from antpipe.store.store import Store
from antpipe.store.tables import write_table
from antpipe.training.checkpoint import Checkpoint, write_tensors
from antpipe.upkeep import unused
from tests.support.commands import run
from tests.support.releases import snapshot
from tests.support.shops import make_domain, picture, picture_shop

NEVER = 2**22 + 1  # no process has this number
KILLED = f".{{}}.{NEVER}-{NEVER}@{socket.gethostname()[:32]}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    make_domain(store, "shop", [{"item_id": name, "title": name, "price": 1.0} for name in "abc"])
    ant.quantize_price(store, ["shop"], bins=2)
    return store


def shop(store: Store) -> Path:
    return store.root / "shop"


def names(store: Store, *, remove: bool = False) -> tuple[list[str], list[str]]:
    """What is unused and what is kept, by path below the store."""
    found = ant.store_gc(store, remove=remove)
    below = [[str(Path(one.path).relative_to(store.root)) for one in part] for part in (found.unused, found.unknown)]
    return below[0], below[1]


def contents(store: Store) -> dict[str, bytes]:
    """All files but the locks."""
    return {name: content for name, content in snapshot(store.root).items() if not name.endswith(".lock")}


def test_nothing_is_unused_after_stages_that_ended(store: Store) -> None:
    assert names(store) == ([], [])


def test_without_yes_paths_and_bytes_are_listed_and_nothing_is_changed(store: Store) -> None:
    scratch = shop(store) / ".new.price.abc12"
    scratch.mkdir()
    (scratch / "price.arrow").write_bytes(bytes(1234))
    before = contents(store)
    outcome = run("store", "gc", "--store", store.root)
    assert outcome.code == 0
    assert f"{scratch}  1,234 bytes  left by a writer that was killed" in outcome.out
    assert f"next: antpipe store gc --store {store.root} --yes" in outcome.out
    assert contents(store) == before


def test_with_yes_what_killed_writers_left_is_removed_and_only_that(store: Store) -> None:
    before = contents(store)
    (shop(store) / ".new.text.abc12").mkdir()
    (shop(store) / ".new.text.abc12" / "text.arrow").write_bytes(b"half")
    (shop(store) / KILLED.format("manifest.json")).write_bytes(b"half")
    outcome = run("store", "gc", "--store", store.root, "--yes")
    assert "2 removed" in outcome.out
    assert contents(store) == before
    assert names(store) == ([], [])


def test_a_file_that_the_manifest_does_not_name_is_removed(store: Store) -> None:
    target, other = shop(store), make_domain(store, "other", [{"item_id": "x", "price": 2.0}])
    ant.quantize_price(store, ["other"], bins=2)
    (other.path / "price.arrow").rename(target / "text.arrow")  # antpipe's, where nothing names it
    assert names(store, remove=True) == (["shop/text.arrow"], [])
    assert not (target / "text.arrow").exists()


def test_what_antpipe_does_not_recognise_is_told_and_kept(store: Store) -> None:
    kept = ["notes.txt", "text.arrow", ".cache.99999999", "model.safetensors", ".new.unheard-of.abc"]
    for name in kept:
        (shop(store) / name).write_bytes(b"mine")
    (store.root / "plan.md").write_bytes(b"mine")
    (store.root / "folder").mkdir()
    (store.root / "folder" / ".x.1-1@a").write_bytes(b"mine")
    before = contents(store)
    unused_ones, unknown = names(store, remove=True)
    assert unused_ones == []
    assert set(unknown) == {*(f"shop/{name}" for name in kept), "plan.md", "folder"}
    assert contents(store) == before


def test_nothing_is_removed_through_a_link(store: Store, tmp_path: Path) -> None:
    outside = Store(tmp_path / "outside")
    make_domain(outside, "far", [{"item_id": "x"}])
    (outside.root / "far" / ".new.text.abc12").mkdir()
    (outside.root / "far" / ".new.text.abc12" / "text.arrow").write_bytes(b"of somebody else")
    (store.root / "far").symlink_to(outside.root / "far")
    (shop(store) / ".new.text.abc12").symlink_to(outside.root / "far" / ".new.text.abc12")
    (shop(store) / FOLDER).symlink_to(outside.root)
    before = contents(outside)
    assert names(store, remove=True) == ([], ["far", "shop/.new.text.abc12", "shop/fetched"])
    assert contents(outside) == before


def test_scratch_with_a_link_in_it_is_removed_and_what_it_leads_to_stays(store: Store, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    (shop(store) / ".new.text.abc12").mkdir()
    (shop(store) / ".new.text.abc12" / "link").symlink_to(tmp_path / "precious")
    assert names(store, remove=True)[0] == ["shop/.new.text.abc12"]
    assert (tmp_path / "precious" / "file").read_text() == "mine"


@pytest.mark.parametrize("remove", [False, True])
def test_the_scratch_of_a_writer_at_work_stays(store: Store, remove: bool, caplog: pytest.LogCaptureFixture) -> None:
    (shop(store) / ".new.price.abc12").mkdir()
    with alone(shop(store), "price"):
        assert names(store, remove=remove) == ([], [])
    assert ("price is being written by" in caplog.text) == remove
    assert (shop(store) / ".new.price.abc12").is_dir()


def test_scratch_files_of_processes_that_run_stay(store: Store) -> None:
    path = shop(store) / f".items.parquet.{os.getpid()}-1@{socket.gethostname()[:32]}"
    path.write_bytes(b"under way")
    assert names(store, remove=True) == ([], [])
    assert path.exists()


def test_an_export_that_a_killed_one_moved_aside_stays(store: Store) -> None:
    aside = shop(store) / f"{KILLED.format('out')}.old"
    aside.mkdir()
    assert names(store, remove=True) == ([], [f"shop/{aside.name}"])
    ant.quantize_price(store, ["shop"], bins=3)
    assert aside.is_dir()


def test_shards_of_an_embedding_that_can_continue_stay(store: Store) -> None:
    (shop(store) / ".shards-text-0123456789ab").mkdir()
    assert names(store, remove=True) == ([], [])
    assert (shop(store) / ".shards-text-0123456789ab").is_dir()


def test_what_the_first_writer_of_a_domain_left_goes_with_its_folder(store: Store) -> None:
    folder = store.root / "begun"
    (folder / ".new.items.abc12").mkdir(parents=True)
    assert names(store, remove=True) == (["begun/.new.items.abc12"], [])
    assert not folder.exists()


def test_the_files_of_a_domain_without_a_manifest_stay(store: Store) -> None:
    (shop(store) / "manifest.json").unlink()
    before = contents(store)
    assert names(store, remove=True)[0] == []
    assert contents(store) == before


@pytest.mark.parametrize("content", ["{", '{"format": 99, "artefacts": {}}'])
def test_a_domain_whose_manifest_cannot_be_read_is_left_and_the_others_are_done(
    store: Store, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_domain(store, "other", [{"item_id": "x"}])
    for name in ("shop", "other"):
        (store.root / name / ".new.text.abc12").mkdir()
    (shop(store) / "manifest.json").write_text(content)
    assert names(store, remove=True) == (["other/.new.text.abc12"], [])
    assert "shop is left as it is" in caplog.text


def test_the_files_of_a_damaged_entry_stay(store: Store) -> None:
    path = shop(store) / "manifest.json"
    document = json.loads(path.read_text())
    document["artefacts"]["price"]["width"] = "wide"
    path.write_text(json.dumps(document))
    assert names(store, remove=True) == ([], [])
    assert (shop(store) / "price.arrow").exists()


def test_an_unknown_domain_is_refused(store: Store) -> None:
    with pytest.raises(DataError, match="no domain 'nowhere'"):
        ant.store_gc(store, ["nowhere"])


def test_only_the_domains_that_were_named_are_looked_at(store: Store) -> None:
    make_domain(store, "other", [{"item_id": "x"}])
    for name in ("shop", "other"):
        (store.root / name / ".new.text.abc12").mkdir()
    (store.root / "plan.md").write_bytes(b"mine")
    found = ant.store_gc(store, "other", remove=True)
    assert [one.path for one in found.unused] == [str(store.root / "other" / ".new.text.abc12")]
    assert (shop(store) / ".new.text.abc12").is_dir()
    assert found.unknown == []


# -- pictures ---------------------------------------------------------------------------------------------------------


def fetch(domain: Domain, seed: int, *, listed: bool) -> Path:
    """A fetched picture, which the ledger names or not."""
    folder = domain.path / FOLDER
    folder.mkdir(exist_ok=True)
    sha256, file = keep_picture(folder, picture(seed), "PNG")
    if listed:
        size = len(picture(seed))
        entry = Entry("http://a/b.png", OK, 200, "", 1, size, sha256, file, 40, 30, "http://a/b.png", 0)
        write_ledger(folder, {entry.url: entry})
    return domain.path / file


@pytest.mark.parametrize("root", ["store", "store/../store"])
def test_fetched_pictures_that_nothing_names_are_removed(store: Store, root: str, tmp_path: Path) -> None:
    domain = store.domain("shop")
    named, orphan = fetch(domain, 1, listed=True), fetch(domain, 2, listed=False)
    scratch = named.with_name(KILLED.format(named.name))
    scratch.write_bytes(b"half")
    found = ant.store_gc(tmp_path / root, remove=True)
    assert sorted(Path(one.path).name for one in found.unused) == sorted([orphan.name, scratch.name])
    assert named.exists()
    assert not orphan.exists()


def test_no_picture_is_removed_if_the_ledger_is_damaged(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    orphan = fetch(store.domain("shop"), 2, listed=False)
    (shop(store) / FOLDER / "ledger.parquet").write_bytes(b"PAR1")
    assert names(store, remove=True) == ([], [])
    assert orphan.exists()
    assert "the pictures of shop are left as they are" in caplog.text


def test_pictures_of_an_earlier_catalogue_are_removed_and_those_of_this_one_stay(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    domain = picture_shop(store, {"a.png": picture(1)}, {"x": ["a.png"]})
    old = domain.path / "images-0123456789ab"
    old.mkdir()
    (old / "b.png").write_bytes(picture(2))
    assert names(store, remove=True) == (["shop/images-0123456789ab"], [])
    assert names(store) == ([], [])


def test_pictures_that_a_subset_names_in_another_domain_stay(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    domain = picture_shop(store, {"a.png": picture(1)}, {"x": ["a.png"]})
    [folder] = domain.path.glob("images-*")
    make_domain(store, "part", [{"item_id": "x", "image_files": [f"../shop/{folder.name}/a.png"]}])
    assert unused.is_named(folder, store)
    assert not unused.is_named(domain.path / "images-0123456789ab", store)


# -- runs -------------------------------------------------------------------------------------------------------------


def described_run(folder: Path) -> Path:
    """A run of which only the description is there, with its weights."""
    folder.mkdir(parents=True)
    weights = folder / "model-new.safetensors"
    write_tensors(weights, {"a": torch.ones(2)}, {})
    sha256 = file_sha256(weights)
    weights.rename(folder / f"model-{sha256[:12]}.safetensors")
    described = Checkpoint(
        fingerprint="f",
        stage="scratch",
        groups={},
        model=to_json(ModelConfig()),
        train=to_json(TrainConfig()),
        modalities={},
        max_len=10,
        items=3,
        domains={"shop": {}},
        source=None,
        best_epoch=1,
        epochs=1,
        metrics={},
        weights_sha256=sha256,
    )
    write_json(folder / "checkpoint.json", asdict(described))
    return folder


@pytest.fixture
def run_folder(store: Store) -> Path:
    return described_run(store.root.parent / "runs" / "one")


def superseded(folder: Path) -> Path:
    """Weights that an earlier training left in a run folder."""
    path = folder / "old"
    write_tensors(path, {"a": torch.zeros(2)}, {})
    return path.rename(folder / f"model-{file_sha256(path)[:12]}.safetensors")


def test_runs_are_looked_at_only_if_they_are_named(store: Store, run_folder: Path) -> None:
    path = superseded(run_folder)
    assert ant.store_gc(store, remove=True).unused == []
    found = ant.store_gc(store, runs=run_folder.parent)
    assert [one.path for one in found.unused] == [str(path)]
    assert path.exists()


def test_superseded_weights_and_items_of_a_run_are_removed(store: Store, run_folder: Path) -> None:
    before = snapshot(run_folder)
    paths = [superseded(run_folder), run_folder / "items-0123456789ab.parquet", run_folder / ".weights"]
    write_table(paths[1], pa.table({"domain": ["shop"], "item_id": ["a"], "trained": [True]}))
    paths[2].write_bytes(b"half")
    found = ant.store_gc(store, runs=run_folder.parent, remove=True)
    assert {one.path for one in found.unused} == {str(path) for path in paths}
    assert {name: one for name, one in snapshot(run_folder).items() if not name.endswith(".lock")} == before


def test_weights_of_another_program_in_a_run_folder_are_told_and_kept(store: Store, run_folder: Path) -> None:
    for name in ("model-00001-of-00002.safetensors", "model-0123456789ab.safetensors", "items-0123456789ab.parquet"):
        (run_folder / name).write_bytes(b"mine")
    found = ant.store_gc(store, runs=run_folder.parent, remove=True)
    assert found.unused == []
    assert len(found.unknown) == 3
    assert all(Path(one.path).read_bytes() == b"mine" for one in found.unknown)


def test_a_run_that_is_being_trained_is_passed_over(
    store: Store, run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = superseded(run_folder)
    with alone(run_folder, "run"):
        assert ant.store_gc(store, runs=run_folder.parent).unused == []
        assert ant.store_gc(store, runs=run_folder.parent, remove=True).unused == []
    assert "run is being written by" in caplog.text
    assert path.exists()

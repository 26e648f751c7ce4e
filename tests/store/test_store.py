"""The store: complete or absent, fresh or stale, and never another catalogue's features."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from filelock import FileLock

from antpipe.errors import AntpipeError, DataError, IntegrityError, UsageError
from antpipe.store.artefacts import ARTEFACTS
from antpipe.store.documents import write_json
from antpipe.store.domain import Domain
from antpipe.store.files import file_facts, read_stamp
from antpipe.store.lock import alone
from antpipe.store.manifest import fingerprint
from antpipe.store.next_command import build_command
from antpipe.store.store import Store
from tests.support.documents import plain
from tests.support.releases import snapshot
from tests.support.shops import make_domain

ITEMS = [{"item_id": name, "text": f"text {name}"} for name in "abc"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def write_text(store: Store, name: str, value: float = 1.0, parameters: dict[str, object] | None = None) -> None:
    domain = store.domain(name)
    with domain.writing("text", parameters or {"encoder": "one"}) as out, out.feature("text", 3, 4) as feature:
        feature.values[:2] = value
        feature.present[:2] = True


def test_features_come_back_as_written_and_without_a_copy(store: Store) -> None:
    make_domain(store, "A", ITEMS)
    write_text(store, "A", 0.5)
    feature = store.domain("A").feature("text")
    assert feature.values.dtype == np.float16
    assert feature.values.tolist() == [[0.5] * 4, [0.5] * 4, [0.0] * 4]
    assert feature.present.tolist() == [True, True, False]
    assert not feature.values.flags.owndata
    assert not feature.values.flags.writeable


def test_one_reading_of_the_manifest_answers_a_request(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make_domain(store, "A", ITEMS)
    write_text(store, "A")
    readings: list[str] = []
    read = Domain.manifest
    monkeypatch.setattr(Domain, "manifest", lambda domain: readings.append(domain.name) or read(domain))
    domain = store.domain("A")
    domain.feature("text")
    domain.state("text")
    domain.is_fresh("text", {"encoder": "one"})
    assert readings == ["A"] * 3


def test_an_artefact_is_fresh_for_its_parameters_only(store: Store) -> None:
    domain = make_domain(store, "A", ITEMS)
    write_text(store, "A")
    assert domain.is_fresh("text", {"encoder": "one"})
    assert not domain.is_fresh("text", {"encoder": "two"})


def test_features_are_stale_once_the_items_changed(store: Store) -> None:
    make_domain(store, "A", ITEMS)
    write_text(store, "A")
    domain = make_domain(store, "A", [*ITEMS[:2], {"item_id": "c", "text": "changed"}])
    state = domain.state("text")
    assert (state.status, state.why) == ("stale", "items changed since")
    assert state.next_command == f"antpipe embed-text --domains A --store {store.root}"
    with pytest.raises(DataError, match="text is stale"):
        domain.feature("text")


def test_a_new_version_of_a_stage_makes_its_artefact_stale(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = make_domain(store, "A", ITEMS)
    write_text(store, "A")
    before = fingerprint("text", {"encoder": "one"}, domain.manifest())
    monkeypatch.setitem(ARTEFACTS, "text", replace(ARTEFACTS["text"], version=2))
    assert (domain.state("text").status, domain.state("text").why) == ("stale", "made by an older version of the stage")
    assert fingerprint("text", {"encoder": "one"}, domain.manifest()) != before


def test_the_fingerprint_of_an_artefact_follows_its_inputs(store: Store) -> None:
    fingerprints = {
        fingerprint(
            "text", {"encoder": "one"}, make_domain(store, "A", [*ITEMS[:2], {"item_id": "c", "text": text}]).manifest()
        )
        for text in ("one", "two", "one")
    }
    assert len(fingerprints) == 2


def test_features_with_fewer_rows_than_items_are_refused(store: Store) -> None:
    domain = make_domain(store, "A", ITEMS)
    with domain.writing("text", {}) as out, out.feature("text", 2, 4):
        pass
    with pytest.raises(IntegrityError, match=r"text\.arrow: 2 rows for 3 items"):
        domain.feature("text")


def test_a_second_writer_waits_and_keeps_what_the_first_has_written(store: Store) -> None:
    domain = make_domain(store, "A", ITEMS)
    writer = Thread(target=write_text, args=(store, "A"))
    with FileLock(domain.path / ".lock"):
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        assert domain.state("text").status == "missing"
    writer.join(10)
    assert domain.state("text").status == "fresh"


def test_a_writer_makes_its_folder_again_if_another_has_just_removed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire, folder = FileLock.acquire, tmp_path / "A"

    def late(lock: FileLock) -> object:
        monkeypatch.setattr(FileLock, "acquire", acquire)
        folder.rmdir()
        raise FileNotFoundError(lock.lock_file)

    monkeypatch.setattr(FileLock, "acquire", late)
    with alone(folder, "items"):
        (folder / "kept").touch()
        with pytest.raises(AntpipeError, match="items is being written by process"), alone(folder, "items"):
            pass
    with alone(folder, "items"):  # released
        assert (folder / "kept").exists()


def test_a_writer_that_writes_nothing_leaves_the_folder_to_one_that_has_just_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def begun(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if path.name == ".items.lock":
            (tmp_path / "A" / ".text.lock").touch()

    monkeypatch.setattr(Path, "unlink", begun)
    with alone(tmp_path / "A", "items"):
        pass
    assert [path.name for path in (tmp_path / "A").iterdir()] == [".text.lock"]


def test_what_was_never_built_is_missing_with_its_command(store: Store) -> None:
    state = make_domain(store, "A", [{"item_id": "a", "price": 1.0}]).state("price")
    assert (state.status, state.next_command) == ("missing", f"antpipe quantize-price --domains A --store {store.root}")


def test_features_of_items_that_changed_meanwhile_are_not_kept(store: Store) -> None:
    domain = make_domain(store, "A", ITEMS)
    write_text(store, "A", 0.5)
    before = (domain.path / "text.arrow").read_bytes()
    with (
        pytest.raises(DataError, match="items changed while text was built") as caught,
        domain.writing("text", {"encoder": "two"}) as out,
        out.feature("text", 3, 4),
    ):
        make_domain(store, "A", [*ITEMS[:2], {"item_id": "c", "text": "changed"}])
    assert (domain.path / "text.arrow").read_bytes() == before
    assert caught.value.next_command == f"antpipe embed-text --domains A --store {store.root}"


def test_a_stage_that_fails_leaves_everything_as_it_was(store: Store) -> None:
    domain = make_domain(store, "A", ITEMS)
    write_text(store, "A")
    before = snapshot(store.root)
    with pytest.raises(ZeroDivisionError), domain.writing("text", {"encoder": "two"}) as out, out.feature("text", 3, 4):
        raise ZeroDivisionError
    assert snapshot(store.root) == before


def test_a_first_stage_that_fails_leaves_no_domain(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.new_domain("A").writing("items", {}, id_table="x"):
        raise ZeroDivisionError
    assert not (store.root / "A").exists()


def test_a_value_that_is_not_finite_is_refused_with_its_item(store: Store) -> None:
    make_domain(store, "A", ITEMS)
    with pytest.raises(DataError, match="item 0 has a value"):
        write_text(store, "A", float("nan"))
    assert store.domain("A").state("text").status == "missing"


def test_a_feature_file_of_another_catalogue_is_refused_with_the_command_that_rebuilds_it(store: Store) -> None:
    make_domain(store, "A", ITEMS)
    make_domain(store, "B", [{"item_id": name} for name in "xyz"])
    write_text(store, "A")
    write_text(store, "B")
    shutil.copy(store.root / "A" / "text.arrow", store.root / "B" / "text.arrow")
    with pytest.raises(IntegrityError, match="another catalogue") as caught:
        store.domain("B").feature("text")
    assert caught.value.next_command == f"antpipe embed-text --domains B --store {store.root} --force"


def test_an_older_file_of_the_same_catalogue_is_refused(store: Store, tmp_path: Path) -> None:
    make_domain(store, "A", ITEMS)
    write_text(store, "A")
    shutil.copy(store.root / "A" / "text.arrow", tmp_path / "old.arrow")
    write_text(store, "A", parameters={"encoder": "two"})
    shutil.copy(tmp_path / "old.arrow", store.root / "A" / "text.arrow")
    with pytest.raises(IntegrityError, match="not the file its manifest describes"):
        store.domain("A").feature("text")


def test_a_table_has_the_columns_asked_for_in_that_order_or_is_refused(store: Store) -> None:
    domain = make_domain(store, "A", ITEMS)
    assert domain.table("interactions", ["timestamp", "user"]).column_names == ["timestamp", "user"]
    with pytest.raises(IntegrityError, match=r"users\.parquet: damaged: no column age, name"):
        domain.table("users", ["name", "user", "age"])


@pytest.mark.parametrize("content", [b"", b"not arrow", None])
def test_a_damaged_or_missing_file_makes_its_artefact_stale(store: Store, content: bytes | None) -> None:
    domain = make_domain(store, "A", ITEMS)
    write_text(store, "A")
    path = store.root / "A" / "text.arrow"
    path.unlink() if content is None else path.write_bytes(content)
    assert domain.state("text").status == "stale"
    assert not domain.is_fresh("text", {"encoder": "one"})


def test_changed_ids_in_items_are_noticed(store: Store) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    domain = make_domain(store, "A", ITEMS)
    path = domain.path / "items.parquet"
    table = pq.read_table(path)
    swapped = table.set_column(table.column_names.index("item_id"), "item_id", pa.array(["b", "a", "c"]))
    pq.write_table(swapped.replace_schema_metadata(table.schema.metadata), path)
    manifest = json.loads((domain.path / "manifest.json").read_text())  # as if the file had been written like this
    entry = manifest["artefacts"]["items"]
    del entry["checksum"]
    entry["files"]["items.parquet"] = file_facts(path)
    (domain.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match="ids were changed"):
        domain.item_ids()


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 99, "artefacts": {}}', '{"format": 1}'])
def test_a_manifest_that_is_not_ours_is_an_integrity_error(store: Store, content: str) -> None:
    domain = make_domain(store, "A", ITEMS)
    (domain.path / "manifest.json").write_text(content)
    with pytest.raises(IntegrityError):
        domain.manifest()


def test_an_unknown_domain_is_refused_with_those_that_exist(store: Store) -> None:
    make_domain(store, "A", ITEMS)
    with pytest.raises(DataError, match=r"no domain 'B' .*there: A"):
        store.domain("B")


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "a b", "-x"])
def test_a_domain_name_cannot_leave_the_store(store: Store, name: str) -> None:
    with pytest.raises(UsageError):
        store.new_domain(name)


def test_pictures_are_replaced_with_their_items(store: Store) -> None:
    with_picture = [{"item_id": "a", "image_files": ["a.png"]}]
    domain = make_domain(store, "A", with_picture, pictures={"a.png": b"first"})
    [name] = domain.table("items")["image_files"].to_pylist()[0]
    assert (domain.path / name).read_bytes() == b"first"
    more = [*with_picture, {"item_id": "b"}]
    domain = make_domain(store, "A", more, [("u", "a", 1), ("u", "b", 2)], pictures={"a.png": b"second"})
    [name] = domain.table("items")["image_files"].to_pylist()[0]
    assert (domain.path / name).read_bytes() == b"second"
    assert len(list(domain.path.glob("images-*"))) == 1


def test_json_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"a": 2})
    assert plain(path) == {"a": 1}


def test_a_file_without_a_stamp_is_not_ours(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    assert read_stamp(tmp_path / "x.parquet") is None


def test_a_changed_byte_is_found_when_contents_are_verified(store: Store) -> None:
    domain = make_domain(store, "A", ITEMS)
    write_text(store, "A")
    assert domain.verify("text").status == "fresh"
    path = domain.path / "text.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    state = domain.verify("text")
    assert (state.status, state.next_command) == ("stale", build_command(domain, "text", force=True))
    assert "content differs" in state.why


def test_a_file_of_another_size_is_refused(store: Store) -> None:
    domain = make_domain(store, "A", ITEMS)
    write_text(store, "A")
    with (domain.path / "text.arrow").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(IntegrityError):
        domain.feature("text")


# -- one writer at a time ---------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from antpipe.store.store import Store
with Store(Path(sys.argv[1])).domain("shop").writing("price", {}):
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_of_an_artefact_learns_who_holds_it_and_a_kill_releases_it(tmp_path: Path) -> None:
    domain = make_domain(Store(tmp_path), "shop", [{"item_id": "a"}])
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "writing\n"
        with pytest.raises(AntpipeError, match=f"price is being written by process {holder.pid} on "):
            write_price(domain)
    finally:
        holder.kill()
        holder.communicate()
    assert list(domain.path.glob(".new.price.*"))
    write_price(domain)
    assert domain.state("price").status == "fresh"
    assert not list(domain.path.glob(".new.price.*"))
    assert not (domain.path / ".price.holder").exists()


def test_different_artefacts_are_written_at_the_same_time(tmp_path: Path) -> None:
    domain = make_domain(Store(tmp_path), "shop", [{"item_id": "a"}])
    with domain.writing("text", {}) as out:
        write_price(domain)
        with out.feature("text", 1, 2) as feature:
            feature.values[:] = 1
    assert [domain.state(name).status for name in ("text", "price")] == ["fresh", "fresh"]


def test_a_new_domain_whose_first_stage_failed_leaves_no_folder(tmp_path: Path) -> None:
    domain = Store(tmp_path).new_domain("shop")
    with pytest.raises(ValueError, match="no"), domain.writing("items", {}, id_table="0"):
        raise ValueError("no")
    assert not domain.path.exists()


def write_price(domain: Domain) -> None:
    with domain.writing("price", {}) as out, out.feature("price", 1, 2):
        pass

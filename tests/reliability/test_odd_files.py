"""Files that once ended in an unexpected error, or would have run: each is refused with its name."""

import io
import json
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from antpipe import cli
from antpipe.errors import DataError, IntegrityError, UsageError
from antpipe.export.model_folder import evaluations_of
from antpipe.features.encoders.located import Located
from antpipe.features.ingest.table.files import open_table
from antpipe.features.text.encoders import TextSettings, load_model
from antpipe.features.vectors.formats import open_vectors
from antpipe.runtime.memory import is_out_of_memory
from antpipe.settings.base import from_json, to_json
from antpipe.settings.training import TrainConfig
from antpipe.store.store import Store
from antpipe.store.tables import read_table
from antpipe.training import checkpoint
from tests.support.commands import run
from tests.support.documents import plain
from tests.torture.commands import small_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    small_store(folder)
    return folder


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v.npy", "ids.npy"])
def test_an_array_whose_header_breaks_off_is_refused_by_name(tmp_path: Path, name: str) -> None:
    stream = io.BytesIO()
    np.save(stream, np.ones((3, 2), np.float32))
    (tmp_path / "v.npy").write_bytes(stream.getvalue())
    np.save(tmp_path / "ids.npy", ["a", "b", "c"])
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content.replace(b"(3", b"((", 1))
    with pytest.raises(DataError, match=f"{name}: .*(not an array|cannot be read)"):
        open_vectors(tmp_path / "v.npy", "text", tmp_path / "ids.npy", ())


def test_a_column_of_an_arrow_file_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path, table = tmp_path / "t.arrow", pa.table({"item_id": ["a"]})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    path.write_bytes(path.read_bytes().replace(b"item_id", b"item\xff\xfed"))
    with pytest.raises(DataError, match=r"t\.arrow: cannot be read"):
        open_table(path, None)


def test_parquet_vectors_of_a_type_that_arrow_lacks_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "v.parquet"
    pq.write_table(pa.table({"id": ["a"], "vector": [[1.0]]}), path)

    def read(_: Path) -> None:
        raise pa.ArrowNotImplementedError("Integers with less than 8 bits not implemented")

    monkeypatch.setattr(pq, "read_schema", read)
    with pytest.raises(DataError, match=r"v\.parquet: not a Parquet file: Integers"):
        open_vectors(path, "text", None, ())


def test_notes_of_a_table_that_are_not_utf8_are_damage(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({b"antpipe.sha256\xff": b"0"}), tmp_path / "t.parquet")
    with pytest.raises(IntegrityError, match=r"t\.parquet: damaged: .*can't decode byte 0xff"):
        read_table(tmp_path / "t.parquet", None, None)


# -- documents --------------------------------------------------------------------------------------------------------


def test_null_is_no_value_of_a_setting_that_needs_one() -> None:
    values = to_json(TrainConfig())
    assert from_json(TrainConfig, values) == TrainConfig()
    with pytest.raises(UsageError, match=r"\[train\] epochs: None is not a whole number"):
        from_json(TrainConfig, values | {"epochs": None})


def why_stale(folder: Path, entry: str, change: Callable[[dict[str, Any]], object]) -> str:
    """Why text-white is stale after a change to an entry of the manifest, which is undone."""
    path = folder / "s" / "A" / "manifest.json"
    before = path.read_bytes()
    document = json.loads(before)
    document["artefacts"][entry].pop("checksum")
    change(document["artefacts"][entry])
    try:
        path.write_text(json.dumps(document))
        state = Store(folder / "s").domain("A").state("text-white")
    finally:
        path.write_bytes(before)
    assert state.status == "stale"
    return state.why


def test_an_input_without_a_hash_of_its_file_makes_its_artefact_stale(folder: Path) -> None:
    why = why_stale(folder, "text", lambda entry: entry["files"]["text.arrow"].pop("sha256"))
    assert why == "text was computed again since, with other results"


def test_an_input_that_no_manifest_has_makes_its_artefact_stale(folder: Path) -> None:
    why = why_stale(folder, "text-white", lambda entry: entry.update(input_files={"textx": "0" * 64}))
    assert why == "textx was computed again since, with other results"


def test_a_damaged_evaluation_names_the_command_with_its_domain(folder: Path) -> None:
    path = folder / "r" / "evaluation-A-test.json"
    before = path.read_bytes()
    try:
        path.write_bytes(before[:-9])
        with pytest.raises(IntegrityError, match=r"evaluation-A-test\.json") as refused:
            evaluations_of(Store(folder / "s"), folder / "r", checkpoint.describe(folder / "r"), None)
    finally:
        path.write_bytes(before)
    assert "antpipe evaluate --domains A " in str(refused.value.next_command)


def test_a_run_that_names_an_artefact_there_is_not_is_refused(folder: Path) -> None:
    path = folder / "r" / "checkpoint.json"
    before, document = path.read_bytes(), plain(path)
    document["domains"]["A"]["sequencesx"] = document["domains"]["A"].pop("sequences")
    try:
        path.write_text(json.dumps(document))
        with pytest.raises(IntegrityError, match=r"checkpoint\.json: damaged: impossible value of domains"):
            checkpoint.describe(folder / "r")
    finally:
        path.write_bytes(before)


# -- memory -----------------------------------------------------------------------------------------------------------


class PanicException(BaseException):
    """As Rust raises it: no Exception."""


WANTING = (
    MemoryError(),
    RuntimeError("could not create a primitive"),
    ImportError("x.so: failed to map segment from shared object"),
    PanicException("could not spawn threads: ThreadPoolBuildError"),
)


@pytest.mark.parametrize("error", WANTING)
def test_want_of_memory_is_said_whichever_library_meets_it(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "app", lambda *_, **__: (_ for _ in ()).throw(error))
    found = run("stats")
    assert (found.code, "not enough memory" in found.err, "unexpected" in found.err) == (1, True, False)


def test_a_panic_for_another_reason_is_one_line_with_a_way_to_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", lambda *_, **__: (_ for _ in ()).throw(PanicException("index out of bounds")))
    found = run("stats")
    assert found.code == 1
    assert "unexpected PanicException: index out of bounds" in found.err
    assert "next: ANTPIPE_DEBUG=1 antpipe stats" in found.err


def test_other_errors_are_no_want_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("out of memory"))
    wrapped = DataError("x")
    wrapped.__cause__ = MemoryError()
    assert is_out_of_memory(wrapped)


# -- models of strangers ----------------------------------------------------------------------------------------------

MARK = "ran"


def text_encoder(folder: Path) -> TextSettings:
    located = Located("x", "x", "folder", "0", folder)
    return TextSettings(located, "cpu", "torch", "fp32", False, None, "", None, False, 128)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("modules.json", [{"idx": 0, "name": "0", "path": "", "type": "modeling.Mine"}]),
        ("router_config.json", {"types": {"query_0": "modeling.Mine"}}),
    ],
)
def test_a_text_encoder_that_brings_code_is_refused_and_its_code_not_run(
    tmp_path: Path, name: str, content: object
) -> None:
    (tmp_path / "modeling.py").write_text(f"open({str(tmp_path / MARK)!r}, 'w')\nclass Mine: pass\n")
    (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"needs its own code, modeling\.Mine, which antpipe does not run"):
        load_model(text_encoder(tmp_path))
    assert not (tmp_path / MARK).exists()


def test_a_text_encoder_with_a_damaged_list_of_modules_is_refused(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(DataError, match=r"modules\.json"):
        load_model(text_encoder(tmp_path))


class Running:
    """What a pickle of it does when it is loaded."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.mark, "w")


def test_a_picture_encoder_whose_file_holds_code_is_refused_and_its_code_not_run(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from antpipe.features.image.timm import load_timm

    path = tmp_path / "w.bin"
    torch.save({"state_dict": {"w": torch.ones(1)}, "x": Running(str(tmp_path / MARK))}, path)
    located = Located("timm:resnet18/w.bin", "timm:resnet18/w.bin", "file", "0", path)
    with pytest.raises(DataError, match=r"w\.bin does not hold weights that are tensors alone"):
        load_timm(replace(located), torch.device("cpu"))
    assert not (tmp_path / MARK).exists()


# -- writes that break off --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [20, 300, 1300])  # the holder of the lock, the feature, the manifest
def test_a_write_that_breaks_off_names_its_file(folder: Path, tmp_path: Path, most: int) -> None:
    resource = pytest.importorskip("resource")
    store = Path(shutil.copytree(folder / "s", tmp_path / "s"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        found = run("whiten", "--modality", "text", "--domains", "A", "--dims", "3", "--force", "--store", store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert found.code == 1
    assert re.search(rf"error: {re.escape(str(store))}/A/\S+: .*[Ff]ile too large", found.err), found.err

"""Whatever is written into the documents of a store or a run, each command ends with a clear error or a result."""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antpipe.comparison.run import Record
from antpipe.errors import IntegrityError
from antpipe.features.status import status
from antpipe.store.documents import CHECKSUM, parse_json, read_json, seal, write_json
from antpipe.store.store import Store
from tests.torture.commands import small_store
from tests.torture.corruption import DOCUMENTS, edit_often, without_checksums

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.just(10**12), st.floats(-2, 2), st.sampled_from(["", "x", "../x"]),
    st.just([]), st.just({}), st.just([{}]), st.just({"a": 1}),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edited")
    small_store(folder)
    return folder


@pytest.mark.parametrize("name", DOCUMENTS)
def test_an_edited_document_never_ends_in_an_unexpected_error(folder: Path, name: str) -> None:
    assert edit_often(folder, name, 4, Random(0))[1] == ""


@pytest.mark.parametrize("stamp", ["null", "[]", "{}", '{"fingerprint": 1}', "{", '"x"', '{"fingerprint": null}'])
def test_an_odd_stamp_makes_its_artefact_stale_and_names_the_file(folder: Path, tmp_path: Path, stamp: str) -> None:
    import pyarrow as pa

    shutil.copytree(folder / "s", tmp_path / "s")
    path = tmp_path / "s/A/price.arrow"
    batch = pa.ipc.open_file(path.read_bytes()).get_batch(0).replace_schema_metadata({"antpipe": stamp})
    with pa.ipc.new_file(str(path), batch.schema) as writer:
        writer.write_batch(batch)
    [price] = [state for state in status(Store(tmp_path / "s"))["A"] if state.artefact == "price"]
    assert (price.status, "price.arrow" in price.why, "quantize-price" in price.next_command) == ("stale", True, True)


def test_one_damaged_manifest_does_not_hide_the_other_domains(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "s", tmp_path / "s")
    shutil.copytree(folder / "s/A", tmp_path / "s/B")
    (tmp_path / "s/A/manifest.json").write_text("{")
    found = status(Store(tmp_path / "s"))
    assert [state.artefact for state in found["A"]] == ["manifest"]
    assert {state.status for state in found["B"]} == {"fresh", "missing"}


def test_one_damaged_entry_speaks_for_its_own_artefact_only(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "s", tmp_path / "s")
    path = tmp_path / "s/A/manifest.json"
    document = json.loads(path.read_bytes())
    document["artefacts"]["price"]["written"] = "yesterday"
    path.write_text(json.dumps(document))
    domain = Store(tmp_path / "s").domain("A")
    assert {name: domain.state(name).status for name in ("text", "price", "sequences")} == {
        "text": "fresh",
        "price": "stale",
        "sequences": "fresh",
    }
    with pytest.raises(IntegrityError, match=r"manifest\.json: the entry of price is damaged"):
        domain.feature("price")


def test_a_manifest_cannot_name_files_of_other_folders(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "s", tmp_path / "s")
    path = tmp_path / "s/A/manifest.json"
    document = without_checksums(json.loads(path.read_text()))
    files = document["artefacts"]["price"]["files"]
    files["../../precious"] = files["price.arrow"]
    path.write_text(json.dumps(document))
    (tmp_path / "precious").write_text("mine")
    domain = Store(tmp_path / "s").domain("A")
    with pytest.raises(IntegrityError, match="leads outside the folder"):
        domain.feature("price")
    with domain.writing("price", {}) as out, out.feature("price", domain.rows(), 4):
        pass
    assert domain.state("price").status == "fresh"
    assert (tmp_path / "precious").read_text() == "mine"


# -- the reader -------------------------------------------------------------------------------------------------


@settings(database=None, derandomize=True, max_examples=40)
@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=4), st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_of_a_sealed_document_is_noticed_or_changes_nothing(
    value: dict[str, Any], place: int, bit: int
) -> None:
    content = bytearray(json.dumps(seal(value)).encode())
    content[place % len(content)] ^= 1 << bit
    try:
        found = parse_json(bytes(content), dict[str, Any], "x", None)
    except IntegrityError:
        return
    assert {key: part for key, part in found.items() if key[:4] != CHECKSUM[:4]} == value or "checksum" not in found


def test_a_document_comes_back_as_written_and_without_its_checksum(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": (1, 2), "é": 0.1})
    assert read_json(tmp_path / "x.json", dict[str, Any], None) == {"a": [1, 2], "é": 0.1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "missing required field"),
        ('{"arm": 1}', "Expected `str`, got `int`"),
        ("[]", "Expected `object`, got `array`"),
        ("{", "not JSON"),
        ("\xff", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_document_of_another_shape_is_refused_with_the_reason(content: str, said: str) -> None:
    with pytest.raises(IntegrityError, match=said):
        parse_json(content.encode("latin-1"), Record, "x.json", None)

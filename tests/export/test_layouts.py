"""RecBole's and UniSRec's files, read back by their documented formats and by the importers."""

import shlex
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

import antpipe as ant
from antpipe.export.rows import history_rows
from antpipe.features.build_sequences import build_sequences
from antpipe.settings.features import SequenceConfig
from antpipe.store.files import Sequences
from antpipe.training import checkpoint
from tests.support.commands import run as command
from tests.support.shops import make_domain
from tests.support.trainable import write_feature

ITEMS = [
    {"item_id": "b", "title": "Blue  kite", "text": "Blue kite.\nFlies", "price": 2.1, "category": ["Toys", "Kites"]},
    {"item_id": "r", "title": "", "text": "Red & <bold>", "price": None},
    {"item_id": "w", "title": "Wool scarf", "text": ""},
]
# u meets four items, v two, and w only one
BOUGHT = [("u", "b", 10, 5.0), ("u", "r", 20, 4.0), ("u", "b", 30, 1.0), ("u", "w", 40, 2.0)]
BOUGHT += [("v", "r", 5, 3.0), ("v", "w", 6, 3.0), ("w", "b", 7, 2.0)]


def kites(store: ant.Store, interactions: list[tuple[str, str, int, float]] = BOUGHT) -> ant.Domain:
    domain = make_domain(store, "Kites", ITEMS, interactions)
    build_sequences(store, ["Kites"], SequenceConfig())
    return domain


def lines_of(path: Path) -> list[list[str]]:
    """The values of an atomic file, as its format says: lines of values between tabs."""
    return [line.split("\t") for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]


def in_readme(folder: Path, word: str) -> list[str]:
    """The command of a README that begins with these words."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    [line] = [line for line in text.splitlines() if line.startswith(word)]
    return shlex.split(line)[1:]


# -- RecBole ----------------------------------------------------------------------------------------------------


def test_atomic_files_hold_every_interaction_and_item(tmp_path: Path) -> None:
    kites(ant.Store(tmp_path / "store"))
    ant.export_recbole(tmp_path / "store", "Kites", out=tmp_path / "out")
    head, *rows = lines_of(tmp_path / "out" / "Kites" / "Kites.inter")
    assert head == ["user_id:token", "item_id:token", "timestamp:float", "rating:float"]
    assert [(user, item, int(time), float(stars)) for user, item, time, stars in rows] == BOUGHT
    assert lines_of(tmp_path / "out" / "Kites" / "Kites.item") == [
        ["item_id:token", "title:token_seq", "category:token_seq", "price:float", "text:token_seq"],
        ["b", "Blue kite", "Toys > Kites", "2.1", "Blue kite. Flies"],
        ["r", "", "", "", "Red & <bold>"],
        ["w", "Wool scarf", "", "", ""],
    ]


def test_the_parts_hold_our_split_with_the_history_of_each_target(tmp_path: Path) -> None:
    kites(ant.Store(tmp_path / "store"))
    ant.export_recbole(tmp_path / "store", "Kites", out=tmp_path / "out")
    parts = {part: lines_of(tmp_path / "out" / "Kites" / f"Kites.{part}.inter") for part in ("train", "valid", "test")}
    assert {head for head, *_ in map(tuple, parts["train"])} >= {"user_id:token"}
    assert parts["train"][1:] == [["u", "b", "r"]]
    assert parts["valid"][1:] == [["u", "b r", "b"]]
    assert parts["test"][1:] == [["u", "b r b", "w"], ["v", "r", "w"]]


def test_the_configuration_names_columns_that_the_files_have(plain: ant.Run, tmp_path: Path) -> None:
    ant.export_recbole(plain.store, "Ring", out=tmp_path / "out", run=plain)
    config = yaml.safe_load((tmp_path / "out" / "Ring.yaml").read_text(encoding="utf-8"))
    assert (tmp_path / "out" / config["data_path"] / config["dataset"]).is_dir()
    assert config["alias_of_item_id"] == ["item_id_list", "iid"]  # or RecBole looks for vectors of unknown items
    files = [("inter", f".{part}.inter") for part in config["benchmark_filename"]]
    for key, suffix in [*files, ("item", ".item"), ("itememb", ".itememb")]:
        head = lines_of(tmp_path / "out" / "Ring" / f"Ring{suffix}")[0]
        assert set(config["load_col"][key]) <= {name.partition(":")[0] for name in head}


def test_item_vectors_for_recbole_are_those_of_the_run(plain: ant.Run, tmp_path: Path) -> None:
    ant.export_recbole(plain.store, "Ring", out=tmp_path / "out", run=plain)
    head, *rows = lines_of(tmp_path / "out" / "Ring" / "Ring.itememb")
    ids, values = plain.item_vectors("Ring")
    assert head == ["iid:token", "item_emb:float_seq"]
    assert [item for item, _ in rows] == ids
    assert np.array([vector.split(" ") for _, vector in rows], np.float32).tolist() == values.tolist()


def test_the_command_in_the_readme_reads_the_atomic_files_back(plain: ant.Run, tmp_path: Path) -> None:
    ant.export_recbole(plain.store, "Ring", out=tmp_path / "out")
    outcome = command(*in_readme(tmp_path / "out", "antpipe import recbole"), "--store", tmp_path / "back")
    assert outcome.code == 0, outcome.err
    there, back = plain.store.domain("Ring"), ant.Store(tmp_path / "back").domain("Ring")
    assert back.table("items", ["item_id", "title", "text"]) == there.table("items", ["item_id", "title", "text"])
    columns = ["user", "item", "timestamp"]
    tables = [pl.DataFrame(domain.table("interactions", columns)).sort(columns) for domain in (there, back)]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("odd", ["two words", "tab\there"])
def test_an_id_with_a_blank_is_refused_by_name_with_a_layout_that_can_hold_it(tmp_path: Path, odd: str) -> None:
    kites(ant.Store(tmp_path / "store"), [*BOUGHT, (odd, "b", 8, 1.0)])
    with pytest.raises(ant.DataError, match="user id") as caught:
        ant.export_recbole(tmp_path / "store", "Kites", out=tmp_path / "out")
    assert repr(odd) in caught.value.message
    assert not (tmp_path / "out").exists()
    outcome = command(*shlex.split(str(caught.value.next_command))[1:])
    assert outcome.code == 0, outcome.err
    assert f"{odd}\t" in (tmp_path / "out" / "Kites.user2index").read_text(encoding="utf-8")


# -- UniSRec ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["unisrec", "ant"])
def test_import_unisrec_reads_an_export_back_bit_by_bit(plain: ant.Run, tmp_path: Path, layout: str) -> None:
    """By the command of its README: items, users, sequences, split and features."""
    ant.export_unisrec(plain.store, "Ring", out=tmp_path / "out", layout=layout)
    outcome = command(*in_readme(tmp_path / "out", "antpipe import unisrec"), "--store", tmp_path / "back")
    assert outcome.code == 0, outcome.err
    store = ant.Store(tmp_path / "back")
    build_sequences(store, ["Ring"], SequenceConfig(max_len=10))
    there, back = plain.store.domain("Ring"), store.domain("Ring")
    assert back.table("items", ["item_id", "text"]) == there.table("items", ["item_id", "text"])
    assert back.table("users", ["user_id"]) == there.table("users", ["user_id"])
    for name in ("user", "offsets", "items", "train_end", "valid_end"):
        assert getattr(back.sequences(), name).tolist() == getattr(there.sequences(), name).tolist(), name
    for modality in ("text", "image", "price"):
        one, other = there.feature(modality), back.feature(modality)
        assert one.values.tobytes() == other.values.tobytes(), modality
        assert one.present.tolist() == other.present.tolist()


def test_long_histories_are_cut_to_fifty_items_and_read_back_whole(tmp_path: Path) -> None:
    store = ant.Store(tmp_path / "store")
    kites(store, [("u", "brw"[step % 3], step, 1.0) for step in range(130)] + BOUGHT[:0])
    ant.export_unisrec(store, "Kites", out=tmp_path / "out")
    rows = lines_of(tmp_path / "out" / "Kites.train.inter")[1:]
    assert max(len(history.split()) for _, history, _ in rows) == 50
    ant.import_unisrec(tmp_path / "back", "Kites", tmp_path / "out")
    tables = [
        root.domain("Kites").table("interactions", ["user", "item"]) for root in (store, ant.Store(tmp_path / "back"))
    ]
    assert tables[0] == tables[1]


def test_a_user_with_a_single_item_is_counted_and_named_in_a_warning(tmp_path: Path, messages: list[str]) -> None:
    kites(ant.Store(tmp_path / "store"))
    found = ant.export_unisrec(tmp_path / "store", "Kites", out=tmp_path / "out")
    assert found.figures["users_without_target"] == 1
    assert any("1 user(s) with a single item" in message for message in messages)
    assert "1 user(s)" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_vector_of_zeros_that_is_present_is_refused(tmp_path: Path) -> None:
    store = ant.Store(tmp_path / "store")
    write_feature(kites(store), "text", np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]))
    with pytest.raises(ant.DataError, match="text: the vector of item 1 is all zeros"):
        ant.export_unisrec(store, "Kites", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_features_are_those_that_a_run_reads(plain: ant.Run, floored: ant.Run, tmp_path: Path) -> None:
    found = ant.export_unisrec(plain.store, "Ring", out=tmp_path / "out", run=floored)
    assert set(found.about["features"]) == set(checkpoint.describe(floored.folder).modalities)


def test_an_unknown_layout_is_refused_with_those_there_are(plain: ant.Run, tmp_path: Path) -> None:
    with pytest.raises(ant.UsageError, match="--layout missrec: choose from unisrec, ant"):
        ant.export_unisrec(plain.store, "Ring", out=tmp_path / "out", layout="missrec")


def test_targets_of_several_validation_and_test_positions_are_in_their_parts() -> None:
    """Items 10 to 15: training up to 12, validation 13, test 14 and 15; the latest target first."""
    items = np.arange(10, 16, dtype=np.int32)
    ends = np.array([3], np.int32), np.array([4], np.int32)
    sequences = Sequences(np.array([7], np.int32), np.array([0, 6]), items, *ends, 50)
    assert list(history_rows(sequences, 0)) == [(7, [10, 11], 12), (7, [10], 11)]
    assert list(history_rows(sequences, 1)) == [(7, [10, 11, 12], 13)]
    assert list(history_rows(sequences, 2)) == [(7, [10, 11, 12, 13, 14], 15), (7, [10, 11, 12, 13], 14)]

"""The item tower and the sequence encoder as ONNX, run by onnxruntime."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import antpipe as ant
from antpipe.evaluation.vectors import as_examples, open_for
from antpipe.export import networks
from antpipe.export.networks import NEEDED, queries_of, require_libraries


@pytest.fixture(scope="module")
def folder(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of the run that has all kinds of inputs: features, which are present, and ids."""
    for name in NEEDED:
        pytest.importorskip(name, reason="pip install 'antpipe[export]'")
    out = tmp_path_factory.mktemp("onnx") / "out"
    ant.export_onnx(ant.Run.open(shop / "floored", shop / "store"), "Ring", out=out)
    return out


def about(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("histories", [[[3]], [[3], [4, 5, 6, 7]], [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]] * 70])
def test_any_number_of_histories_of_any_length_gives_what_the_run_expects(
    folder: Path, floored: ant.Run, histories: list[list[int]]
) -> None:
    import onnxruntime

    opened = open_for(floored.store, floored.folder, "Ring")
    lengths = np.array([len(history) for history in histories])
    padded = np.full((len(histories), lengths.max(), opened.encoded.shape[1]), 7.0, np.float32)
    for row, history in enumerate(histories):
        padded[row, : len(history)] = opened.encoded.numpy()[history]
    session = onnxruntime.InferenceSession(folder / "sequence.onnx")
    [query] = session.run(["query"], {"history": padded, "length": lengths})
    assert query == pytest.approx(queries_of(opened, [np.array(history) for history in histories]), abs=1e-4)
    assert len(as_examples([np.array(one, np.int32) for one in histories], 10)) == len(query)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 5, 24])
def test_any_number_of_items_gives_their_vectors(folder: Path, floored: ant.Run, count: int) -> None:
    import onnxruntime

    example = dict(np.load(folder / "example.npz"))
    example.pop("history")
    inputs = {name: values[:count] for name, values in example.items()}
    session = onnxruntime.InferenceSession(folder / "items.onnx")
    encoded, unit = session.run(["encoded", "unit"], inputs)
    opened = open_for(floored.store, floored.folder, "Ring")
    assert encoded == pytest.approx(opened.encoded.numpy()[:count], abs=1e-4)
    assert np.linalg.norm(unit, axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_the_example_runs_without_antpipe(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-I", folder / "example.py"], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 10
    assert "antpipe" not in (folder / "example.py").read_text(encoding="utf-8")


@pytest.mark.slow
def test_what_the_networks_leave_out_is_said(folder: Path) -> None:
    score = about(folder)["score"]
    assert isinstance(score, dict)
    assert set(score["inner_product"]) == {"cosine"}
    assert {"text", "words", "transitions", "history"} <= set(score["left_out"])


@pytest.mark.slow
def test_a_network_that_computes_something_else_is_refused(
    folder: Path, floored: ant.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_for(floored.store, floored.folder, "Ring")
    example = dict(np.load(folder / "example.npz"))
    history = example.pop("history")
    monkeypatch.setattr(networks, "queries_of", lambda *_: np.zeros((1, 16)))
    with pytest.raises(ant.AntpipeError, match="query differs from torch"):
        networks.parity(folder, opened, example, [history])


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(ant.DataError, match="export onnx needs onnxruntime") as caught:
        require_libraries()
    assert caught.value.next_command == "pip install 'antpipe[export]'"

"""`antpipe evaluate`: its files, slices and approximate indexes; results do not depend on blocks and threads."""

import json
from pathlib import Path
from typing import Any

import pytest

from antpipe.core.ranking import PROTOCOLS
from antpipe.evaluation.evaluate import evaluate_run
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.store.documents import unsealed
from antpipe.store.store import Store
from tests.support import commands
from tests.support.trainable import make_trainable, train_quickly
from tests.training.test_parallel import antpipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    store = Store(folder / "store")
    make_trainable(store, "Shop", seed=1, items=90)
    train_quickly(store, "scratch", ["Shop"], folder / "run", epochs=1)
    return folder


def words(folder: Path, *more: str) -> list[str]:
    return [
        "evaluate",
        "--run",
        str(folder / "run"),
        "--domains",
        "Shop",
        "--store",
        str(folder / "store"),
        "--device",
        "cpu",
        *more,
    ]


def figures(folder: Path, *more: str) -> dict[str, Any]:
    outcome = commands.run(*words(folder, "--json", *more))
    assert outcome.code == 0, outcome.err
    [result] = outcome.json()
    return result


def written(folder: Path, split: str) -> tuple[bytes, bytes]:
    run = folder / "run"
    return (run / f"evaluation-Shop-{split}.json").read_bytes(), (run / f"ranks-Shop-{split}.parquet").read_bytes()


def test_slices_of_a_run_add_up_and_name_its_modalities(folder: Path) -> None:
    result = figures(folder)
    assert set(result["slices"]) == {"item", "occurrences", "popularity", "path", "history", "text", "image", "price"}
    for slices in result["slices"].values():
        assert sum(one["positions"] for one in slices.values()) == result["positions"]
        assert sum(one["users"] for one in slices.values()) == result["users"]  # one position per user
        for protocol in PROTOCOLS:
            parts = [
                one["positions"] * one["protocols"][protocol]["ndcg@50"] for one in slices.values() if one["users"]
            ]
            assert sum(parts) / result["positions"] == pytest.approx(result["protocols"][protocol]["ndcg@50"])


def test_slices_are_printed_on_request_without_empty_ones(folder: Path) -> None:
    result, plain = figures(folder), commands.run(*words(folder)).out
    shown = commands.run(*words(folder, "--slices")).out
    assert shown.startswith(plain.rstrip("\n"))
    rows = [line.split() for line in shown[len(plain) :].splitlines() if line]
    assert rows[0][:4] == ["slice", "positions", "users", "protocol"]
    expected = [
        [group, name, str(one["positions"]), str(one["users"]), protocol, *(f"{v:.4f}" for v in values.values())]
        for group, slices in result["slices"].items()
        for name, one in slices.items()
        for protocol, values in one["protocols"].items()
    ]
    assert rows[1:] == expected
    assert any(not one["positions"] for slices in result["slices"].values() for one in slices.values())


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_figures_of_an_approximate_index_have_their_own_files_and_label(folder: Path, index: str) -> None:
    exact = figures(folder)
    assert (exact["approximate"], exact["index"]) == (False, {"kind": "exact"})
    before = written(folder, "test")
    near = figures(folder, "--index", index)
    assert written(folder, "test") == before
    assert unsealed(json.loads(written(folder, f"test-{index}")[0])) == near
    assert near["approximate"]
    assert near["index"]["kind"] == index
    assert all(0 < near["index"][f"recall_of_exact@{k}"] <= 1 for k in (10, 20, 50))
    assert "approximate, not comparable with exact figures" in commands.run(*words(folder, "--index", index)).out
    assert "approximate" not in commands.run(*words(folder)).out


def test_an_index_that_searches_all_lists_gives_the_exact_figures(folder: Path) -> None:
    near, exact = figures(folder, "--index", "ivf", "--nlist", "6", "--nprobe", "6"), figures(folder)
    assert near["index"] == {"kind": "ivf", "nlist": 6, "nprobe": 6} | {
        f"recall_of_exact@{k}": 1.0 for k in (10, 20, 50)
    }
    assert near["protocols"] == exact["protocols"]


def test_figures_and_ranks_do_not_depend_on_blocks_and_threads(folder: Path) -> None:
    import faiss
    import torch

    store, threads = Store(folder / "store"), torch.get_num_threads()
    found = []
    try:
        for count, size in ((1, 0), (2, 1), (3, 7), (4, 1000)):
            torch.set_num_threads(count)
            faiss.omp_set_num_threads(count)
            evaluate_run(store, folder / "run", "Shop", EvaluateConfig(device="cpu", block_size=size))
            found.append(written(folder, "test"))
    finally:
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
    assert found == [found[0]] * 4


@pytest.mark.slow
def test_two_processes_evaluate_like_one_and_only_the_first_prints(folder: Path) -> None:
    result, before = figures(folder, "--split", "valid"), written(folder, "valid")
    both = antpipe(2, *words(folder, "--json", "--split", "valid"))
    assert both.returncode == 0, both.stderr
    assert json.loads(both.stdout) == [result]
    assert written(folder, "valid") == before

"""`train --stage merge`: two runs of a target, merged group by group, and which runs are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from antpipe.errors import DataError, UsageError
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.methods.merge_runs import MergeRequest, run_merge
from antpipe.training.request import MERGE, RunRequest
from antpipe.training.run import run_stage
from tests.support.commands import run
from tests.support.documents import plain
from tests.support.trainable import MODEL, TRAINING, make_trainable, train_quickly

ONE = replace(TRAINING, epochs=1, precision="fp32")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a source and a target, and runs beside it."""
    store = Store(tmp_path_factory.mktemp("merge") / "store")
    make_trainable(store, "Source", seed=1)
    make_trainable(store, "Target", seed=2)
    runs = store.root.parent
    train_quickly(store, "pretrain", ["Source"], runs / "source", epochs=1)
    train_quickly(store, "relearn", ["Target"], runs / "relearn", runs / "source", epochs=2)
    train_quickly(store, "scratch", ["Target"], runs / "scratch", epochs=2)
    return store


def asked(store: Store, *runs: str) -> MergeRequest:
    folders = tuple(store.root.parent / name for name in runs)
    return MergeRequest(store, ["Target"], MERGE, ModelConfig(), TrainConfig(), runs=folders)


def scratch(store: Store, name: str, model: ModelConfig = MODEL, config: TrainConfig = ONE, **more: Any) -> None:
    request = RunRequest(store, ["Target"], "scratch", model, config, **more)
    run_stage(request, store.root.parent / name)


def test_the_merge_is_a_run_that_is_not_below_either_on_validation(store: Store, tmp_path: Path) -> None:
    done, was_there, report = run_merge(asked(store, "relearn", "scratch"), tmp_path / "run")
    assert (done.stage, list(done.domains), was_there) == (MERGE, ["Target"], False)
    assert done.metrics["recall@10"] == report["merged"] >= max(report["validation"])
    both = [checkpoint.describe(store.root.parent / name).metrics["recall@10"] for name in ("relearn", "scratch")]
    assert sorted(report["validation"]) == sorted(both)
    assert set(report["shares"]) == {"encoder", "positions", "input_norm", "experts", "gates"}
    assert plain(tmp_path / "run" / "merge.json") == report
    assert run_merge(asked(store, "relearn", "scratch"), tmp_path / "run") == (done, True, report)
    assert run("evaluate", "--run", tmp_path / "run", "--domains", "Target", "--store", store.root).code == 0


def test_runs_that_began_with_other_values_are_refused_by_name(store: Store) -> None:
    scratch(store, "seeded", config=replace(ONE, seed=3))
    with pytest.raises(UsageError, match=r"relearn and .*seeded did not start .*: --seed 0 and 3"):
        asked(store, "relearn", "seeded").plan()
    scratch(store, "wide", replace(MODEL, width=32))
    with pytest.raises(UsageError, match="--width 16 and 32"):
        asked(store, "relearn", "wide").plan()
    scratch(store, "fewer", config=replace(ONE, modalities=("text",)))
    with pytest.raises(UsageError, match="modalities"):
        asked(store, "relearn", "fewer").plan()


def test_runs_of_which_one_reads_words_are_refused(store: Store) -> None:
    floor = replace(MODEL, floor=True)
    scratch(store, "worded", floor)
    scratch(store, "wordless", floor, replace(ONE, words=False))
    with pytest.raises(UsageError, match="--words True and False"):
        asked(store, "worded", "wordless").plan()


def test_runs_that_trained_no_vectors_are_refused(store: Store) -> None:
    for name in ("one", "two"):
        request = RunRequest(store, ["Target"], "rerank-scratch", replace(MODEL, floor=True, reranker=True), ONE)
        run_stage(request, store.root.parent / name)
    with pytest.raises(UsageError, match="one is of stage rerank-scratch, which trains no vectors"):
        asked(store, "one", "two").plan()


def test_runs_of_other_targets_and_refits_are_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="source was trained on Source, not on Target"):
        asked(store, "source", "scratch").plan()
    scratch(store, "refit", refit=1)
    with pytest.raises(UsageError, match="was trained on the validation targets"):
        asked(store, "refit", "scratch").plan()


def test_it_takes_two_runs_that_are_there(store: Store) -> None:
    for names in ((), ("relearn",), ("relearn", "relearn"), ("relearn", "scratch", "source")):
        with pytest.raises(UsageError, match="merges two runs"):
            asked(store, *names).plan()
    with pytest.raises(DataError, match="no finished run here"):
        asked(store, "relearn", "nothing").plan()
    with pytest.raises(UsageError, match="is one of the runs to merge"):
        run_merge(asked(store, "relearn", "scratch"), store.root.parent / "scratch")


def test_the_command_line_says_what_was_taken_from_which_run(store: Store, tmp_path: Path) -> None:
    runs = store.root.parent
    words = ("train", "--stage", "merge", "--domains", "Target", "--store", store.root, "--out", tmp_path / "run")
    outcome = run(*words, "--from", f"{runs / 'relearn'},{runs / 'scratch'}", "--merge-steps", "1")
    assert outcome.code == 0, outcome.err
    assert "; merged " in outcome.out
    assert "encoder: " in outcome.out

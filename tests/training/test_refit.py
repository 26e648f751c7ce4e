"""`train --refit`: the run again on training and validation targets, for the epochs that were best."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from antpipe.core.batches import Batch, batches
from antpipe.errors import DataError, Interrupted, UsageError
from antpipe.runtime.progress import Progress
from antpipe.settings.training import TrainConfig
from antpipe.store.store import Store
from antpipe.training import checkpoint, loop, validation, worth
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.folder import RunFolder
from antpipe.training.opening import open_run
from antpipe.training.run import run_stage
from tests.support.commands import run, unfolded
from tests.support.documents import plain
from tests.support.interruptions import CONFIG, Killed, asked, command, failing_at, result, trained, two_shops, watching
from tests.support.releases import snapshot
from tests.support.trainable import make_trainable

BEST = 2  # epoch of the run to be refitted
STEPS = 8  # of its refit: 2 epochs of 4 batches


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return two_shops(tmp_path_factory.mktemp("shops"))


@pytest.fixture(autouse=True)
def the_second_epoch_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation chooses epoch 2 of 3."""
    found = iter([0.1, 0.5, 0.3] * 20)

    def validate(_: Any, data: Any, *__: Any) -> dict[str, float]:
        return dict.fromkeys((worth.SELECTION, worth.TIE_BREAK), next(found)) if data.validation else {}

    monkeypatch.setattr(validation, "validate", validate)


def refitted(
    store: Store,
    out: Path,
    config: TrainConfig = CONFIG,
    stage: str = "scratch",
    source: Path | None = None,
    **more: Any,
) -> Checkpoint:
    """The refit of a run that is in the folder, or is trained there first."""
    request = replace(asked(store, config, stage, source), then_refit=True)
    done, _ = run_stage(request, out)
    return run_stage(request.refitted(done), RunFolder(out).refit, **more)[0]


@pytest.fixture
def done(store: Store, tmp_path: Path) -> Path:
    """A refitted run."""
    refitted(store, tmp_path / "run")
    return tmp_path / "run"


def test_a_refit_trains_on_every_target_but_those_of_the_test(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(store, tmp_path)
    epochs: list[list[tuple[int, int]]] = []

    def listed(*arguments: Any) -> Iterator[Batch]:
        made = list(batches(*arguments))
        epochs.append(
            sorted(
                (int(user), int(batch.items[target]))
                for batch in made
                for user, target in zip(batch.users, batch.targets, strict=True)
            )
        )
        yield from made

    monkeypatch.setattr(loop, "batches", listed)
    refitted(store, tmp_path)
    sequences = store.domain("Target").sequences()
    expected = [
        (user, int(item))
        for user, (first, end) in enumerate(zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True))
        for item in sequences.items[first + 1 : end - 1]
    ]
    assert epochs == [sorted(expected)] * BEST


def test_it_has_the_learning_rates_of_the_best_epochs_and_no_validation(done: Path) -> None:
    rows, again = RunFolder(done).read_rows(), RunFolder(RunFolder(done).refit).read_rows()
    assert [row["lr"] for row in again] == [row["lr"] for row in rows[:BEST]]
    assert set(again[0]) == {"epoch", "loss", "lr", "seconds", "positions_per_second"}


@pytest.mark.parametrize("stage", ["scratch", "relearn"])
def test_it_starts_from_the_first_values_of_the_run(store: Store, tmp_path: Path, stage: str) -> None:
    source = None
    if stage == "relearn":
        trained(store, tmp_path / "source", stage="pretrain")
        source = tmp_path / "source"
    refitted(store, tmp_path / "run", replace(CONFIG, lr=0.0), stage, source)
    first, again = (load_file(*folder.glob("model-*")) for folder in (tmp_path / "run", tmp_path / "run/refit"))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_its_checkpoint_says_of_what_it_is_a_refit_and_for_how_many_epochs(done: Path) -> None:
    original, again = checkpoint.describe(done), checkpoint.describe(done / "refit")
    assert original.refit is None
    assert again.refit == {"of": original.fingerprint, "epochs": BEST}
    assert again.fingerprint != original.fingerprint
    assert (again.best_epoch, again.epochs, again.metrics) == (BEST, BEST, {})
    assert again.train == original.train


def test_the_run_itself_is_untouched(store: Store, tmp_path: Path) -> None:
    trained(store, tmp_path)
    before = snapshot(tmp_path)
    refitted(store, tmp_path)
    assert {path: content for path, content in snapshot(tmp_path).items() if "refit" not in str(path)} == before


def test_patience_of_the_run_does_not_end_its_refit(store: Store, tmp_path: Path) -> None:
    found = refitted(store, tmp_path, replace(CONFIG, patience=1, epochs=9, eval_every=2))
    assert (found.epochs, checkpoint.describe(tmp_path).best_epoch) == (4, 4)


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_refit_killed_at_any_step_ends_bit_equal_after_resuming(
    store: Store, tmp_path: Path, done: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    trained(store, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "target_loss", failing_at(step, loop.target_loss, Killed(), after=False))
        refitted(store, tmp_path)
    refitted(store, tmp_path, resume=True)
    assert RunFolder(done / "refit").read_cost()["steps"] == STEPS
    assert result(tmp_path / "refit") == result(done / "refit")


@pytest.mark.slow
def test_the_command_after_ctrl_c_continues_the_refit(
    store: Store, tmp_path: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*command(store, tmp_path)).code == 0
    with monkeypatch.context() as patch:
        patch.setattr(loop, "target_loss", failing_at(5, loop.target_loss, KeyboardInterrupt(), after=False))
        stopped = run(*command(store, tmp_path), "--refit")
    assert stopped.code == 130
    [line] = [line for line in stopped.err.splitlines() if line.startswith("antpipe: next: ")]
    words = shlex.split(line.removeprefix("antpipe: next: antpipe "))
    assert {"--refit", "--resume"} <= set(words)
    assert words[words.index("--out") + 1] == str(tmp_path)
    continued = run(*words, "--json")
    assert continued.code == 0, continued.err
    found = continued.json()
    assert found["refit"]["refit"] == {"of": found["checkpoint"]["fingerprint"], "epochs": BEST}
    weights = [load_file(*folder.glob("model-*")) for folder in (tmp_path / "refit", done / "refit")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_ctrl_c_in_the_run_before_the_refit_names_a_command_that_still_refits(store: Store, tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as stopped:
        run_stage(replace(asked(store), then_refit=True), tmp_path, progress=interrupting())
    assert stopped.value.next_command is not None
    assert " --refit " in stopped.value.next_command


def interrupting() -> Progress:
    """A progress that presses Ctrl-C once the first epoch is done."""

    def look(done: float) -> None:
        if done >= 1:
            raise KeyboardInterrupt

    return watching(look)


def test_without_resume_an_unfinished_refit_is_neither_lost_nor_continued(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(store, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "target_loss", failing_at(5, loop.target_loss, Killed(), after=False))
        refitted(store, tmp_path)
    with pytest.raises(UsageError, match="unfinished") as refused:
        refitted(store, tmp_path)
    assert f"--out {tmp_path} --refit" in str(refused.value.next_command)


@pytest.mark.slow
def test_the_refit_of_another_number_of_epochs_is_not_replaced_unasked(store: Store, done: Path) -> None:
    request = replace(asked(store), refit=BEST + 1)
    with pytest.raises(UsageError, match=r"holds another run: refit epochs 2 \(now 3\)") as refused:
        run_stage(request, done / "refit")
    assert str(refused.value.next_command) == f"the same command with --out {done}-2"
    assert run_stage(request, done / "refit", force=True)[0].epochs == BEST + 1


def test_a_finished_refit_is_fresh(store: Store, tmp_path: Path) -> None:
    assert "trained" in unfolded(run(*command(store, tmp_path), "--refit").out).splitlines()[1]
    lines = unfolded(run(*command(store, tmp_path), "--refit").out).splitlines()
    assert lines[1] == f"{tmp_path}/refit  scratch, refit  fresh {BEST} epochs on training + validation"
    assert "  fresh " in lines[0]


@pytest.mark.parametrize("stage", ["pretrain", "auto"])
def test_only_a_stage_on_a_target_is_refitted(store: Store, tmp_path: Path, stage: str) -> None:
    source = [] if stage == "pretrain" else ["--from", str(tmp_path / "source")]
    trained(store, tmp_path / "source", stage="pretrain")
    words = ["train", "--stage", stage, "--domains", "Target", *source, "--refit", "--store", str(store.root)]
    for more in (["--out", str(tmp_path / "run")], ["--dry-run"]):
        refused = run(*words, *more)
        assert refused.code == 2
        assert "--refit" in refused.err
    assert not (tmp_path / "run").exists()


def test_a_limit_of_steps_is_refused_before_anything_is_trained(store: Store, tmp_path: Path) -> None:
    refused = run(*command(store, tmp_path / "run"), "--refit", "--limit-steps", "3")
    assert refused.code == 2
    assert "whole epochs" in refused.err
    assert not (tmp_path / "run").exists()


def test_a_refit_is_evaluated_and_recommends_like_any_run(store: Store, done: Path) -> None:
    where = ("--domains", "Target", "--store", store.root)
    found = run("evaluate", "--run", done / "refit", *where, "--json").json()[0]
    assert found["run_fingerprint"] == checkpoint.describe(done / "refit").fingerprint
    assert len(run("recommend", "--run", done / "refit", *where, "--user", "u001", "--json").json()) == 10
    valid = run("evaluate", "--run", done / "refit", *where, "--split", "valid")
    assert "was trained on the validation targets" in valid.err
    assert "validation targets" not in run("evaluate", "--run", done, *where, "--split", "valid").err


def test_what_a_refit_has_seen_of_an_item_includes_validation(store: Store, done: Path) -> None:
    sequences = store.domain("Target").sequences()
    for folder, last in ((done, sequences.train_end), (done / "refit", sequences.valid_end)):
        assert run("evaluate", "--run", folder, "--domains", "Target", "--store", store.root).code == 0
        seen = [
            int(item)
            for first, end in zip(sequences.offsets[:-1], last, strict=True)
            for item in sequences.items[first : first + end]
        ]
        ranks = pl.read_parquet(RunFolder(folder).ranks("Target", "test"))
        assert ranks["occurrences"].to_list() == [seen.count(item) for item in ranks["target"]]


def test_a_run_that_chooses_its_epoch_on_the_same_targets_does_not_start_from_a_refit(
    store: Store, tmp_path: Path, done: Path
) -> None:
    with pytest.raises(UsageError, match="was trained on the validation targets") as refused:
        trained(store, tmp_path / "next", stage="unfreeze", source=done / "refit")
    assert str(refused.value.next_command) == f"the same command with --from {done}"


@pytest.mark.slow
def test_a_refit_whose_features_changed_proposes_the_command_that_makes_it_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Target", seed=1)
    refitted(store, tmp_path / "run")
    make_trainable(store, "Target", seed=2)
    with pytest.raises(DataError, match="changed since") as refused:
        open_run(store, tmp_path / "run/refit", "Target")
    assert run(*shlex.split(str(refused.value.next_command))[1:]).code == 0
    open_run(store, tmp_path / "run/refit", "Target")


def test_a_checkpoint_of_before_refits_existed_is_read(done: Path) -> None:
    path = done / "checkpoint.json"
    described = plain(path)
    del described["refit"], described["negatives"]
    path.write_text(json.dumps(described))
    assert checkpoint.describe(done).refit is None

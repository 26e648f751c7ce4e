"""`train --stage fork-merge`: ranking, branches, the merging rule, resuming, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from antpipe.core.model import Ant
from antpipe.errors import AntpipeError, DataError, UsageError
from antpipe.features.build_sequences import build_sequences
from antpipe.settings.features import SequenceConfig
from antpipe.settings.fork_merge import ForkMergeConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.lock import alone
from antpipe.store.store import Store
from antpipe.training import checkpoint, rehearsal
from antpipe.training.folder import RunFolder
from antpipe.training.loop import candidates_of, trained_by, windows_to_train
from antpipe.training.methods import fork_merge
from antpipe.training.methods.fork_merge import run_fork_merge
from antpipe.training.methods.fork_request import ForkMergePlan, ForkMergeRequest
from antpipe.training.methods.mixed_steps import MixedSteps, shares_of
from antpipe.training.replay import Setup, adam
from antpipe.training.request import FORK_MERGE, RunRequest
from antpipe.training.run import build_model, run_stage
from tests.support.commands import run
from tests.support.documents import plain
from tests.support.trainable import MODEL, TRAINING, make_trainable, train_quickly

TWO = replace(TRAINING, epochs=2, precision="fp32")
CONFIG = ForkMergeConfig(epoch_step=1, branches=(1, 2))
OTHERS = ("A", "B", "C")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a target and auxiliaries: A, B, C, and others that are refused."""
    store = Store(tmp_path_factory.mktemp("fork") / "store")
    for seed, name in enumerate(("Target", *OTHERS)):
        make_trainable(store, name, seed=seed, items=24 + seed)
    return store


def asked(store: Store, auxiliaries: tuple[str, ...] = OTHERS, training: TrainConfig = TWO, **more: Any) -> Any:
    own = {"model": MODEL, "domains": ("Target",), "config": CONFIG, **more}
    return ForkMergeRequest(store, stage=FORK_MERGE, training=training, auxiliaries=auxiliaries, **own)


def steps_of(plan: ForkMergePlan) -> tuple[Ant, MixedSteps]:
    """The steps of a branch with all auxiliaries, and the model they train."""
    model, cpu, data = build_model(plan), torch.device("cpu"), plan.data
    config = replace(plan.training(), batch_size=16)
    windows = windows_to_train(data, config, in_batch=False)
    optimiser = adam(trained_by(model), config.lr, cpu, recorded=False)
    setup = Setup(model, data.catalogue, windows, candidates_of(data, False, config), config, optimiser, cpu, False)
    return model, MixedSteps(setup, plan.others)


@pytest.fixture(scope="module")
def whole(store: Store) -> tuple[Any, Path]:
    """A run that nothing disturbed: what it returned, and its folder."""
    out = store.root.with_name("whole")
    return run_fork_merge(asked(store), out), out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_weights(folder, checkpoint.describe(folder))


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_half_of_the_steps_belong_to_the_target_and_the_rest_to_its_auxiliaries() -> None:
    assert shares_of(["A"]) == [0.5, 0.5]
    assert shares_of(["A", "B"]) == [0.5, 0.25, 0.25]


def test_the_result_is_a_run_of_the_target_alone(whole: tuple[Any, Path]) -> None:
    (done, was_there, _), out = whole
    assert (done.stage, list(done.domains), was_there) == (FORK_MERGE, ["Target"], False)
    assert done == checkpoint.describe(out)
    names = {"checkpoint.json", "cost.json", "fork-merge.json", "metrics.jsonl"}
    there = {path.name for path in out.iterdir() if not path.name.startswith(("items-", "model-", "."))}
    assert there == names


def test_merged_weights_are_never_below_any_branch_on_validation(whole: tuple[Any, Path]) -> None:
    (done, _, report), _ = whole
    assert [one["epochs"] for one in report["rounds"]] == [1, 2]
    for one in report["rounds"]:
        assert set(one["branches"]) == {"target", "top-1", "top-2"}
        assert one["merged"] >= max(one["branches"].values())
    assert done.metrics["recall@10"] == max(one["merged"] for one in report["rounds"])


def test_weights_of_branches_add_up_to_one(whole: tuple[Any, Path]) -> None:
    (_, _, report), out = whole
    assert report == plain(out / "fork-merge.json")
    for one in report["rounds"]:
        assert sum(one["weights"].values()) == pytest.approx(1)


def test_auxiliaries_are_ranked_by_the_validation_of_the_target(
    store: Store, whole: tuple[Any, Path], tmp_path: Path
) -> None:
    (_, _, report), _ = whole
    scores = list(report["ranking"].values())
    assert set(report["ranking"]) == set(OTHERS)
    assert scores == sorted(scores, reverse=True)
    first, second, _ = report["ranking"]
    assert report["branches"]["top-1"] == {"Target": 0.5, first: 0.5}
    assert report["branches"]["top-2"] == {"Target": 0.5, first: 0.25, second: 0.25}
    # a score is that of a branch with this auxiliary after prune_epochs
    only = asked(store, (first,), replace(TWO, epochs=1), config=replace(CONFIG, branches=(1,), merge_steps=1))
    _, _, one = run_fork_merge(only, tmp_path / "one")
    assert one["ranking"] == {}
    assert one["rounds"][0]["branches"]["top-1"] == report["ranking"][first]


def test_the_branch_on_the_target_alone_is_a_scratch_run_until_the_first_merge(store: Store, tmp_path: Path) -> None:
    done, _, report = run_fork_merge(asked(store, training=replace(TWO, epochs=1)), tmp_path / "merged")
    control = train_quickly(store, "scratch", ["Target"], tmp_path / "scratch", epochs=1, precision="fp32")
    assert report["rounds"][0]["branches"]["target"] == control.metrics["recall@10"]
    assert done.metrics["recall@10"] >= control.metrics["recall@10"]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Let this function of Merging raise as Ctrl-C does at its n-th call."""
    real, calls = getattr(fork_merge.Merging, name), iter(range(1, 1000))

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    monkeypatch.setattr(fork_merge.Merging, name, interrupted)


@pytest.mark.parametrize(("name", "call"), [("train", 2), ("train", 8), ("state_of", 5)])
def test_a_killed_run_ends_the_same_after_resuming(
    store: Store, whole: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, name, call)
        run_fork_merge(asked(store), out)
    with pytest.raises(UsageError, match=r"unfinished .*: --resume continues it"):
        run_fork_merge(asked(store), out)
    done, was_there, report = run_fork_merge(asked(store), out, resume=True)
    assert (done, was_there) == (whole[0][0], False)
    assert report == whole[0][2]
    assert same(out, whole[1])


def test_a_branch_that_was_killed_within_an_epoch_continues_there(
    store: Store, whole: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = MixedSteps.take, iter(range(1, 10000))

    def take(self: Any, batch: Any, check: Any) -> Any:
        if next(calls) == 6:
            raise KeyboardInterrupt
        return real(self, batch, check)

    always = replace(TWO, save_every=0.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MixedSteps, "take", take)
        run_fork_merge(asked(store, training=always), tmp_path / "run")
    run_fork_merge(asked(store, training=always), tmp_path / "run", resume=True)
    assert same(tmp_path / "run", whole[1])


def test_a_finished_run_is_not_trained_again_and_another_one_is_refused(store: Store, whole: tuple[Any, Path]) -> None:
    first, out = whole
    assert run_fork_merge(asked(store), out) == (first[0], True, first[2])
    with pytest.raises(UsageError, match="holds another run: other auxiliaries"):
        run_fork_merge(asked(store, OTHERS[:2]), out)
    with pytest.raises(UsageError, match="holds another run: --seed"):
        run_fork_merge(asked(store, training=replace(TWO, seed=1)), out)


def test_two_writers_in_one_folder_are_refused(store: Store, tmp_path: Path) -> None:
    with alone(tmp_path / "run", "run"), pytest.raises(AntpipeError, match="run is being written by process"):
        run_fork_merge(asked(store), tmp_path / "run")


def test_steps_on_auxiliaries_leave_the_ids_of_the_target_alone(store: Store) -> None:
    model, steps = steps_of(asked(store, ("A",), model=replace(MODEL, transductive=True)).plan())
    assert model.ids is not None
    seen = set()
    for batch in steps.batches(1, 0, None):
        before = (model.ids.weight.clone(), model.positions.weight.clone())
        steps.take(batch, lambda _: None)
        own = steps.current is steps.domains[0]
        seen.add(own)
        assert torch.equal(before[0], model.ids.weight) != own
        assert not torch.equal(before[1], model.positions.weight)
    assert seen == {True, False}


@pytest.mark.parametrize("epoch", [1, 2])
def test_the_steps_of_an_epoch_are_the_same_from_wherever_it_continues(store: Store, epoch: int) -> None:
    _, steps = steps_of(asked(store).plan())
    every = list(steps.batches(epoch, 0, None))
    later = list(steps.batches(epoch, 5, None))
    assert len(every) == len(steps.drawn(epoch))
    for one, other in zip(every[5:], later, strict=True):
        assert np.array_equal(one.targets, other.targets)


def test_a_run_with_a_floor_is_never_below_it(store: Store, tmp_path: Path) -> None:
    model = replace(MODEL, floor=True)
    done, _, report = run_fork_merge(asked(store, ("A",), replace(TWO, lr=0.1), model=model), tmp_path / "run")
    floor = train_quickly(store, "floor", ["Target"], tmp_path / "floor")
    assert done.metrics["recall@10"] >= floor.metrics["recall@10"]
    assert min(one["merged"] for one in report["rounds"]) >= floor.metrics["recall@10"]


def test_the_re_ranker_learns_once_for_all_branches(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "ALONE_POSITIONS", 10)
    asks = asked(store, ("A",), model=replace(MODEL, floor=True, reranker=True))
    run_stage(RunRequest(store, ["Target"], "rerank-scratch", asks.model, TWO), tmp_path / "alone")
    taught, learn = [], rehearsal.learn
    monkeypatch.setattr(rehearsal, "learn", lambda *given: taught.append(given) or learn(*given))
    run_fork_merge(asks, tmp_path / "run")
    assert len(taught) == 1
    own, alone = weights(tmp_path / "run"), weights(tmp_path / "alone")
    assert all(torch.equal(own[name], alone[name]) for name in own if name.startswith("reranker.first"))


def test_patience_ends_a_run_after_rounds_without_a_better_merge(store: Store, tmp_path: Path) -> None:
    patient = replace(TWO, epochs=8, patience=1, lr=2.0)
    done, _, report = run_fork_merge(asked(store, ("A",), patient), tmp_path / "run")
    assert len(report["rounds"]) == done.epochs == done.best_epoch + 1 < 8


def test_merges_are_after_epochs_that_are_validated(store: Store) -> None:
    every = asked(store, training=replace(TWO, epochs=7, eval_every=3)).plan()
    assert (every.marks(), every.ranked_after()) == ([3, 6], 3)
    assert asked(store, training=replace(TWO, epochs=2, eval_every=3)).plan().marks() == [2]


def test_one_auxiliary_needs_no_ranking(store: Store) -> None:
    plan = asked(store, ("A",)).plan()
    assert (plan.request.sizes(), plan.ranked_after()) == ((1,), 0)


def test_it_continues_from_a_pretrained_run(store: Store, tmp_path: Path) -> None:
    train_quickly(store, "pretrain", ["C"], tmp_path / "source", epochs=1)
    done, _, _ = run_fork_merge(
        asked(store, ("A",), replace(TWO, epochs=1), source=tmp_path / "source"), tmp_path / "run"
    )
    assert done.source == checkpoint.describe(tmp_path / "source").fingerprint
    assert done.groups["encoder"] == "keep"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auxiliaries": ()}, "name them with --auxiliaries"),
        ({"auxiliaries": ("A", "Target")}, "Target is the target"),
        ({"domains": ("Target", "A")}, "trains for one target, not for Target,A"),
        ({"then_refit": True}, "cannot be refitted"),
        ({"training": replace(TWO, limit_steps=3)}, "not in --limit-steps"),
        ({"training": replace(TWO, reference=True)}, "--reference: the authors"),
        ({"training": replace(TWO, method="distil")}, "has no --method distil"),
        ({"training": replace(TWO, modalities=("none",))}, "ids belong to the target"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(store: Store, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(asked(store), **change).plan()


def test_several_processes_are_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="runs in one process"):
        asked(store).plan()


def test_auxiliaries_that_cannot_be_trained_with_the_target_are_refused_by_name(tmp_path: Path) -> None:
    place = Store(tmp_path / "store")
    make_trainable(place, "Target", widths={"text": 12, "image": 10})
    make_trainable(place, "Priced", widths={"price": 6})
    make_trainable(place, "Wide", widths={"text": 20})
    make_trainable(place, "Long", widths={"text": 12})
    build_sequences(place, ["Long"], SequenceConfig(max_len=12), force=True)
    for name, message in {
        "Priced": "auxiliary Priced: has no text and no image",
        "Wide": "auxiliary Wide: has text of width 20 by test .*, this run reads that of width 12",
        "Long": "auxiliary Long: its sequences have --max-len 12, those of Target 10",
        "Nowhere": "Nowhere",
    }.items():
        with pytest.raises(DataError, match=message):
            asked(place, (name,)).plan()


def test_the_command_line_trains_it_and_says_what_was_merged(store: Store, tmp_path: Path) -> None:
    words = ("train", "--stage", "fork-merge", "--domains", "Target", "--auxiliaries", "A,B", "--epochs", "2")
    small = ("--width", "16", "--experts", "2", "--batch-size", "64", "--device", "cpu", "--epoch-step", "1")
    outcome = run(*words, *small, "--branches", "1", "--store", store.root, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "auxiliaries by validation: " in outcome.out
    assert "after 2 of 2 epochs: target " in outcome.out
    assert not (tmp_path / "run" / "branches").exists()
    assert RunFolder(tmp_path / "run").is_finished()
    refused = run(*words[:5], *small, "--store", store.root, "--out", tmp_path / "other")
    assert refused.code == 2
    assert "name them with --auxiliaries" in refused.err

"""What would make a comparison unfair, and so is refused before anything is trained; and what is not to be refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from antpipe.comparison import run as compare
from antpipe.comparison.plan import SASREC, UNISREC, Request, plan_arms
from antpipe.comparison.run import budget_of, run_comparison, what_would_be_done
from antpipe.errors import UsageError
from antpipe.runtime.progress import progress
from antpipe.settings.evaluation import CompareConfig
from antpipe.settings.training import RaceConfig
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training import race as racing
from antpipe.training.race_folder import read_decision
from tests.support.commands import run
from tests.support.trainable import MODEL, TRAINING, make_trainable, train_quickly

ONE_EPOCH = replace(TRAINING, epochs=1, device="cpu")
RACED = ("scratch", "auto")
QUICK = RaceConfig(candidates=("scratch", "relearn"), first_rung=0.5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("fair") / "store")
    for seed, name in enumerate(("Source", "Target")):
        make_trainable(store, name, seed=seed)
    return store


@pytest.fixture(scope="module")
def source(store: Store) -> Path:
    folder = store.root.with_name("source")
    train_quickly(store, "pretrain", ["Source"], folder, epochs=1)
    return folder


def asked(store: Store, out: Path, arms: tuple[str, ...], **more: Any) -> Request:
    config = CompareConfig(seeds=1, resamples=100, arms=arms)
    request = Request(store, out, ("Target",), config, MODEL, MODEL, ONE_EPOCH, RaceConfig())
    return replace(request, **more)


def compared(request: Request, force: bool = False) -> dict[str, Any]:
    return run_comparison(request, force=force, notice=str, watch=progress)


def test_a_race_is_held_to_the_budget_of_a_given_control(store: Store, source: Path, tmp_path: Path) -> None:
    train_quickly(store, "scratch", ["Target"], tmp_path / "old", epochs=2)
    request = asked(store, tmp_path / "out", ("auto",), origins=(source,), given={"scratch": [tmp_path / "old"]})
    with pytest.raises(UsageError, match=r"auto .* and scratch .* are not comparable: --epochs 1 \(not 2\)"):
        compared(request)
    assert not (tmp_path / "out").exists()


def test_no_race_is_won_by_a_stage_that_reads_fewer_features_than_the_control(store: Store, tmp_path: Path) -> None:
    train_quickly(store, "pretrain", ["Source"], tmp_path / "text", epochs=1, modalities=("text",))
    race = RaceConfig(candidates=("finetune", "relearn"))
    compared(asked(store, tmp_path / "out", RACED, origins=(tmp_path / "text",), race=race))
    decision = read_decision(tmp_path / "out" / "Target" / "text" / "auto-0")
    assert decision["left_out"] == {"finetune": "it reads text, not image, price, text"}
    assert decision["chosen"] == "relearn"


def test_a_race_of_a_comparison_has_no_limit_of_steps(store: Store, source: Path, tmp_path: Path) -> None:
    limited = replace(ONE_EPOCH, limit_steps=3)
    with pytest.raises(UsageError, match="--limit-steps does not go with --stage auto"):
        compared(asked(store, tmp_path / "out", RACED, origins=(source,), training=limited))
    assert not (tmp_path / "out").exists()


def test_the_budget_of_a_race_is_that_of_all_stages_of_its_winner(store: Store, source: Path, tmp_path: Path) -> None:
    two, only = replace(ONE_EPOCH, epochs=2), RaceConfig(candidates=("relearn-then-unfreeze",))
    found = compared(asked(store, tmp_path / "out", RACED, origins=(source,), training=two, race=only))
    arms = found["targets"]["Target"]["arms"]
    for name in RACED:
        [one] = arms[name]["runs"]
        assert (one["budget"]["epochs"], one["budget"]["epochs_done"]) == (2, 2)
    done = checkpoint.describe(tmp_path / "out" / "Target" / "source" / "auto-0")
    assert (done.train["epochs"], budget_of(done, {})["epochs"]) == (1, 1)


def test_baselines_read_what_is_whitened_of_what_they_read(store: Store, tmp_path: Path) -> None:
    white = replace(ONE_EPOCH, whitened=("text", "image"))
    arms, [mix] = plan_arms(asked(store, tmp_path, ("scratch", "baselines"), sources=("Source",), training=white))
    read = {arm.name: (arm.training.modalities, arm.training.whitened) for arm in arms}
    assert read[SASREC] == (("none",), ())
    assert read[UNISREC] == (mix.training.modalities, mix.training.whitened) == (("text",), ("text",))


def test_a_run_that_was_trained_on_the_target_is_no_source(store: Store, tmp_path: Path) -> None:
    train_quickly(store, "pretrain", ["Source", "Target"], tmp_path / "both", epochs=1)
    with pytest.raises(UsageError, match="both: was trained on Target, which is a target"):
        compared(asked(store, tmp_path / "out", ("scratch", "relearn"), origins=(tmp_path / "both",)))
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="compare runs in one process"):
        compared(asked(store, tmp_path / "out", ("scratch", "relearn"), origins=(source,)))
    assert not (tmp_path / "out").exists()


def test_force_replaces_a_mix_that_would_not_be_comparable(store: Store, tmp_path: Path) -> None:
    request = asked(store, tmp_path / "out", ("scratch", "finetune"), sources=("Source",))
    texts = replace(request, training=replace(ONE_EPOCH, modalities=("text",)))
    compared(texts)
    with pytest.raises(UsageError, match=r"holds another run|are not comparable"):
        compared(request)
    compared(request, force=True)
    assert set(checkpoint.describe(tmp_path / "out" / "pretrain" / "all").modalities) == {"text", "image", "price"}


def test_force_still_refuses_what_is_not_comparable_once_the_mix_is_there(tmp_path: Path) -> None:
    texts = Store(tmp_path / "store")
    make_trainable(texts, "Source", widths={"text": 12})
    make_trainable(texts, "Target", seed=1)
    request = asked(texts, tmp_path / "out", ("scratch", "finetune"), sources=("Source",))
    with pytest.raises(UsageError, match=r"finetune .* are not comparable: reads text"):
        compared(request, force=True)
    assert not (tmp_path / "out" / "Target").exists()


@pytest.mark.parametrize(("force", "said"), [((), "the same command goes on"), (("--force",), "without --force goes")])
def test_ctrl_c_names_the_command_that_goes_on(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: tuple[str, ...], said: str
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "run_comparison", interrupted)
    outcome = run("compare", "--target", "Target", "--out", tmp_path / "out", "--store", store.root, *force)
    assert outcome.code == 130
    assert said in outcome.err


def test_arms_with_other_first_values_are_refused(store: Store, source: Path, tmp_path: Path) -> None:
    model = replace(MODEL, init="authors")
    with pytest.raises(UsageError, match="--init authors: scratch and the arms"):
        compared(asked(store, tmp_path / "out", ("scratch", "relearn"), origins=(source,), model=model))


def test_a_run_from_before_a_setting_existed_has_its_default(store: Store, tmp_path: Path) -> None:
    train_quickly(store, "scratch", ["Target"], tmp_path / "old", epochs=1, device="cpu")
    path = tmp_path / "old" / "checkpoint.json"
    document = json.loads(path.read_text())
    for name in ("compile", "whitened"):
        del document["train"][name]
    path.write_text(json.dumps(document))
    found = compared(asked(store, tmp_path / "out", ("scratch",), given={"mine": [tmp_path / "old"]}))
    assert "mine" in found["targets"]["Target"]["arms"]


def test_a_folder_with_a_run_from_before_a_setting_existed_says_which(store: Store, tmp_path: Path) -> None:
    request = asked(store, tmp_path / "out", ("scratch",))
    compared(request)
    path = tmp_path / "out" / "Target" / "scratch-0" / "checkpoint.json"
    document = json.loads(path.read_text())
    del document["train"]["stride"]
    path.write_text(json.dumps(document | {"fingerprint": "of that time"}))
    with pytest.raises(UsageError, match="holds another run: made without --stride"):
        compared(request)


def test_a_race_of_other_settings_is_refused_before_anything_is_trained(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(store, tmp_path / "out", RACED, origins=(source,), race=QUICK)
    compared(replace(request, config=replace(request.config, arms=("scratch", "auto"))))
    monkeypatch.setattr(compare, "run_stage", None)
    other = replace(QUICK, candidates=("relearn",))
    with pytest.raises(UsageError, match="auto-0: holds another run"):
        compared(replace(request, race=other, config=replace(request.config, arms=("scratch", "relearn", "auto"))))


def test_a_mix_of_other_settings_is_refused_before_anything_is_trained(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trainable(store, "Other", seed=2)
    request = asked(store, tmp_path / "out", ("scratch", "relearn"), sources=("Source", "Other"))
    found = compared(replace(request, sources=("Source",)))
    assert list(found["targets"]["Target"]["arms"]) == ["scratch", "relearn"]
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(compare, "run_stage", None)
    with pytest.raises(UsageError, match=r"pretrain/all: holds another run: domains Other None"):
        what_would_be_done(request, force=False)
    leave_out = replace(request, config=replace(request.config, leave_one_out=True))
    with pytest.raises(UsageError, match=r"pretrain/all: holds another run: domains Other None"):
        compared(leave_out)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_looks_at_what_is_in_the_folders(store: Store, source: Path, tmp_path: Path) -> None:
    request = asked(
        store,
        tmp_path / "out",
        (*RACED, "markov"),
        origins=(source,),
        race=QUICK,
        training=replace(ONE_EPOCH, epochs=2),
    )

    def states(request: Request, force: bool = False) -> list[str]:
        return [row["state"] for row in what_would_be_done(request, force=force)]

    compared(request)
    assert states(request) == ["finished"] * 3
    assert states(request, force=True) == ["missing"] * 3
    with pytest.raises(UsageError, match="auto-0: holds another run"):
        states(replace(request, race=replace(QUICK, candidates=("relearn", "scratch"))))
    with pytest.raises(UsageError, match="holds another run: --epochs 2"):
        states(replace(request, training=ONE_EPOCH))
    path = tmp_path / "out" / "results" / "Target" / "markov-0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "of another catalogue"}))
    assert states(request) == ["finished", "finished", "missing"]


def test_a_dry_run_knows_that_runs_from_a_mix_go_with_it(store: Store, tmp_path: Path) -> None:
    request = asked(store, tmp_path / "out", ("scratch", "relearn"), sources=("Source",))
    compared(request)
    assert [row["state"] for row in what_would_be_done(request, force=False)] == ["finished"] * 3
    (tmp_path / "out" / "pretrain" / "all" / "checkpoint.json").unlink()
    assert [row["state"] for row in what_would_be_done(request, force=False)] == ["missing", "finished", "missing"]


def test_the_race_of_a_finished_comparison_is_not_run_again(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(store, tmp_path / "out", RACED, origins=(source,), race=QUICK)
    found = compared(request)
    monkeypatch.setattr(racing, "run_race", None)
    assert compared(request) == found

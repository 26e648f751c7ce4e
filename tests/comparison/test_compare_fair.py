"""What makes a comparison unfair and is refused before anything is trained, and what is not to be refused."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from antpipe.comparison import run as compare
from antpipe.comparison.arms import SASREC, UNISREC, plan_arms
from antpipe.comparison.plan import ComparisonRequest
from antpipe.comparison.run import budget_of, run_comparison, what_would_be_done
from antpipe.errors import DataError, UsageError
from antpipe.settings.comparison import CompareConfig, RaceConfig
from antpipe.store.store import Store
from antpipe.training import checkpoint, validation
from antpipe.training import race as racing
from antpipe.training.folder import RunFolder
from tests.support.commands import run
from tests.support.documents import plain
from tests.support.interruptions import failing_at
from tests.support.releases import snapshot
from tests.support.shops import make_domain
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


def asked(store: Store, out: Path, arms: tuple[str, ...], **more: Any) -> ComparisonRequest:
    config = CompareConfig(seeds=1, arms=arms)
    request = ComparisonRequest(store, out, ("Target",), config, MODEL, MODEL, ONE_EPOCH, RaceConfig())
    return replace(request, **more)


def test_a_race_is_held_to_the_budget_of_a_given_control(store: Store, source: Path, tmp_path: Path) -> None:
    train_quickly(store, "scratch", ["Target"], tmp_path / "old", epochs=2)
    request = asked(store, tmp_path / "out", ("auto",), origins=(source,), given={"scratch": [tmp_path / "old"]})
    with pytest.raises(UsageError, match=r"auto .* and scratch .* are not comparable: --epochs 1 \(not 2\)"):
        run_comparison(request)
    assert not (tmp_path / "out").exists()


def test_a_stage_that_reads_fewer_features_than_the_control_cannot_win_a_race(store: Store, tmp_path: Path) -> None:
    train_quickly(store, "pretrain", ["Source"], tmp_path / "text", epochs=1, modalities=("text",))
    race = RaceConfig(candidates=("finetune", "relearn"))
    run_comparison(asked(store, tmp_path / "out", RACED, origins=(tmp_path / "text",), race=race))
    decision = RunFolder(tmp_path / "out" / "Target" / "text" / "auto-0").read_decision()
    assert decision["left_out"] == {"finetune": "it reads text, not image, price, text"}
    assert decision["chosen"] == "relearn"


def test_a_race_of_a_comparison_has_no_limit_of_steps(store: Store, source: Path, tmp_path: Path) -> None:
    limited = replace(ONE_EPOCH, limit_steps=3)
    with pytest.raises(UsageError, match="--limit-steps does not go with --stage auto"):
        run_comparison(asked(store, tmp_path / "out", RACED, origins=(source,), training=limited))
    assert not (tmp_path / "out").exists()


def test_the_budget_of_a_race_is_that_of_all_stages_of_its_winner(store: Store, source: Path, tmp_path: Path) -> None:
    two, only = replace(ONE_EPOCH, epochs=2), RaceConfig(candidates=("relearn-then-unfreeze",))
    found = run_comparison(asked(store, tmp_path / "out", RACED, origins=(source,), training=two, race=only))
    arms = found["targets"]["Target"]["arms"]
    for name in RACED:
        [one] = arms[name]["runs"]
        assert (one["budget"]["epochs"], one["budget"]["epochs_done"]) == (2, 2)
    done = checkpoint.describe(tmp_path / "out" / "Target" / "source" / "auto-0")
    assert (done.train["epochs"], budget_of(done, {})["epochs"]) == (1, 1)


def test_baselines_read_their_modalities_in_whitened_form_too(store: Store, tmp_path: Path) -> None:
    white = replace(ONE_EPOCH, whitened=("text", "image"))
    arms, [mix] = plan_arms(asked(store, tmp_path, ("scratch", "baselines"), sources=("Source",), training=white))
    read = {one.name: (one.request.training.modalities, one.request.training.whitened) for one in (*arms, mix)}
    assert read[SASREC] == (("none",), ())
    assert read[UNISREC] == read[mix.name] == (("text",), ("text",))


@pytest.mark.parametrize("history_score", [True, False])
def test_sasrec_has_no_floor_but_the_score_of_the_history(store: Store, tmp_path: Path, history_score: bool) -> None:
    model = replace(MODEL, floor=True, history_score=history_score)
    arms, _ = plan_arms(asked(store, tmp_path, ("scratch", SASREC), model=model))
    control, sasrec = (arm.request.model for arm in arms)
    assert control.floor
    assert sasrec == replace(model, floor=False, history_score=True, transductive=True)


def test_a_run_that_was_trained_on_the_target_is_refused_as_a_source(store: Store, tmp_path: Path) -> None:
    train_quickly(store, "pretrain", ["Source", "Target"], tmp_path / "both", epochs=1)
    with pytest.raises(UsageError, match="both: was trained on Target, which is a target"):
        run_comparison(asked(store, tmp_path / "out", ("scratch", "relearn"), origins=(tmp_path / "both",)))
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="compare runs in one process"):
        run_comparison(asked(store, tmp_path / "out", ("scratch", "relearn"), origins=(source,)))
    assert not (tmp_path / "out").exists()


def test_force_replaces_a_mix_that_would_not_be_comparable(store: Store, tmp_path: Path) -> None:
    request = asked(store, tmp_path / "out", ("scratch", "finetune"), sources=("Source",))
    texts = replace(request, training=replace(ONE_EPOCH, modalities=("text",)))
    run_comparison(texts)
    with pytest.raises(UsageError, match=r"holds another run|are not comparable"):
        run_comparison(request)
    run_comparison(request, force=True)
    assert set(checkpoint.describe(tmp_path / "out" / "pretrain" / "all").modalities) == {"text", "image", "price"}


def test_force_still_refuses_what_is_not_comparable_once_the_mix_is_there(tmp_path: Path) -> None:
    texts = Store(tmp_path / "store")
    make_trainable(texts, "Source", widths={"text": 12})
    make_trainable(texts, "Target", seed=1)
    request = asked(texts, tmp_path / "out", ("scratch", "finetune"), sources=("Source",))
    with pytest.raises(UsageError, match=r"finetune .* are not comparable: reads text"):
        run_comparison(request, force=True)
    assert not (tmp_path / "out" / "Target").exists()


def test_ctrl_c_names_the_command_that_continues_without_force(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "plan_arms", interrupted)
    outcome = run("compare", "--target", "Target", "--out", tmp_path / "out", "--store", store.root, "--force")
    assert outcome.code == 130
    command = f"antpipe compare --store {store.root} --target Target --out {tmp_path / 'out'}"
    assert f"antpipe: next: {command}" in outcome.err.splitlines()


@pytest.mark.parametrize(
    "more", [(), ("--preset", "strong"), ("--preset", "strong", "--lr", "0.001", "--experts", "8")]
)
def test_the_command_of_a_comparison_asks_for_the_same_comparison(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    asked_for: list[ComparisonRequest] = []
    monkeypatch.setattr(compare, "run_comparison", lambda request, **_: asked_for.append(request) or {})
    monkeypatch.setattr("antpipe.comparison.table.as_text", lambda _: "")
    words = (
        "--target",
        "Target",
        "--from",
        source,
        "--sources",
        "Other,Third",
        "--run",
        f"mine={source}",
        "--seeds",
        "2",
    )
    run("compare", *words, "--out", tmp_path, "--store", store.root, "--candidates", "scratch,relearn", *more)
    run(*shlex.split(asked_for[0].command())[1:])
    first, second = asked_for
    assert replace(second, store=first.store) == first
    assert first.model.transductive == bool(more)
    assert not first.source_model.transductive


def test_arms_with_other_first_values_are_refused(store: Store, source: Path, tmp_path: Path) -> None:
    model = replace(MODEL, init="authors")
    with pytest.raises(UsageError, match="--init authors: scratch and the arms"):
        run_comparison(asked(store, tmp_path / "out", ("scratch", "relearn"), origins=(source,), model=model))


def test_a_run_from_before_a_setting_existed_counts_as_having_its_default(store: Store, tmp_path: Path) -> None:
    train_quickly(store, "scratch", ["Target"], tmp_path / "old", epochs=1, device="cpu")
    path = tmp_path / "old" / "checkpoint.json"
    document = plain(path)
    for name in ("compile", "whitened"):
        del document["train"][name]
    path.write_text(json.dumps(document))
    found = run_comparison(asked(store, tmp_path / "out", ("scratch",), given={"mine": [tmp_path / "old"]}))
    assert "mine" in found["targets"]["Target"]["arms"]


def test_a_folder_with_a_run_from_before_a_setting_existed_says_which(store: Store, tmp_path: Path) -> None:
    request = asked(store, tmp_path / "out", ("scratch",))
    run_comparison(request)
    path = tmp_path / "out" / "Target" / "scratch-0" / "checkpoint.json"
    document = plain(path)
    del document["train"]["stride"]
    path.write_text(json.dumps(document | {"fingerprint": "of that time"}))
    with pytest.raises(UsageError, match="holds another run: made by an antpipe without --stride"):
        run_comparison(request)


def test_a_race_of_other_settings_is_refused_before_anything_is_trained(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(store, tmp_path / "out", RACED, origins=(source,), race=QUICK)
    run_comparison(replace(request, config=replace(request.config, arms=("scratch", "auto"))))
    monkeypatch.setattr(compare, "run_stage", None)
    other = replace(QUICK, candidates=("relearn",))
    with pytest.raises(UsageError, match="auto-0: holds another run"):
        run_comparison(
            replace(request, race=other, config=replace(request.config, arms=("scratch", "relearn", "auto")))
        )


def test_a_mix_of_other_settings_is_refused_before_anything_is_trained(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trainable(store, "Other", seed=2)
    request = asked(store, tmp_path / "out", ("scratch", "relearn"), sources=("Source", "Other"))
    found = run_comparison(replace(request, sources=("Source",)))
    assert list(found["targets"]["Target"]["arms"]) == ["scratch", "relearn"]
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(compare, "run_stage", None)
    with pytest.raises(UsageError, match=r"pretrain/all: holds another run: domains Other None"):
        what_would_be_done(request, force=False)
    leave_out = replace(request, config=replace(request.config, leave_one_out=True))
    with pytest.raises(UsageError, match=r"pretrain/all: holds another run: domains Other None"):
        run_comparison(leave_out)
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

    def states(request: ComparisonRequest, force: bool = False) -> list[str]:
        return [row["state"] for row in what_would_be_done(request, force=force)]

    run_comparison(request)
    assert states(request) == ["finished"] * 3
    assert states(request, force=True) == ["missing"] * 3
    with pytest.raises(UsageError, match="auto-0: holds another run"):
        states(replace(request, race=replace(QUICK, candidates=("relearn", "scratch"))))
    with pytest.raises(UsageError, match="holds another run: --epochs 2"):
        states(replace(request, training=ONE_EPOCH))
    path = tmp_path / "out" / "results" / "Target" / "markov-0.json"
    path.write_text(json.dumps(plain(path) | {"fingerprint": "of another catalogue"}))
    assert states(request) == ["finished", "finished", "missing"]


def test_a_dry_run_counts_runs_from_a_missing_mix_as_missing(store: Store, tmp_path: Path) -> None:
    request = asked(store, tmp_path / "out", ("scratch", "relearn"), sources=("Source",))
    run_comparison(request)
    assert [row["state"] for row in what_would_be_done(request, force=False)] == ["finished"] * 3
    (tmp_path / "out" / "pretrain" / "all" / "checkpoint.json").unlink()
    assert [row["state"] for row in what_would_be_done(request, force=False)] == ["missing", "finished", "missing"]


def test_the_race_of_a_finished_comparison_is_not_run_again(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(store, tmp_path / "out", RACED, origins=(source,), race=QUICK)
    found = run_comparison(request)
    monkeypatch.setattr(racing, "run_race", None)
    assert run_comparison(request) == found


# -- folders of a comparison that hold something else ---------------------------------------------------------


def refused_before_training(request: ComparisonRequest, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the command and its dry run refuse, and no file is written."""
    before = snapshot(request.out)
    with monkeypatch.context() as patch:
        patch.setattr(compare, "run_stage", None)
        patch.setattr(compare, "run_auto", None)
        for refused in (what_would_be_done, run_comparison):
            with pytest.raises(UsageError, match=match):
                refused(request)
    assert snapshot(request.out) == before


def of_seeds(request: ComparisonRequest, seeds: int) -> ComparisonRequest:
    return replace(request, config=replace(request.config, seeds=seeds))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"lr": 0.1}, r"scratch-1 holds another run: --lr 0.1 \(not 0.001\)"),
        ({"seed": 7}, r"scratch-1 holds another run: --seed 7 \(not 1\)"),
        ({"modalities": ("text",)}, r"scratch-1 holds another run: reads text \(not image, price, text\)"),
    ],
)
def test_a_run_of_other_settings_in_the_folder_of_a_later_seed_is_refused_before_anything_is_trained(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], named: str
) -> None:
    folder = tmp_path / "out" / "Target" / "scratch-1"
    train_quickly(store, "scratch", ["Target"], folder, epochs=1, device="cpu", **{"seed": 1, **changed})
    request = of_seeds(asked(store, tmp_path / "out", ("scratch", "relearn"), origins=(source,)), 2)
    refused_before_training(request, named, monkeypatch)


def test_a_run_of_another_stage_in_the_folder_of_a_later_seed_is_refused_by_its_stage(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out" / "Target" / "source" / "relearn-1"
    train_quickly(store, "linear-probe", ["Target"], folder, source, epochs=1, device="cpu", seed=1)
    request = of_seeds(asked(store, tmp_path / "out", ("scratch", "relearn"), origins=(source,)), 2)
    refused_before_training(request, "relearn-1 holds another run: stage linear-probe", monkeypatch)


def test_an_unfinished_run_of_other_settings_in_the_folder_of_a_later_seed_is_refused(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(validation, "validate", failing_at(1, validation.validate, KeyboardInterrupt(), after=False))
        train_quickly(
            store, "relearn", ["Target"], tmp_path / "out/Target/source/relearn-2", source, save_every=0, seed=2, lr=0.1
        )
    request = of_seeds(asked(store, tmp_path / "out", ("scratch", "relearn"), origins=(source,)), 3)
    refused_before_training(request, r"relearn-2 holds an unfinished run .* with other settings", monkeypatch)


def test_a_race_of_other_settings_in_the_folder_of_a_later_seed_is_refused(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(store, tmp_path / "out", RACED, origins=(source,), race=QUICK)
    run_comparison(of_seeds(request, 2))
    shutil.rmtree(tmp_path / "out" / "Target" / "source" / "auto-0")
    other = replace(of_seeds(request, 2), race=replace(QUICK, candidates=("relearn",)))
    refused_before_training(other, "auto-1: holds another run", monkeypatch)


@pytest.mark.parametrize("arm", ["relearn", "auto"])
def test_runs_of_other_settings_than_a_mix_to_be_trained_are_refused_before_it_is_trained(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    request = asked(store, tmp_path / "out", ("scratch", arm), sources=("Source",), race=QUICK)
    run_comparison(of_seeds(request, 2))
    shutil.rmtree(tmp_path / "out" / "pretrain")
    shutil.rmtree(tmp_path / "out" / "Target" / "all" / f"{arm}-0")
    for seed in (0, 1):
        shutil.rmtree(tmp_path / "out" / "Target" / f"scratch-{seed}")
    other = replace(of_seeds(request, 2), training=replace(ONE_EPOCH, lr=0.01))
    refused_before_training(other, rf"{arm}-1 holds another run: --lr 0.001 \(not 0.01\)", monkeypatch)


def test_runs_that_started_from_another_mix_are_refused_before_the_mix_is_trained(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trainable(store, "Another", seed=3)
    request = asked(store, tmp_path / "out", ("scratch", "relearn"), sources=("Source",))
    run_comparison(request)
    shutil.rmtree(tmp_path / "out" / "pretrain")
    refused_before_training(
        replace(request, sources=("Source", "Another")),
        "relearn-0 holds another run: another run to start from",
        monkeypatch,
    )
    found = run_comparison(request)  # the same mix: nothing to refuse
    assert found["targets"]["Target"]["arms"]["relearn"]["seeds"] == 1


def test_a_mix_that_cannot_be_trained_is_refused_before_another_one_is_trained(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_domain(store, "Bare", [{"item_id": f"i{n}"} for n in range(3)])
    request = asked(store, tmp_path / "out", ("scratch", "relearn"), sources=("Source", "Bare"))
    monkeypatch.setattr(compare, "run_stage", None)
    for refused in (what_would_be_done, run_comparison):
        with pytest.raises(DataError, match="domain Bare: no sequences"):
            refused(replace(request, config=replace(request.config, leave_one_out=True)))
    assert not (tmp_path / "out").exists()


def test_a_finished_comparison_is_checked_without_building_a_model(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = of_seeds(asked(store, tmp_path / "out", ("scratch", "relearn"), origins=(source,)), 4)
    run_comparison(request)
    monkeypatch.setattr(checkpoint.Checkpoint, "build", None)
    assert [row["state"] for row in what_would_be_done(request)] == ["finished"] * 8

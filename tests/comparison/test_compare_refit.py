"""`compare --refit`: trained arms again on training and validation, reported apart and without a verdict."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from antpipe.comparison import run as compare
from antpipe.comparison.plan import ComparisonRequest
from antpipe.comparison.run import run_comparison, what_would_be_done
from antpipe.comparison.table import as_markdown, as_text
from antpipe.errors import UsageError
from antpipe.settings.comparison import CompareConfig, RaceConfig
from antpipe.store.store import Store
from antpipe.training import checkpoint, validation, worth
from antpipe.training.run import run_stage
from tests.support.commands import unfolded
from tests.support.releases import snapshot
from tests.support.trainable import MODEL, TRAINING, make_trainable, train_quickly

ARMS = ("scratch", "relearn", "auto", "popularity")
QUICK = RaceConfig(candidates=("scratch", "relearn"), first_rung=0.5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("refit") / "store")
    for seed, name in enumerate(("Source", "Target")):
        make_trainable(store, name, seed=seed)
    return store


@pytest.fixture(scope="module")
def source(store: Store) -> Path:
    folder = store.root.with_name("source")
    train_quickly(store, "pretrain", ["Source"], folder, epochs=1)
    return folder


def asked(store: Store, out: Path, origins: tuple[Path, ...] = (), **more: Any) -> ComparisonRequest:
    config = CompareConfig(seeds=2, refit=True, arms=ARMS if origins else ("scratch",))
    training = replace(TRAINING, epochs=2, device="cpu")
    request = ComparisonRequest(store, out, ("Target",), config, MODEL, MODEL, training, QUICK, origins)
    return replace(request, **more)


@pytest.fixture(scope="module")
def whole(store: Store, source: Path) -> tuple[dict[str, Any], Path]:
    """A comparison with refits, and its folder."""
    out = store.root.with_name("whole")
    return run_comparison(asked(store, out, (source,))), out


@pytest.mark.slow
def test_each_trained_arm_is_refitted_for_the_best_epoch_of_each_seed(whole: tuple[dict[str, Any], Path]) -> None:
    found, out = whole
    facts = found["targets"]["Target"]
    assert list(facts["refit"]["arms"]) == ["scratch", "relearn"]
    for name, folder in (("scratch", "scratch"), ("relearn", "source/relearn")):
        for seed, one in enumerate(facts["refit"]["arms"][name]["runs"]):
            original = checkpoint.describe(out / f"Target/{folder}-{seed}")
            again = checkpoint.describe(out / f"Target/{folder}-{seed}/refit")
            assert again.refit == {"of": original.fingerprint, "epochs": original.best_epoch}
            assert (one["run"], one["fingerprint"]) == (str(out / f"Target/{folder}-{seed}/refit"), again.fingerprint)


def test_refits_have_figures_and_differences_of_their_own_and_no_verdict(whole: tuple[dict[str, Any], Path]) -> None:
    found, out = whole
    arms = found["targets"]["Target"]["refit"]["arms"]
    rows = [json.loads((out / f"results/Target/source/relearn-{seed}-refit.json").read_text()) for seed in (0, 1)]
    values = [row["protocols"]["all"]["ndcg@10"] for row in rows]
    assert arms["relearn"]["protocols"]["all"]["ndcg@10"]["seeds"] == values
    control = arms["scratch"]["protocols"]["all"]["ndcg@10"]["mean"]
    difference = arms["relearn"]["differences"]["all"]["ndcg@10"]["difference"]
    assert difference == pytest.approx(np.mean(values) - control)
    assert [arm["verdict"] for arm in arms.values()] == [None, None]


@pytest.mark.slow
def test_the_runs_and_their_verdict_are_those_of_a_comparison_without_refits(
    store: Store, source: Path, whole: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    request = asked(store, tmp_path, (source,))
    plain = run_comparison(replace(request, config=replace(request.config, refit=False)))
    with_refits = whole[0]["targets"]["Target"]
    assert "refit" not in plain["targets"]["Target"]
    for name, arm in plain["targets"]["Target"]["arms"].items():
        for key in ("protocols", "differences", "verdict"):
            assert arm[key] == with_refits["arms"][name][key]
    refits = run_comparison(request)["targets"]["Target"]["refit"]["arms"]
    for name, arm in refits.items():
        assert arm["protocols"] == with_refits["refit"]["arms"][name]["protocols"]


@pytest.mark.parametrize("show", [as_text, as_markdown])
def test_the_table_has_refits_below_the_others_and_says_what_is_not_refitted(
    whole: tuple[dict[str, Any], Path], show: Any
) -> None:
    text = unfolded(show(whole[0]))
    caption = "After refit on training + validation (no verdict). Protocol"
    assert text.count(f"{caption} all: mean") == text.count(f"{caption} all: difference to scratch") == 1
    assert text.index("Protocol unseen: difference") < text.index(caption)
    assert text.count("(the verdict is about ndcg@10)") == 1
    assert "note: not refitted: auto (only single stages that are trained here are)" in text


def test_nothing_is_refitted_twice(store: Store, source: Path, whole: tuple[dict[str, Any], Path]) -> None:
    found, out = whole
    before = snapshot(out)
    assert run_comparison(asked(store, out, (source,))) == found
    assert snapshot(out) == before


def test_a_dry_run_lists_refits(store: Store, source: Path, whole: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    for out, states in ((whole[1], {"finished"}), (tmp_path / "new", {"missing"})):
        rows = what_would_be_done(asked(store, out, (source,)))
        again = [row for row in rows if row["arm"] == "relearn, refit"]
        assert [row["folder"] for row in again] == [str(out / f"Target/source/relearn-{n}/refit") for n in (0, 1)]
        assert {row["state"] for row in rows} == states


@pytest.mark.slow
def test_the_refit_of_another_run_in_the_folder_is_refused_before_anything_is_trained(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(store, tmp_path / "cmp")
    run_comparison(request)
    folder = tmp_path / "cmp/Target/scratch-1/refit"
    job = replace(request.control(), domains=("Target",), training=replace(request.training, seed=1), refit=3)
    run_stage(job, folder, force=True)
    monkeypatch.setattr(compare, "run_stage", lambda *_, **__: pytest.fail("something was trained"))
    with pytest.raises(UsageError, match=r"scratch-1/refit: holds another run: refit epochs 3 \(now [12]\)") as refused:
        run_comparison(request)
    assert str(refused.value.next_command) == f"the same command with --out {tmp_path / 'cmp-2'}"


def test_a_limit_of_steps_is_refused_before_anything_is_trained(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="whole epochs"):
        run_comparison(asked(store, tmp_path / "cmp", training=replace(TRAINING, limit_steps=3)))
    assert not (tmp_path / "cmp").exists()


@pytest.mark.slow
def test_refits_handed_in_are_compared_with_refits_only(store: Store, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    run_comparison(asked(store, out, (source,)))
    scratch, relearn = (
        [out / f"Target/{name}-{seed}/refit" for seed in (0, 1)] for name in ("scratch", "source/relearn")
    )
    nothing = CompareConfig(seeds=2, arms=("scratch",))
    request = asked(store, tmp_path / "cmp", config=nothing, given={"scratch": scratch, "again": relearn})
    assert run_comparison(request)["targets"]["Target"]["arms"]["again"]["verdict"]
    mixed = replace(request, given={"again": relearn}, out=tmp_path / "mixed")
    with pytest.raises(UsageError, match=r"not comparable: was refitted on training \+ validation"):
        run_comparison(mixed)


def test_runs_that_never_beat_their_floor_are_refitted_as_that_floor(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of each seed: the floor, two epochs, and the floor with the vectors of the better epoch.
    found = iter([0.5, 0.1, 0.1, 0.1, 0.1, 0.6, 0.2, 0.6])
    monkeypatch.setattr(worth, "fit_cosine", lambda *_: (2.0, 99.0))

    def validate(_: Any, data: Any, *__: Any) -> dict[str, float]:
        return dict.fromkeys((worth.SELECTION, worth.TIE_BREAK), next(found)) if data.validation else {}

    monkeypatch.setattr(validation, "validate", validate)
    model = replace(MODEL, floor=True)
    request = asked(store, tmp_path, model=model, source_model=model)
    refits = run_comparison(request)["targets"]["Target"]["refit"]["arms"]["scratch"]["runs"]
    again = [checkpoint.describe(Path(one["run"])) for one in refits]
    assert [one.epochs for one in again] == [0, 1]
    before = snapshot(tmp_path)
    assert {row["state"] for row in what_would_be_done(request)} == {"finished"}
    run_comparison(request)
    assert snapshot(tmp_path) == before
    assert (tmp_path / "results/Target/scratch-0-refit.json").exists()


@pytest.mark.slow
def test_each_size_of_a_learning_curve_has_its_refits(store: Store, source: Path, tmp_path: Path) -> None:
    users = len(store.domain("Target").sequences().user)
    config = CompareConfig(seeds=2, refit=True, arms=("scratch", "relearn"), target_users=(users // 2, users))
    found = run_comparison(asked(store, tmp_path, (source,), config=config))
    assert len(found["targets"]) == 2
    assert all(list(facts["refit"]["arms"]) == ["scratch", "relearn"] for facts in found["targets"].values())
    assert "After refit" in unfolded(as_text(found))

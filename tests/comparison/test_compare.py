"""`antpipe compare` on small shops: what is trained, what is refused, and that it continues after Ctrl-C."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from antpipe.comparison import run as compare
from antpipe.comparison.arms import plan_arms
from antpipe.comparison.plan import ComparisonRequest
from antpipe.comparison.run import run_comparison, what_would_be_done
from antpipe.comparison.verdict import holm
from antpipe.core.stages import group_of
from antpipe.core.untrained import TERMS
from antpipe.errors import AntpipeError, DataError, IntegrityError, UsageError
from antpipe.evaluation.ranks import read_ranks
from antpipe.features.build_sequences import build_sequences
from antpipe.settings.comparison import CompareConfig, RaceConfig
from antpipe.settings.features import SequenceConfig
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.request import RunRequest
from antpipe.training.run import build_model
from tests.support.commands import run
from tests.support.releases import snapshot
from tests.support.trainable import MODEL, TRAINING, make_trainable, train_quickly

ONE_EPOCH = replace(TRAINING, epochs=1)
SMALL = CompareConfig(seeds=2)
WORDS = ("POSITIVE", "EQUIVALENT", "NONE", "NEGATIVE")
COMMAND = (
    "compare",
    "--target",
    "Target",
    "--seeds",
    "2",
    "--epochs",
    "1",
    "--batch-size",
    "64",
    "--width",
    "16",
    "--experts",
    "2",
    "--item-dropout",
    "0",
    "--hidden-dropout",
    "0.1",
    "--attention-dropout",
    "0.1",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("compare") / "store")
    for seed, name in enumerate(("Source", "Other", "Target", "Second")):
        make_trainable(store, name, seed=seed)
    return store


@pytest.fixture(scope="module")
def source(store: Store) -> Path:
    folder = store.root.with_name("source")
    train_quickly(store, "pretrain", ["Source"], folder, epochs=1)
    return folder


def asked(store: Store, out: Path, *, origins: tuple[Path, ...] = (), **more: Any) -> ComparisonRequest:
    """A request for Target; `more` replaces its fields, and those of its CompareConfig."""
    own = {key: more.pop(key) for key in list(more) if key in CompareConfig.__dataclass_fields__}
    config = replace(SMALL, **own)
    request = ComparisonRequest(store, out, ("Target",), config, MODEL, MODEL, ONE_EPOCH, RaceConfig(), origins)
    return replace(request, **more)


@pytest.fixture(scope="module")
def whole(store: Store, source: Path) -> tuple[dict[str, Any], Path]:
    """The usual comparison, and its folder."""
    out = store.root.with_name("whole")
    return run_comparison(asked(store, out, origins=(source,))), out


def test_every_arm_is_trained_with_every_seed_and_the_same_budget(whole: tuple[dict[str, Any], Path]) -> None:
    found, out = whole
    arms = found["targets"]["Target"]["arms"]
    assert list(arms) == ["scratch", "finetune", "relearn"]
    for arm in arms.values():
        assert [one["seed"] for one in arm["runs"]] == [0, 1]
        assert [one["budget"]["epochs"] for one in arm["runs"]] == [1, 1]
    for folder in ("Target/scratch-0", "Target/source/finetune-1", "Target/source/relearn-0"):
        assert checkpoint.describe(out / folder).train["seed"] == int(folder[-1])


def test_scratch_and_relearn_start_from_the_same_values_except_what_is_transferred(store: Store, source: Path) -> None:
    config = replace(ONE_EPOCH, seed=1)
    first, second = (
        build_model(RunRequest(store, ["Target"], stage, MODEL, config, start).plan()).state_dict()
        for stage, start in (("scratch", None), ("relearn", source))
    )
    different = {group_of(name) for name in first if not torch.equal(first[name], second[name])}
    assert different == {"encoder", "input_norm"}


def test_a_result_records_the_run_its_time_and_its_figures(whole: tuple[dict[str, Any], Path]) -> None:
    _, out = whole
    row = json.loads((out / "results" / "Target" / "source" / "relearn-1.json").read_text())
    done = checkpoint.describe(out / "Target" / "source" / "relearn-1")
    assert (row["fingerprint"], row["weights_sha256"]) == (done.fingerprint, done.weights_sha256)
    assert (row["arm"], row["mix"], row["seed"], row["split"]) == ("relearn", "source", 1, "test")
    assert row["seconds"] > 0
    evaluation = json.loads((out / "Target" / "source" / "relearn-1" / "evaluation-Target-test.json").read_text())
    assert row["protocols"] == evaluation["protocols"]


def test_figures_are_means_over_seeds_and_differences_those_of_the_means(whole: tuple[dict[str, Any], Path]) -> None:
    found, out = whole
    arms = found["targets"]["Target"]["arms"]
    for name, folder in (("scratch", "scratch"), ("finetune", "source/finetune")):
        rows = [json.loads((out / "results" / "Target" / f"{folder}-{seed}.json").read_text()) for seed in (0, 1)]
        values = [row["protocols"]["unseen"]["ndcg@10"] for row in rows]
        shown = arms[name]["protocols"]["unseen"]["ndcg@10"]
        assert shown == {"mean": np.mean(values), "std": pytest.approx(np.std(values, ddof=1)), "seeds": values}
    for protocol in ("all", "unseen"):
        for metric in ("recall@10", "ndcg@10"):
            means = [arms[name]["protocols"][protocol][metric]["mean"] for name in ("finetune", "scratch")]
            difference = arms["finetune"]["differences"][protocol][metric]
            assert difference["difference"] == pytest.approx(means[0] - means[1])
            assert difference["low"] <= difference["difference"] <= difference["high"]


def test_p_values_are_corrected_over_arms_of_a_protocol(whole: tuple[dict[str, Any], Path]) -> None:
    arms = whole[0]["targets"]["Target"]["arms"]
    assert whole[0]["metric"] == "ndcg@10"
    for protocol in ("all", "unseen"):
        cells = [arms[name]["differences"][protocol]["ndcg@10"] for name in ("finetune", "relearn")]
        assert [cell["p_holm"] for cell in cells] == pytest.approx(holm([cell["p"] for cell in cells]))
        assert arms["relearn"]["differences"][protocol]["recall@10"]["p_holm"] is None


def test_nothing_is_trained_or_judged_twice(store: Store, source: Path, whole: tuple[dict[str, Any], Path]) -> None:
    found, out = whole
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.parent != out}
    assert run_comparison(asked(store, out, origins=(source,))) == found
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_the_command_proposed_after_ctrl_c_continues_the_comparison(
    store: Store, source: Path, whole: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = compare.run_stage, 0

    def interrupted(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    words = (*COMMAND, "--from", source, "--out", tmp_path / "out", "--store", store.root)
    with monkeypatch.context() as patch:
        patch.setattr(compare, "run_stage", interrupted)
        outcome = run(*words)
    assert outcome.code == 130
    [proposed] = [line for line in outcome.err.splitlines() if line.startswith("antpipe: next: ")]
    assert not (tmp_path / "out" / "comparison.json").exists()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("checkpoint.json")}
    assert len(stamps) == 3
    again = shlex.split(proposed.removeprefix("antpipe: next: antpipe "))
    outcome = run(*again, "--json")
    assert outcome.code == 0, outcome.err
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    arms = outcome.json()["targets"]["Target"]["arms"]
    for name, arm in whole[0]["targets"]["Target"]["arms"].items():
        assert arms[name]["protocols"] == arm["protocols"]
        assert arms[name]["differences"] == arm["differences"]


def test_the_table_shows_all_arms_under_both_protocols_and_a_verdict(
    store: Store, source: Path, whole: tuple[dict[str, Any], Path]
) -> None:
    _, out = whole
    shown = run(*COMMAND, "--from", source, "--out", out, "--store", store.root).out
    page = (out / "comparison.md").read_text()
    for text in (shown, page):
        for part in ("Protocol all", "Protocol unseen", "scratch", "finetune", "relearn", "95% interval", " ± "):
            assert part in text
        assert "verdict on transfer, Target, ndcg@10, protocol all: finetune " in text
    assert sum(shown.count(word) for word in WORDS) == 2


def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(store: Store, source: Path, tmp_path: Path) -> None:
    before = snapshot(store.root.parent)
    outcome = run(
        *COMMAND,
        "--from",
        source,
        "--out",
        tmp_path / "out",
        "--store",
        store.root,
        "--dry-run",
        "--arms",
        "scratch,relearn,markov",
    )
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == "5 runs, 5 to do"
    assert "Target  relearn  seed 1  missing" in outcome.out
    assert not (tmp_path / "out").exists()
    assert snapshot(store.root.parent) == before


def test_a_dry_run_knows_what_is_finished(store: Store, source: Path, whole: tuple[dict[str, Any], Path]) -> None:
    rows = what_would_be_done(asked(store, whole[1], origins=(source,), seeds=3), force=False)
    assert [row["state"] for row in rows] == ["finished", "finished", "missing"] * 3


def test_whole_ranks_of_another_run_are_refused_by_name(
    store: Store, source: Path, whole: tuple[dict[str, Any], Path]
) -> None:
    folder = whole[1] / "Target" / "source"
    own, other = (folder / f"{arm}-0" / "ranks-Target-test.parquet" for arm in ("relearn", "finetune"))
    before = own.read_bytes()
    own.write_bytes(other.read_bytes())
    with pytest.raises(IntegrityError, match=r"relearn-0/ranks-Target-test\.parquet: its ranks are not those"):
        run_comparison(asked(store, whole[1], origins=(source,)))
    with pytest.raises(IntegrityError, match="its ranks are not those of its evaluation"):
        read_ranks(store, own.parent, "Target")
    own.write_bytes(before)


def test_one_seed_gives_numbers_and_no_verdict(store: Store, source: Path, whole: tuple[dict[str, Any], Path]) -> None:
    found = run_comparison(asked(store, whole[1], origins=(source,), seeds=1))
    arm = found["targets"]["Target"]["arms"]["relearn"]
    assert arm["protocols"]["all"]["recall@10"]["std"] is None
    assert arm["differences"]["all"]["recall@10"]["p"] is None
    assert arm["verdict"] == {"word": None, "why": "no verdict: it takes at least 2 seeds and 2 users"}
    shown = run(*COMMAND, "--seeds", "1", "--from", source, "--out", whole[1], "--store", store.root).out
    assert "no verdict: it takes at least 2 seeds" in shown
    assert not any(word in shown for word in WORDS)


def test_baselines_are_in_the_same_table_without_a_verdict(
    store: Store, source: Path, whole: tuple[dict[str, Any], Path]
) -> None:
    found = run_comparison(asked(store, whole[1], origins=(source,), arms=("scratch", "relearn", "baselines")))
    arms = found["targets"]["Target"]["arms"]
    plain = ["popularity", "item-knn", "markov", "tfidf-nearest", "text-nearest", "tgh", "floor"]
    assert list(arms) == ["scratch", "relearn", *plain, "sasrec", "unisrec"]
    for name in (*plain, "sasrec", "unisrec"):
        assert arms[name]["verdict"] is None
        assert arms[name]["differences"]["all"]["recall@10"]["p_holm"] is None
        assert arms[name]["differences"]["all"]["recall@10"]["low"] is not None
    assert [arms[name]["seeds"] for name in ("markov", "sasrec", "unisrec")] == [1, 2, 2]
    notes = [note for note in found["targets"]["Target"]["notes"] if "which is not trained" in note]
    assert notes[0].startswith("recall@10: item-knn, which is not trained, has 1.0000; the best trained arm")
    assert len(notes) == 2
    chosen = json.loads((whole[1] / "results" / "Target" / "floor-0.json").read_text())["weights"]
    assert set(chosen) == set(TERMS)
    out = whole[1] / "Target"
    assert checkpoint.describe(out / "sasrec-0").modalities == {}
    assert checkpoint.describe(out / "sasrec-0").items == 24
    text = checkpoint.describe(whole[1] / "pretrain" / "source-text")
    assert (list(text.modalities), list(text.domains)) == (["text"], ["Source"])
    unisrec = checkpoint.describe(out / "source-text" / "unisrec-0")
    assert (unisrec.source, list(unisrec.modalities)) == (text.fingerprint, ["text"])
    assert unisrec.groups["encoder"] == unisrec.groups["positions"] == "freeze"


def test_baselines_alone_need_no_control(store: Store, tmp_path: Path) -> None:
    found = run_comparison(asked(store, tmp_path, targets=("Target", "Second"), arms=("popularity", "markov")))
    for target in ("Target", "Second"):
        assert found["targets"][target]["arms"]["markov"]["protocols"]["all"]["recall@10"]["mean"] == 1.0
        assert found["targets"][target]["arms"]["markov"]["differences"] == {}


def test_runs_handed_in_take_part(store: Store, source: Path, whole: tuple[dict[str, Any], Path]) -> None:
    """The same runs by another name are judged alike."""
    found, out = whole
    runs = [out / "Target" / "source" / f"finetune-{seed}" for seed in (0, 1)]
    arms = run_comparison(asked(store, out, origins=(source,), arms=("scratch", "relearn"), given={"mine": runs}))[
        "targets"
    ]["Target"]["arms"]
    theirs = found["targets"]["Target"]["arms"]["finetune"]
    assert arms["mine"]["protocols"] == theirs["protocols"]
    for metric in ("recall@10", "ndcg@10"):
        ours, known = (one["differences"]["all"][metric] for one in (arms["mine"], theirs))
        assert (ours["p"], ours["low"]) == (known["p"], known["low"])


@pytest.mark.slow
def test_leaving_each_source_out_is_trained_and_reported(store: Store, tmp_path: Path) -> None:
    request = asked(store, tmp_path, sources=("Source", "Other"), arms=("scratch", "relearn"), leave_one_out=True)
    found = run_comparison(request)
    arms = found["targets"]["Target"]["arms"]
    assert list(arms) == ["scratch", "relearn from all", "relearn from without-Source", "relearn from without-Other"]
    assert list(checkpoint.describe(tmp_path / "pretrain" / "without-Source").domains) == ["Other"]
    assert arms["relearn from all"]["verdict"] is not None
    assert arms["relearn from without-Other"]["verdict"] is None
    said = found["sources"]["Target"]["relearn"]
    assert set(said) == {"Source", "Other"}
    means = [arms[f"relearn from {mix}"]["protocols"]["all"]["recall@10"]["mean"] for mix in ("without-Other", "all")]
    assert said["Other"]["differences"]["recall@10"]["difference"] == pytest.approx(means[0] - means[1])
    assert "sources that hurt Target: " in (tmp_path / "comparison.md").read_text()


# -- several pre-training seeds -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(store: Store) -> tuple[dict[str, Any], Path]:
    """A comparison whose four runs per arm take turns to start from two pre-trained runs, and its folder."""
    out = store.root.with_name("drawn")
    return run_comparison(taking_turns(store, out)), out


def taking_turns(store: Store, out: Path, **more: Any) -> ComparisonRequest:
    own = {"sources": ("Source",), "arms": ("scratch", "relearn"), "seeds": 4, "pretrain_seeds": 2, **more}
    return asked(store, out, **own)


def test_runs_take_turns_to_start_from_each_pre_trained_run(drawn: tuple[dict[str, Any], Path]) -> None:
    found, out = drawn
    pretrained = [checkpoint.describe(out / "pretrain" / name) for name in ("all", "all-seed-1")]
    assert [one.train["seed"] for one in pretrained] == [0, 1]
    assert pretrained[0].weights_sha256 != pretrained[1].weights_sha256
    folders = [f"Target/{mix}/relearn-{seed}" for seed, mix in enumerate(("all", "all-seed-1") * 2)]
    assert [Path(run["run"]) for run in found["targets"]["Target"]["arms"]["relearn"]["runs"]] == [
        out / folder for folder in folders
    ]
    for number, folder in enumerate(folders):
        described = checkpoint.describe(out / folder)
        assert (described.train["seed"], described.source) == (number, pretrained[number % 2].fingerprint)
    records = [json.loads((out / f"results/{folder}.json").read_text())["mix"] for folder in folders]
    assert records == ["all", "all-seed-1"] * 2


def test_the_control_trains_once_per_seed_whatever_is_pre_trained(drawn: tuple[dict[str, Any], Path]) -> None:
    found, out = drawn
    runs = found["targets"]["Target"]["arms"]["scratch"]["runs"]
    assert [Path(run["run"]) for run in runs] == [out / f"Target/scratch-{seed}" for seed in range(4)]


def test_the_verdict_counts_pre_trained_runs_and_not_the_runs_made_from_them(
    drawn: tuple[dict[str, Any], Path],
) -> None:
    one = drawn[0]["targets"]["Target"]["arms"]["relearn"]["differences"]["all"]["ndcg@10"]
    assert one["spread"]["freedom"] == [2, drawn[0]["targets"]["Target"]["users"] - 1]


def test_nothing_is_pre_trained_twice(store: Store, drawn: tuple[dict[str, Any], Path]) -> None:
    found, out = drawn
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.parent != out}
    assert run_comparison(taking_turns(store, out)) == found
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_with_one_pre_training_seed_more_what_is_there_is_kept(
    store: Store, drawn: tuple[dict[str, Any], Path]
) -> None:
    """Runs have the folders of the pre-trained run they start from, so runs that start from another one are missing."""
    rows = what_would_be_done(taking_turns(store, drawn[1], pretrain_seeds=4), force=False)
    states = {Path(row["folder"]).relative_to(drawn[1]).as_posix(): row["state"] for row in rows}
    assert states == {
        **dict.fromkeys(("pretrain/all", "pretrain/all-seed-1"), "finished"),
        **dict.fromkeys(("pretrain/all-seed-2", "pretrain/all-seed-3"), "missing"),
        **{f"Target/scratch-{seed}": "finished" for seed in range(4)},
        **dict.fromkeys(("Target/all/relearn-0", "Target/all-seed-1/relearn-1"), "finished"),
        **dict.fromkeys(("Target/all-seed-2/relearn-2", "Target/all-seed-3/relearn-3"), "missing"),
    }


def test_a_dry_run_names_every_pre_training_with_its_seed(store: Store, tmp_path: Path) -> None:
    request = taking_turns(
        store,
        tmp_path,
        sources=("Source", "Other"),
        arms=("scratch", "relearn", "unisrec"),
        seeds=2,
        leave_one_out=True,
        training=replace(ONE_EPOCH, seed=5),
    )
    rows = [row for row in what_would_be_done(request) if row["arm"] == "pretrain"]
    names = [f"{mix}{texts}" for texts in ("", "-text") for mix in ("all", "without-Source", "without-Other")]
    assert [(row["folder"], row["seed"]) for row in rows] == [
        (str(tmp_path / "pretrain" / folder), seed)
        for name in names
        for folder, seed in ((name, 5), (f"{name}-seed-6", 6))
    ]
    assert not list(tmp_path.iterdir())


def test_mixes_of_every_seed_lack_the_source_that_is_left_out(store: Store, tmp_path: Path) -> None:
    request = taking_turns(store, tmp_path, sources=("Source", "Other"), leave_one_out=True)
    _, mixes = plan_arms(request)
    domains = {mix.name: mix.request.domains for mix in mixes}
    assert domains["without-Other"] == domains["without-Other-seed-1"] == ("Source",)
    assert domains["all-seed-1"] == ("Source", "Other")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"seeds": 3}, "--pretrain-seeds 2: 3 seeds cannot take equal turns; use a divisor of --seeds"),
        ({"seeds": 1}, "--pretrain-seeds 2: 1 seeds cannot take equal turns"),
        ({"sources": (), "arms": ("scratch",)}, "--pretrain-seeds 2: is for runs pre-trained here, from --sources"),
    ],
)
def test_pre_training_seeds_that_cannot_take_turns_are_refused(
    store: Store, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run_comparison(taking_turns(store, tmp_path / "out", **more))
    assert not (tmp_path / "out").exists()


def test_pre_training_seeds_do_not_go_with_runs_that_are_there(
    store: Store, source: Path, whole: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    given = {"mine": [whole[1] / "Target" / "scratch-0", whole[1] / "Target" / "scratch-1"]}
    for more in ({"origins": (source,)}, {"given": given}):
        with pytest.raises(UsageError, match="--pretrain-seeds 2: is for runs pre-trained here, from --sources alone"):
            run_comparison(taking_turns(store, tmp_path / "out", seeds=2, **more))


def test_the_command_proposed_for_seeds_that_cannot_take_turns_works(store: Store, tmp_path: Path) -> None:
    words = (*COMMAND, "--sources", "Source", "--arms", "scratch,relearn", "--pretrain-seeds", "3", "--dry-run")
    outcome = run(*words, "--out", tmp_path / "out", "--store", store.root)
    assert outcome.code == 2
    [proposed] = [line for line in outcome.err.splitlines() if line.startswith("antpipe: next: ")]
    outcome = run(*shlex.split(proposed.removeprefix("antpipe: next: antpipe ")))
    assert outcome.code == 0, outcome.err
    assert "6 runs, 6 to do" in outcome.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--margin", "5"), "--margin 5.0: must be at most 1"),
        (("--margin", "-0.1"), "--margin -0.1: must be at least 0"),
        (("--margin", "nan"), "--margin nan"),
        (("--metric", "mrr@10"), "--metric mrr@10"),
        (("--pretrain-seeds", "0"), "--pretrain-seeds 0: must be at least 1"),
    ],
)
def test_settings_of_the_verdict_that_make_no_sense_are_refused(
    store: Store, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    outcome = run(*COMMAND, *words, "--arms", "scratch", "--out", tmp_path / "out", "--store", store.root)
    assert outcome.code == 2
    assert message in outcome.err


def test_a_folder_judged_by_an_earlier_version_is_judged_again_without_training(
    store: Store, source: Path, whole: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    """Its comparison.json has other keys; only runs and results are read."""
    found, out = whole
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    (copy / "comparison.json").write_text('{"control": "scratch", "resamples": 10000}')
    outcome = run(*COMMAND, "--from", source, "--out", copy, "--store", store.root, "--dry-run")
    assert outcome.out.splitlines()[-1] == "6 runs, 0 to do"
    again = run_comparison(asked(store, copy, origins=(source,)))
    arms, before = (one["targets"]["Target"]["arms"] for one in (again, found))
    assert {name: arm["differences"] for name, arm in arms.items()} == {
        name: arm["differences"] for name, arm in before.items()
    }


# -- stages chosen on validation ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_arm_can_choose_its_stage_on_validation(store: Store, source: Path, tmp_path: Path) -> None:
    race = RaceConfig(candidates=("scratch", "relearn"), first_rung=0.5)
    two = replace(ONE_EPOCH, epochs=2)
    found = run_comparison(asked(store, tmp_path, origins=(source,), arms=("scratch", "auto"), race=race, training=two))
    arm = found["targets"]["Target"]["arms"]["auto"]
    assert {one["chosen"] for one in arm["runs"]} <= {"scratch", "relearn"}
    assert arm["verdict"]["word"] is not None
    assert "auto chose " in (tmp_path / "comparison.md").read_text()


# -- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"training": replace(ONE_EPOCH, epochs=2)}, r"scratch-0 holds another run: --epochs 1 \(not 2\)"),
        ({"training": replace(ONE_EPOCH, lr=0.1)}, r"--lr 0.001 \(not 0.1\)"),
        ({"training": replace(ONE_EPOCH, modalities=("text",))}, r"reads image, price, text \(not text\)"),
        ({"model": replace(MODEL, fusion=0.5)}, r"--fusion 0.1 \(not 0.5\)"),
    ],
)
def test_a_folder_with_other_runs_is_refused_and_the_difference_named(
    store: Store, whole: tuple[dict[str, Any], Path], changed: dict[str, Any], named: str
) -> None:
    before = snapshot(whole[1])
    with pytest.raises(UsageError, match=named):
        run_comparison(asked(store, whole[1], arms=("scratch",), **changed))
    assert snapshot(whole[1]) == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"epochs": 2}, r"mine .* and scratch .* are not comparable: --epochs 2 \(not 1\)"),
        ({"batch_size": 32}, r"--batch-size 32 \(not 64\)"),
        ({"modalities": ("text",)}, r"reads text \(not image, price, text\)"),
        ({"seed": 7}, r"mine has the seeds 7, scratch has 0; only equal seeds"),
    ],
)
def test_runs_of_another_budget_features_or_seed_are_refused_and_the_difference_named(
    store: Store, tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    train_quickly(store, "scratch", ["Target"], tmp_path / "mine", **{"epochs": 1, **changed})
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match=named):
        run_comparison(asked(store, tmp_path / "out", arms=("scratch",), seeds=1, given={"mine": [tmp_path / "mine"]}))
    assert snapshot(tmp_path) == before  # nothing was trained for it


@pytest.mark.parametrize("name", ["mine", "scratch"])
def test_an_arm_without_a_run_on_each_target_is_refused_by_name(
    store: Store, whole: tuple[dict[str, Any], Path], tmp_path: Path, name: str
) -> None:
    given = {name: [whole[1] / "Target" / "scratch-0"]}
    request = asked(store, tmp_path / "out", arms=("scratch",), seeds=1, targets=("Target", "Second"), given=given)
    with pytest.raises(UsageError, match=f"Second: {name} has no run on it"):
        run_comparison(request)
    assert not (tmp_path / "out").exists()


def test_a_run_given_twice_does_not_count_as_two_seeds(
    store: Store, whole: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    given = {"scratch": [whole[1] / "Target" / "scratch-0"] * 2, "mine": [whole[1] / "Target" / "scratch-1"] * 2}
    with pytest.raises(UsageError, match="Target: scratch has seed 0 twice"):
        run_comparison(asked(store, tmp_path / "out", arms=("scratch",), given=given))


def test_runs_of_another_split_are_refused_by_name(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Target")
    train_quickly(store, "scratch", ["Target"], tmp_path / "mine", epochs=1)
    build_sequences(store, ["Target"], SequenceConfig(max_len=9))
    with pytest.raises(DataError, match=r"mine was trained on other sequences \(catalogue, split or --max-len\)"):
        run_comparison(asked(store, tmp_path / "out", arms=("scratch",), seeds=1, given={"mine": [tmp_path / "mine"]}))


def test_runs_on_no_target_are_refused_by_name(store: Store, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="source: was trained on Source, not on Target"):
        run_comparison(asked(store, tmp_path / "out", arms=("scratch",), given={"mine": [source]}))


def test_finetuning_on_fewer_features_than_scratch_reads_is_not_a_fair_comparison(store: Store, tmp_path: Path) -> None:
    train_quickly(store, "pretrain", ["Source"], tmp_path / "text", epochs=1, modalities=("text",))
    with pytest.raises(UsageError, match=r"finetune .* are not comparable: reads text \(not image, price, text\)"):
        run_comparison(asked(store, tmp_path / "out", origins=(tmp_path / "text",), arms=("scratch", "finetune")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"arms": ("scratch", "finetune")}, "--arms finetune: starts from a pre-trained run"),
        (
            {"arms": ("scratch", "rewind")},
            "--arms rewind: choose from pretrain, scratch, floor, rerank-scratch, rerank, finetune",
        ),
        ({"arms": ("pretrain",)}, "is not a way to train on a target"),
        ({"arms": ("scratch",), "sources": ("Source", "Target")}, "Target: both a source and a target"),
        ({"arms": ("scratch",), "leave_one_out": True}, "needs at least two sources"),
        ({"arms": ("relearn",), "sources": ("Source",)}, "a verdict on transfer needs the control"),
        ({"arms": ("scratch",), "targets": ("Target", "Target")}, "give each target once"),
        ({"arms": ("scratch",), "targets": ("Nowhere",)}, "no domain 'Nowhere'"),
    ],
)
def test_requests_that_make_no_sense_are_refused_before_anything_is_written(
    store: Store, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(AntpipeError, match=message):
        run_comparison(asked(store, tmp_path / "out", **more))
    assert not (tmp_path / "out").exists()


def test_two_runs_to_start_from_of_the_same_name_are_refused(store: Store, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="have the same name: source, source"):
        run_comparison(asked(store, tmp_path / "out", origins=(source, source)))


@pytest.mark.parametrize("word", ["mine", "=runs", "mine=", "mine=a,,b"])
def test_a_run_flag_that_names_nothing_is_refused(store: Store, tmp_path: Path, word: str) -> None:
    outcome = run(*COMMAND, "--run", word, "--out", tmp_path / "out", "--store", store.root)
    assert outcome.code == 2
    assert "write ARM=DIR" in outcome.err

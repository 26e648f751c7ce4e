"""`antpipe compare --target-users`: the learning curve, by hand-made figures and on a small shop."""

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import antpipe as ant
from antpipe.comparison import run as compare
from antpipe.comparison.curve import equal_users, with_subsets, worth_of
from antpipe.comparison.plan import ComparisonRequest
from antpipe.comparison.run import run_comparison, what_would_be_done
from antpipe.comparison.table import as_markdown, as_text
from antpipe.errors import DataError, SameCommand, UsageError
from antpipe.features.subset import Subset, subset
from antpipe.settings.comparison import CompareConfig, RaceConfig
from antpipe.settings.features import SubsetConfig
from antpipe.store.store import Store
from antpipe.training import checkpoint
from tests.comparison.test_comparison import GOOD, MARKOV, SCRATCH, outcome
from tests.support.commands import run, unfolded
from tests.support.releases import snapshot
from tests.support.trainable import MODEL, TRAINING, make_trainable, train_quickly

SIZES = [500, 1000, 2000, 4000]
CURVE = [0.05, 0.06, 0.08, 0.09]


def difference(value: float, half: float | None = None) -> dict[str, float | None]:
    return {
        "difference": value,
        "low": None if half is None else value - half,
        "high": None if half is None else value + half,
    }


def equals(control: list[float], differences: list[float], sizes: list[int] = SIZES) -> list[Any]:
    return [one["equals"] for one in worth_of(sizes, control, [difference(value) for value in differences])]


# -- the worth of transfer in users, written out ------------------------------------------------------------------


def test_the_worth_is_read_off_the_curve_of_the_control_linearly_in_the_logarithm_of_users() -> None:
    """At 1,000 users .07 is half way from .06 to .08: at sqrt(1,000 x 2,000) users."""
    assert equals(CURVE, [0.0, 0.01, 0.0, 0.0])[1] == pytest.approx(math.sqrt(1000 * 2000))
    assert equals(CURVE, [0.04 * 0.75, 0, 0, 0])[0] == pytest.approx(2000)
    assert equals(CURVE, [0, 0, -0.025, 0])[2] == pytest.approx(math.sqrt(500 * 1000))


def test_an_arm_that_equals_the_control_is_worth_its_own_users_however_noisy_the_curve() -> None:
    assert equals(CURVE, [0.0] * 4) == SIZES
    assert equals([0.12, 0.09, 0.11, 0.125], [0.0] * 4) == SIZES


def test_beyond_the_ends_of_the_curve_no_number_is_given() -> None:
    assert equals(CURVE, [0.05, -0.011, -0.04, 0.001]) == ["above", "below", "below", "above"]


def test_the_ends_of_the_curve_themselves_are_numbers() -> None:
    found = equals([0.25, 0.5, 0.75, 1.0], [0.75, -0.25, 0.25, -0.75])
    assert found == pytest.approx([4000, 500, 4000, 500])


def test_a_curve_that_falls_is_made_monotone_by_isotonic_regression_weighted_by_users() -> None:
    """.12 of 500 users and .09 of 1,000 pool to .10; the curve is .10, .10, .11, .125."""
    found = equals([0.12, 0.09, 0.11, 0.125], [0.005, 0.005, -0.005, 0.0075])
    assert found[0] == found[1] == pytest.approx(math.sqrt(1000 * 2000))
    assert found[2] == pytest.approx(math.sqrt(1000 * 2000))
    assert found[3] == "above"


def test_on_a_level_stretch_the_nearest_users_count() -> None:
    found = equals([0.1, 0.1, 0.1, 0.2], [0.05, 0.05, 0.05, -0.1])
    assert found[:3] == pytest.approx([math.sqrt(2000 * 4000)] * 3)
    assert found[3] == pytest.approx(2000)


def test_a_control_that_does_not_improve_gives_no_worth() -> None:
    assert equals([0.1, 0.1, 0.1, 0.1], [0.05, 0, -0.05, 0]) == [None] * 4
    assert equals([0.4, 0.3, 0.2, 0.1], [0.05, 0, -0.05, 0]) == [None] * 4
    assert equals([0.3], [0.1], [500]) == [None]


def test_the_interval_in_users_is_that_of_the_difference() -> None:
    halves = (2.0, 0.125, 0.125, None)
    [first, one, _, last] = worth_of(SIZES, [0.25, 0.5, 0.75, 1.0], [difference(0.0, half) for half in halves])
    assert (one["low"], one["high"]) == pytest.approx((math.sqrt(500 * 1000), math.sqrt(1000 * 2000)))
    assert (first["low"], first["high"]) == ("below", "above")
    assert (last["low"], last["equals"], last["high"]) == (None, 4000, None)


@pytest.mark.parametrize("at", range(4))
def test_a_worth_leads_back_to_the_difference(at: int) -> None:
    import numpy as np

    users = equal_users(SIZES, np.array(CURVE), at, 0.073 - CURVE[at])
    assert isinstance(users, float)
    assert np.interp(np.log(users), np.log(SIZES), CURVE) == pytest.approx(0.073)


# -- outcomes of hand-made ranks ----------------------------------------------------------------------------------


def curve_of(folder: Path, shares: dict[int, list[tuple[Any, float]]], shops: tuple[str, ...] = ("T",)) -> Any:
    subsets = {one.name: one for shop in shops for one in (Subset(shop, size) for size in shares)}
    found = {name: shares[one.users] for name, one in subsets.items()}
    return outcome(folder, found, subsets=subsets, target_users=tuple(shares))


def test_the_curve_has_the_figures_of_each_size_and_the_worth(tmp_path: Path) -> None:
    pairs = {100: (0.2, 0.4), 200: (0.3, 0.5), 400: (0.6, 0.5)}
    found = curve_of(
        tmp_path, {size: [(SCRATCH, low), (GOOD, high), (MARKOV, 0.1)] for size, (low, high) in pairs.items()}
    )
    curve = found["curve"]["T"]
    assert [(one["users"], one["target"]) for one in curve["points"]] == [(n, f"T-{n}-users") for n in (100, 200, 400)]
    assert curve["points"][1]["figures"]["finetune"] == {"recall@10": 0.5, "ndcg@10": 0.5}
    differences = [
        found["targets"][point["target"]]["arms"]["finetune"]["differences"]["all"]["ndcg@10"]
        for point in curve["points"]
    ]
    assert list(curve["worth"]) == ["finetune"]
    control = [point["figures"]["scratch"]["ndcg@10"] for point in curve["points"]]
    assert curve["worth"]["finetune"]["ndcg@10"] == worth_of([100, 200, 400], control, differences)
    assert (curve["catalogue"], curve["seed"]) == ("cut", 0)


def test_the_curve_is_shown_as_tables_and_a_line_per_judged_arm(tmp_path: Path) -> None:
    pairs = {100: (0.2, 0.9), 200: (0.3, 0.3)}
    found = curve_of(
        tmp_path, {size: [(SCRATCH, low), (GOOD, high), (MARKOV, 0.1)] for size, (low, high) in pairs.items()}
    )
    found["curve"]["T"]["worth"]["finetune"]["ndcg@10"] = [
        {"users": 100, "equals": 1903.2, "low": 96.7, "high": "above"},
        {"users": 200, "equals": "below", "low": "below", "high": 100.0},
    ]
    found["curve"]["T"]["points"][1]["items"] = 1400
    for text in (unfolded(as_text(found)), as_markdown(found)):
        cells = [[cell for cell in line.replace("|", " ").split("  ") if cell.strip()] for line in text.splitlines()]
        cells = [[cell.strip() for cell in row] for row in cells]
        assert (
            "Learning curve of T: nested random users (subset seed 0), catalogue cut to the items of these users"
            in text
        )
        assert ["users", "items", "scratch", "finetune", "markov"] in cells
        assert ["100", "300", "0.2000/0.2000", "0.9000/0.9000", "0.1000/0.1000"] in cells
        assert ["200", "1,400", "0.3000/0.3000", "0.3000/0.3000", "0.1000/0.1000"] in cells
        [row] = [row for row in cells if row[:2] == ["finetune", "100"]]
        assert row[-3:] == ["POSITIVE", "1,900", "97 to beyond 200"]
        [row] = [row for row in cells if row[:2] == ["finetune", "200"]]
        assert row[-3:] == ["NONE", "below 100", "below 100 to 100"]
        assert (
            "finetune, ndcg@10: at 100 users (POSITIVE) equals scratch at 1,900, at 200 users (NONE) equals scratch "
            "below 100"
        ) in text
        assert "note: more users bring more items to rank (300 to 1,400)" in text


def test_a_control_that_does_not_improve_is_said_to(tmp_path: Path) -> None:
    text = unfolded(as_text(curve_of(tmp_path / "level", {n: [(SCRATCH, 0.3), (GOOD, 0.9)] for n in (100, 200)})))
    assert (
        "finetune, ndcg@10: at 100 users (POSITIVE), at 200 users (POSITIVE); what it is worth in users cannot be "
        "told: scratch does not improve with users"
    ) in text
    one = unfolded(as_text(curve_of(tmp_path / "one", {100: [(SCRATCH, 0.3), (GOOD, 0.9)]})))
    assert "at 100 users (POSITIVE); what it is worth in users cannot be told: there is one size" in one


def test_untrained_arms_alone_give_a_curve_without_a_worth(tmp_path: Path) -> None:
    found = curve_of(tmp_path, {n: [(MARKOV, n / 1000)] for n in (100, 200)})
    assert found["curve"]["T"]["worth"] == {}
    assert "100      300  0.1000/0.1000" in unfolded(as_text(found))


def test_sizes_of_one_shop_are_not_a_sample_of_shops_and_shops_are_pooled_size_by_size(tmp_path: Path) -> None:
    pairs = {n: [(SCRATCH, 0.3), (GOOD, 0.6)] for n in (100, 2000)}
    alone = curve_of(tmp_path / "alone", pairs)
    assert (alone["pooled"], alone["pooled_by_users"]) == ({}, {})
    both = curve_of(tmp_path / "both", pairs, shops=("T", "V"))
    assert list(both["curve"]) == ["T", "V"]
    assert both["pooled"] == {}
    assert {size: by["finetune"]["ndcg@10"]["targets"] for size, by in both["pooled_by_users"].items()} == {
        "100": 2,
        "2000": 2,
    }
    for text in (unfolded(as_text(both)), as_markdown(both)):
        assert "mean over 2 targets at 2,000 users, finetune, ndcg@10: " in text


def test_every_size_is_in_the_correction(tmp_path: Path) -> None:
    found = curve_of(tmp_path, {n: [(SCRATCH, 0.3), (GOOD, 0.35)] for n in (100, 200)})
    by_size = [target["arms"]["finetune"]["differences"]["all"]["ndcg@10"] for target in found["targets"].values()]
    assert min(one["p_holm"] for one in by_size) == pytest.approx(min(1, 2 * min(one["p"] for one in by_size)))


# -- on a small shop ----------------------------------------------------------------------------------------------

COMMAND = shlex.split(
    "compare --target Target --sources Source --target-users 24,12 --seeds 2 --epochs 1 --batch-size 64 --width 16 "
    "--experts 2 --item-dropout 0 --hidden-dropout 0.1 --attention-dropout 0.1 --arms scratch,relearn,popularity"
)


def with_users(sizes: str) -> list[str]:
    """The command with other sizes."""
    return [sizes if word == "24,12" else word for word in COMMAND]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("curve") / "store")
    for seed, name in enumerate(("Source", "Target")):
        make_trainable(store, name, seed=seed)
    return store


def asked(store: Store, out: Path, **more: Any) -> ComparisonRequest:
    own = {key: more.pop(key) for key in list(more) if key in CompareConfig.__dataclass_fields__}
    config = replace(CompareConfig(seeds=2, arms=("scratch", "relearn", "popularity"), target_users=(24, 12)), **own)
    training = replace(TRAINING, epochs=1)
    request = ComparisonRequest(store, out, ("Target",), config, MODEL, MODEL, training, RaceConfig(), (), ("Source",))
    return replace(request, **more)


@pytest.fixture(scope="module")
def curve(store: Store) -> tuple[dict[str, Any], Path]:
    out = store.root.with_name("curve")
    return run_comparison(asked(store, out)), out


@pytest.mark.slow
def test_arms_are_trained_on_subsets_from_one_pre_trained_run(curve: tuple[dict[str, Any], Path]) -> None:
    found, out = curve
    assert list(found["targets"]) == ["Target-12-users", "Target-24-users"]
    assert [found["targets"][name]["users"] for name in found["targets"]] == [12, 24]
    assert list(checkpoint.describe(out / "Target-12-users" / "all" / "relearn-1").domains) == ["Target-12-users"]
    assert [path.name for path in (out / "pretrain").iterdir()] == ["all"]
    assert json.loads((out / "comparison.json").read_text())["curve"] == found["curve"]
    assert "## Learning curve of Target" in (out / "comparison.md").read_text()
    point = found["curve"]["Target"]["points"][1]
    assert (
        point["figures"]["relearn"]["recall@10"]
        == (found["targets"]["Target-24-users"]["arms"]["relearn"]["protocols"]["all"]["recall@10"]["mean"])
    )


def test_nothing_is_drawn_trained_or_judged_twice(store: Store, curve: tuple[dict[str, Any], Path]) -> None:
    found, out = curve
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*.arrow")}
    before |= {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.parent != out}
    assert run_comparison(asked(store, out)) == found
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_further_size_trains_only_its_own_runs(store: Store, curve: tuple[dict[str, Any], Path]) -> None:
    rows = what_would_be_done(asked(store, curve[1], target_users=(12, 18, 24)))
    assert {row["target"] for row in rows if row["state"] == "missing"} == {"Target-18-users"}
    assert {row["target"] for row in rows if row["state"] == "finished"} == {
        "Source",
        "Target-12-users",
        "Target-24-users",
    }


def test_a_dry_run_writes_nothing_and_refuses_what_the_run_would(store: Store, tmp_path: Path) -> None:
    words = (*with_users("7,9"), "--store", store.root, "--out", tmp_path / "out", "--dry-run")
    before = snapshot(store.root.parent)
    outcome = run(*words)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == "11 runs, 11 to do"
    assert "Target-9-users  relearn  seed 1  missing" in outcome.out
    assert run(*words, "--init", "authors").code == 2
    assert snapshot(store.root.parent) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_proposed_after_ctrl_c_continues_the_curve(
    store: Store, curve: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = compare.run_stage, 0

    def interrupted(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(compare, "run_stage", interrupted)
        outcome = run(*COMMAND, "--store", store.root, "--out", tmp_path / "out")
    assert outcome.code == 130
    [proposed] = [line for line in outcome.err.splitlines() if line.startswith("antpipe: next: ")]
    words = shlex.split(proposed.removeprefix("antpipe: next: antpipe "))
    assert words[words.index("--target") + 1] == "Target"
    assert words[words.index("--target-users") + 1] == "24,12"
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("checkpoint.json")}
    assert len(stamps) == 3
    outcome = run(*words, "--json")
    assert outcome.code == 0, outcome.err
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert outcome.json()["curve"] == curve[0]["curve"]


def test_subsets_are_drawn_again_once_the_target_has_changed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Target", seed=1)
    request = asked(store, tmp_path / "out", arms=("popularity",), sources=(), target_users=(12,))
    run_comparison(request)
    make_trainable(store, "Target", seed=5)
    assert [row["state"] for row in what_would_be_done(request)] == ["missing"]
    changed = run_comparison(request)["targets"]["Target-12-users"]["arms"]["popularity"]["protocols"]
    afresh = run_comparison(replace(request, out=tmp_path / "other"))
    assert changed == afresh["targets"]["Target-12-users"]["arms"]["popularity"]["protocols"]


def test_the_api_takes_numbers(store: Store, tmp_path: Path) -> None:
    found = ant.compare(
        store, "Target", out=tmp_path, arms=["popularity"], target_users=[12, 24], subset_seed=2, catalogue="whole"
    )
    assert found.targets == ["Target-12-users-whole-seed-2", "Target-24-users-whole-seed-2"]
    assert [point["items"] for point in found.figures["curve"]["Target"]["points"]] == [24, 24]
    assert "(subset seed 2), catalogue whole" in str(found)
    assert "note: more users bring more items" not in str(found)


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["Target", "Target-12-users"])
def test_sources_with_users_of_the_target_are_refused(store: Store, tmp_path: Path, source: str) -> None:
    subset(store, ["Target"], SubsetConfig((12,)))
    with pytest.raises(UsageError, match=f"{source}: both a source and a target") as found:
        run_comparison(asked(store, tmp_path, sources=(source, "Source")))
    assert found.value.next_command == SameCommand({"--sources": "Source"})


def test_a_comparison_that_is_left_without_a_source_names_others(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Target: both a source and a target, and no other source is left") as found:
        run_comparison(asked(store, tmp_path, sources=("Target",)))
    assert found.value.next_command == SameCommand({"--sources": "Source"})


def test_a_subset_is_no_target_of_the_domain_it_was_drawn_from(store: Store, tmp_path: Path) -> None:
    subset(store, ["Target"], SubsetConfig((12,)))
    request = asked(store, tmp_path, targets=("Target-12-users",), sources=("Target",), target_users=())
    with pytest.raises(UsageError, match="Target: a source with the users of a target"):
        run_comparison(request)


def test_a_run_trained_on_the_target_is_no_start_for_its_subsets(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "pretrained"
    train_quickly(store, "pretrain", ["Target"], folder, epochs=1)
    with pytest.raises(UsageError, match="was trained on Target, which is a target"):
        run_comparison(asked(store, tmp_path / "out", sources=(), origins=(folder,)))


def test_more_users_than_the_target_has_are_refused_before_anything_is_written(store: Store, tmp_path: Path) -> None:
    outcome = run(*with_users("11,41"), "--store", store.root, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "--target-users 41: Target has 40 users" in outcome.err
    assert "--target-users 11,40" in outcome.err
    assert "Target-11-users" not in store.domains()
    assert not (tmp_path / "out").exists()


def test_users_too_few_to_validate_on_are_refused_unless_nothing_is_trained(tmp_path: Path) -> None:
    from tests.features.test_subset import shop_of_short_users

    store = shop_of_short_users(tmp_path / "store")
    request = asked(store, tmp_path / "out", targets=("Shop",), sources=(), arms=("scratch",), target_users=(2, 5))
    with pytest.raises(DataError, match="Shop-2-users: none of these users has a training position") as found:
        with_subsets(request)
    assert found.value.next_command == SameCommand({"--target-users": "4,5"})
    assert len(with_subsets(replace(request, config=replace(request.config, arms=("popularity",)))).targets) == 2

"""Outcomes of hand-made ranks: verdicts over several targets, the source that hurts, ranks that do not go together."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from antpipe.comparison import outcome as comparison
from antpipe.comparison.outcome import Finding
from antpipe.comparison.plan import RACED, TRAINED, UNTRAINED, Arm, ComparisonRequest, Job, Mix
from antpipe.comparison.table import as_markdown, as_text
from antpipe.comparison.verdict import Difference, Spread, holm, pooled, spread_of
from antpipe.errors import DataError, IntegrityError
from antpipe.features.subset import Subset
from antpipe.settings.comparison import CompareConfig, RaceConfig
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.store import Store
from antpipe.training.request import RunRequest
from tests.support.commands import unfolded

USERS = 60
CONFIG = CompareConfig()
MODEL, TRAINING = ModelConfig(), TrainConfig()


def of_stage(stage: str) -> RunRequest:
    return RunRequest(Store(Path("nowhere")), ("A", "B"), stage, MODEL, TRAINING)


def mix(name: str, without: str | None = None) -> Mix:
    return Mix(name, Path(name), of_stage("pretrain"), without=without)


SCRATCH = Arm("scratch", TRAINED, of_stage("scratch"))
GOOD = Arm("finetune", TRAINED, of_stage("finetune"), mix("all"), judged=True)
BAD = Arm("relearn", TRAINED, of_stage("relearn"), mix("all"), judged=True)
AUTO = Arm("auto", RACED, of_stage("auto"), mix("all"), judged=True)
MARKOV = Arm("markov", UNTRAINED, of_stage("markov"))


def write_ranks(job: Job, hits: float, users: int = USERS, like: Arm | None = None) -> dict[str, Any]:
    """Ranks of which about this share is 3 and the others not found; a result as compare has it. `unseen` has what
    `all` has not. like: the arm whose runs these are."""
    rng = np.random.default_rng([job.seed, len((like or job.arm).name)])
    ranks = np.where(rng.random(users) < hits, 3.0, 200.0)
    job.folder.mkdir(parents=True)
    columns = {
        "user": np.arange(users, dtype=np.int32),
        "position": np.full(users, 4, np.int32),
        "target": np.arange(users, dtype=np.int32),
        "seen": np.zeros(users, bool),
        "rank_all": pa.array(ranks, mask=ranks > 50),
        "rank_unseen": pa.array(203 - ranks, mask=ranks < 50),
    }
    pq.write_table(pa.table(columns), job.folder / f"ranks-{job.target}-test.parquet")
    metrics = ("recall@10", "ndcg@10", "mrr@10", "recall@50")
    return {
        "run": str(job.folder),
        "seed": job.seed,
        "items": 300,
        "positions": users,
        "target_in_history": 0.0,
        "protocols": {protocol: dict.fromkeys(metrics, hits) for protocol in ("all", "unseen")},
    }


def outcome(
    folder: Path,
    targets: dict[str, list[tuple[Arm, float]]],
    seeds: int = 3,
    users: int = USERS,
    copies: dict[tuple[str, int], Arm] | None = None,
    subsets: Mapping[str, Subset] = MappingProxyType({}),
    **config: Any,
) -> dict[str, Any]:
    """The outcome where each arm finds this share of a target's items.

    copies: the arm whose run auto's is, by target and seed. subsets: what targets are
    subsets of. config: replaces settings of the comparison.
    """
    arms = [arm for arm, _ in next(iter(targets.values()))]
    shares = {(target, arm.name): share for target, pairs in targets.items() for arm, share in pairs}
    work = [
        Job(arm, target, seed, folder / target / arm.name / str(seed))
        for target in targets
        for arm in arms
        for seed in range(1 if arm.kind == UNTRAINED else seeds)
    ]
    results = []
    for job in work:
        like = (copies or {}).get((job.target, job.seed)) if job.arm == AUTO else None
        results.append(write_ranks(job, shares[job.target, (like or job.arm).name], users, like))
    asked = replace(CONFIG, **config)
    request = ComparisonRequest(Store(folder), folder, tuple(targets), asked, MODEL, MODEL, TRAINING, RaceConfig())
    found = comparison.outcome(replace(request, subsets=subsets), arms, work, results)
    json.dumps(found, allow_nan=False)  # numbers that JSON has, whatever the ranks are
    return found


def hits_of(folder: Path, target: str, arm: str, seeds: int) -> Any:
    """(S, U) zeros and ones: which targets of an arm are in the top ten."""
    files = [folder / target / arm / str(seed) / f"ranks-{target}-test.parquet" for seed in range(seeds)]
    return np.stack([pq.read_table(path)["rank_all"].fill_null(np.inf).to_numpy() <= 10 for path in files]).astype(
        float
    )


def verdicts_of(found: dict[str, Any], target: str = "One") -> dict[str, Any]:
    arms = found["targets"][target]["arms"]
    return {name: arm["verdict"] for name, arm in arms.items() if arm["verdict"]}


def test_verdicts_are_given_by_arm_and_target(tmp_path: Path) -> None:
    found = outcome(
        tmp_path, {"One": [(SCRATCH, 0.3), (GOOD, 0.9), (BAD, 0.02)], "Two": [(SCRATCH, 0.3), (GOOD, 0.3), (BAD, 0.3)]}
    )
    words = {t: {name: one["word"] for name, one in verdicts_of(found, t).items()} for t in found["targets"]}
    assert words == {
        "One": {"finetune": "POSITIVE", "relearn": "NEGATIVE"},
        "Two": {"finetune": "NONE", "relearn": "NONE"},
    }
    said = "verdict on transfer, One, ndcg@10, protocol all: finetune POSITIVE (better); relearn NEGATIVE (worse)"
    for text in (unfolded(as_text(found)), as_markdown(found)):
        assert said in text


def test_p_is_corrected_over_arms_and_targets_for_the_metric_of_the_verdict_alone(tmp_path: Path) -> None:
    pairs = [(SCRATCH, 0.3), (GOOD, 0.5), (BAD, 0.2), (MARKOV, 0.1)]
    found = outcome(tmp_path, {"One": pairs, "Two": pairs}, metric="recall@10")
    by_arm = [
        found["targets"][target]["arms"][arm]["differences"]["all"]
        for target in ("One", "Two")
        for arm in ("finetune", "relearn")
    ]
    assert [one["recall@10"]["p_holm"] for one in by_arm] == pytest.approx(
        holm([one["recall@10"]["p"] for one in by_arm])
    )
    assert [one["ndcg@10"]["p_holm"] for one in by_arm] == [None] * 4
    assert found["targets"]["One"]["arms"]["markov"]["differences"]["all"]["recall@10"]["p_holm"] is None
    assert found["metric"] == "recall@10"
    assert "verdict on transfer, One, recall@10, protocol all: " in unfolded(as_text(found))


def test_the_verdict_is_about_the_protocol_asked_for(tmp_path: Path) -> None:
    """`unseen` has what `all` has not, so the better arm is the worse one."""
    found = outcome(tmp_path, {"One": [(SCRATCH, 0.3), (GOOD, 0.9)]}, protocol="unseen")
    assert verdicts_of(found)["finetune"]["word"] == "NEGATIVE"
    assert "One, ndcg@10, protocol unseen: finetune NEGATIVE" in unfolded(as_text(found))


def test_a_verdict_of_none_names_the_difference_that_would_have_been_found(tmp_path: Path) -> None:
    found = outcome(tmp_path, {"One": [(SCRATCH, 0.3), (GOOD, 0.3)]})
    one = found["targets"]["One"]["arms"]["finetune"]["differences"]["all"]["ndcg@10"]
    of_control = hits_of(tmp_path, "One", "scratch", 3).mean() / 2  # rank 3 has an NDCG of 1 / log2(4)
    share = f"{one['detectable'] / of_control:.1%}"
    assert verdicts_of(found)["finetune"] == {
        "word": "NONE",
        "why": f"no difference beyond chance; one of {share} would be found in 8 of 10 tests",
    }
    assert one["detectable"] > one["high"] - one["difference"]
    for text in (unfolded(as_text(found)), as_markdown(found)):
        assert f"finetune NONE (no difference beyond chance; one of {share} would be found in 8 of 10 tests)" in text
    assert f"{one['detectable']:.4f}" in as_markdown(found)  # a terminal has no room for it


def test_an_arm_is_equivalent_if_its_interval_lies_within_the_margin(tmp_path: Path) -> None:
    found = outcome(tmp_path, {"One": [(SCRATCH, 0.3), (GOOD, 0.3)]}, users=3000, margin=0.3)
    assert verdicts_of(found)["finetune"] == {"word": "EQUIVALENT", "why": "differs by less than 30%"}
    one = found["targets"]["One"]["arms"]["finetune"]["differences"]["all"]["ndcg@10"]
    assert -0.3 * one["control"] < one["low"] < one["high"] < 0.3 * one["control"]
    assert one["p_beyond_margin"] < 0.05
    never = outcome(tmp_path / "never", {"One": [(SCRATCH, 0.3), (GOOD, 0.3)]}, users=3000, margin=0.0)
    assert verdicts_of(never)["finetune"]["word"] == "NONE"


@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_ranks_that_do_not_vary_give_a_verdict_too(tmp_path: Path, shares: tuple[float, float]) -> None:
    found = outcome(tmp_path, {"One": [(SCRATCH, shares[0]), (GOOD, shares[1])]})
    words = {(0.0, 0.0): "NONE", (0.0, 1.0): "POSITIVE", (1.0, 1.0): "EQUIVALENT"}
    assert verdicts_of(found)["finetune"]["word"] == words[shares]
    assert found["targets"]["One"]["arms"]["finetune"]["differences"]["all"]["ndcg@10"]["effect"] in (None, 0)
    assert "verdict on transfer" in unfolded(as_text(found))


def test_a_target_of_one_user_has_figures_and_no_verdict(tmp_path: Path) -> None:
    found = outcome(tmp_path, {"One": [(SCRATCH, 0.3), (GOOD, 1.0)]}, users=1)
    why = "no verdict: it takes at least 2 seeds and 2 users"
    assert verdicts_of(found)["finetune"] == {"word": None, "why": why}
    assert f"One: {why}" in unfolded(as_text(found))


# -- auto, whose runs may be those of another arm -----------------------------------------------------------------

RACING = [(SCRATCH, 0.3), (GOOD, 0.9), (AUTO, 0.5)]


def all_of(arm: Arm) -> dict[tuple[str, int], Arm]:
    return {("One", seed): arm for seed in range(3)}


def test_a_race_that_ended_with_the_runs_of_a_judged_arm_shares_its_verdict_and_is_not_tested(tmp_path: Path) -> None:
    found = outcome(tmp_path, {"One": RACING}, copies=all_of(GOOD))
    assert verdicts_of(found)["auto"] == {"word": "POSITIVE", "why": "its runs are those of finetune: better"}
    arms = found["targets"]["One"]["arms"]
    assert arms["auto"]["differences"]["all"]["ndcg@10"]["p_holm"] is None
    tested = arms["finetune"]["differences"]["all"]["ndcg@10"]
    assert tested["p_holm"] == tested["p"]  # a family of one


@pytest.mark.parametrize(("margin", "word"), [(0.05, "EQUIVALENT"), (0.0, "NONE")])
def test_a_race_that_ended_with_the_runs_of_the_control_is_equivalent_to_it(
    tmp_path: Path, margin: float, word: str
) -> None:
    found = outcome(tmp_path, {"One": RACING}, copies=all_of(SCRATCH), margin=margin)
    assert verdicts_of(found)["auto"] == {"word": word, "why": "its runs are those of scratch"}


def test_a_race_with_one_run_of_its_own_is_tested_like_any_arm(tmp_path: Path) -> None:
    some = {("One", 0): SCRATCH, ("One", 1): SCRATCH}
    found = outcome(tmp_path, {"One": RACING}, copies=some)
    arms = found["targets"]["One"]["arms"]
    family = [arms[name]["differences"]["all"]["ndcg@10"] for name in ("finetune", "auto")]
    assert [one["p_holm"] for one in family] == pytest.approx(holm([one["p"] for one in family]))
    assert "its runs" not in verdicts_of(found)["auto"]["why"]


def test_a_race_is_a_copy_on_one_target_and_tested_on_another(tmp_path: Path) -> None:
    found = outcome(tmp_path, {"One": RACING, "Two": RACING}, copies=all_of(GOOD))
    cells = [
        found["targets"][target]["arms"][arm]["differences"]["all"]["ndcg@10"]
        for target, arm in (("One", "finetune"), ("Two", "finetune"), ("Two", "auto"))
    ]
    assert [one["p_holm"] for one in cells] == pytest.approx(holm([one["p"] for one in cells]))
    assert verdicts_of(found, "One")["auto"]["why"].startswith("its runs are those of finetune")


@pytest.mark.parametrize("other", [SCRATCH, GOOD])
def test_a_copy_of_a_single_run_has_no_verdict_either(tmp_path: Path, other: Arm) -> None:
    found = outcome(tmp_path, {"One": RACING}, seeds=1, copies=all_of(other))
    assert verdicts_of(found)["auto"] == {"word": None, "why": "no verdict: it takes at least 2 seeds and 2 users"}


# -- several targets ----------------------------------------------------------------------------------------------


def test_the_mean_over_targets_is_printed_for_these_and_for_shops_like_them(tmp_path: Path) -> None:
    pairs = [(SCRATCH, 0.3), (GOOD, 0.5), (MARKOV, 0.1)]
    found = outcome(tmp_path, {"One": pairs, "Two": pairs, "Three": pairs})
    assert list(found["pooled"]) == ["finetune"]
    mean = found["pooled"]["finetune"]["ndcg@10"]
    cells = [found["targets"][t]["arms"]["finetune"]["differences"]["all"]["ndcg@10"] for t in found["targets"]]
    assert mean["relative"] == pytest.approx(np.mean([one["difference"] / one["control"] for one in cells]))
    again = pooled(
        [Difference(one["difference"], one["control"], spread=Spread(**one["spread"])) for one in cells], CONFIG.alpha
    )
    assert again is not None
    assert (mean["low"], mean["p"], mean["shops_high"]) == pytest.approx((again.low, again.p, again.shops_high))
    for text in (unfolded(as_text(found)), as_markdown(found)):
        [line] = [line for line in text.splitlines() if "mean over 3 targets, finetune, ndcg@10" in line]
        assert f": {mean['relative']:+.1%} [{mean['low']:+.1%}, {mean['high']:+.1%}], p " in line
        assert " for these targets; [" in line
        assert line.endswith(" for shops of which they are a sample")
    assert "## All targets" in as_markdown(found)


def test_a_single_target_has_no_mean_over_targets(tmp_path: Path) -> None:
    found = outcome(tmp_path, {"One": [(SCRATCH, 0.3), (GOOD, 0.9)]})
    assert found["pooled"] == {}
    assert "mean over" not in unfolded(as_text(found))
    assert "All targets" not in as_markdown(found)


# -- several pre-training seeds -----------------------------------------------------------------------------------


def test_runs_from_the_same_pre_training_seed_are_averaged_first(tmp_path: Path) -> None:
    """Four seeds take turns to start from two pre-trained runs, so there are two values per arm, not four."""
    found = outcome(tmp_path, {"One": [(SCRATCH, 0.3), (GOOD, 0.6)]}, seeds=4, pretrain_seeds=2)
    arm, control = (hits_of(tmp_path, "One", name, 4) for name in ("finetune", "scratch"))
    arm, control = (np.stack([(hits[0] + hits[2]) / 2, (hits[1] + hits[3]) / 2]) for hits in (arm, control))
    expected = spread_of(arm - control, np.ones(USERS), arm.mean(1), control.mean(1))
    one = found["targets"]["One"]["arms"]["finetune"]["differences"]["all"]["recall@10"]
    assert one["spread"]["freedom"] == [2, USERS - 1] == list(expected.freedom)
    parts = (expected.seeds, expected.users, expected.pairs)
    assert (one["spread"]["seeds"], one["spread"]["users"], one["spread"]["pairs"]) == pytest.approx(parts)
    assert one["difference"] == pytest.approx(arm.mean() - control.mean())
    assert found["targets"]["One"]["arms"]["finetune"]["seeds"] == 4


def test_with_a_single_pre_training_seed_every_run_counts(tmp_path: Path) -> None:
    found = outcome(tmp_path, {"One": [(SCRATCH, 0.3), (GOOD, 0.6)]}, seeds=4)
    one = found["targets"]["One"]["arms"]["finetune"]["differences"]["all"]["recall@10"]
    assert one["spread"]["freedom"] == [6, USERS - 1]


# -- figures and differences --------------------------------------------------------------------------------------


def test_protocols_are_never_mixed(tmp_path: Path) -> None:
    found = outcome(tmp_path, {"One": [(SCRATCH, 0.3), (GOOD, 0.9)]})
    differences = found["targets"]["One"]["arms"]["finetune"]["differences"]
    better, worse = (differences[protocol]["recall@10"]["difference"] for protocol in ("all", "unseen"))
    assert better > 0.4
    assert worse == pytest.approx(-better)  # each has its own ranks


def test_a_difference_is_paired_by_user_and_averaged_over_seeds(tmp_path: Path) -> None:
    found = outcome(tmp_path, {"One": [(SCRATCH, 0.3), (GOOD, 0.6)]}, seeds=2)
    by_user = (hits_of(tmp_path, "One", "finetune", 2) - hits_of(tmp_path, "One", "scratch", 2)).mean(0)
    one = found["targets"]["One"]["arms"]["finetune"]["differences"]["all"]["recall@10"]
    assert one["difference"] == pytest.approx(by_user.mean())
    assert one["effect"] == pytest.approx(by_user.mean() / by_user.std(ddof=1))


def test_a_source_hurts_where_all_is_better_without_it(tmp_path: Path) -> None:
    def arm(name: str, without: str | None) -> Arm:
        return Arm(f"relearn from {name}", TRAINED, of_stage("relearn"), mix(name, without), without is None)

    arms = [(SCRATCH, 0.3), (arm("all", None), 0.3), (arm("without-A", "A"), 0.95), (arm("without-B", "B"), 0.02)]
    found = outcome(tmp_path, {"One": arms})
    said = found["sources"]["One"]["relearn"]
    assert {source: one["says"] for source, one in said.items()} == {"A": "hurts", "B": "helps"}
    assert said["A"]["differences"]["recall@10"]["low"] > 0
    cells = [said[source]["differences"]["ndcg@10"] for source in ("A", "B")]
    assert [one["p_holm"] for one in cells] == pytest.approx(holm([one["p"] for one in cells]))
    assert "sources that hurt One: A (relearn)" in unfolded(as_text(found))
    assert "source A, relearn: hurts (better); without it recall@10 +" in unfolded(as_text(found))


def test_no_source_is_said_to_hurt_without_evidence(tmp_path: Path) -> None:
    def arm(name: str, without: str | None) -> Arm:
        return Arm(f"relearn from {name}", TRAINED, of_stage("relearn"), mix(name, without), without is None)

    arms = [(SCRATCH, 0.3), (arm("all", None), 0.3), (arm("without-A", "A"), 0.31), (arm("without-B", "B"), 0.3)]
    found = outcome(tmp_path, {"One": arms})
    assert {one["says"] for one in found["sources"]["One"]["relearn"].values()} == {"not shown to matter"}
    assert "sources that hurt One: none is shown to" in unfolded(as_text(found))
    assert "source A, relearn: not shown to matter (no difference beyond chance; one of " in unfolded(as_text(found))


def test_a_source_does_not_matter_if_the_difference_is_shown_to_be_small(tmp_path: Path) -> None:
    def arm(name: str, without: str | None) -> Arm:
        return Arm(f"relearn from {name}", TRAINED, of_stage("relearn"), mix(name, without), without is None)

    arms = [(SCRATCH, 0.3), (arm("all", None), 0.3), (arm("without-A", "A"), 0.3)]
    found = outcome(tmp_path, {"One": arms}, users=3000, margin=0.3)
    assert found["sources"]["One"]["relearn"]["A"]["says"] == "does not matter"
    assert "source A, relearn: does not matter (differs by less than 30%)" in unfolded(as_text(found))


def test_a_baseline_that_beats_every_trained_arm_is_noted(tmp_path: Path) -> None:
    found = outcome(tmp_path, {"One": [(SCRATCH, 0.3), (GOOD, 0.4), (MARKOV, 0.9)]})
    assert found["targets"]["One"]["notes"][0] == (
        "recall@10: markov, which is not trained, has 0.9000; the best trained arm, finetune, has 0.4000"
    )
    assert found["targets"]["One"]["arms"]["markov"]["verdict"] is None


def test_ranks_of_other_positions_are_refused_by_name(tmp_path: Path) -> None:
    jobs = [Job(SCRATCH, "One", 0, tmp_path / "a"), Job(GOOD, "One", 0, tmp_path / "b")]
    write_ranks(jobs[0], 0.5)
    write_ranks(jobs[1], 0.5, users=USERS - 1)
    with pytest.raises(IntegrityError, match=r"b/ranks-One-test\.parquet: its positions differ from those of scratch"):
        comparison.load_ranks(jobs, Store(tmp_path))


def test_the_next_command_after_wrong_ranks_of_a_baseline_makes_them_again(tmp_path: Path) -> None:
    jobs = [Job(SCRATCH, "One", 0, tmp_path / "a"), Job(MARKOV, "One", 0, tmp_path / "b")]
    write_ranks(jobs[0], 0.5)
    write_ranks(jobs[1], 0.5, users=USERS - 1)
    with pytest.raises(IntegrityError) as caught:
        comparison.load_ranks(jobs, Store(tmp_path))
    assert caught.value.next_command == f"rm {tmp_path / 'b' / 'ranks-One-test.parquet'}"


def test_a_target_with_a_single_user_does_not_take_the_verdict_from_the_others() -> None:
    many = Difference(0.5, 1.0, spread=Spread(0.0, 0.01, 0.0, (4, 50)), p=0.001)
    request = ComparisonRequest(Store(Path()), Path(), ("One",), CONFIG, MODEL, MODEL, TRAINING, RaceConfig())
    family = [
        Finding(target, arm, "ndcg@10", found)
        for target, found in (("One", Difference(0.5, 1.0)), ("Two", many))
        for arm in ("finetune", "relearn")
    ]
    comparison.correct(family, request)
    assert [finding.corrected for finding in family] == [None, None, 0.002, 0.002]
    assert [finding.within is None for finding in family] == [True, True, False, False]
    assert [finding.judge(request).word for finding in family] == [None, None, "POSITIVE", "POSITIVE"]


def test_a_run_judged_by_other_protocols_is_refused_by_name(tmp_path: Path) -> None:
    job = Job(SCRATCH, "One", 0, tmp_path / "mine")
    result = write_ranks(job, 0.5)
    del result["protocols"]["unseen"]
    request = ComparisonRequest(Store(tmp_path), tmp_path, ("One",), CONFIG, MODEL, MODEL, TRAINING, RaceConfig())
    with pytest.raises(DataError, match="mine was judged by the protocols all, the others by all, unseen"):
        comparison.outcome(request, [SCRATCH], [job], [result])

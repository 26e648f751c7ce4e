"""Outcomes of hand-made ranks: verdicts over several targets, the source that hurts, ranks that do not go together."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from antpipe.comparison import outcome as comparison
from antpipe.comparison.outcome import Finding
from antpipe.comparison.plan import TRAINED, UNTRAINED, Arm, ComparisonRequest, Job, Mix
from antpipe.comparison.table import as_markdown, as_text
from antpipe.comparison.verdict import Difference, holm
from antpipe.errors import DataError, IntegrityError
from antpipe.settings.comparison import CompareConfig, RaceConfig
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.store import Store
from antpipe.training.request import RunRequest

USERS = 60
CONFIG = CompareConfig(resamples=300)
MODEL, TRAINING = ModelConfig(), TrainConfig()


def of_stage(stage: str) -> RunRequest:
    return RunRequest(Store(Path("nowhere")), ("A", "B"), stage, MODEL, TRAINING)


def mix(name: str, without: str | None = None) -> Mix:
    return Mix(name, Path(name), of_stage("pretrain"), without=without)


SCRATCH = Arm("scratch", TRAINED, of_stage("scratch"))
GOOD = Arm("finetune", TRAINED, of_stage("finetune"), mix("all"), judged=True)
BAD = Arm("relearn", TRAINED, of_stage("relearn"), mix("all"), judged=True)
MARKOV = Arm("markov", UNTRAINED, of_stage("markov"))


def write_ranks(job: Job, hits: float, users: int = USERS) -> dict[str, Any]:
    """Ranks of which about this share is 3 and the others not found; a result as compare has it. `unseen` has what
    `all` has not."""
    rng = np.random.default_rng([job.seed, len(job.arm.name)])
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


def outcome(folder: Path, targets: dict[str, list[tuple[Arm, float]]], seeds: int = 3) -> dict[str, Any]:
    """The outcome where each arm finds this share of a target's items."""
    arms = [arm for arm, _ in next(iter(targets.values()))]
    shares = {(target, arm.name): share for target, pairs in targets.items() for arm, share in pairs}
    work = [
        Job(arm, target, seed, folder / target / arm.name / str(seed))
        for target in targets
        for arm in arms
        for seed in range(1 if arm.kind == UNTRAINED else seeds)
    ]
    results = [write_ranks(job, shares[job.target, job.arm.name]) for job in work]
    request = ComparisonRequest(Store(folder), folder, tuple(targets), CONFIG, MODEL, MODEL, TRAINING, RaceConfig())
    return comparison.outcome(request, arms, work, results)


def test_verdicts_are_given_by_arm_and_target(tmp_path: Path) -> None:
    found = outcome(
        tmp_path, {"One": [(SCRATCH, 0.3), (GOOD, 0.9), (BAD, 0.02)], "Two": [(SCRATCH, 0.3), (GOOD, 0.3), (BAD, 0.3)]}
    )
    words = {
        target: {name: arm["verdict"]["word"] for name, arm in facts["arms"].items() if arm["verdict"]}
        for target, facts in found["targets"].items()
    }
    assert words == {
        "One": {"finetune": "POSITIVE", "relearn": "NEGATIVE"},
        "Two": {"finetune": "NONE", "relearn": "NONE"},
    }
    family = [
        found["targets"][target]["arms"][arm]["differences"]["all"][metric]
        for target in ("One", "Two")
        for arm in ("finetune", "relearn")
        for metric in ("recall@10", "ndcg@10")
    ]
    assert [one["p_holm"] for one in family] == pytest.approx(holm([one["p"] for one in family]))
    for text in (as_text(found), as_markdown(found)):
        assert "verdict on transfer, One, protocol all: finetune POSITIVE (recall@10, ndcg@10 better); relearn " in text


def test_protocols_are_never_mixed(tmp_path: Path) -> None:
    found = outcome(tmp_path, {"One": [(SCRATCH, 0.3), (GOOD, 0.9)]})
    differences = found["targets"]["One"]["arms"]["finetune"]["differences"]
    better, worse = (differences[protocol]["recall@10"]["difference"] for protocol in ("all", "unseen"))
    assert better > 0.4
    assert worse == pytest.approx(-better)  # each has its own ranks


def test_a_difference_is_paired_by_user_and_averaged_over_seeds(tmp_path: Path) -> None:
    found = outcome(tmp_path, {"One": [(SCRATCH, 0.3), (GOOD, 0.6)]}, seeds=2)
    ranks = {
        arm: np.stack(
            [
                pq.read_table(tmp_path / "One" / arm / str(seed) / "ranks-One-test.parquet")["rank_all"]
                .fill_null(np.inf)
                .to_numpy()
                for seed in (0, 1)
            ]
        )
        for arm in ("scratch", "finetune")
    }
    by_user = ((ranks["finetune"] <= 10).astype(float) - (ranks["scratch"] <= 10)).mean(0)
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
    assert "sources that hurt One: A (relearn)" in as_text(found)


def test_no_source_is_said_to_hurt_without_evidence(tmp_path: Path) -> None:
    def arm(name: str, without: str | None) -> Arm:
        return Arm(f"relearn from {name}", TRAINED, of_stage("relearn"), mix(name, without), without is None)

    arms = [(SCRATCH, 0.3), (arm("all", None), 0.3), (arm("without-A", "A"), 0.31), (arm("without-B", "B"), 0.3)]
    found = outcome(tmp_path, {"One": arms})
    assert {one["says"] for one in found["sources"]["One"]["relearn"].values()} == {"not shown to matter"}
    assert "sources that hurt One: none is shown to" in as_text(found)


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
    many, one = ({key: Difference(0.5, p=p) for key in ("recall@10", "ndcg@10")} for p in (0.001, None))
    family = [
        Finding(target, "finetune", metric, found)
        for target, by_metric in (("One", one), ("Two", many))
        for metric, found in by_metric.items()
    ]
    comparison.correct(family)
    assert [finding.corrected for finding in family] == [None, None, 0.002, 0.002]


def test_a_run_judged_by_other_protocols_is_refused_by_name(tmp_path: Path) -> None:
    job = Job(SCRATCH, "One", 0, tmp_path / "mine")
    result = write_ranks(job, 0.5)
    del result["protocols"]["unseen"]
    request = ComparisonRequest(Store(tmp_path), tmp_path, ("One",), CONFIG, MODEL, MODEL, TRAINING, RaceConfig())
    with pytest.raises(DataError, match="mine was judged by the protocols all, the others by all, unseen"):
        comparison.outcome(request, [SCRATCH], [job], [result])

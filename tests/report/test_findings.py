"""What a report reads: outcomes of comparisons, finished or not, and runs."""

import json
import shutil
from pathlib import Path

import pytest

from antpipe.errors import DataError, IntegrityError, UsageError
from antpipe.report.findings import gather
from tests.report.outcomes import arm, outcome, target, usual, written


def test_a_comparison_gives_its_targets_with_their_arms(tmp_path: Path) -> None:
    [one] = gather([], [written(tmp_path / "cmp", outcome({"Toys": usual()}))]).judged
    assert (one.target, list(one.arms), one.control) == ("Toys", ["scratch", "relearn", "popularity"], "scratch")
    assert one.best() == ["relearn", "scratch", "popularity"]
    assert one.trained() == ["relearn", "scratch"]


def test_targets_of_one_name_are_told_apart_by_their_comparisons(tmp_path: Path) -> None:
    folders = [written(tmp_path / name, outcome({"Toys": usual()})) for name in ("a", "b")]
    assert [one.label for one in gather([], folders).judged] == ["Toys (a)", "Toys (b)"]


def test_runs_that_differ_by_their_seed_are_one_arm(compared_shop: Path) -> None:
    runs = [compared_shop / "runs" / name for name in ("scratch-0", "scratch-1", "finetune-0")]
    [one] = gather(runs, []).judged
    assert {name: found["seeds"] for name, found in one.arms.items()} == {"scratch": 2, "finetune": 1}
    cmp = json.loads((compared_shop / "cmp" / "comparison.json").read_text(encoding="utf-8"))
    assert one.metric_of("scratch") == cmp["targets"]["Kites"]["arms"]["scratch"]["protocols"]["all"]["ndcg@10"]
    assert not one.finished


def test_a_run_without_evaluation_is_about_its_domain_alone(compared_shop: Path) -> None:
    found = gather([compared_shop / "runs" / "lamps"], [])
    assert (list(found.judged), found.domains()) == ([], ["Lamps"])


def test_the_runs_of_a_comparison_that_was_moved_are_found_below_it(compared_shop: Path, tmp_path: Path) -> None:
    folder = written(tmp_path / "moved", outcome({"Kites": target({"scratch": arm([0.1])})}))
    shutil.copytree(compared_shop / "runs" / "scratch-0", folder / "Kites" / "scratch-0")
    path = folder / "comparison.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    there = json.loads((folder / "Kites/scratch-0/checkpoint.json").read_text(encoding="utf-8"))["fingerprint"]
    for fingerprint, expected in ((there, [folder / "Kites" / "scratch-0"]), ("another", [])):
        run = {"run": "elsewhere/cmp/Kites/scratch-0", "seed": 0, "fingerprint": fingerprint}
        found["targets"]["Kites"]["arms"]["scratch"]["runs"] = [run]
        path.write_text(json.dumps(found), encoding="utf-8")
        [one] = gather([], [folder]).judged
        assert one.folders["scratch"] == expected


def test_an_unfinished_comparison_shows_what_is_finished_without_verdicts(compared_shop: Path, tmp_path: Path) -> None:
    shutil.copytree(compared_shop / "cmp" / "results", tmp_path / "cmp" / "results")
    [one] = gather([], [tmp_path / "cmp"]).judged
    assert {name: found["seeds"] for name, found in one.arms.items()} == {"finetune": 2, "scratch": 2}
    assert (one.verdicts(), one.finished) == ({}, False)
    assert one.facts["notes"] == ["the comparison is not finished: 4 runs are, and nothing was tested yet"]


def test_a_comparison_without_finished_arms_is_refused(tmp_path: Path) -> None:
    (tmp_path / "begun" / "results").mkdir(parents=True)
    with pytest.raises(DataError, match="no arm of a comparison is finished there"):
        gather([], [tmp_path / "begun"])
    empty = written(tmp_path / "empty", outcome({"Toys": target({})}))
    with pytest.raises(DataError, match="no arm is finished"):
        gather([], [empty])
    with pytest.raises(DataError, match="no such folder"):
        gather([], [tmp_path / "nowhere"])


@pytest.mark.parametrize("content", ["", "[1]", '{"targets": {}}'])
def test_a_damaged_outcome_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "comparison.json").write_text(content, encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"comparison\.json"):
        gather([], [tmp_path])


def test_nothing_and_the_same_thing_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--run"):
        gather([], [])
    folder = written(tmp_path / "cmp", outcome({"Toys": usual()}))
    with pytest.raises(UsageError, match="named twice"):
        gather([], [folder, tmp_path / "." / "cmp"])


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        gather([tmp_path], [])

"""The verdict of a report, in sentences."""

from pathlib import Path
from typing import Any

import pytest

from antpipe.report.findings import Findings, gather
from antpipe.report.verdict import headline, lines
from tests.report.outcomes import arm, compared, outcome, target, usual, written


def findings(tmp_path: Path, targets: dict[str, Any], **more: Any) -> Findings:
    return gather([], [written(tmp_path / "cmp", outcome(targets, **more))])


@pytest.mark.parametrize(
    ("word", "gain", "said"),
    [
        ("POSITIVE", 0.02, "Transfer helped on Toys: relearn (+20.0%) is better than scratch in NDCG@10."),
        ("NEGATIVE", -0.02, "Transfer hurt on Toys: relearn (−20.0%) is worse than scratch in NDCG@10."),
        (
            "EQUIVALENT",
            0.001,
            "Transfer made no difference that matters on Toys: relearn (+1.0%) is as good as scratch in NDCG@10.",
        ),
        (
            "NONE",
            0.01,
            "Transfer was not shown to make a difference on Toys: relearn (+10.0%) is not shown to differ from scratch "
            "in NDCG@10.",
        ),
    ],
)
def test_one_target_has_one_sentence(tmp_path: Path, word: str, gain: float, said: str) -> None:
    found = findings(tmp_path, {"Toys": usual(word, gain)})
    assert headline(found) == said
    assert lines(found) == []


def test_arms_with_different_verdicts_are_named_apart(tmp_path: Path) -> None:
    arms = usual()["arms"] | {"finetune": arm([0.08], word="NEGATIVE", differences=compared(-0.02, 0.1))}
    assert headline(findings(tmp_path, {"Toys": target(arms)})) == (
        "Transfer on Toys: relearn (+20.0%) is better than scratch; finetune (−20.0%) is worse than scratch in NDCG@10."
    )


def test_several_targets_are_counted(tmp_path: Path) -> None:
    found = findings(
        tmp_path, {"Toys": usual(), "Pets": usual("NEGATIVE", -0.01), "Games": usual("NONE", 0.0), "Tools": usual()}
    )
    assert headline(found) == (
        "Of 4 targets, transfer helped on 2 (Toys and Tools); hurt on 1 (Pets); made no difference that was shown on 1 "
        "(Games)."
    )
    assert lines(found)[0] == ("Toys: relearn (+20.0%) is better than scratch; best is relearn with NDCG@10 0.1200.")


def test_means_over_targets_are_told(tmp_path: Path) -> None:
    mean = {"targets": 2, "relative": 0.2, "low": 0.1, "high": 0.3, "p": 0.01}
    mean |= {"shops_low": -0.1, "shops_high": 0.5, "shops_p": 0.2}
    found = findings(tmp_path, {"Toys": usual(), "Pets": usual()}, pooled={"relearn": {"ndcg@10": mean}})
    assert lines(found)[-1].startswith("mean over 2 targets, relearn, ndcg@10: +20.0%")


def test_baselines_alone_are_no_test_of_transfer(tmp_path: Path) -> None:
    found = findings(
        tmp_path, {"Toys": target({"popularity": arm([0.1], "untrained"), "tgh": arm([0.2], "untrained")})}
    )
    assert headline(found) == (
        "No verdict on transfer: the arms are baselines that learn from no other shop. tgh has the highest NDCG@10 on "
        "Toys, 0.2000."
    )


def test_too_little_data_is_said_with_its_reason(tmp_path: Path) -> None:
    few = usual()
    few["arms"]["relearn"]["verdict"] = {"word": None, "why": "one seed says nothing"}
    assert headline(findings(tmp_path, {"Toys": few})).startswith("No verdict on transfer: one seed says nothing.")


def test_runs_alone_are_not_tested(compared_shop: Path) -> None:
    runs = [compared_shop / "runs" / name for name in ("scratch-0", "finetune-0")]
    said = headline(gather(runs, []))
    assert said.startswith("No verdict on transfer: these runs were not compared")
    assert said.endswith("whether that is more than chance was not tested.")
    assert headline(gather([compared_shop / "runs" / "lamps"], [])).startswith("Nothing was judged yet")

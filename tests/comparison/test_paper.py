"""Tables for a paper: what is bold, what is marked, and that every format is well-formed."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from antpipe.comparison.paper import COLUMNS, paper_table
from antpipe.errors import UsageError


def arm(recall: Sequence[float], ndcg: Sequence[float], kind: str = "trained", **more: Any) -> dict[str, Any]:
    def figure(seeds: Sequence[float]) -> dict[str, Any]:
        spread = 0.01 if len(seeds) > 1 else None
        return {"mean": sum(seeds) / len(seeds), "std": spread, "seeds": list(seeds)}

    figures = {"recall@10": figure(recall), "ndcg@10": figure(ndcg)}
    unseen = {"recall@10": figure([0.5]), "ndcg@10": figure([0.25])}
    return {
        "kind": kind,
        "seeds": len(recall),
        "protocols": {"all": figures, "unseen": unseen},
        "differences": {},
        "verdict": None,
        **more,
    }


def differing(p: float, p_holm: float | None) -> dict[str, Any]:
    one = {"difference": 0.02, "low": 0.01, "high": 0.03, "p": p}
    return {"all": {"recall@10": one | {"p_holm": None}, "ndcg@10": one | {"p_holm": p_holm}}}


def outcome(targets: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "control": "scratch",
        "protocol": "all",
        "metric": "ndcg@10",
        "split": "test",
        "alpha": 0.05,
        "targets": {
            name: {"positions": 1234, "items": 50, "users": 1234, "arms": arms} for name, arms in targets.items()
        },
    }


ARMS = {
    "scratch": arm([0.10, 0.12], [0.05, 0.07]),
    "relearn": arm(
        [0.12, 0.14],
        [0.07, 0.09],
        differences=differing(0.01, 0.04),
        verdict={"word": "POSITIVE", "why": "shown"},
    ),
    "floor": arm([0.13], [0.02], "untrained", differences=differing(0.2, None)),
}
ONE = outcome({"Shop": ARMS})


def test_the_best_of_each_column_is_bold_and_equal_ones_both_are() -> None:
    lines = paper_table(ONE, "markdown").splitlines()
    assert lines[0] == "| arm | recall@10 | ndcg@10 |"
    assert lines[2] == "| scratch | 0.1100 ± 0.0100 | 0.0600 ± 0.0100 |"
    assert lines[3] == r"| relearn | **0.1300 ± 0.0100**+ | **0.0800 ± 0.0100**\* |"
    assert lines[4] == "| floor | **0.1300** | 0.0200 |"


def test_the_caption_says_split_protocol_sizes_seeds_and_marks() -> None:
    caption = paper_table(ONE, "markdown").splitlines()[-1]
    assert caption.startswith("Test split, protocol all (all items are ranked); Shop: 1,234 positions, 50 items.")
    assert "over 2 seeds; best in bold." in caption
    assert r"\* differs from scratch at the level 0.05 after Holm correction" in caption


def test_arms_metrics_and_protocol_are_chosen() -> None:
    found = paper_table(ONE, "markdown", ["ndcg@10"], ["floor", "scratch"], "unseen").splitlines()
    assert found[0] == "| arm | ndcg@10 |"
    assert found[2:4] == ["| floor | **0.2500** |", "| scratch | **0.2500** |"]
    assert "protocol unseen (all items but those of the user's history are ranked)" in found[-1]


def test_latex_escapes_names_and_groups_columns_by_target() -> None:
    found = paper_table(outcome({"A_1 & B": ARMS, "C": {"scratch": ARMS["scratch"]}}), "latex")
    assert r" & \multicolumn{2}{c}{A\_1 \& B} & \multicolumn{2}{c}{C} \\" in found
    assert r"\cmidrule(lr){2-3}\cmidrule(lr){4-5}" in found
    assert r"relearn & \textbf{0.1300 $\pm$ 0.0100}$^{+}$ & \textbf{0.0800 $\pm$ 0.0100}$^{*}$ & - & - \\" in found
    assert r"\begin{tabular}{lrrrr}" in found
    assert found.count("{") == found.count("}")
    assert "±" not in found


def test_csv_has_a_row_per_figure_with_full_precision_and_the_verdict() -> None:
    rows = list(csv.DictReader(io.StringIO(paper_table(ONE, "csv"))))
    assert len(rows) == 6
    assert tuple(rows[0]) == COLUMNS
    found = next(row for row in rows if (row["arm"], row["metric"]) == ("relearn", "ndcg@10"))
    assert (found["mean"], found["difference"], found["p_holm"]) == (str((0.07 + 0.09) / 2), "0.02", "0.04")
    assert [row["verdict"] for row in rows] == ["", "", "", "POSITIVE", "", ""]
    assert rows[-1]["std"] == ""


def test_names_with_bars_stay_in_their_cell() -> None:
    found = paper_table(outcome({"Shop": {"a|b": ARMS["scratch"]}}), "markdown").splitlines()
    assert found[2].startswith(r"| a\|b | ")


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"form": "html"}, "--format html: choose from text, markdown, csv, latex"),
        ({"metrics": ["hit@1"]}, "--columns hit@1: the comparison has recall@10, ndcg@10"),
        ({"arms": ["linear-probe"]}, "--rows linear-probe: the comparison has scratch, relearn, floor"),
        ({"protocol": "some"}, "--protocol some: the comparison has all, unseen"),
    ],
)
def test_what_is_not_there_is_refused_by_name(asked: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        paper_table(ONE, **({"form": "markdown"} | asked))

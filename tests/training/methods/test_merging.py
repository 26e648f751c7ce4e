"""Averages of weights that are chosen on validation: the rule by hand, and what it never does."""

from collections.abc import Callable, Mapping

import pytest
import torch

from antpipe.training.methods.merging import Weights, average, chosen_shares, merged_by_group

PARTS = {name: {"w": torch.tensor([value])} for name, value in {"a": 0.0, "b": 1.0, "c": 2.0, "d": -9.0}.items()}


def figures(recall: float) -> dict[str, float]:
    return {"recall@10": recall, "ndcg@10": 0.0}


def close_to(goal: float) -> Callable[[Mapping[str, float]], dict[str, float]]:
    """Validates the average of PARTS by its distance to a goal."""
    return lambda shares: figures(-abs(float(average(PARTS, shares)["w"]) - goal))


def test_shares_are_chosen_one_after_the_other_as_by_hand() -> None:
    # goal 0.6. a alone: 0. With b, at most 1: means .17 .29 .38 .44 .5, so b gets 1.
    # With c, at most (1 + 1) / 2 = 1: means .64 .75 .85 .93 1, so c gets .2. d would be worse.
    shares, found = chosen_shares(["a", "b", "c", "d"], figures(-0.6), close_to(0.6), 5)
    assert shares == {"a": 1.0, "b": 1.0, "c": 0.2, "d": 0.0}
    assert found["recall@10"] == pytest.approx(-(1.4 / 2.2 - 0.6))


def test_the_third_part_gets_at_most_the_mean_share_of_those_before_it() -> None:
    # goal 1.2: b gets 1 (mean .5); c at most 1 as before, and all of it: mean 1.
    assert chosen_shares(["a", "b", "c"], figures(-1.2), close_to(1.2), 5)[0] == {"a": 1.0, "b": 1.0, "c": 1.0}
    # goal .3: b gets .4 (mean .29); then c at most 1.4 / 2 = .7, and none of it.
    assert chosen_shares(["a", "b", "c"], figures(-0.3), close_to(0.3), 5)[0] == {"a": 1.0, "b": 0.4, "c": 0.0}


def test_an_average_that_is_only_as_good_is_not_taken() -> None:
    assert chosen_shares(["a", "b"], figures(0.5), lambda _: figures(0.5), 5) == ({"a": 1.0, "b": 0.0}, figures(0.5))


def test_of_equal_recalls_ndcg_decides() -> None:
    shares, _ = chosen_shares(["a", "b"], figures(0.5), lambda s: figures(0.5) | {"ndcg@10": s["b"] == 0.4}, 5)
    assert shares["b"] == 0.4


def test_an_average_divides_by_the_sum_of_shares_and_one_part_stays_exact() -> None:
    parts = {"a": {"w": torch.tensor([1.0, 0.1])}, "b": {"w": torch.tensor([4.0, 0.1])}}
    assert average(parts, {"a": 2.0, "b": 1.0})["w"][0] == pytest.approx(2.0)
    assert torch.equal(average(parts, {"a": 1.0, "b": 0.0})["w"], parts["a"]["w"])
    assert torch.equal(average(parts, {"a": 0.0, "b": 0.4})["w"], parts["b"]["w"])


def test_runs_are_merged_group_by_group() -> None:
    names = ("positions.weight", "input_norm.weight", "input_norm.bias", "ids.weight")
    first = {name: torch.zeros(2) for name in names}
    second = {name: torch.ones(2) for name in names} | {"ids.weight": torch.zeros(2)}

    def judge(weights: Weights) -> dict[str, float]:
        return figures(-abs(float(weights["positions.weight"][0]) - 0.4) - float(weights["input_norm.bias"][0]))

    weights, shares, found = merged_by_group(first, second, judge(first), judge, 5)
    assert shares == {"positions": 0.4, "input_norm": 0.0}  # ids are the same
    assert weights["positions.weight"].tolist() == pytest.approx([0.4, 0.4])
    assert all(torch.equal(weights[name], first[name]) for name in names[1:])
    assert found["recall@10"] == pytest.approx(0, abs=1e-6)

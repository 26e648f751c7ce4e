"""The data of figures, against figures worked out by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from antpipe.report import arms, curves, item_map, parts, shops, training, transfer
from antpipe.report.figure import Figure, listed, percent, shortened
from antpipe.report.findings import Findings, Judged, gather
from antpipe.report.render import to_svg
from antpipe.report.theme import on_page, on_paper
from tests.report.outcomes import arm, compared, difference, outcome, target, usual, written


def judged(tmp_path: Path, **facts: Any) -> Judged:
    return gathered(tmp_path, outcome({"Toys": facts["target"] if "target" in facts else usual()})).judged[0]


def gathered(tmp_path: Path, found: dict[str, Any]) -> Findings:
    return gather([], [written(tmp_path / "cmp", found)])


def drawn(figure: Figure | None) -> str:
    """The figure at both widths, which must not fail; the wide one."""
    assert figure is not None
    to_svg(figure.draw(on_page(340)), figure.alt, "n")
    return to_svg(figure.draw(on_paper(720)), figure.alt, "w")


# -- arms -------------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_that_of_students_t() -> None:
    # 1, 2, 3: mean 2, standard deviation 1; t(0.975, 2) = 4.3027, over the square root of 3 it is 2.4841.
    low, high = arms.interval_of_mean([1, 2, 3], 0.05)
    assert (low, high) == (pytest.approx(-0.4841, abs=1e-4), pytest.approx(4.4841, abs=1e-4))
    assert arms.interval_of_mean([1], 0.05) == (None, None)


def test_a_bar_is_the_mean_and_every_seed_is_a_dot(tmp_path: Path) -> None:
    one = judged(tmp_path)
    rows = arms.arm_rows(one, list(one.arms), "ndcg@10", "all")
    assert [(row["arm"], round(row["mean"], 6), row["role"]) for row in rows] == [
        ("scratch", 0.1, "control"),
        ("relearn", 0.12, "POSITIVE"),
        ("popularity", 0.02, "not trained"),
    ]
    svg = drawn(arms.arms_figure(one))
    assert svg.count('aria-roledescription="bar"') == 3
    assert svg.count('aria-roledescription="point"') == 7
    assert 'aria-label="NDCG@10 of 3 arms on Toys. Best: relearn with 0.1200.' in svg


def test_differences_have_the_intervals_of_the_tests(tmp_path: Path) -> None:
    one = judged(tmp_path)
    rows = arms.difference_rows(one, list(one.arms), "ndcg@10", "all")
    assert [(row["arm"], row["difference"], row["low"], row["high"]) for row in rows] == [
        ("relearn", 0.02, pytest.approx(0.01), pytest.approx(0.03)),
        ("popularity", -0.08, pytest.approx(-0.09), pytest.approx(-0.07)),
    ]
    assert "relearn +0.0200 (+0.0100 to +0.0300)" in drawn(arms.differences_figure(one))


def test_a_difference_without_a_test_has_no_interval(tmp_path: Path) -> None:
    other = arm([0.12], word=None, differences=compared(0.02, 0.1, None))
    one = judged(tmp_path, target=target({"scratch": arm([0.1]), "relearn": other}))
    [row] = arms.difference_rows(one, ["relearn"], "ndcg@10", "all")
    assert (row["low"], row["high"], row["says"]) == (None, None, "+0.0200 (not tested)")
    drawn(arms.differences_figure(one))


def test_of_200_arms_the_best_and_the_control_are_shown(tmp_path: Path) -> None:
    many = {f"arm {number:03}": arm([0.2 + number / 1000], "given") for number in range(199)}
    one = judged(tmp_path, target=target({"scratch": arm([0.1]), **many}))
    shown = arms.shown_arms(one)
    assert (len(shown), shown[0], shown[-1], shown[1]) == (40, "scratch", "arm 198", "arm 160")
    figure = arms.arms_figure(one)
    assert "The 40 best of 200 arms are shown." in figure.caption
    drawn(figure)


def test_arms_that_are_all_zero_can_be_drawn(tmp_path: Path) -> None:
    drawn(arms.arms_figure(judged(tmp_path, target=target({"scratch": arm([0.0, 0.0])}))))


# -- transfer ---------------------------------------------------------------------------------------------------------


def test_a_source_adds_what_is_lost_without_it(tmp_path: Path) -> None:
    said = {"says": "helps", "why": "", "differences": {"ndcg@10": difference(-0.02, 0.10)}}
    hurting = {"says": "not shown to matter", "why": "", "differences": {"ndcg@10": difference(0.01, 0.10)}}
    sources = {"Toys": {"relearn": {"Beauty": said, "Games": hurting}}}
    found = gathered(tmp_path, outcome({"Toys": usual()}, sources=sources))
    rows = transfer.leaving_rows(found.judged)
    assert [(row["source"], row["target"], round(row["value"], 6), row["text"]) for row in rows] == [
        ("Beauty", "Toys", 0.2, "+20.0%*"),
        ("Games", "Toys", -0.1, "−10.0%"),
    ]
    figures = transfer.transfer_figures(found.judged, found.outcomes)
    assert list(figures) == ["relearn, leave one source out"]
    assert "Beauty on Toys: +20.0% (helps)" in drawn(figures["relearn, leave one source out"])


def test_arms_that_start_from_several_runs_make_a_map(tmp_path: Path) -> None:
    arms_of = {"scratch": arm([0.1])}
    for source, gain in (("beauty", 0.02), ("games", -0.01)):
        word = "POSITIVE" if gain > 0 else "NONE"
        arms_of[f"relearn from {source}"] = arm([0.1 + gain], word=word, mix=source, differences=compared(gain, 0.1))
    found = gathered(tmp_path, outcome({"Toys": target(arms_of), "Pets": target(arms_of)}))
    rows = transfer.starting_rows(found.judged)
    assert [(row["source"], row["target"], row["text"]) for row in rows] == [
        ("beauty", "Toys", "+20.0%*"),
        ("games", "Toys", "−10.0%"),
        ("beauty", "Pets", "+20.0%*"),
        ("games", "Pets", "−10.0%"),
    ]
    several = transfer.transfer_figures(found.judged, found.outcomes)
    drawn(transfer.stacked({**several, "again": several["relearn, start from one source"]}))


def test_one_source_and_one_target_make_no_map(tmp_path: Path) -> None:
    one = arm([0.12], word="POSITIVE", mix="all", differences=compared(0.02, 0.1))
    found = gathered(tmp_path, outcome({"Toys": target({"scratch": arm([0.1]), "relearn": one})}))
    assert transfer.transfer_figures(found.judged, found.outcomes) == {}


# -- curves -----------------------------------------------------------------------------------------------------------


def test_a_learning_curve_has_the_mean_of_every_arm_at_every_size(tmp_path: Path) -> None:
    targets = {f"Toys-{users}-users": target({"scratch": arm([users / 1e4, users / 1e4])}) for users in (100, 200)}
    points = [
        {"users": users, "target": f"Toys-{users}-users", "items": 9, "figures": {"scratch": {"ndcg@10": users / 1e4}}}
        for users in (100, 200)
    ]
    curve = {"catalogue": "cut", "seed": 0, "points": points, "worth": {}}
    found = gathered(tmp_path, outcome(targets, curve={"Toys": curve}))
    [(name, (there, rules))] = found.curves.items()
    rows = curves.curve_rows(there, rules, "ndcg@10", "all")
    assert [(row["users"], row["mean"], row["low"], row["seeds"]) for row in rows] == [
        (100, 0.01, 0.01, [0.01, 0.01]),
        (200, 0.02, 0.02, [0.02, 0.02]),
    ]
    assert found.subjects() == ["Toys"]
    assert "at 100 and 200 users: scratch 0.0100, 0.0200." in drawn(curves.curve_figure(name, there, rules))


# -- parts ------------------------------------------------------------------------------------------------------------


def test_slices_are_means_over_seeds_and_whole_groups_are_left_out(compared_shop: Path) -> None:
    [one] = gather([], [compared_shop / "cmp"]).judged
    rows = parts.slice_rows(one, ["scratch"], "ndcg@10", "all")
    found = [each["slices"]["popularity"]["head"] for each in one.evaluations("scratch")]
    [row] = [row for row in rows if row["group"] == "popularity" and row["part"].startswith("head")]
    assert row["value"] == pytest.approx(np.mean([each["protocols"]["all"]["ndcg@10"] for each in found]))
    assert row["part"] == f"head ({found[0]['positions']})"
    whole = {"a": {"positions": 5}, "b": {"positions": 0}}
    assert parts.is_whole(whole, "a")
    assert not parts.is_whole({**whole, "b": {"positions": 1}}, "a")
    drawn(parts.slices_figure(one))


def test_without_evaluations_there_are_no_slices(tmp_path: Path) -> None:
    assert parts.slices_figure(judged(tmp_path)) is None


def test_beyond_accuracy_is_that_of_the_comparison(compared_shop: Path) -> None:
    [one] = gather([], [compared_shop / "cmp"]).judged
    rows = parts.beyond_rows(one, ["scratch"], "all")
    there = one.arms["scratch"]["beyond"]["all"]
    assert {row["measure"]: row["value"] for row in rows} == {
        name: there[f"{name}@10"] for name in ("coverage", "gini", "popularity", "novelty", "distance")
    }
    drawn(parts.beyond_figure(one))


# -- training ---------------------------------------------------------------------------------------------------------


def test_a_loss_is_the_mean_over_the_seeds_that_came_to_its_epoch(tmp_path: Path) -> None:
    losses = {"a": (5.0, 3.0, 2.0), "b": (7.0, 4.0)}
    one = trained(tmp_path, {name: [{"loss": loss} for loss in of] for name, of in losses.items()})
    rows = training.loss_rows(one, ["relearn"])
    assert [(row["loss"], row["epoch"], row["value"]) for row in rows] == [
        ("whole item", 1, 6.0),
        ("whole item", 2, 3.5),
        ("whole item", 3, 2.0),
    ]


def test_losses_of_single_modalities_are_lines_of_their_own(tmp_path: Path) -> None:
    epochs = [{"loss": 5.0, "loss_text": 5.5, "loss_price": 6.0}, {"loss": 4.0, "loss_text": 4.5, "loss_price": 5.9}]
    one = trained(tmp_path, {"a": epochs})
    figure = training.training_figure(one)
    assert figure is not None
    assert "relearn, price: 6.000 to 5.900 in 2 epochs" in figure.alt
    spec = figure.draw(on_paper(720))
    lines = spec["concat"][0]["data"]["values"]
    assert {row["loss"] for row in lines} == {"whole item", "text", "price"}
    drawn(figure)


def test_without_trained_runs_there_are_no_losses(tmp_path: Path) -> None:
    assert training.training_figure(judged(tmp_path)) is None


def trained(folder: Path, runs: dict[str, list[dict[str, float]]]) -> Judged:
    """One arm, relearn, whose runs have these figures by epoch."""
    for name, rows in runs.items():
        (folder / name).mkdir()
        lines = [json.dumps({"epoch": epoch, **row}) for epoch, row in enumerate(rows, 1)]
        (folder / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    one = gathered(folder, outcome({"Toys": target({"relearn": arm([0.1, 0.2])})})).judged[0]
    return replace(one, folders={"relearn": [folder / name for name in runs]})


# -- catalogues -------------------------------------------------------------------------------------------------------


def test_a_price_histogram_counts_every_price_once() -> None:
    rows = shops.price_rows(np.array([1.0, 1.0, 2.0, 8.0]))
    assert sum(row["items"] for row in rows) == 4
    assert (rows[0]["items"], rows[-1]["items"]) == (2, 1)
    assert (rows[0]["low"], rows[-1]["high"]) == (pytest.approx(1), pytest.approx(8))
    assert shops.price_rows(np.array([3.0, 3.0])) == []


def test_the_share_of_items_with_a_picture_is_counted(compared_shop: Path) -> None:
    from antpipe.store.store import Store

    shop = shops.describe(Store(compared_shop / "store").domain("Kites"))
    assert (shop.items, shop.users, shop.with_text) == (30, 40, 1.0)
    assert (shop.with_image, shop.with_price) == (pytest.approx(8 / 30), pytest.approx(25 / 30))
    assert (len(shop.prices), shop.currency, len(shop.edges)) == (25, "EUR", 3)
    drawn(shops.price_figure(shop))
    drawn(shops.coverage_figure([shop]))


# -- maps -------------------------------------------------------------------------------------------------------------


def test_points_on_a_line_have_one_component() -> None:
    line = np.outer([-1.0, 0.0, 3.0], [3.0, 4.0])
    places, share = item_map.components(line)
    assert np.allclose(places[:, 0], np.array([-1, 0, 3]) * 5 - 10 / 3)  # of length 5 each, less their mean
    assert np.allclose(places[:, 1], 0)
    assert share == pytest.approx(1)


def test_vectors_that_are_all_alike_have_a_map() -> None:
    places, share = item_map.components(np.ones((3, 4)))
    assert (places.tolist(), share) == ([[0, 0]] * 3, 0)


def test_a_million_items_are_sampled_and_it_is_said() -> None:
    rows = item_map.sampled(1_000_000, 2000, 0)
    assert (len(rows), len(np.unique(rows)), (np.diff(rows) > 0).all()) == (2000, 2000, True)
    assert item_map.sampled(5, 2000, 0).tolist() == [0, 1, 2, 3, 4]
    points = [{"x": 0.0, "y": 0.0, "category": "a", "says": "b"}, {"x": 1.0, "y": 0.0, "category": "a", "says": "c"}]
    figure = item_map.map_figure(item_map.ItemMap(points, 1_000_000, 0.5), "Toys", "relearn")
    assert "a random sample of 2 of 1,000,000 items" in figure.caption
    drawn(figure)


def test_small_categories_are_one() -> None:
    names = [name for place, name in enumerate("abcdefghij") for _ in range(20 - place)] + [""]
    found = item_map.grouped(names)
    assert set(found) == {*"abcdefg", "other", "without category"}
    assert found.count("other") == 13 + 12 + 11
    assert set(item_map.grouped(list("abcdefgh"))) == set("abcdefgh")  # one more is not worth a group of its own


# -- words ------------------------------------------------------------------------------------------------------------


def test_texts_are_cut_and_lose_what_turns_their_direction() -> None:
    assert shortened("a\u202eb\n\tc\u0007", 80) == "a b c"
    assert (len(shortened("x" * 5000, 80)), shortened("x" * 5000, 80)[-1]) == (80, "…")


def test_numbers_and_lists_are_written_as_people_do() -> None:
    assert (percent(0.146), percent(-0.02)) == ("+14.6%", "−2.0%")
    assert (listed(["a"]), listed(["a", "b"]), listed(list("abcd"), 2)) == ("a", "a and b", "a, b and 2 more")
    assert listed([]) == ""

"""`antpipe report` and `antpipe plot`: files, refusals, and what they print."""

import json
from pathlib import Path
from typing import Any

import pytest

import antpipe as ant
from antpipe.errors import AntpipeError, DataError, UsageError
from antpipe.report import plots, render, write
from tests.report.outcomes import arm, outcome, target, usual, written
from tests.support.commands import run


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    return written(tmp_path / "cmp", outcome({"Toys": usual()}))


def test_a_comparison_alone_is_enough_for_a_report(tmp_path: Path, comparison: Path) -> None:
    out = tmp_path / "report.html"
    done = run("report", "--compare", comparison, "--out", out, "--store", tmp_path / "none", "--json")
    assert done.code == 0, done.err
    assert done.json()["sections"] == ["Arms"]
    assert done.json()["bytes"] == out.stat().st_size
    assert set(done.json()["missing"]) >= {"Map of the items", "Example users", "Catalogues", "Who is served well"}
    printed = run("report", "--compare", comparison, "--out", out, "--store", tmp_path / "none", "--force").out
    assert printed.startswith("Transfer helped on Toys: relearn (+20.0%) is better than scratch in NDCG@10.\n")


def test_the_same_data_give_the_same_page(tmp_path: Path, comparison: Path) -> None:
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for page in pages:
        ant.write_report(tmp_path / "none", comparisons=comparison, out=page)
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_200_arms_make_a_report_whose_table_has_all(tmp_path: Path) -> None:
    many = {f"arm {number:03}": arm([0.2], word="NONE", differences={}) for number in range(199)}
    folder = written(tmp_path / "many", outcome({"Toys": target({"scratch": arm([0.1]), **many})}))
    found = ant.write_report(tmp_path / "none", comparisons=[folder], out=tmp_path / "report.html")
    page = found.path.read_text(encoding="utf-8")
    assert found.bytes < 1_000_000
    assert all(f'<th scope="row"><bdi>arm {number:03}</bdi></th>' in page for number in range(199))
    assert "data-filtered" in page


def no_work(*_: Any) -> Any:
    raise AssertionError("work began")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("report.txt", "the name of a report ends in .html or .htm"),
        ("nowhere/report.html", "there is no folder"),
        ("folder.html", "is a folder"),
        ("there.html", "already exists; --force replaces it"),
        ("file/report.html", "cannot be written"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, comparison: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "there.html").write_text("mine", encoding="utf-8")
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(write, "gather", no_work)
    with pytest.raises(AntpipeError, match=said):
        ant.write_report(tmp_path / "none", comparisons=comparison, out=tmp_path / name)
    assert (tmp_path / "there.html").read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cmp", "file", "folder.html", "there.html"]


def test_the_command_proposed_for_a_wrong_name_works(tmp_path: Path, comparison: Path) -> None:
    words = ["report", "--compare", comparison, "--store", tmp_path / "none", "--out", tmp_path / "page.pdf"]
    done = run(*words)
    assert done.code == 2
    proposed = done.err.splitlines()[-1].split("antpipe ", 2)[-1].split()
    assert run(*proposed).code == 0
    assert (tmp_path / "page.html").exists()


def test_without_the_libraries_the_command_that_installs_them_is_named(
    tmp_path: Path, comparison: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="need vl-convert-python and jinja2") as refused:
        ant.write_report(tmp_path, comparisons=comparison, out=tmp_path / "report.html")
    assert refused.value.next_command == "pip install 'antpipe[report]'"


def test_a_failure_in_the_middle_leaves_the_older_report(
    tmp_path: Path, comparison: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report.html"
    out.write_text("older", encoding="utf-8")
    monkeypatch.setattr(write, "render", no_work)
    with pytest.raises(AssertionError, match="work began"):
        ant.write_report(tmp_path / "none", comparisons=comparison, out=out, force=True)
    assert out.read_text(encoding="utf-8") == "older"


def test_a_run_that_no_longer_fits_its_domain_is_told_and_the_rest_is_shown(
    compared_shop: Path, tmp_path: Path, messages: list[str]
) -> None:
    import shutil

    shutil.copytree(compared_shop / "store", tmp_path / "store")
    ant.build_sequences(tmp_path / "store", ["Kites"], max_len=9)
    found = ant.write_report(
        tmp_path / "store", comparisons=compared_shop / "cmp", out=tmp_path / "report.html", users=2
    )
    assert "Arms" in found.sections
    assert "changed since" in found.missing["Map of the items"]
    assert any("neither map nor example users" in message for message in messages)


def test_runs_alone_are_told_how_to_get_a_verdict(compared_shop: Path, tmp_path: Path) -> None:
    runs = [compared_shop / "runs" / f"{stage}-{seed}" for stage in ("scratch", "finetune") for seed in (0, 1)]
    found = ant.write_report(compared_shop / "store", runs=runs, out=tmp_path / "report.html", users=0, map_items=0)
    assert found.missing["Verdict on transfer"] == "these runs were not compared"
    assert found.missing["Map of the items"] == "left out: --map-items 0"
    page = found.path.read_text(encoding="utf-8")
    command = page.partition("<dt>Verdict on transfer</dt>")[2].partition("<code>antpipe ")[2].partition("</code>")[0]
    done = run(*command.replace("--out compare", f"--out {tmp_path / 'compare'}").split())
    assert done.code == 0, done.err
    assert "finetune" in json.loads((tmp_path / "compare/comparison.json").read_text())["targets"]["Kites"]["arms"]


# -- single figures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["arms", "differences", "slices", "beyond", "training", "coverage", "prices", "map"])
def test_every_figure_can_be_had_alone(compared_shop: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / f"{name}.svg"
    done = run("plot", name, "--compare", compared_shop / "cmp", "--out", out, "--store", compared_shop / "store")
    assert (done.code, done.out.strip()) == (0, str(out)), done.err
    svg = out.read_text(encoding="utf-8")
    assert svg.startswith('<svg role="img" aria-label="')
    assert "var(" not in svg


def test_the_name_of_a_figure_decides_its_format(tmp_path: Path, comparison: Path) -> None:
    out = ant.plot(tmp_path / "none", "arms", comparisons=comparison, out=tmp_path / "arms.png", width=300, scale=1)
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "settings", "error", "said"),
    [
        ("bars", {}, UsageError, "choose from arms, differences"),
        ("arms", {"metric": "ndcg@11"}, UsageError, "choose from recall@10"),
        ("arms", {"target": "Pets"}, UsageError, "--target Pets: unknown: Toys"),
        ("curve", {}, DataError, "--target-users"),
        ("transfer", {}, DataError, "--leave-one-out"),
        ("slices", {}, DataError, "no evaluation of its runs is here"),
        ("training", {}, DataError, "no trained run"),
        ("map", {}, DataError, "no finished run"),
        ("prices", {}, DataError, "Toys"),
    ],
)
def test_a_figure_that_cannot_be_made_says_why(
    tmp_path: Path, comparison: Path, name: str, settings: dict[str, Any], error: type[AntpipeError], said: str
) -> None:
    with pytest.raises(error, match=said):
        ant.plot(tmp_path / "none", name, comparisons=comparison, out=tmp_path / "x.svg", **settings)
    assert not (tmp_path / "x.svg").exists()


def test_of_several_targets_one_must_be_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "two", outcome({"Toys": usual(), "Pets": usual()}))
    with pytest.raises(UsageError, match="name one with --target: Toys, Pets"):
        ant.plot(tmp_path / "none", "arms", comparisons=folder, out=tmp_path / "x.svg")
    assert ant.plot(tmp_path / "none", "arms", comparisons=folder, out=tmp_path / "x.svg", target="Pets").exists()


def test_the_figures_in_the_help_are_those_there_are() -> None:
    text = " ".join(run("plot", "--help").out.split())
    for name in plots.PLOTS:
        assert name in text

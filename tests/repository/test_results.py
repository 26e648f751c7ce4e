"""docs/results.md says what the files in docs/results say, and what its scripts do."""

import json
import re
from pathlib import Path

import pytest

from antpipe.comparison.table import as_markdown
from antpipe.settings.base import flag_name
from antpipe.settings.sections import CONFIGS
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "docs" / "results"
PAGE = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
OUTCOMES = sorted(FOLDER.glob("*/*/comparison.json"))
KNOWN = {flag_name(name) for config in CONFIGS for name in config.__dataclass_fields__}
OF_COMMANDS = {
    "domain",
    "domains",
    "target",
    "source",
    "sources",
    "from",
    "interactions",
    "items",
    "modality",
    "stage",
    "out",
    "preset",
    "run",
}


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


each_outcome = pytest.mark.parametrize("path", OUTCOMES, ids=name_of)


def test_there_are_outcomes() -> None:
    assert OUTCOMES


@each_outcome
def test_the_tables_beside_an_outcome_are_its_own(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_name("comparison.md").read_text(encoding="utf-8") == as_markdown(found)


@each_outcome
def test_the_page_links_each_outcome(path: Path) -> None:
    assert f"(results/{path.parent.relative_to(FOLDER).as_posix()}/comparison.md)" in PAGE


@pytest.mark.parametrize("arm", ["scratch", "sasrec", "floor", "tgh", "markov", "text-nearest"])
def test_the_yardsticks_are_those_of_the_outcomes(arm: str) -> None:
    cells = []
    for target in ("Beauty", "Sports", "Toys"):
        found = json.loads((FOLDER / "yardsticks" / target / "comparison.json").read_text(encoding="utf-8"))
        figures = found["targets"][target]["arms"][arm]["protocols"]["all"]
        cells.append(
            " / ".join(f"{figures[metric]['mean']:.4f}".removeprefix("0") for metric in ("recall@10", "ndcg@10"))
        )
    assert f"| `{arm}` | {' | '.join(cells)} |" in PAGE


def test_what_was_trained_is_ahead_of_the_best_published_figures_as_the_page_says() -> None:
    published = {"Beauty": (0.0928, 0.0531), "Sports": (0.0569, 0.0323), "Toys": (0.0970, 0.0580)}
    for target, best in published.items():
        found = json.loads((FOLDER / "yardsticks" / target / "comparison.json").read_text(encoding="utf-8"))
        figures = found["targets"][target]["arms"]["scratch"]["protocols"]["all"]
        assert (figures["recall@10"]["mean"], figures["ndcg@10"]["mean"]) > best
        assert figures["ndcg@10"]["mean"] > best[1]


@each_outcome
def test_each_outcome_is_the_mean_of_the_results_beside_it(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    runs: dict[tuple[str, str], list[float]] = {}
    for file in (path.parent / "results").rglob("*.json"):
        run = json.loads(file.read_text(encoding="utf-8"))
        runs.setdefault((run["target"], run["arm"]), []).append(run["protocols"]["all"]["recall@10"])
    means = {
        (target, name): arm["protocols"]["all"]["recall@10"]["mean"]
        for target, one in found["targets"].items()
        for name, arm in one["arms"].items()
    }
    assert {name: sum(values) / len(values) for name, values in runs.items()} == pytest.approx(means)


@pytest.mark.parametrize("script", ["small.sh", "curve.sh", "rerank.sh", "beyond.sh", "yardsticks.sh"])
def test_the_scripts_use_flags_there_are(script: str) -> None:
    lines = (FOLDER / script).read_text(encoding="utf-8").splitlines()
    flags = set(re.findall(r"(?<=--)[a-z][a-z-]+", "\n".join(line for line in lines if not line.startswith("#"))))
    assert {flag for flag in flags if flag.removeprefix("no-") not in KNOWN | OF_COMMANDS | {"resume"}} == set()


@pytest.mark.parametrize("target", ["Beauty", "Sports", "Toys", "Games"])
@pytest.mark.parametrize("users", [500, 1000, 2000, 4000])
def test_the_small_shops_are_those_of_the_outcomes(target: str, users: int) -> None:
    found = json.loads((FOLDER / "small" / target / "comparison.json").read_text(encoding="utf-8"))
    name = f"{target}-{users}-users"
    arms = {arm: one["protocols"]["all"] for arm, one in found["targets"][name]["arms"].items()}
    plain = json.loads((FOLDER / "small" / "without-words.json").read_text(encoding="utf-8"))[name]
    floor = {metric: arms["floor"][metric]["mean"] for metric in plain}
    nearest = {metric: arms["text-nearest"][metric]["mean"] for metric in plain}
    cells = [" / ".join(f"{one[metric]:.4f}".removeprefix("0") for metric in plain) for one in (nearest, plain, floor)]
    more = f"{floor['recall@10'] / plain['recall@10'] - 1:+.0%}"
    assert f"| {target}, {users:,} | {found['targets'][name]['items']:,} | {' | '.join(cells)} | {more} |" in PAGE


@pytest.mark.parametrize("target", ["Beauty", "Sports", "Toys", "Games"])
@pytest.mark.parametrize("users", [500, 1000, 2000])
def test_the_re_ranked_shops_are_those_of_the_outcomes(target: str, users: int) -> None:
    found = json.loads((FOLDER / "rerank" / target / "comparison.json").read_text(encoding="utf-8"))
    arms = found["targets"][f"{target}-{users}-users"]["arms"]
    figures = {
        name: [arms[name]["protocols"]["all"][metric]["mean"] for metric in ("recall@10", "ndcg@10")]
        for name in ("floor", "scratch", "rerank")
    }
    cells = [" / ".join(f"{figure:.4f}".removeprefix("0") for figure in one) for one in figures.values()]
    best = [max(pair) for pair in zip(figures["floor"], figures["scratch"], strict=True)]
    more = [f"{new / old - 1:+.1%}" for new, old in zip(figures["rerank"], best, strict=True)]
    verdict = arms["rerank"]["verdict"]["word"]
    assert f"| {target}, {users:,} | {' | '.join(cells)} | {' / '.join(more)} | {verdict} |" in PAGE


@pytest.mark.parametrize(
    ("target", "users"), [("Toys", 4000), *((name, 8000) for name in ("Beauty", "Sports", "Toys", "Games"))]
)
def test_what_vectors_add_is_that_of_the_outcomes(target: str, users: int) -> None:
    found = json.loads((FOLDER / "curve" / f"{target}-{users}" / "comparison.json").read_text(encoding="utf-8"))
    cells = []
    for name in ("floor", "rerank-scratch", "rerank", "scratch", "finetune", "relearn"):
        arm = found["targets"][f"{target}-{users}-users"]["arms"][name]
        figures = [arm["protocols"]["all"][metric]["mean"] for metric in ("recall@10", "ndcg@10")]
        said = f", {arm['verdict']['word']}" if arm["verdict"] else ""
        cells.append(" / ".join(f"{figure:.4f}".removeprefix("0") for figure in figures) + said)
    assert f"| {target}, {users:,} | {' | '.join(cells)} |" in PAGE


@pytest.mark.parametrize("target", ["Beauty", "Sports", "Toys", "Games"])
def test_the_re_ranked_tables_are_those_that_were_evaluated(target: str) -> None:
    found = json.loads((FOLDER / "rerank" / "whole-tables.json").read_text(encoding="utf-8"))[target]
    figures = [
        [found[way][metric] for metric in ("recall@10", "ndcg@10")] for way in ("floor", "rerank-scratch", "rerank")
    ]
    cells = [" / ".join(f"{figure:.4f}".removeprefix("0") for figure in one) for one in figures]
    assert f"| {target} | {found['floor']['users']:,} | {' | '.join(cells)} |" in PAGE


@pytest.mark.parametrize(
    ("comparison", "arm"),
    [
        *(("transfer", arm) for arm in ("scratch", "finetune", "relearn", "relearn+consensus", "relearn+distil")),
        *(("transfer", arm) for arm in ("relearn+behaviour", "fork-merge")),
        ("verified", "relearn+behaviour"),
        *(("price", arm) for arm in ("scratch", "scratch+balance")),
        *(("small", arm) for arm in ("scratch", "finetune", "relearn", "relearn+consensus", "relearn+distil")),
        *(("forks", arm) for arm in ("scratch", "fork-merge")),
    ],
)
def test_the_methods_beyond_ant_are_those_of_the_outcomes(comparison: str, arm: str) -> None:
    found = json.loads((FOLDER / "beyond" / comparison / "comparison.json").read_text(encoding="utf-8"))
    [target] = found["targets"].values()
    one = target["arms"][arm]
    figures = [one["protocols"]["all"][metric]["mean"] for metric in ("recall@10", "ndcg@10")]
    cell = " / ".join(f"{figure:.4f}".removeprefix("0") for figure in figures)
    more = {
        "verified": ", ratings and verified purchases",
        "price": ", texts and prices",
        "small": ", Toys",
        "forks": ", Toys",
    }
    name = f"`{arm}`{more.get(comparison, '')}"
    assert f"| {name} | {cell} | {one['verdict']['word'] if one['verdict'] else '–'} |" in PAGE

"""docs/results.md says what the files in docs/results say, and what its scripts do."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from antpipe.comparison.table import as_markdown
from antpipe.settings.base import flag_name
from antpipe.settings.sections import CONFIGS
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "docs" / "results"
PAGE = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
OUTCOMES = sorted(FOLDER.glob("*/*/comparison.json"))
KNOWN = {flag_name(name) for config in CONFIGS for name in config.__dataclass_fields__}
OF_COMMANDS = {"domain", "domains", "target", "sources", "interactions", "items", "modality", "stage", "out", "preset"}


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


def test_there_are_outcomes() -> None:
    assert OUTCOMES


@pytest.mark.parametrize("path", OUTCOMES, ids=name_of)
def test_the_tables_beside_an_outcome_are_its_own(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_name("comparison.md").read_text(encoding="utf-8") == as_markdown(found)


@pytest.mark.parametrize("path", OUTCOMES, ids=name_of)
def test_the_page_has_the_row_and_the_link_of_each_outcome(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    ((target, facts),) = found["targets"].items()
    assert row_of(target, facts) in PAGE
    assert f"(results/{path.parent.relative_to(FOLDER).as_posix()}/comparison.md)" in PAGE


def row_of(target: str, facts: dict[str, Any]) -> str:
    """A line of the page's summary: Recall@10 / NDCG@10 by arm, with verdicts, and the best of what is not trained."""

    def cell(name: str) -> str:
        figures = facts["arms"][name]["protocols"]["all"]
        return f"{figures['recall@10']['mean']:.4f} / {figures['ndcg@10']['mean']:.4f}"

    def recall(name: str) -> float:
        return float(facts["arms"][name]["protocols"]["all"]["recall@10"]["mean"])

    judged = [f"{cell(name)} {facts['arms'][name]['verdict']['word']}" for name in ("finetune", "relearn", "auto")]
    best = max((name for name, arm in facts["arms"].items() if arm["kind"] == "untrained"), key=recall)
    return f"| {' | '.join([target, cell('scratch'), *judged, cell('sasrec'), f'{cell(best)} ({best})'])} |"


@pytest.mark.parametrize("path", OUTCOMES, ids=name_of)
def test_each_outcome_is_the_mean_of_the_results_beside_it(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    (target,) = found["targets"]
    runs: dict[str, list[float]] = {}
    for file in (path.parent / "results").rglob("*.json"):
        run = json.loads(file.read_text(encoding="utf-8"))
        assert run["target"] == target
        runs.setdefault(run["arm"], []).append(run["protocols"]["all"]["recall@10"])
    arms = found["targets"][target]["arms"]
    means = {name: arm["protocols"]["all"]["recall@10"]["mean"] for name, arm in arms.items()}
    assert {name: sum(values) / len(values) for name, values in runs.items()} == pytest.approx(means)


@pytest.mark.parametrize("script", ["run.sh", "settings.sh"])
def test_the_scripts_use_flags_there_are(script: str) -> None:
    lines = (FOLDER / script).read_text(encoding="utf-8").splitlines()
    flags = set(re.findall(r"(?<=--)[a-z][a-z-]+", "\n".join(line for line in lines if not line.startswith("#"))))
    assert {flag for flag in flags if flag.removeprefix("no-") not in KNOWN | OF_COMMANDS | {"resume"}} == set()

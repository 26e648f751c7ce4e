"""docs/results.md says what the files in docs/results say, and what its scripts do."""

import json
import re
from pathlib import Path

import pytest

from antpipe.comparison_table import as_markdown
from antpipe.config import CONFIGS
from antpipe.settings import flag_name

from .conftest import REPOSITORY

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
def test_the_page_has_the_tables_and_verdicts_of_each_outcome(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    told = [line for line in as_markdown(found).splitlines() if line.startswith(("| ", "- "))]
    assert told
    assert [line for line in told if line not in PAGE] == []


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

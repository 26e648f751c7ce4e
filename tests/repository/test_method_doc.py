"""docs/method.md: what it links to exists, and its tables say what the code does."""

import importlib
import re
from types import ModuleType

import pytest

from antpipe.core import stages as transfer
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "method.md"
TEXT = PAGE.read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"\[`([\w.]+)`\]\(\.\./((?:antpipe|tests)/[\w/]+)\.py\)", TEXT)))


@pytest.mark.parametrize(("name", "file"), NAMED)
def test_a_function_the_page_names_exists_where_it_says(name: str, file: str) -> None:
    found = importlib.import_module(file.replace("/", "."))
    if name != file.rpartition("/")[2]:
        for part in name.split("."):
            found = getattr(found, part)
    assert callable(found) or isinstance(found, dict | ModuleType)


def test_every_formula_has_its_function() -> None:
    assert len(NAMED) >= 15
    formulas = [line for line in TEXT.splitlines() if line.startswith("| ") and line.count("|") == 4]
    without = [line for line in formulas if set(line) - set("| -") and "../antpipe/" not in line]
    assert formulas
    assert without == []


def test_every_relative_link_leads_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in target]
    assert targets
    assert [target for target in targets if not (PAGE.parent / target).exists()] == []


def test_the_table_of_stages_is_that_of_the_code() -> None:
    lines = [line for line in TEXT.splitlines() if line.startswith("| group |") or line.startswith("| `")]
    head, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    shown = {
        (stage, group): action.strip("*")
        for cells in rows
        for group in re.findall(r"`(\w+)`", cells[0])
        for stages, action in zip(head[1:], cells[1:], strict=True)
        for stage in stages.split(", ")
    }
    assert shown == {
        (stage, group): action for stage, groups in transfer.STAGES.items() for group, action in groups.items()
    }


def test_the_tests_the_page_names_exist() -> None:
    files = re.findall(r"tests/[\w/]+\.py", TEXT)
    assert files
    assert [file for file in files if not (REPOSITORY / file).is_file()] == []

"""The threats of docs/security.md: each names a test that exists."""

import ast
import re
from functools import cache

import pytest

from tests.conftest import REPOSITORY
from tests.support.audit import verdict

PAGE = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| what")]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


@cache
def names_in(file: str) -> set[str]:
    path = REPOSITORY / file
    if not path.is_file():
        return set()
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_each_threat_names_a_test_there_is(row: str) -> None:
    named = NAMED.findall(row.split("|")[4])
    assert named
    assert [f"{file}::{name}" for file, name in named if name not in names_in(file)] == []


def test_there_are_threats_of_each_section() -> None:
    assert len(ROWS) > 30


# -- pip-audit, which `make check` asks -------------------------------------------------------------------------------

KNOWN = '{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}]}'


def test_a_known_vulnerability_fails_the_check_with_the_version_that_mends_it() -> None:
    assert verdict(KNOWN, "") == (1, "a 1: CVE-1, mended in 2")


def test_without_one_the_number_of_packages_is_said() -> None:
    content = '{"dependencies": [{"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "local"}]}'
    assert verdict(content, "") == (0, "pip-audit: 1 packages without known vulnerabilities, 1 not checked")


def test_a_service_that_knows_no_package_has_checked_nothing() -> None:
    content = '{"dependencies": [{"name": "a", "skip_reason": "not on PyPI"}, {"name": "b", "skip_reason": "local"}]}'
    assert verdict(content, "") == (0, "pip-audit: its service knows none of 2 packages, so nothing was checked")


def test_a_service_that_cannot_be_reached_is_said_and_fails_nothing() -> None:
    code, message = verdict("", "WARNING x\nConnectionError: no route\n")
    assert (code, message) == (0, "pip-audit: not asked, its service cannot be reached (ConnectionError: no route)")

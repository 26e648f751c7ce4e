"""constraints.txt pins what the tests ran with, within the ranges of pyproject.toml."""

import re
import tomllib

from packaging.markers import default_environment
from packaging.requirements import Requirement

from tests.conftest import REPOSITORY

PINNED = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)")


def pins() -> dict[str, str]:
    """Versions by normalised name."""
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [PINNED.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(found)
    return {normal(one[1]): one[2] for one in found if one}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required() -> list[Requirement]:
    """What antpipe needs, and what its developers do."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return [Requirement(line) for line in lines]


def test_every_library_is_pinned_within_its_range() -> None:
    here, environment = pins(), default_environment()
    for one in required():
        if one.marker is None or one.marker.evaluate(dict(environment)):
            assert normal(one.name) in here, one.name
            assert one.specifier.contains(here[normal(one.name)]), one


def test_httpx2_is_bounded_above() -> None:
    [one] = [one for one in required() if one.name == "httpx2"]
    assert str(one.specifier) in ("<3,>=2", ">=2,<3")

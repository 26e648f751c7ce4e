"""Python and the libraries here, compared with the ranges that pyproject.toml names."""

import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from antpipe.runtime.words import command_line
from antpipe.upkeep.findings import FINE, REMARK, UNFIT, Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "antpipe"
SOURCE = Path(__file__).parents[2] / "pyproject.toml"  # of a checkout that is not installed
# What each extra is for; those for developers are left out.
EXTRAS = {
    "offline": "encoders that need no network",
    "onnx": "embed-text --backend onnx",
    "openvino": "embed-text --backend openvino",
    "export": "export onnx",
    "ray": "--engine ray, addresses such as s3://",
    "serve": "serve",
    "report": "report, plot",
    "tune": "tune",
    "tensorboard": "train --track tensorboard",
    "wandb": "train --track wandb",
}


@dataclass(frozen=True)
class Declared:
    """What the project requires. extras: requirements by the name of the extra."""

    python: str
    libraries: "tuple[Requirement, ...]"
    extras: "dict[str, tuple[Requirement, ...]]"


def declared() -> Declared:
    """What the metadata of the installed package declare, or else the pyproject.toml of a checkout."""
    from packaging.requirements import Requirement

    try:
        python = metadata(DISTRIBUTION)["Requires-Python"]
        all_of = [Requirement(line) for line in requires(DISTRIBUTION) or ()]
    except PackageNotFoundError:
        project = tomllib.loads(SOURCE.read_text(encoding="utf-8"))["project"]
        optional = project["optional-dependencies"]
        python = project["requires-python"]
        own = [one for line in project["dependencies"] if applies(one := Requirement(line))]
        extras = {name: tuple(Requirement(line) for line in lines) for name, lines in optional.items()}
        return Declared(python, tuple(own), {name: lines for name, lines in extras.items() if name in EXTRAS})
    return Declared(
        python,
        tuple(one for one in all_of if applies(one)),
        {name: tuple(one for one in all_of if not applies(one) and applies(one, name)) for name in EXTRAS},
    )


def applies(requirement: "Requirement", extra: str = "") -> bool:
    """Whether a requirement applies on this machine, if this extra is asked for."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def examine_libraries() -> Iterator[Finding]:
    """Python, the libraries that antpipe needs, and one remark per extra that is not complete."""
    from packaging.specifiers import SpecifierSet

    asked = declared()
    python = ".".join(map(str, sys.version_info[:3]))
    fits = SpecifierSet(asked.python).contains(python, prereleases=True)
    yield Finding("python", FINE if fits else UNFIT, f"{python} (supported: {asked.python})")
    wrong = [found for one in asked.libraries if (found := misfit(one))]
    yield from (Finding(one.name, UNFIT, why, install(one)) for one, why in wrong)
    yield Finding("libraries", FINE, f"{len(asked.libraries) - len(wrong)} of {len(asked.libraries)} as required")
    for extra, requirements in asked.extras.items():
        lacking = [found for one in requirements for part in parts(one) if (found := misfit(part))]
        if lacking:
            why = "; ".join(dict.fromkeys(why for _, why in lacking))
            message = f"for {EXTRAS[extra]}: {why}"
            yield Finding(f"antpipe[{extra}]", REMARK, message, f"pip install 'antpipe[{extra}]'")


def parts(requirement: "Requirement") -> "Iterator[Requirement]":
    """A requirement, and those of the extras that it names: `ray[data]` needs more than ray."""
    from packaging.requirements import Requirement

    yield requirement
    try:
        further = [Requirement(line) for line in requires(requirement.name) or ()]
    except PackageNotFoundError:
        return
    for extra in requirement.extras:
        yield from (one for one in further if not applies(one) and applies(one, extra))


def misfit(requirement: "Requirement") -> "tuple[Requirement, str] | None":
    """The requirement and why it is not met; None if it is."""
    try:
        here = version(requirement.name)
    except PackageNotFoundError:
        return requirement, f"{requirement.name} is not installed"
    if requirement.specifier.contains(here, prereleases=True):
        return None
    return requirement, f"{requirement.name} {here} is outside the tested range {requirement.specifier}"


def install(requirement: "Requirement") -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"pip install {command_line([f'{requirement.name}{extras}{requirement.specifier}'])}"

"""What can be said of an artefact: what kind it is, how it stands, what a stage did to it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ArtefactKind:
    """What a stage leaves in a domain. Raise `version` when the stage's output changes for equal parameters."""

    command: str
    files: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()  # inputs that count where they are there
    version: int = 1
    on_request: bool = False  # nobody misses it: it is built by those who ask for it


@dataclass(frozen=True)
class State:
    """Of one artefact: `fresh`, `stale` (why), `partial` (usable, but there is more to be had) or `missing`, and the
    command that makes it fresh, where there is anything to be made."""

    artefact: str
    status: str
    why: str = ""
    next_command: str = ""


@dataclass(frozen=True)
class StageResult:
    """What a stage did: `built` or `fresh` (nothing to do), and figures worth printing."""

    domain: str
    artefact: str
    status: str
    figures: dict[str, Any] = field(default_factory=dict)

"""The artefacts of a domain: what each is made from and by which command, and what is reported about it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ArtefactKind:
    """What a stage leaves in a domain. Raise `version` when the stage's output changes for equal parameters."""

    command: str
    files: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()  # inputs that are used if they exist
    version: int = 1
    on_request: bool = False  # `status` does not suggest building it


ARTEFACTS: dict[str, ArtefactKind] = {
    "items": ArtefactKind("ingest", ("items.parquet", "interactions.parquet", "users.parquet", "rejects.parquet")),
    "text": ArtefactKind("embed-text", ("text.arrow",), ("items",)),
    "pictures": ArtefactKind("fetch-images", ("pictures.parquet",), ("items",)),
    "image": ArtefactKind("embed-image", ("image.arrow",), ("items",), ("pictures",)),
    "price": ArtefactKind("quantize-price", ("price.arrow",), ("items",)),
    "sequences": ArtefactKind("build-sequences", ("sequences.arrow",), ("items",)),
    **{
        f"{modality}-white": ArtefactKind(
            f"whiten --modality {modality}",
            (f"{modality}_white.arrow", f"{modality}_whitening.parquet"),
            ("items", modality),
            on_request=True,
        )
        for modality in ("text", "image")
    },
}


@dataclass(frozen=True)
class State:
    """The state of an artefact: `fresh`, `stale` (why), `partial` (usable, but more is available) or `missing`.

    next_command: the command that makes it fresh, or '' if there is nothing to do.
    """

    artefact: str
    status: str
    why: str = ""
    next_command: str = ""


@dataclass(frozen=True)
class StageResult:
    """What a stage did: `built` or `fresh` (there was nothing to do), and the figures worth printing."""

    domain: str
    artefact: str
    status: str
    figures: dict[str, Any] = field(default_factory=dict)


def artefact_of(modality: str, whitened: Sequence[str]) -> str:
    """The artefact from which a modality's features are read: the raw features or the whitened ones."""
    return f"{modality}-white" if modality in whitened else modality

"""The artefacts of a domain, and what can be said of one: its kind, how it stands, what a stage did, what made it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from antpipe.store.files import digest


@dataclass(frozen=True)
class ArtefactKind:
    """What a stage leaves in a domain. Raise `version` when the stage's output changes for equal parameters."""

    command: str
    files: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()  # inputs that count where they are there
    version: int = 1
    on_request: bool = False  # nobody misses it: it is built by those who ask for it


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


def artefact_of(modality: str, whitened: Sequence[str]) -> str:
    """The artefact that holds a modality's features in the form in which they are read."""
    return f"{modality}-white" if modality in whitened else modality


def encoder_name(entry: Mapping[str, Any]) -> str:
    """What made a feature artefact, by its manifest entry: an encoder and its revision, or the price's coding.

    Bins fitted on several catalogues are amounts of money, so the catalogues are part of the name; those fitted on one
    are ranks in it, which mean the same in all domains.
    """
    encoder = entry.get("encoder")
    if isinstance(encoder, dict):
        variant = f", {encoder['variant']}" if "variant" in encoder else ""  # a prompt, for example
        name = f"{encoder['name']} (revision {str(encoder['revision'])[:12]}{variant})"
        return f"{name}, whitened (fit {encoder['whitening'][:12]})" if "whitening" in encoder else name
    parameters = entry["parameters"]
    name = f"{parameters['encoding']} of {parameters['bins']} bins, scope {parameters['scope']}"
    return f"{name} (fit {digest(parameters['fitted_on'])[:12]})" if "fitted_on" in parameters else name

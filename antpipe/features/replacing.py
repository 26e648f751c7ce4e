"""Which vectors a stage replaces only with --force: fresh ones of another encoder, or of another import.

No --force is needed for new items, changed texts and pictures, another precision and new weights of the same name, nor
to replace stale vectors, which are useless for the current catalogue.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from antpipe.errors import UsageError
from antpipe.settings.base import flags_of
from antpipe.settings.features import ImageConfig, TextConfig
from antpipe.store.domain import Domain
from antpipe.store.manifest import encoder_name
from antpipe.store.next_command import build_command

VARIANT = ("prompt", "prefix", "dims", "normalize")  # settings that give different vectors with the same weights
IMPORTED = ("format", "file")  # parameters that only imported vectors have


def require_same_encoder(
    place: Domain,
    artefact: str,
    config: TextConfig | ImageConfig,
    parameters: Mapping[str, Any],
    command: str,
    force: bool,
) -> None:
    """Raises UsageError, unless `force`, if the artefact is fresh and another encoder or an import made it.

    parameters: those of the stage. command: the one that runs it, without --force.
    """
    entry = None if force else _fresh_entry(place, artefact)
    different = _different(entry, config, parameters) if entry is not None else []
    if entry is not None and different:
        raise _refusal(place, artefact, entry, _told(parameters, different), command)


def require_same_import(place: Domain, artefact: str, parameters: Mapping[str, Any], command: str) -> None:
    """Raises UsageError if the artefact is fresh, unless an import with exactly these parameters made it.

    command: the one that imports, without --force.
    """
    entry = _fresh_entry(place, artefact)
    if entry is None or entry["parameters"] == parameters:
        return
    before, different = entry["parameters"], ["encoder"]
    if before.get("format") == parameters["format"]:
        different = [name for name in {**parameters, **before} if parameters.get(name) != before.get(name)]
    raise _refusal(place, artefact, entry, _told(parameters, different), command)


def require_own_vectors(place: Domain, artefacts: Iterable[str], command: str) -> None:
    """Raises UsageError if one of the artefacts is fresh and did not come with the data set that is imported again.

    command: the one that imports, without --force.
    """
    for artefact in artefacts:
        entry = _fresh_entry(place, artefact)
        if entry is not None and not entry.get("came_with_items"):
            raise _refusal(place, artefact, entry, "the data set", command)


def command_of(place: Domain, artefact: str, config: TextConfig | ImageConfig, without: tuple[str, ...]) -> str:
    """The command that builds the artefact with these settings, with --force if it would be refused otherwise.

    without: settings to leave out.
    """
    wanted = {name: getattr(config, name, None) for name in ("encoder", *VARIANT)}
    entry = _fresh_entry(place, artefact)
    force = entry is not None and bool(_different(entry, config, wanted))
    return build_command(place, artefact, flags=flags_of(config, without), force=force)


def _fresh_entry(place: Domain, artefact: str) -> dict[str, Any] | None:
    entry = place.manifest().get(artefact)
    return entry if entry is not None and place.state(artefact).status == "fresh" else None


def _different(entry: Mapping[str, Any], config: TextConfig | ImageConfig, parameters: Mapping[str, Any]) -> list[str]:
    """How the encoder that made the vectors differs from the requested one. parameters: the revision may be missing."""
    before, flags = entry["parameters"], entry.get("flags", [])
    if any(name in before for name in IMPORTED):
        return ["encoder"]
    asked = flags[flags.index("--encoder") + 1] if "--encoder" in flags else type(config).encoder
    found = [] if asked == config.encoder or _same_weights(before, parameters) else ["encoder"]
    return found + [name for name in VARIANT if parameters.get(name) != before.get(name)]


def _same_weights(before: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    """Whether two encoders are the same; a hub model's name may leave out `sentence-transformers/`."""
    names = {str(one.get("encoder")).rpartition("/")[2] for one in (before, parameters)}
    return len(names) == 1 and before.get("revision") == parameters.get("revision", before.get("revision"))


def _told(parameters: Mapping[str, Any], different: Sequence[str]) -> str:
    """The encoder of the new vectors, and what is different about it."""
    return f"{parameters['encoder']} (revision {str(parameters['revision'])[:12]}; different: {', '.join(different)})"


def _refusal(place: Domain, artefact: str, entry: Mapping[str, Any], new: str, command: str) -> UsageError:
    source = f", imported from {entry['came_from']['path']}" if "came_from" in entry else ""
    return UsageError(
        f"domain {place.name}: {artefact} holds vectors of {encoder_name(entry)}{source}; those of {new} would replace "
        "them; add --force to replace them",
        f"{command} --force",
    )

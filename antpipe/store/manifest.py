"""The content of a domain's manifest: entries, fingerprints, staleness. Functions on plain data, without disk access.

A manifest maps the name of each artefact to its entry: what it was made from, with which settings, and the size and
content hash of each of its files.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from antpipe.store.artefacts import ARTEFACTS

Entry = dict[str, Any]
Manifest = dict[str, Entry]
OLDER, NEWER = (f"made by {age} version of the stage" for age in ("an older", "a newer"))
Damage = Callable[[str], str]  # why the files of an artefact are not those that its entry describes; '' if they are
# What the items must have for an artefact (one of these statistics above 0), and the message if they lack it.
MADE_OF: dict[str, tuple[tuple[str, ...], str]] = {
    "text": (("with_text",), "no item has a text"),
    "pictures": (("with_image_url",), "no image URLs"),
    "image": (("with_image_url", "with_image_file"), "no item has a picture or an image URL"),
    "price": (("with_price",), "no item has a price"),
    "sequences": (("interactions",), "a catalogue without interactions"),
}


def digest(value: Any) -> str:
    """The sha256 of canonical JSON, in hex: equal for equal content, whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def id_table_sha256(item_ids: Sequence[str]) -> str:
    """The hash by which a feature file is matched with its catalogue: that of the original ids in row order."""
    return digest(list(item_ids))


def content_sha256(entry: Mapping[str, Any]) -> str:
    """The hash of what an artefact's files hold.

    Two builds with the same fingerprint may differ in it: --force recomputes, and not every library is deterministic.
    """
    return digest({name: facts.get("sha256") for name, facts in entry.get("files", {}).items()})


def inputs_of(artefact: str, manifest: Mapping[str, Entry]) -> dict[str, str | None]:
    """The fingerprints of an artefact's inputs: of required ones (None if missing) and of optional ones."""
    kind = ARTEFACTS[artefact]
    names = [*kind.inputs, *(name for name in kind.optional if name in manifest)]
    return {name: manifest.get(name, {}).get("fingerprint") for name in names}


def fingerprint(artefact: str, parameters: Mapping[str, Any], manifest: Mapping[str, Entry]) -> str:
    """The sha256 of stage, stage version, parameters and the fingerprints of the inputs, which must exist."""
    kind = ARTEFACTS[artefact]
    return digest([kind.command, kind.version, dict(parameters), inputs_of(artefact, manifest)])


def changed_input(entry: Mapping[str, Any], manifest: Mapping[str, Entry]) -> str | None:
    """The first input whose fingerprint, or content if that was recorded, is not what the entry was built from."""
    for name, before in entry["inputs"].items():
        now = manifest.get(name, {})
        content = entry["input_files"].get(name)
        if now.get("fingerprint") != before or (content is not None and content_sha256(now) != content):
            return str(name)
    return None


@dataclass(frozen=True)
class Standing:
    """The state of an artefact: `fresh`, `stale`, `partial` or `missing`, and why.

    build: the artefact whose stage must run next to change that, itself or one of its inputs; None if there is nothing
    to run. force: whether that stage would otherwise find its artefact fresh.
    """

    status: str
    why: str = ""
    build: str | None = None
    force: bool = False


def standing(artefact: str, manifest: Mapping[str, Entry], damage: Damage) -> Standing:
    """Whether a run of the artefact's stage, with the settings of the last time, would only rebuild what exists.

    Items have no inputs in the store; damage to them is reported when they are read, not here for each artefact made
    from them.
    """
    entry = manifest.get(artefact)
    if entry is None and ARTEFACTS[artefact].on_request:
        return Standing("missing", "built on request")
    if entry is None:
        return _to_build(Standing("missing"), artefact, manifest, damage)
    if why := damage(artefact):
        return _to_build(Standing("stale", why, force=True), artefact, manifest, damage)
    if why := _outdated(artefact, manifest, damage):
        return _to_build(Standing("stale", why), artefact, manifest, damage)
    return Standing("partial", entry["incomplete"], artefact) if "incomplete" in entry else Standing("fresh")


def _outdated(artefact: str, manifest: Mapping[str, Entry], damage: Damage) -> str:
    """Why the artefact's stage would now make something different; '' if it would not."""
    kind, entry = ARTEFACTS[artefact], manifest[artefact]
    for name in {**entry["inputs"], **dict.fromkeys(kind.optional)}:
        if manifest.get(name, {}).get("fingerprint") != entry["inputs"].get(name):
            return f"{name} changed since"
        if name in kind.inputs and name != "items" and standing(name, manifest, damage).status == "stale":
            return f"{name} is stale"
    for name, content in entry.get("input_files", {}).items():
        if name not in manifest or content_sha256(manifest[name]) != content:
            return f"{name} was computed again since, with other results"
    return "" if entry["stage_version"] == kind.version else OLDER if entry["stage_version"] < kind.version else NEWER


def _to_build(found: Standing, artefact: str, manifest: Mapping[str, Entry], damage: Damage) -> Standing:
    """`found`, with the artefact to build next, or with the reason why the artefact cannot be built."""
    if why := lacking(artefact, manifest):
        return replace(found, why=f"{found.why}; {why}" if found.why else why)
    for name in ARTEFACTS[artefact].inputs:
        before = standing(name, manifest, damage)
        if before.status in ("stale", "missing"):
            return replace(found, build=before.build, force=before.force)
    if artefact == "image" and not is_from_elsewhere(artefact, manifest):
        pictures = standing("pictures", manifest, damage)
        if pictures.status == "stale" or not has_pictures(manifest):
            why = "" if pictures.build else pictures.why or "no image URL gave a picture"
            why = "; ".join(filter(None, (found.why, why)))
            return replace(found, why=why, build=pictures.build, force=pictures.force)
    return replace(found, build=artefact)


def lacking(artefact: str, manifest: Mapping[str, Entry]) -> str:
    """Why the items of a domain cannot give an artefact; '' if they can, or if it was made from something else.

    A statistic that was not counted when the items were ingested is no obstacle. An existing price artefact can always
    be rebuilt: quantize-price accepts a domain without prices.
    """
    if artefact == "price" and artefact in manifest:
        return ""
    counts = manifest.get("items", {}).get("statistics", {})
    names, why = MADE_OF.get(artefact, ((), ""))
    return "" if any(counts.get(name, 1) for name in names) or is_from_elsewhere(artefact, manifest) else why


def is_from_elsewhere(artefact: str, manifest: Mapping[str, Entry]) -> bool:
    """Whether an artefact was last made from something outside the store: imported, or from a folder of pictures."""
    entry, own = manifest.get(artefact, {}), ARTEFACTS[artefact].command
    return entry.get("stage", own) != own or "came_with_items" in entry or "--images" in entry.get("flags", [])


def has_pictures(manifest: Mapping[str, Entry]) -> bool:
    """Whether embed-image has something to read: files that came with the items, or fetched ones."""
    files = manifest.get("items", {}).get("statistics", {}).get("with_image_file", 1)
    return bool(files or manifest.get("pictures", {}).get("figures", {}).get("present"))


def encoder_name(entry: Mapping[str, Any]) -> str:
    """What made a feature artefact: an encoder and its revision, or the coding of prices.

    Price bins fitted on several catalogues are amounts of money, so those catalogues are part of the name; bins fitted
    on one catalogue are ranks within it, which mean the same in every domain.
    """
    encoder = entry.get("encoder")
    if isinstance(encoder, dict):
        variant = f", {encoder['variant']}" if "variant" in encoder else ""  # a prompt, for example
        name = f"{encoder['name']} (revision {str(encoder['revision'])[:12]}{variant})"
        return f"{name}, whitened (fit {encoder['whitening'][:12]})" if "whitening" in encoder else name
    parameters = entry["parameters"]
    coding, bins, scope = (parameters.get(name, "?") for name in ("encoding", "bins", "scope"))
    name = f"{coding} of {bins} bins, scope {scope}"
    return f"{name} (fit {digest(parameters['fitted_on'])[:12]})" if "fitted_on" in parameters else name

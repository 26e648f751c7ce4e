"""The commands that messages suggest. No other module spells one out."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from antpipe.runtime.words import command_line
from antpipe.store.artefacts import ARTEFACTS

CHOOSE_INGEST = "antpipe ingest --help"  # when nothing says from what data a domain could be made


class Described(Protocol):
    """What commands need to know about a domain: where it is, and its manifest."""

    @property
    def root(self) -> Path: ...
    @property
    def name(self) -> str: ...
    def manifest(self) -> Mapping[str, Mapping[str, Any]]: ...


def spell(
    command: str, *, domains: Sequence[str] = (), store: Path | None = None, flags: Sequence[str | Path] = ()
) -> str:
    """A command line that works when it is pasted into a shell.

    command: such as `embed-text` or `import embeddings`. domains: for `--domains`; flags: further words.
    """
    words = ["antpipe", *command.split()]
    words += ["--domains", ",".join(domains)] if domains else []
    words += ["--store", str(store)] if store is not None else []
    return command_line([*words, *(str(word) for word in flags)])


def with_flag(command: str, flag: str, value: str) -> str:
    """A command line with one more flag."""
    return f"{command} {command_line([flag, value])}"


def with_stages(command: str, own_stages: Mapping[str, Mapping[str, str]]) -> str:
    """A command line with a settings file that defines these stages, which bash or zsh writes on the fly."""
    lines = []
    for name, section in own_stages.items():
        entries = ", ".join(f"{toml_key(key)} = {json.dumps(value)}" for key, value in section.items())
        lines.append(f"stage.{toml_key(name)} = {{{entries}}}")
    return f"{command} --config <(printf '%s\\n' {command_line(lines)})" if lines else command


def toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def by_processes(command: str, count: int) -> str:
    """The command line that starts `count` processes of a command."""
    return f"torchrun --nproc-per-node {count} -m {command}" if count > 1 else command


def ingest_command(source_format: str) -> str:
    """The command, without `antpipe`, that makes domains of a format: `amazon` -> `ingest amazon`."""
    return source_format if source_format.startswith(("import ", "subset")) else f"ingest {source_format}"


def build_command(
    domain: Described, artefact: str, *, force: bool = False, flags: Sequence[str | Path] | None = None
) -> str:
    """The command that builds an artefact, for all the domains with which it was last built together.

    flags: its settings; None for those of the last time. An artefact that came with the items, as with `import
    unisrec`, is then built by building the items again. What a subset lacks is built for the domain it is part of.
    """
    manifest = domain.manifest()
    entry, stage = manifest.get(artefact, {}), ARTEFACTS[artefact].command
    if flags is None:
        if entry.get("came_with_items"):
            return build_command(domain, "items", force=True)
        flags, stage = entry.get("flags", []), entry.get("stage", stage)
    if artefact == "items":
        if not entry:
            return CHOOSE_INGEST
        form = entry["parameters"].get("format")
        if not isinstance(form, str):
            return CHOOSE_INGEST
        stage = ingest_command(form)
    own = manifest.get("items", {}).get("parameters", {}).get("of", domain.name)
    domains = entry.get("domains", [own]) if stage != "ingest sample" else []  # which has its own names
    return spell(stage, domains=domains, store=domain.root, flags=[*flags, *(["--force"] if force else [])])


def supply_command(domain: Described, artefact: str) -> str | None:
    """The command that adds what an artefact needs and the items lack, or None; the user replaces FILE or DIR in it."""
    if artefact == "sequences":
        return f"{build_command_with(domain, 'items', '--interactions', 'FILE')} --force"
    return build_command(domain, artefact, flags=["--images", "DIR"]) if artefact == "image" else None


def build_command_with(domain: Described, artefact: str, flag: str, value: str, *, force: bool = False) -> str:
    """The command that builds an artefact as it was last built, except for one setting."""
    entry = domain.manifest().get(artefact, {})
    flags = list(entry.get("flags", [])) if entry.get("stage") == ARTEFACTS[artefact].command else []
    if flag in flags:
        del flags[flags.index(flag) : flags.index(flag) + 2]
    return build_command(domain, artefact, force=force, flags=[*flags, flag, value])


def shell(*words: str | Path) -> str:
    """A command line of another program."""
    return command_line(str(word) for word in words)

"""Pages of the site that are made: the command line, the Python API and the settings from the code, and the notebooks.

A hook of MkDocs (mkdocs.yml): `on_files` adds the pages to the site; they are not in the repository.
"""

import dataclasses
import html
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import antpipe
from antpipe.settings.base import Config, base_type, flag_name
from antpipe.settings.methods import METHOD_SETTINGS
from antpipe.settings.presets import PRESETS
from antpipe.settings.sections import CONFIGS

# Links that lead to files of the repository which are no pages.
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./|[\w/]+\.sh)[^)]*\)")
NOTEBOOK = re.compile(r"(\]\(notebooks/[\w-]+)\.ipynb\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {"cli.md": command_line(), "api.md": python_api(), "settings.md": all_settings()}
    for path in sorted(Path(config.docs_dir, "notebooks").glob("*.ipynb")):
        pages[f"notebooks/{path.stem}.md"] = notebook(path)
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Show links to files that the site does not have as their names; links to notebooks lead to their pages."""
    return NOTEBOOK.sub(r"\1.md)", OUTSIDE.sub(r"\1", markdown))


# -- the command line -------------------------------------------------------------------------------------------------


def command_line() -> str:
    """One section per command with its flags, as `--help` has them."""
    import typer.main

    from antpipe.cli import app

    lines = ["# Command line", "", "Generated from the code; `antpipe COMMAND --help` says the same.", ""]
    for name, command in commands_of(typer.main.get_command(app)):
        lines += [f"## {name}", "", inline(command.help or ""), "", "| flag | default | meaning |", "|---|---|---|"]
        for option in command.params:
            about, default = split_default(getattr(option, "help", None) or "")
            names = ", ".join((*option.opts, *option.secondary_opts))
            lines.append(f"| `{names}` | {inline(default)} | {inline(about)} |")
        examples = [line for line in (command.epilog or "").replace("\\[", "[").splitlines() if "antpipe " in line]
        lines += ["", *(f"    {line.strip()}" for line in examples), ""]
    return "\n".join(lines)


def commands_of(group: Any, before: str = "antpipe") -> Iterator[tuple[str, Any]]:
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from commands_of(command, f"{before} {name}")
        else:
            yield f"{before} {name}", command


def split_default(about: str) -> tuple[str, str]:
    """A help text, and the default that it ends with."""
    about = about.replace("\\[", "[")
    found = re.match(r"(.*?)(?: \[default: (.*)\])?$", about, re.DOTALL)
    assert found
    return found[1], found[2] or ""


def inline(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# -- Python -----------------------------------------------------------------------------------------------------------


def python_api() -> str:
    """Everything that `import antpipe` offers, from signatures and docstrings."""
    lines = ["# Python", "", "Keyword settings are those of the command line ([settings](settings.md)).", ""]
    for name in antpipe.__all__:
        found = getattr(antpipe, name)
        lines += [f"## {name}", "", *described(name, found)]
        for part, value in vars(found).items() if inspect.isclass(found) else ():
            if part.startswith("_") or not (callable(value) or isinstance(value, (property, classmethod))):
                continue
            kind = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            lines += [
                f"### {name}.{part}",
                "",
                *described(f"{name}.{part}", kind, is_property=isinstance(value, property)),
            ]
    return "\n".join(lines)


def described(name: str, found: Any, *, is_property: bool = False) -> Iterator[str]:
    """The signature of a function or class, and its docstring with the examples as code."""
    if not is_property:
        yield from ("```python", signature_of(name, found), "```", "")
    example = False
    for line in (inspect.getdoc(found) or "").splitlines():
        if line.startswith(">>> ") and not example:
            yield "```pycon"
            example = True
        elif example and not line.strip():
            yield "```"
            example = False
        yield line
    yield from (["```"] if example else [])
    yield ""


def signature_of(name: str, found: Any) -> str:
    """The call with the names and defaults of its own parameters; settings are on a page of their own."""
    try:
        parameters = inspect.signature(inspect.unwrap(found)).parameters.values()
    except (TypeError, ValueError):
        return f"antpipe.{name}"
    words, after_star = [], False
    for one in parameters:
        if one.name == "self":
            continue
        if one.kind is one.KEYWORD_ONLY and not after_star:
            words.append("*")
            after_star = True
        if one.kind is one.VAR_KEYWORD:
            words.append("**settings")
        else:
            words.append(one.name + ("" if one.default is one.empty else f"={one.default!r}"))
    return f"antpipe.{name}({', '.join(words)})"


# -- settings ---------------------------------------------------------------------------------------------------------


def all_settings() -> str:
    """Every setting with its names and default, by section of a TOML file."""
    lines = [
        "# Settings",
        "",
        "Generated from the code. The flag `--lr` of section `train` is also the variable `ANTPIPE_TRAIN_LR`,",
        "and `lr` below `[train]` in a TOML file (`--config`). In Python it is the keyword `lr`. A flag beats",
        "the variable, which beats TOML, which beats a preset, which beats the default.",
        "",
    ]
    for config in CONFIGS:
        lines += [f"## [{config.section}]", "", inline((config.__doc__ or "").partition("\n")[0]), ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        own = sorted(dataclasses.fields(config), key=lambda field: field.name in METHOD_SETTINGS)  # these come last
        lines += [row_of(field) for field in own] + [""]
    lines += ["## Presets", "", "What `--preset NAME` puts in place of defaults.", ""]
    for name, preset in PRESETS.items():
        lines += [f"### {name}", "", "| section | key | value |", "|---|---|---|"]
        lines += [
            f"| {section} | `{key}` | {inline(str(value))} |"
            for section, values in preset.items()
            for key, value in values.items()
            if value != default_of(section, key)
        ] + [""]
    return "\n".join(lines)


def default_of(section: str, key: str) -> Any:
    configs: dict[str, type[Config]] = {config.section: config for config in CONFIGS}
    return getattr(configs.get(section), key, None)


def row_of(field: "dataclasses.Field[Any]") -> str:
    kind = base_type(field.type)
    about, choices = field.metadata["about"], field.metadata["choices"]
    about += f" ({', '.join(choices)})" if choices else ""
    default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    shown = "" if default is None or default == "" else f"`{default}`"
    return f"| `{flag_name(field.name)}` | {getattr(kind, '__name__', kind)} | {inline(shown)} | {inline(about)} |"


# -- notebooks --------------------------------------------------------------------------------------------------------


def notebook(path: Path) -> str:
    """A notebook as a page: its text, code and outputs, and at the top the file itself."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [shown(output) for output in cell.get("outputs", [])]
    parts.insert(1, f"This page is a notebook: [{path.name}]({path.name}).")
    return "\n\n".join(parts)


def shown(output: dict[str, Any]) -> str:
    """What a cell printed or drew."""
    data = output.get("data", {})
    if "image/png" in data:
        alt = output["metadata"].get("image/png", {}).get("alt", "")
        return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return f"```text\n{text}\n```"

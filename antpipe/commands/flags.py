"""How a function becomes a command: its parameters are expanded to flags.

`Common` stands for the flags every command has, a config class for one flag for each of its fields (so a default, its
explanation and its flag live in one place, config.py).
"""

import dataclasses
import inspect
import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from antpipe.errors import UsageError
from antpipe.settings.base import Config, base_type, flag_name, read_toml, resolve
from antpipe.settings.features import EMBEDDED
from antpipe.settings.model import ModelConfig
from antpipe.settings.presets import PRESETS, find_preset
from antpipe.settings.sections import CONFIGS
from antpipe.settings.training import TrainConfig
from antpipe.training.parallel import world_of

if TYPE_CHECKING:
    from antpipe.store.store import Store

C = TypeVar("C", bound=Config)

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
ingest = typer.Typer(help="Turn raw reviews and a catalogue into domains of the store.")
app.add_typer(ingest, name="ingest")
imports = typer.Typer(help="Take over what other tools made.")
app.add_typer(imports, name="import")

Domains = Annotated[str, typer.Option("--domains", help="domains, separated by commas")]
OneDomain = Annotated[str, typer.Option("--domains", help="the domain")]
Modality = Annotated[str, typer.Option("--modality", help=" or ".join(EMBEDDED))]
Run = Annotated[Path, typer.Option("--run", help="folder of a trained run")]
Force = Annotated[bool, typer.Option("--force", help="build again what is fresh, replace what is there")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be done; write and fetch nothing")]


@dataclasses.dataclass(frozen=True)
class Common:
    """Flags of every command."""

    store: "Store"
    json: bool
    toml: dict[str, dict[str, Any]]
    flags: dict[str, Any]  # as given, None where not

    def resolve(self, config: type[C], inherited: C | None = None, *, on_target: bool = True) -> C:
        """The settings of a section. on_target: with what a preset says of stages on a target alone."""
        preset = find_preset(self.flags.get("preset"), on_target=on_target)
        return resolve(config, self.flags, self.toml, inherited=inherited, preset=preset.get(config.section, {}))

    def show(self, value: Any, text: str) -> None:
        """The result on stdout, as text or as JSON; of several processes the first one shows it."""
        if world_of().rank:
            return
        text = json.dumps(plain(value), indent=1, ensure_ascii=False) if self.json else text
        if text:
            print(text)


def plain(value: Any) -> Any:
    """Dataclasses inside lists and mappings as mappings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def notice(message: str) -> None:
    print(f"antpipe: {message}", file=sys.stderr)


COMMON_FLAGS = (
    ("store", Path | None, typer.Option("--store", help="folder of the store [$ANTPIPE_STORE or ./antpipe-store]")),
    ("settings", Path | None, typer.Option("--config", help="TOML file with settings")),
    ("as_json", bool, typer.Option("--json", help="print results as JSON")),
)
PRESETTABLE = (ModelConfig, TrainConfig)  # commands with both of these have --preset
PRESET_FLAG = typer.Option("--preset", help=f"settings that go together, in place of defaults ({', '.join(PRESETS)})")


def command(group: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command after expanding its `Common` and config parameters to flags."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        declared = inspect.signature(function).parameters
        parameters: list[inspect.Parameter] = []
        configs = {key: value.annotation for key, value in declared.items() if value.annotation in CONFIGS}
        for key, parameter in declared.items():
            if key in configs:
                parameters += [config_flag(field) for field in dataclasses.fields(configs[key])]
            elif parameter.annotation is Common:
                for flag, kind, option in COMMON_FLAGS:
                    parameters.append(keyword(flag, Annotated[kind, option], False if kind is bool else None))
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        if set(PRESETTABLE) <= set(configs.values()):
            parameters.append(keyword("preset", Annotated[str | None, PRESET_FLAG], None))

        @wraps(function)
        def call(**given: Any) -> None:
            from antpipe.store.store import Store

            root = given["store"] or os.environ.get("ANTPIPE_STORE") or "antpipe-store"
            toml = read_toml(given["settings"], CONFIGS) if given["settings"] else {}
            common = Common(Store(Path(root)), given["as_json"], toml, given)
            arguments: dict[str, Any] = {key: given[key] for key in declared if key in given and key not in configs}
            arguments |= {key: common.resolve(config) for key, config in configs.items()}
            function(common, **arguments)

        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        group.command(name)(call)
        return function

    return register


def keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def config_flag(field: "dataclasses.Field[Any]") -> inspect.Parameter:
    """The flag of a config field: None where it is not given; its help names choices and default."""
    kind = base_type(field.type)
    kind = kind if kind in (int, float, bool, Path) else str
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    about = field.metadata["about"]
    about += f" ({', '.join(field.metadata['choices'])})" if field.metadata["choices"] else ""
    about += "" if default is None else f" [default: {default}]"
    flag = f"--{flag_name(field.name)}"
    option = typer.Option(f"{flag}/--no-{flag[2:]}" if kind is bool else flag, help=about, show_default=False)
    return keyword(field.name, Annotated[kind | None, option], None)


def names(text: str, flag: str = "--domains") -> list[str]:
    """`A,B` -> [A, B]; empty and repeated names are refused."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts) or len(set(parts)) != len(parts):
        raise UsageError(
            f"{flag} {text}: give each {'run' if flag == '--from' else 'domain'} once, separated by commas"
        )
    return parts


def embedded(modality: str, flag: str = "--modality") -> str:
    """A modality whose features are vectors of an encoder; others are refused."""
    if modality not in EMBEDDED:
        raise UsageError(f"{flag} {modality}: choose from {', '.join(EMBEDDED)}")
    return modality

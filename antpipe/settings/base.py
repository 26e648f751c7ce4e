"""How a setting gets its value: the base of all groups of settings, and the reading of flags, environment and TOML.

A field of a class in config.py is at once a command line flag (`--batch-size`), an environment variable
(`ANTPIPE_TRAIN_BATCH_SIZE`) and a key of the TOML section named by the class (`[train]` `batch_size`).
The order of precedence is flag, environment, TOML, default. Unknown names are refused.
"""

import dataclasses
import math
import os
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from antpipe.errors import UsageError

T = TypeVar("T")
ENVIRONMENT_ONLY = ("ANTPIPE_STORE", "ANTPIPE_DEBUG")


def setting(
    default: T, about: str, choices: tuple[str, ...] = (), least: float | None = None, most: float | None = None
) -> T:
    """A dataclass field with its explanation, and the values it admits."""
    metadata = {"about": about, "choices": choices, "least": least, "most": most}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """What all groups of settings share: their TOML section, and the check of their values."""

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            choices, least, most = (field.metadata[key] for key in ("choices", "least", "most"))
            if choices and not set(value if isinstance(value, tuple) else (value,)) <= set(choices):
                shown = ",".join(value) if isinstance(value, tuple) else value
                raise UsageError(f"--{flag_name(field.name)} {shown}: choose from {', '.join(choices)}")
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"--{flag_name(field.name)} {value}: must be finite")
            if least is not None and value is not None and value < least:
                raise UsageError(f"--{flag_name(field.name)} {value}: must be at least {least:g}")
            if most is not None and value is not None and value > most:
                raise UsageError(f"--{flag_name(field.name)} {value}: must be at most {most:g}")


def flag_name(field_name: str) -> str:
    return field_name.replace("_", "-")


def variable_name(config: type[Config], field_name: str) -> str:
    """The environment variable of a field: ANTPIPE_SECTION_FIELD, since sections share names of fields."""
    return f"ANTPIPE_{config.section}_{field_name}".replace("-", "_").upper()


def flags_of(
    config: Config,
    without: tuple[str, ...] = (),
    inherited: Config | None = None,
    environment: Mapping[str, str] = types.MappingProxyType({}),
) -> list[str]:
    """The words of a command line that ask for these settings; defaults and fields in `without` are left out.

    inherited: takes the place of the defaults (see resolve). environment: a default that one of its variables would
    replace is said too.
    """
    words: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = getattr(inherited, field.name) if inherited else field.default
        if field.name in without or (value == default and variable_name(type(config), field.name) not in environment):
            continue
        if value is None:  # which no flag can say
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag_name(field.name)}")
        else:
            words += [f"--{flag_name(field.name)}", ",".join(value) if isinstance(value, tuple) else str(value)]
    return words


def base_type(annotation: Any) -> Any:
    """`int | None` -> int; other annotations as they are."""
    if isinstance(annotation, types.UnionType):
        return next(part for part in annotation.__args__ if part is not types.NoneType)
    return annotation


def parse_value(annotation: Any, value: Any, where: str) -> Any:
    """A flag's, variable's or TOML key's value as the field's type; `where` names it in the error."""
    kind = base_type(annotation)
    if typing.get_origin(kind) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) and part for part in parts):
            raise UsageError(f"{where}: {value!r} is not a list of names")
        return tuple(part.strip() for part in parts)
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
        return value.lower() in ("true", "1")
    if kind is not bool and isinstance(value, bool):
        raise UsageError(f"{where}: {value!r} is not a {kind.__name__}")
    if kind is float and isinstance(value, int):
        return float(value)
    if kind in (int, float, Path) and isinstance(value, str):
        try:
            return kind(value)
        except ValueError:
            raise UsageError(f"{where}: {value!r} is not a {kind.__name__}") from None
    if not isinstance(value, kind):
        raise UsageError(f"{where}: {value!r} is not a {kind.__name__}")
    return value


def read_toml(path: Path, configs: Sequence[type[Config]]) -> dict[str, dict[str, Any]]:
    """The sections of a settings file; a section or key that no config class has is refused by name."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: not TOML: {error}") from None
    known = {config.section: {field.name for field in dataclasses.fields(config)} for config in configs}
    for section, keys in document.items():
        if section == "stage":  # the user's own stages; transfer.py knows what they may say
            continue
        if section not in known or not isinstance(keys, dict):
            raise UsageError(f"{path}: unknown section [{section}]; known: {', '.join(sorted(known))}")
        for key in keys:
            if key not in known[section]:
                raise UsageError(
                    f"{path}: unknown key {key!r} in [{section}]; known: {', '.join(sorted(known[section]))}"
                )
    return document


def check_environment(configs: Sequence[type[Config]], environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a misspelt ANTPIPE_ variable instead of ignoring it (ANTPIPE_TEST_… belong to the test suite)."""
    known = set(ENVIRONMENT_ONLY)
    for config in configs:
        known |= {variable_name(config, field.name) for field in dataclasses.fields(config)}
    for name in environment:
        if name.startswith("ANTPIPE_") and not name.startswith("ANTPIPE_TEST_") and name not in known:
            raise UsageError(f"unknown environment variable {name}")


C = TypeVar("C", bound=Config)


def resolve(
    config: type[C],
    flags: Mapping[str, Any],
    toml: Mapping[str, Mapping[str, Any]],
    environment: Mapping[str, str] = os.environ,
    inherited: C | None = None,
    preset: Mapping[str, Any] = types.MappingProxyType({}),
) -> C:
    """One config of flags (None: not given), environment, TOML sections, preset and defaults, in this precedence.

    inherited: takes the place of the defaults (a checkpoint's settings). preset: values of this section by key.
    """
    values: dict[str, Any] = (dataclasses.asdict(inherited) if inherited else {}) | dict(preset)
    for field in dataclasses.fields(config):
        variable = variable_name(config, field.name)
        if flags.get(field.name) is not None:
            values[field.name] = parse_value(field.type, flags[field.name], f"--{flag_name(field.name)}")
        elif variable in environment:
            values[field.name] = parse_value(field.type, environment[variable], variable)
        elif field.name in toml.get(config.section, {}):
            values[field.name] = parse_value(
                field.type, toml[config.section][field.name], f"[{config.section}] {field.name}"
            )
    return config(**values)


def to_json(config: Config) -> dict[str, Any]:
    """The config as plain data, for manifests and checkpoints."""
    values = dataclasses.asdict(config)
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def from_json(config: type[C], values: Mapping[str, Any]) -> C:
    """The inverse of `to_json`; keys the class does not have are refused by name."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    for key in values:
        if key not in fields:
            raise UsageError(f"unknown setting {key!r} in [{config.section}]")
    return config(
        **{
            k: None if v is None else parse_value(fields[k].type, v, f"[{config.section}] {k}")
            for k, v in values.items()
        }
    )

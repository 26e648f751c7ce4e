"""The base class of all settings, and their conversion to flags, JSON and back.

Each field of a settings class is a command-line flag (`--batch-size`), an environment variable
(`ANTPIPE_TRAIN_BATCH_SIZE`) and a key in the TOML section named by the class (`[train]` `batch_size`).
"""

import csv
import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from antpipe.errors import UsageError

T = TypeVar("T")

DEVICES = ("auto", "cpu", "cuda", "cuda:N")


def setting(
    default: T,
    about: str,
    choices: tuple[str, ...] = (),
    least: float | None = None,
    most: float | None = None,
    panel: str = "",
) -> T:
    """A dataclass field with its help text, the values it accepts, and its panel in `--help` (default: the class's).

    choices: a choice that ends in N accepts any number in its place.
    """
    metadata = {"about": about, "choices": choices, "least": least, "most": most, "panel": panel}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Base of all groups of settings: names a TOML section and a help panel, and checks the values."""

    section: ClassVar[str] = ""
    panel: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        for field in vars(cls).values():
            if isinstance(field, dataclasses.Field) and not field.metadata["panel"]:
                field.metadata = types.MappingProxyType({**field.metadata, "panel": cls.panel})

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            choices, least, most = (field.metadata[key] for key in ("choices", "least", "most"))
            values = value if isinstance(value, tuple) else () if value is None else (value,)
            where = f"--{flag_name(field.name)} {as_word(value)}"
            if choices and not {numbered(one) for one in values} <= set(choices):
                raise UsageError(f"{where}: choose from {', '.join(choices)}")
            if any(isinstance(one, float) and not math.isfinite(one) for one in values):
                raise UsageError(f"{where}: must be finite")
            if least is not None and any(one < least for one in values):
                raise UsageError(f"{where}: must be at least {least:g}")
            if most is not None and any(one > most for one in values):
                raise UsageError(f"{where}: must be at most {most:g}")


def numbered(choice: object) -> object:
    """cuda:1 as the choice cuda:N; other choices unchanged."""
    return re.sub(r":\d+$", ":N", choice) if isinstance(choice, str) else choice


def flag_name(field_name: str) -> str:
    return field_name.replace("_", "-")


def as_word(value: Any) -> str:
    """A value as a flag takes it: lists are joined by commas, and parts with commas or quotes are double-quoted."""
    parts = [str(part) for part in (value if isinstance(value, tuple) else ())]
    quoted = ['"' + part.replace('"', '""') + '"' if {",", '"'} & set(part) else part for part in parts]
    return ",".join(quoted) if isinstance(value, tuple) else str(value)


def parts_of(word: str) -> list[str]:
    """The parts of a list as `as_word` writes it. Unbalanced quotes are taken literally."""
    return word.split(",") if word.count('"') % 2 else next(csv.reader([word], skipinitialspace=True), [""]) or [""]


def variable_name(config: type[Config], field_name: str) -> str:
    """The environment variable of a field, ANTPIPE_SECTION_FIELD: several sections have fields of the same name."""
    return f"ANTPIPE_{config.section}_{field_name}".replace("-", "_").upper()


def flags_of(
    config: Config,
    without: tuple[str, ...] = (),
    inherited: Config | None = None,
    environment: Mapping[str, str] = types.MappingProxyType({}),
) -> list[str]:
    """The command-line flags that give these settings, without defaults and without the fields in `without`.

    inherited: replaces the defaults (see resolve). environment: a default that one of these variables would override
    is spelt out too.
    """
    words: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = getattr(inherited, field.name) if inherited else field.default
        if field.name in without or (value == default and variable_name(type(config), field.name) not in environment):
            continue
        if value is None:  # no flag can give None
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag_name(field.name)}")
        else:
            words += [f"--{flag_name(field.name)}", as_word(value)]
    return words


def base_type(annotation: Any) -> Any:
    """`int | None` becomes int; other annotations are returned unchanged."""
    if isinstance(annotation, types.UnionType):
        return next(part for part in annotation.__args__ if part is not types.NoneType)
    return annotation


KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", Path: "a path"}


def parse_value(annotation: Any, value: Any, where: str) -> Any:
    """The value of a flag, variable or TOML key, converted to the field's type. `where` names it in the UsageError."""
    kind = base_type(annotation)
    if typing.get_origin(kind) is tuple:
        parts, numbers = parts_of(value) if isinstance(value, str) else value, typing.get_args(kind)[0] is int
        if numbers and isinstance(parts, list | tuple):
            return tuple(parse_value(int, part, where) for part in parts)
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) and part for part in parts):
            raise UsageError(f"{where}: {value!r} is not a list of {'whole numbers' if numbers else 'names'}")
        return tuple(part.strip() for part in parts)
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
        return value.lower() in ("true", "1")
    if kind is bool or not isinstance(value, bool):
        if kind is float and isinstance(value, int):
            return float(value)
        if kind in (int, float, Path) and isinstance(value, str):
            with suppress(ValueError):
                return kind(value)
        elif isinstance(value, kind):
            return value
    raise UsageError(f"{where}: {value!r} is not {KINDS[kind]}")


C = TypeVar("C", bound=Config)


def to_json(config: Config) -> dict[str, Any]:
    """The settings as plain data, for manifests and checkpoints."""
    values = dataclasses.asdict(config)
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def from_json(config: type[C], values: Mapping[str, Any]) -> C:
    """The inverse of `to_json`. Raises UsageError naming an unknown key, or the key of a value of the wrong type."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    for key in values:
        if key not in fields:
            raise UsageError(f"unknown setting {key!r} in [{config.section}]")
    optional = {name for name, field in fields.items() if base_type(field.type) is not field.type}
    read = {}
    for k, v in values.items():
        read[k] = v if v is None and k in optional else parse_value(fields[k].type, v, f"[{config.section}] {k}")
    return config(**read)

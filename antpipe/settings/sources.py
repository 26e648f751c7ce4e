"""Where settings come from: flags, environment, TOML, preset, inherited value, default, in this order of precedence.

Unknown names are refused.
"""

import dataclasses
import os
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from antpipe.errors import UsageError
from antpipe.settings.base import C, Config, flag_name, parse_value, variable_name

ENVIRONMENT_ONLY = ("ANTPIPE_STORE", "ANTPIPE_DEBUG", "ANTPIPE_TOKEN", "ANTPIPE_WORDS")


def resolve(
    config: type[C],
    flags: Mapping[str, Any],
    toml: Mapping[str, Mapping[str, Any]],
    environment: Mapping[str, str] = os.environ,
    inherited: C | None = None,
    preset: Mapping[str, Any] = types.MappingProxyType({}),
) -> C:
    """The settings of one section. flags: None means not given.

    inherited: replaces the defaults, such as the settings of a checkpoint. preset: values of this section by key.
    Raises UsageError naming the source of a value that the setting does not accept.
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


def read_toml(path: Path, configs: Sequence[type[Config]]) -> dict[str, dict[str, Any]]:
    """The sections of a settings file. Raises UsageError naming a section or key that no settings class has."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: not valid TOML: {error}") from None
    known = {config.section: {field.name for field in dataclasses.fields(config)} for config in configs}
    for section, keys in document.items():
        if section == "stage":  # the user's own stages, checked by core/stages.py
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
    """Raises UsageError for an unknown ANTPIPE_ variable (ANTPIPE_TEST_… belong to the test suite)."""
    known = set(ENVIRONMENT_ONLY)
    for config in configs:
        known |= {variable_name(config, field.name) for field in dataclasses.fields(config)}
    for name in environment:
        if name.startswith("ANTPIPE_") and not name.startswith("ANTPIPE_TEST_") and name not in known:
            raise UsageError(f"unknown environment variable {name}")

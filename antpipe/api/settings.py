"""How a function of the API gets its settings: keywords, environment, TOML file, preset, defaults."""

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from antpipe.errors import UsageError
from antpipe.settings.base import Config, variable_name
from antpipe.settings.presets import find_preset
from antpipe.settings.sections import CONFIGS
from antpipe.settings.sources import check_environment, read_toml, resolve
from antpipe.store.store import Store

C = TypeVar("C", bound=Config)
F = TypeVar("F", bound=Callable[..., Any])
TAKEN = "__settings__"  # attribute of a function that takes settings: their classes


def takes(*configs: type[Config]) -> Callable[[F], F]:
    """Declare which groups of settings a function takes as keywords.

    `help`, editors and the command line then see one keyword per setting; one that does not exist is refused by name.
    """
    fields = {field.name: field for config in configs for field in dataclasses.fields(config)}

    def decorate(function: F) -> F:
        declared = inspect.signature(function)
        own = [one for one in declared.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        named = {one.name for one in own}
        settings = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=field.type)
            for name, field in fields.items()
        ]

        @wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            for name in keywords:
                if name not in fields and name not in named:
                    known = ", ".join(sorted(fields))
                    raise UsageError(f"{function.__name__}: unknown setting {name!r}; known: {known}")
            return function(*arguments, **keywords)

        call.__signature__ = declared.replace(parameters=[*own, *settings])  # type: ignore[attr-defined]
        setattr(call, TAKEN, configs)
        return call  # type: ignore[return-value]

    return decorate


def settings_of(function: Callable[..., Any]) -> tuple[type[Config], ...]:
    """The groups of settings that a function takes (see takes)."""
    configs: tuple[type[Config], ...] = getattr(function, TAKEN, ())
    return configs


@dataclass(frozen=True)
class Given:
    """The settings one call was given, not yet resolved. toml: the sections of its settings file."""

    keywords: Mapping[str, Any]
    toml: Mapping[str, Mapping[str, Any]]
    preset: str | None = None

    def resolve(self, config: type[C], inherited: C | None = None, *, on_target: bool = True) -> C:
        """One group of settings: keyword > environment > TOML > preset > inherited > default.

        inherited: the settings of the run to start from. on_target: whether the stage trains on a target, for which a
        preset may have other settings than for pre-training. Raises UsageError for a value that is not allowed.
        """
        preset = find_preset(self.preset, on_target=on_target).get(config.section, {})
        return resolve(config, self.keywords, self.toml, inherited=inherited, preset=preset)

    def named(self, *configs: type[Config]) -> frozenset[str]:
        """The settings of these groups that a keyword, the environment or the TOML file gives."""
        return frozenset(
            field.name
            for config in configs
            for field in dataclasses.fields(config)
            if self.keywords.get(field.name) is not None
            or variable_name(config, field.name) in os.environ
            or field.name in self.toml.get(config.section, {})
        )

    def own_stages(self) -> Mapping[str, Any]:
        """The `[stage.NAME]` sections of the settings file."""
        return self.toml.get("stage", {})


def given(keywords: Mapping[str, Any], config: str | Path | None, preset: str | None = None) -> Given:
    """The settings of a call. config: a TOML file.

    Raises UsageError for a file that cannot be read, and for unknown sections, keys and ANTPIPE_ variables.
    """
    check_environment(CONFIGS)
    return Given(keywords, read_toml(Path(config), CONFIGS) if config is not None else {}, preset)


def store_of(store: "Store | str | Path") -> Store:
    """A store, or the store in a folder."""
    return store if isinstance(store, Store) else Store(store)


def default_store() -> Store:
    """The store of $ANTPIPE_STORE, else ./antpipe-store."""
    return Store(os.environ.get("ANTPIPE_STORE") or "antpipe-store")


def names_of(names: str | Sequence[str], flag: str = "--domains") -> list[str]:
    """`A,B` or [A, B] -> [A, B]. Empty and repeated names are refused."""
    parts = [part.strip() for part in (names.split(",") if isinstance(names, str) else names)]
    if not parts or not all(parts) or len(set(parts)) != len(parts):
        what = "run" if flag == "--from" else "domain"
        raise UsageError(f"{flag} {','.join(parts)}: give each {what} once, separated by commas")
    return parts

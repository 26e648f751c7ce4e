"""Errors that other settings would avoid, and how a stage adds the next command to them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from antpipe.errors import DataError
from antpipe.settings.base import Config, flags_of
from antpipe.store.next_command import spell


class SettingsError(DataError):
    """The settings do not fit the data. better: values that fit better, by the name of the setting."""

    def __init__(self, message: str, better: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.better = better


def flags_with(better: Mapping[str, Any], *configs: Config) -> list[str]:
    """The words of a command line that ask for these settings, some of them replaced by better ones.

    Entries of `map` replace those of the same role.
    """
    words = []
    for config in configs:
        own = {name: better[name] for name in better if name in {field.name for field in fields(config)}}
        if "map" in own:
            own["map"] = _replaced(vars(config)["map"], own["map"])
        words += flags_of(replace(config, **own))
    return words


def _replaced(entries: Sequence[str], better: Sequence[str]) -> tuple[str, ...]:
    """Entries ROLE=COLUMN of --map, some of them replaced or added."""

    def role(entry: str) -> str:
        return entry.partition("=")[0].strip()

    roles = {role(entry) for entry in better}
    return (*(entry for entry in entries if role(entry) not in roles), *better)


@contextmanager
def advised(stage: str, command: Callable[[Mapping[str, Any]], str]) -> Iterator[None]:
    """Give each DataError of this block a next command: the stage with better settings if it names some, or its help.

    stage: such as `ingest table`. command: spells it with better settings. An existing next command is kept.
    """
    try:
        yield
    except DataError as error:
        if isinstance(error, SettingsError):
            error.next_command = command(error.better)
        error.next_command = error.next_command or spell(stage, flags=["--help"])
        raise

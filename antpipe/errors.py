"""Errors that a user can meet, with their exit code and the command that helps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SameCommand:
    """The command that failed, with other flags: what to do next if that is all that has to change.

    flags: with their values (None: a switch), which replace those that were given. without: flags to leave out.
    """

    flags: Mapping[str, str | None] = field(default_factory=dict)
    without: tuple[str, ...] = ()

    def __str__(self) -> str:
        added = [flag if value is None else f"{flag} {value}" for flag, value in self.flags.items()]
        change = f"with {' '.join(added)}" if added else f"without {' '.join(self.without)}"
        return f"the same command {change}"


class AntpipeError(Exception):
    """Anything that antpipe refuses or cannot do. message: what and where. next_command: how to continue."""

    exit_code = 1

    def __init__(self, message: str, next_command: str | SameCommand | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.next_command = next_command


class UsageError(AntpipeError):
    """A flag, environment variable, TOML key or value is unknown or not allowed."""

    exit_code = 2


class DataError(AntpipeError):
    """Data is missing, malformed or does not fit the request."""

    exit_code = 3


class PartialError(AntpipeError):
    """The artefact was written, but it covers less of the catalogue than was asked for.

    results: of the other domains of the same call.
    """

    exit_code = 4

    def __init__(
        self, message: str, next_command: str | SameCommand | None = None, results: Sequence[Any] = ()
    ) -> None:
        super().__init__(message, next_command)
        self.results = results


class IntegrityError(AntpipeError):
    """Files contradict each other: edited, copied in part, or made for another catalogue."""

    exit_code = 5


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended long work. message: what is kept. next_command: how to continue."""

    def __init__(self, message: str, next_command: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.next_command = next_command


class DivergedError(AntpipeError):
    """The loss of a training is not finite."""

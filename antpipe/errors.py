"""Errors a user can meet. Each carries the exit code of the command line and the command that mends it."""


class AntpipeError(Exception):
    """Anything antpipe refuses or cannot do. `message` says what and where; `next_command` how to go on."""

    exit_code = 1

    def __init__(self, message: str, next_command: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.next_command = next_command


class UsageError(AntpipeError):
    """A flag, environment variable, TOML key or value that antpipe does not know."""

    exit_code = 2


class DataError(AntpipeError):
    """Data is missing, malformed or does not fit what was asked for."""

    exit_code = 3


class PartialError(AntpipeError):
    """The artefact was written, but it covers less of the catalogue than was asked for."""

    exit_code = 4


class IntegrityError(AntpipeError):
    """Files contradict each other: changed from outside, half copied, or of another catalogue."""

    exit_code = 5


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended long work: what is kept, and the command that continues it."""

    def __init__(self, message: str, next_command: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.next_command = next_command


class DivergedError(AntpipeError):
    """Training reached a loss that is not finite."""

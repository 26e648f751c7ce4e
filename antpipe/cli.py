"""The command line. `main` turns an AntpipeError into a message and an exit code."""

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from antpipe import __version__
from antpipe.commands import features, imports, ingest, judging, overview, training
from antpipe.commands.flags import app, notice
from antpipe.errors import AntpipeError, UsageError
from antpipe.runtime.process import tune_process
from antpipe.settings.base import check_environment
from antpipe.settings.sections import CONFIGS
from antpipe.training.parallel import leave, world_of

COMMANDS = (ingest, imports, features, training, judging, overview)  # loading them registers them, in this order
INTERRUPTED = 130  # 128 + SIGINT, as shells count


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"antpipe {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", help="show the version and exit", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """From raw reviews and a catalogue to a sequential recommender whose transfer is judged."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command line and leave with its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    tune_process()
    if world_of().rank and words[:1] != ["train"]:
        notice(f"{' '.join(words[:1])} runs in one process; this one has nothing to do")
        leave(0)
    try:
        check_environment(CONFIGS)
        code = app(words or ["--help"], standalone_mode=False) or 0
    except AntpipeError as error:
        code = error.exit_code
        fail(error.message, error.next_command or (help_command(words) if isinstance(error, UsageError) else None))
    except typer.TyperException as error:
        code = error.exit_code
        fail(error.format_message(), help_command(words))
    except KeyboardInterrupt:  # one that comes before Typer, which turns the others into this code itself
        code = INTERRUPTED
    except OSError as error:
        code = AntpipeError.exit_code
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), None)
    except Exception as error:  # a bug of antpipe or of a library: one line here, the traceback on demand
        code = AntpipeError.exit_code
        fail(f"unexpected {type(error).__name__}: {error}", f"ANTPIPE_DEBUG=1 {shlex.join(['antpipe', *words])}")
    if code == INTERRUPTED:
        notice("interrupted; what was complete is kept")
    leave(code)


def help_command(words: Sequence[str]) -> str:
    """The help of the command that the first words name, as far as there is one."""
    known, group = ["antpipe"], app
    for word in words:
        groups = {part.name: part.typer_instance for part in group.registered_groups}
        if word not in groups and word not in {part.name for part in group.registered_commands}:
            break
        known.append(word)
        group = groups.get(word) or typer.Typer()
    return " ".join([*known, "--help"])


def fail(message: str, next_command: str | None) -> None:
    """Tell on stderr, in one line, what is wrong, and in another how to go on."""
    if os.environ.get("ANTPIPE_DEBUG") == "1":
        traceback.print_exc()
    notice(f"error: {' '.join(message.splitlines())}")
    if next_command:
        notice(f"next: {next_command}")

"""The command line. `main` turns an AntpipeError into a message and an exit code."""

import atexit
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from antpipe import __version__
from antpipe.commands import exports, features, imports, ingest, judging, overview, reporting, training, upkeep, using
from antpipe.commands.flags import app
from antpipe.errors import AntpipeError, SameCommand, UsageError
from antpipe.runtime.disk import FULL, folder_of
from antpipe.runtime.logs import log
from antpipe.runtime.memory import is_out_of_memory, is_panic
from antpipe.runtime.process import tune_process
from antpipe.runtime.terminal import shown, shown_on_stderr, takes_any_text
from antpipe.runtime.words import command_line
from antpipe.settings.sections import CONFIGS
from antpipe.settings.sources import check_environment
from antpipe.store.next_command import shell
from antpipe.training.parallel import world_of

# Loading these modules registers their commands.
COMMANDS = (ingest, imports, features, training, judging, reporting, using, exports, overview, upkeep)
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
    """Build sequential recommenders that transfer between shops, and test whether the transfer helps."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command line and leave with its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    tune_process()
    takes_any_text()
    with shown_on_stderr():
        code = run(words)
    leave(code)


def run(words: list[str]) -> int:
    """Run a command line, report what went wrong, and return the exit code."""
    if world_of().rank and words[:1] != ["train"]:
        log.info(f"{' '.join(words[:1])} runs in one process; this one has nothing to do")
        return 0
    try:
        check_environment(CONFIGS)
        code = app(words or ["--help"], standalone_mode=False) or 0
    except AntpipeError as error:
        code = error.exit_code
        fail(error.message, next_command(error, words))
    except typer.TyperException as error:
        code = error.exit_code
        fail(error.format_message(), help_command(words))
    except KeyboardInterrupt:  # Ctrl-C before Typer runs; Typer itself turns later ones into this code
        code = INTERRUPTED
    except OSError as error:
        code = AntpipeError.exit_code
        room = shell("df", "-h", folder_of(error)) if error.errno in FULL else None
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), room)
    except BaseException as error:  # a bug of antpipe or of a library: one line here, the traceback on demand
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        code = AntpipeError.exit_code
        if is_out_of_memory(error):
            fail("not enough memory; what was complete is kept", "free -h")
        else:
            fail(f"unexpected {type(error).__name__}: {error}", f"ANTPIPE_DEBUG=1 {command_line(['antpipe', *words])}")
    if code == INTERRUPTED:
        log.error("interrupted; what was complete is kept")
    return code


def next_command(error: AntpipeError, words: Sequence[str]) -> str | None:
    """What to do after an error, as a command line."""
    if isinstance(error.next_command, SameCommand):
        return command_line(["antpipe", *changed(words, error.next_command)])
    return error.next_command or (help_command(words) if isinstance(error, UsageError) else None)


def changed(words: Sequence[str], change: SameCommand) -> list[str]:
    """The words of a command line with some of its flags changed."""
    kept: list[str] = []
    value_of_dropped = False
    for word in words:
        flag, given, _ = word.partition("=")
        if flag in change.flags or flag in change.without:
            value_of_dropped = not given
        elif word.startswith("--") or not value_of_dropped:
            kept.append(word)
            value_of_dropped = False
        else:
            value_of_dropped = False
    added = [part for flag, value in change.flags.items() for part in ((flag,) if value is None else (flag, value))]
    return [*kept, *added]


def help_command(words: Sequence[str]) -> str:
    """The command line that prints help for the longest known command that these words begin with."""
    known, group = ["antpipe"], app
    for word in words:
        groups = {part.name: part.typer_instance for part in group.registered_groups}
        if word not in groups and word not in {part.name for part in group.registered_commands}:
            break
        known.append(word)
        group = groups.get(word) or typer.Typer()
    return " ".join([*known, "--help"])


def fail(message: str, next_command: str | None) -> None:
    """Print to stderr what is wrong and, on a second line, how to continue."""
    if os.environ.get("ANTPIPE_DEBUG") == "1":
        traceback.print_exc()
    log.error(f"error: {shown(' '.join(message.splitlines()))}")
    if next_command:
        log.error(f"next: {shown(next_command, keep='')}")


def leave(code: int) -> NoReturn:
    """End the process with this exit code; one of several processes skips the teardown of the interpreter.

    A Gloo thread that releases its last tensor during the teardown aborts the process
    (https://github.com/pytorch/pytorch/pull/179291), and torchrun would take a finished training for a failed one.
    """
    if world_of().size == 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

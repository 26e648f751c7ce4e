"""Whether a command that antpipe proposes is one that it would take: its words are parsed, and nothing is run."""

import re
import shlex

import typer

from antpipe.cli import app

ROOT = typer.main.get_command(app)
# What the command lines of other programs begin with.
OTHERS = ("ANTPIPE_DEBUG=1 ", "rm ", "ls ", "df ", "head ", "file ", "gzip ", "curl ", "sleep ", "ray ", "torchrun ")
OTHERS += ("pip install ", "nvidia-smi", "python -c ", "cat ", "unzip ", "bzip2 ", "xz ", "zstd ", "iconv ", "free ")


def fault_of(line: str) -> str | None:
    """What is wrong with a proposed command line; None if it can be pasted."""
    if line.startswith(OTHERS):
        return None
    if not line.startswith("antpipe "):
        return f"{line!r} is not a command"
    words = shlex.split(re.sub(r"<\(.*\)", "settings.toml", line))[1:]  # a settings file that the shell writes
    command = ROOT
    while words[:1] not in (["--help"], ["--version"]) and hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            return f"{line!r}: no such command"
        command = command.commands[words.pop(0)]
    if words[-1:] not in (["--help"], ["--version"]):
        try:
            command.make_context(command.name, words)
        except typer.TyperException as error:
            return f"{line!r}: {error.format_message()}"
    return None

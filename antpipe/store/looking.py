"""Commands of other programs that show what is in a file, for messages to suggest."""

from pathlib import Path

from antpipe.store.next_command import shell

PROGRAMS = {".gz": "gzip -dc", ".bz2": "bzip2 -dc", ".xz": "xz -dc", ".zst": "zstd -dc", ".zip": "unzip -p"}


def unpacking(path: Path) -> str:
    """A command that prints a file, unpacked if its name says that it is packed."""
    return f"{PROGRAMS.get(path.suffix.lower(), 'cat')} {shell(path)}"


def unpacking_as(path: Path, suffix: str) -> str:
    """A command that prints a file unpacked; it is packed as this suffix says, whatever its own name is."""
    return f"{PROGRAMS[suffix]} {'' if suffix == '.zip' else '< '}{shell(path)}"


def first_lines(path: Path) -> str:
    """A command that shows how a text file, plain or packed, begins."""
    command = unpacking(path)
    return shell("head", "-n", "3", path) if command.startswith("cat") else f"{command} | head -n 3"

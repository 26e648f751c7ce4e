"""Commands of other programs that show what is in a file, for messages to propose."""

from pathlib import Path

from antpipe.store.next_command import shell


def unpacking(path: Path) -> str:
    """A command that prints a file, unpacked if its name says that it is packed."""
    programs = {".gz": "gzip -dc", ".bz2": "bzip2 -dc", ".xz": "xz -dc", ".zst": "zstd -dc", ".zip": "unzip -p"}
    return f"{programs.get(path.suffix.lower(), 'cat')} {shell(path)}"


def first_lines(path: Path) -> str:
    """A command that shows how a text file, plain or packed, begins."""
    command = unpacking(path)
    return shell("head", "-n", "3", path) if command.startswith("cat") else f"{command} | head -n 3"

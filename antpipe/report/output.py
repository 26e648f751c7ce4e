"""The file of a report or figure: whether it can be written is checked before any work begins."""

from collections.abc import Sequence
from pathlib import Path

from antpipe.errors import AntpipeError, SameCommand, UsageError
from antpipe.runtime.files import atomic
from antpipe.store.next_command import shell


def require_writable(out: Path, suffixes: Sequence[str], what: str, *, force: bool) -> None:
    """Raise UsageError or AntpipeError unless a file with a known suffix can be written here."""
    if out.suffix.lower() not in suffixes:
        raise UsageError(
            f"--out {out}: the name of a {what} ends in {' or '.join(suffixes)}",
            SameCommand({"--out": f"{out.with_suffix('') if out.suffix else out}{suffixes[0]}"}),
        )
    if out.is_dir():
        raise UsageError(f"--out {out}: is a folder", SameCommand({"--out": str(out / f"{what}{suffixes[0]}")}))
    if not out.parent.exists():
        raise UsageError(f"--out {out}: there is no folder {out.parent}", SameCommand({"--out": out.name}))
    if out.exists() and not force:
        raise UsageError(f"--out {out}: already exists; --force replaces it", SameCommand({"--force": None}))
    save(out.with_name(f".{out.name}.probe"), b"", keep=False)


def save(out: Path, content: bytes, *, keep: bool = True) -> None:
    """Write a file in one step. Raises AntpipeError with the reason if the disk refuses; an older file is untouched."""
    try:
        with atomic(out) as scratch:
            scratch.write_bytes(content)
        if not keep:
            out.unlink()
    except OSError as error:
        raise AntpipeError(
            f"{out.parent} cannot be written to: {error.strerror or error}", shell("ls", "-ld", out.parent)
        ) from None

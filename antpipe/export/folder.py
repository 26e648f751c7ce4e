"""The folder of an export: complete or absent, with export.json (for programs) and README.md (for people)."""

import glob
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from antpipe import __version__
from antpipe.errors import DataError, SameCommand
from antpipe.runtime.files import flush, flush_tree, is_abandoned, make_folder, naming, scratch_name, sweep
from antpipe.store.documents import write_json
from antpipe.store.files import file_facts
from antpipe.training.folder import another_folder

ABOUT = "export.json"
README = "README.md"
FORMAT = 1


@dataclass(frozen=True)
class Exported:
    """What an export wrote. about: the content of export.json: kind, files with sizes and hashes, and figures."""

    folder: Path
    about: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """vectors, faiss, onnx, recbole, unisrec or huggingface."""
        kind: str = self.about["kind"]
        return kind

    @property
    def figures(self) -> Mapping[str, Any]:
        """Sizes and checks, such as `items` and `users`."""
        figures: Mapping[str, Any] = self.about["figures"]
        return figures


@dataclass
class Draft:
    """An export while it is written. path: its scratch folder; figures, facts: what goes into export.json."""

    path: Path
    figures: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def text(self, name: str, content: str) -> None:
        """Write a text file."""
        with naming(self.path / name):
            (self.path / name).write_text(content, encoding="utf-8")

    def json(self, name: str, value: Any) -> None:
        """Write a JSON file for other programs, without a checksum."""
        write_json(self.path / name, value, sealed=False)

    def array(self, name: str, values: Any) -> None:
        """Write a .npy file."""
        import numpy as np

        np.save(self.path / name, values, allow_pickle=False)

    def about(self, kind: str) -> dict[str, Any]:
        """The content of export.json for what has been written so far."""
        files = sorted(path for path in self.path.rglob("*") if path.is_file())
        return {
            "format": FORMAT,
            "kind": kind,
            "antpipe": __version__,
            **self.facts,
            "figures": self.figures,
            "files": {path.relative_to(self.path).as_posix(): file_facts(path) for path in files},
        }


@contextmanager
def replacing(out: Path, *, force: bool, made_by: Sequence[str] = (ABOUT,)) -> Iterator[Path]:
    """A scratch folder beside `out` that becomes `out` at the end of the block; if it raises, `out` is as before.

    made_by: names of files; a folder may be replaced if it holds one of them. Raises DataError if `out` exists and is
    not empty, unless `force`; with it, only a folder that holds none of these files is refused.
    """
    make_folder(out.parent)
    _undo_killed(out)
    require_free(out, force=force, made_by=made_by)
    scratch, old = (out.with_name(f"{scratch_name(out.name)}{end}") for end in ("", ".old"))
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
        flush_tree(scratch)
        try:
            if out.exists():
                with suppress(OSError):
                    os.utime(out)  # other machines judge by its age whether it was left behind
                out.replace(old)
            scratch.replace(out)
        except BaseException:  # Ctrl-C too
            if old.exists() and not out.exists():
                old.replace(out)
            raise
        flush(out.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)


def _undo_killed(out: Path) -> None:
    """Restore an earlier export that a killed process had moved aside, and remove what else such processes left."""
    for earlier in sorted(out.parent.glob(f".{glob.escape(out.name)}.*.old")):
        if is_abandoned(earlier, out.name) and not out.exists():
            earlier.replace(out)
    sweep(out.parent, out.name)


def require_free(out: Path, *, force: bool, made_by: Sequence[str] = (ABOUT,)) -> None:
    """Raise DataError if `out` may not be written (see replacing)."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if (out.exists() or out.is_symlink()) and not (out.is_dir() and any((out / name).is_file() for name in made_by)):
        raise DataError(f"--out {out}: holds something else, which is not replaced", another_folder(out))
    if out.exists() and not force:
        raise DataError(f"--out {out}: already exists; --force replaces it", SameCommand({"--force": None}))


@contextmanager
def exporting(kind: str, out: Path, *, force: bool) -> Iterator[Draft]:
    """An export that is complete at `out` when the block ends."""
    with replacing(out, force=force) as scratch:
        draft = Draft(scratch)
        yield draft
        write_json(scratch / ABOUT, draft.about(kind))

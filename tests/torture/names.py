"""Names in folders, and what becomes of them when the power goes: those that were not flushed are lost.

A process notes which files and folders it makes, renames and removes, and which folders it flushes. Afterwards the
latest of the steps that no flush of their folder followed are undone, as many as is drawn.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

MADE, RENAMED, REMOVED, FOLDER_REMOVED = "made", "renamed", "removed", "folder removed"


@dataclass
class Step:
    """A change of names. path: of what was made, renamed or removed; to: its new name. before: a link to what had that
    name until then, '' if nothing had. flushed: whether the folder of the name that counts was flushed since."""

    kind: str
    path: str
    to: str = ""
    before: str = ""
    flushed: bool = False

    @property
    def folder(self) -> str:
        return str(Path(self.to or self.path).parent)

    def undo(self) -> None:
        """Put the names back to what they were; what is not there any more is not missed."""
        path = Path(self.path)
        if self.kind == MADE and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif self.kind == MADE:
            path.unlink(missing_ok=True)
        elif self.kind == FOLDER_REMOVED:
            path.mkdir(parents=True, exist_ok=True)
        elif self.kind == RENAMED and os.path.lexists(self.to):
            path.parent.mkdir(parents=True, exist_ok=True)
            Path(self.to).replace(path)
        if self.before and not os.path.lexists(self.to or path):
            Path(self.to or path).parent.mkdir(parents=True, exist_ok=True)
            os.link(self.before, self.to or path)


class Journal:
    """The steps of this process in a folder. kept: a folder beside it, for links to what is replaced or removed.

    Only what Python does is noted; native libraries write files under names that they do not change.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.kept = folder.with_name(f".kept-{folder.name}")
        self.steps: list[Step] = []

    @contextmanager
    def noting(self) -> Iterator[None]:
        self.kept.mkdir(exist_ok=True)
        before = {name: getattr(os, name) for name in ("rename", "replace", "unlink", "remove", "rmdir", "mkdir")}
        before["fsync"] = os.fsync
        for name in ("rename", "replace"):
            setattr(os, name, self._renaming(before[name]))
        for name in ("unlink", "remove"):
            setattr(os, name, self._removing(before[name], REMOVED))
        os.rmdir = self._removing(before["rmdir"], FOLDER_REMOVED)
        os.mkdir = self._making(before["mkdir"])
        os.fsync = self._flushing(before["fsync"])
        noting = True

        def hook(name: str, arguments: tuple[Any, ...]) -> None:
            if noting and name == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT:
                path = str(arguments[0])
                if self._inside(path) and not os.path.lexists(path):
                    self.steps.append(Step(MADE, path))

        sys.addaudithook(hook)
        try:
            yield
        finally:
            noting = False  # hooks cannot be removed
            for name, function in before.items():
                setattr(os, name, function)

    def written(self) -> str:
        return json.dumps([asdict(step) for step in self.steps])

    def _inside(self, path: str) -> bool:
        return path.startswith(f"{self.folder}/")

    def _link(self, path: str) -> str:
        """A second name for a file, so that it can come back; '' if it is none."""
        link = str(self.kept / str(len(list(self.kept.iterdir()))))
        try:
            os.link(path, link, follow_symlinks=False)
        except OSError:
            return ""
        return link

    def _renaming(self, function: Callable[..., None]) -> Callable[..., None]:
        def rename(source: Any, target: Any, **more: Any) -> None:
            inside = self._inside(os.fspath(target))
            before = self._link(os.fspath(target)) if inside else ""
            function(source, target, **more)
            if inside:
                self.steps.append(Step(RENAMED, os.fspath(source), os.fspath(target), before))

        return rename

    def _removing(self, function: Callable[..., None], kind: str) -> Callable[..., None]:
        def remove(path: Any, **more: Any) -> None:
            handle = more.get("dir_fd")  # as shutil.rmtree calls it
            full = os.fspath(path) if handle is None else str(named(handle) / os.fspath(path))
            inside = self._inside(full)
            before = self._link(full) if inside and kind == REMOVED else ""
            function(path, **more)
            if inside:
                self.steps.append(Step(kind, full, before=before))

        return remove

    def _making(self, function: Callable[..., None]) -> Callable[..., None]:
        def mkdir(path: Any, *more: Any, **others: Any) -> None:
            function(path, *more, **others)
            if self._inside(os.fspath(path)):
                self.steps.append(Step(MADE, os.fspath(path)))

        return mkdir

    def _flushing(self, function: Callable[[int], None]) -> Callable[[int], None]:
        def fsync(handle: int) -> None:
            function(handle)
            path = named(handle)
            for step in self.steps if path.is_dir() else ():
                step.flushed = step.flushed or step.folder == str(path)

        return fsync


def named(handle: int) -> Path:
    """The path of an open file or folder."""
    return Path(f"/proc/self/fd/{handle}").readlink()


def read_steps(text: str) -> list[Step]:
    return [Step(**one) for one in json.loads(text)]


def lose(steps: Sequence[Step], random: Random) -> int:
    """Undo the latest steps that were not flushed: none, all, or as many as is drawn. Returns how many."""
    loose = [step for step in steps if not step.flushed]
    many = random.choice([0, len(loose), random.randint(0, len(loose))])
    for step in reversed(loose[len(loose) - many :]):
        step.undo()
    return many

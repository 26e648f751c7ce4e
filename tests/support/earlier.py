"""A store, runs and shards that antpipe 0.1.0 made."""

import tarfile
from pathlib import Path

from tests.conftest import REPOSITORY


def unpack(folder: Path) -> Path:
    """The folder, with `store` and `runs` in it."""
    with tarfile.open(REPOSITORY / "tests" / "data" / "made-by-0.1.0.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder

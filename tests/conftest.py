"""Fixtures all tests share."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from antpipe.runtime.logs import log
from antpipe.runtime.process import tune_process

tune_process()  # as the command does, before any test imports torch

REPOSITORY = Path(__file__).parents[1]


def _beside(variable: str, folder: str) -> Path:
    """A data folder outside the repository: named by an environment variable, or shared/FOLDER next to it."""
    path = Path(os.environ.get(variable, REPOSITORY.parent / "shared" / folder))
    if not path.is_dir():
        pytest.skip(f"{folder} is not here: set {variable} to its folder")
    return path


@pytest.fixture(autouse=True, scope="session")
def no_settings_from_outside() -> None:
    """Tests start from the defaults, whatever the person who runs them has set."""
    for name in [name for name in os.environ if name.startswith("ANTPIPE_") and not name.startswith("ANTPIPE_TEST_")]:
        del os.environ[name]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Published data sets, as they can be downloaded (amazon2018/, tables/, images/ …)."""
    return _beside("ANTPIPE_TEST_DATA", "data")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Reference vectors of the authors' code."""
    return _beside("ANTPIPE_TEST_GOLDEN", "golden")


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What antpipe tells the user (its logger at INFO) during the test, one string per message."""
    told: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    handler, before = Collect(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield told
    log.removeHandler(handler)
    log.setLevel(before)

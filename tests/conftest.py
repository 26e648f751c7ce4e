"""Fixtures all tests share."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from antpipe.errors import AntpipeError
from antpipe.runtime.logs import log
from antpipe.runtime.process import tune_process
from tests.support.browser import Page, browsing, find_browser
from tests.support.next_commands import fault_of

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
    os.environ["ANTPIPE_WORDS"] = "1"  # results as on a terminal


@pytest.fixture(autouse=True, scope="session")
def nothing_waits_for_the_disk() -> Iterator[None]:
    """Flushes matter after a power cut, which no test makes, and took a tenth of the time. Tests of flushes put their
    own in place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


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


@pytest.fixture(autouse=True)
def proposed_commands(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every command that an error of the test proposes is one that antpipe takes."""
    proposed: list[str] = []
    original = AntpipeError.__init__

    def noting(self: AntpipeError, message: str, next_command: Any = None, *more: Any, **named: Any) -> None:
        original(self, message, next_command, *more, **named)
        if isinstance(next_command, str):
            proposed.append(next_command)

    monkeypatch.setattr(AntpipeError, "__init__", noting)
    yield proposed
    monkeypatch.undo()
    assert [fault for fault in map(fault_of, dict.fromkeys(proposed)) if fault] == []


@pytest.fixture(autouse=True)
def as_many_threads_as_before() -> Iterator[None]:
    """No test leaves torch with another number of threads: the last digits of the next one's training depend on it."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of headless Chromium, for all tests of pages."""
    program = find_browser()
    if program is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    with browsing(program, tmp_path_factory.mktemp("profile")) as page:
        yield page

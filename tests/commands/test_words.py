"""Results in words for people, as `name=value` for scripts."""

import pytest

from antpipe.commands.show import artefacts
from antpipe.store.artefacts import StageResult

RESULT = StageResult("Shop", "items", "built", {"users": 1, "items": 2, "interactions": 1654, "malformed": 0})


def test_words_are_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTPIPE_WORDS", "1")
    assert artefacts([RESULT]) == "Shop  items  built\n    1 user, 2 items, 1,654 interactions"


def test_what_is_piped_is_one_line_per_artefact_for_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTPIPE_WORDS")
    assert artefacts([RESULT]) == "Shop  items  built  users=1 items=2 interactions=1654 malformed=0"

"""How the command line shows progress."""

import io
import sys

import pytest

from antpipe.runtime import terminal
from antpipe.runtime.progress import silent
from antpipe.runtime.terminal import on_stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with on_stderr("Toys text") as update:
        update(2, 4, "5 texts/s")
    for part in ("Toys text", "2/4", "5 texts/s"):
        assert part in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_other_streams_get_a_line_now_and_then_and_the_last_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    with on_stderr("Toys text") as update:
        update(1, 4, "too early")
        now = terminal.QUIET_SECONDS
        update(2.5, 4)
        update(4, 4, "done")
    assert capsys.readouterr() == ("", "Toys text: 2/4\nToys text: 4/4 done\n")


def test_silence_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with silent("Toys text") as update:
        update(4, 4, "done")
    assert capsys.readouterr() == ("", "")

"""The help: what it lists, in which order and panels, and that its examples are command lines that parse."""

import re
import shlex

import pytest

from antpipe.cli import app
from antpipe.commands.flags import PIPELINE
from antpipe.core.stages import STAGES
from tests.support.commands import names_of, run

COMMANDS = sorted(names_of(app))
BORDERS = "│╭╮╰╯─"


def help_of(*words: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    outcome = run(*words, "--help")
    assert outcome.code == 0, outcome.err
    return outcome.out.splitlines()


def panels(lines: list[str]) -> dict[str, list[str]]:
    """The first word of each entry, by panel."""
    found: dict[str, list[str]] = {}
    entries: list[str] = []
    for line in lines:
        if title := re.match(r"╭─ (.+?) ─", line):
            entries = found.setdefault(title[1], [])
        elif word := re.match(r"│ [* ]*(-?-?[a-z][\w-]*)", line):
            entries.append(word[1])
    return found


def test_commands_are_listed_in_the_order_of_the_pipeline_in_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = panels(help_of(columns=80, monkeypatch=monkeypatch))
    assert list(shown)[1:] == ["Data", "Features", "Training", "Judging", "Using"]
    for names in list(shown.values())[1:]:
        assert names == sorted(names, key=PIPELINE.index)
    assert {name for names in list(shown.values())[1:] for name in names} == set(PIPELINE)


@pytest.mark.parametrize("columns", [80, 120])
def test_every_summary_is_whole_on_one_line(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = help_of(columns=columns, monkeypatch=monkeypatch)
    assert not any("…" in line for line in lines)
    summaries = {command.name: command.callback.__doc__ for command in app.registered_commands if command.callback}
    for name, summary in summaries.items():
        assert any(name in line and str(summary).splitlines()[0] in line for line in lines), name


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_is_as_wide_as_the_terminal(command: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = help_of(*command.split(), columns=columns, monkeypatch=monkeypatch)
    assert max(map(len, lines)) == columns


@pytest.mark.parametrize("command", COMMANDS)
def test_short_and_long_help_are_the_same(command: str) -> None:
    assert run(*command.split(), "-h").out == run(*command.split(), "--help").out


def test_flags_of_train_are_in_panels_with_the_most_used_first(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = panels(help_of("train", columns=120, monkeypatch=monkeypatch))
    assert next(iter(shown)) == "Options"
    assert shown["Options"][:5] == ["--stage", "--domains", "--out", "--from", "--epochs"]
    assert {"Input", "Model", "Optimisation", "Run", "Output"} <= set(shown)


def test_the_flag_for_stages_names_auto_too(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(" ".join(help_of("train", columns=200, monkeypatch=monkeypatch)).split())
    for stage in ("pretrain", "scratch", "finetune", "relearn", "floor", "auto"):
        assert stage in text.partition("--stage")[2][:200]
        assert stage == "auto" or stage in STAGES


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_a_command_parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line.strip() for line in help_of(*command.split(), columns=200, monkeypatch=monkeypatch)]
    examples = [line for line in lines if line.startswith("antpipe ")]
    assert examples
    for example in examples:
        outcome = run(*shlex.split(example)[1:], "--help")
        assert outcome.code == 0, outcome.err

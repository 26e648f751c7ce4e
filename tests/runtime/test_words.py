"""Texts of strangers do nothing to a terminal, and commands that hold them still work when they are pasted."""

import json
import subprocess
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antpipe.runtime.terminal import cell, shown
from antpipe.runtime.words import command_line


def test_control_bidirectional_and_escape_characters_are_spelt_out() -> None:
    assert shown("a\x1b[2Jb\u202ec\x9b\udc80\u2028") == "a\\u001b[2Jb\\u202ec\\u009b\\udc80\\u2028"


def test_letters_of_all_scripts_and_joined_emoji_stay() -> None:
    text = "naïve 日本語 ‌می‌خواهم 👩\u200d🚀 ₽ ½"
    assert shown(text) == text


def test_a_cell_stays_on_its_line() -> None:
    assert cell("one\ntwo\tthree") == "one\\u000atwo\\u0009three"
    assert shown("one\ntwo") == "one\ntwo"


@given(st.text())
def test_nothing_hidden_is_left(text: str) -> None:
    left = {unicodedata.category(one) for one in cell(text) if one not in "\u200c\u200d"}
    assert not left & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"\\')))
def test_escapes_are_those_of_json(text: str) -> None:
    assert json.loads(f'"{cell(text)}"') == text


@pytest.mark.parametrize("word", ["a b", "it's", "\x1b]0;x\x07", "tab\t'quote' \\ \n", "ü\u202e$HOME `id`"])
def test_a_pasted_command_gives_the_shell_the_same_word(word: str) -> None:
    line = command_line(["printf", "%s", word])
    assert not any(unicodedata.category(one) in ("Cc", "Cf") for one in line)
    assert subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout.decode() == word

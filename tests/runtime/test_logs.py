"""Messages: what the command line shows on stderr, and what is dropped."""

import logging

import pytest

from antpipe.runtime.logs import each_message_once, log, silenced
from antpipe.runtime.terminal import shown_on_stderr


def test_messages_are_shown_on_stderr_with_the_name_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_on_stderr():
        log.info("two shops")
        log.warning("they overlap")
    assert capsys.readouterr() == ("", "antpipe: two shops\nantpipe: warning: they overlap\n")


def test_a_logger_is_left_as_it_was_once_messages_are_no_longer_shown(capsys: pytest.CaptureFixture[str]) -> None:
    before = (log.level, log.propagate, list(log.handlers))
    with pytest.raises(ValueError, match="bad"), shown_on_stderr():
        raise ValueError("bad")
    assert (log.level, log.propagate, list(log.handlers)) == before
    log.info("nobody listens")
    assert capsys.readouterr().err == ""


def test_a_python_user_sees_messages_by_a_handler_of_the_named_logger(messages: list[str]) -> None:
    logging.getLogger("antpipe").info("two shops")
    assert messages == ["two shops"]


def test_a_repeated_message_is_dropped_within_the_block_only(messages: list[str]) -> None:
    with each_message_once():
        for seed in (0, 0, 1):
            log.info("seed %s", seed)
    log.info("seed 0")
    assert messages == ["seed 0", "seed 1", "seed 0"]


def test_a_message_of_the_outer_block_is_not_repeated_by_an_inner_one(messages: list[str]) -> None:
    with each_message_once():
        log.info("first")
        with each_message_once():
            log.info("first")
            log.info("second")
        log.info("second")
    assert messages == ["first", "second"]


def test_nothing_is_told_while_messages_are_silenced(messages: list[str]) -> None:
    with silenced():
        log.warning("unheard")
    log.info("heard")
    assert messages == ["heard"]


def test_a_silenced_message_does_not_count_as_told(messages: list[str]) -> None:
    with each_message_once():
        with silenced():
            log.info("a fact")
        log.info("a fact")
    assert messages == ["a fact"]

"""Ctrl-C, and how threads take turns."""

import signal
import sys
import threading

import pytest

from antpipe.errors import Interrupted
from antpipe.runtime.process import continued_by, stopping
from antpipe.runtime.threads import SHORT_TURN, short_turns


def test_the_first_ctrl_c_is_noted_and_the_second_one_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stopping() as pressed:
        assert not pressed()
        signal.raise_signal(signal.SIGINT)
        assert pressed()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_another_thread_leaves_ctrl_c_to_the_main_thread() -> None:
    seen: list[bool] = []

    def work() -> None:
        with stopping() as pressed:
            seen.append(pressed())

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert seen == [False]
    assert signal.getsignal(signal.SIGINT) == before


def test_turns_are_short_within_the_block_only() -> None:
    before = sys.getswitchinterval()
    with short_turns():
        assert sys.getswitchinterval() == pytest.approx(SHORT_TURN)
    assert sys.getswitchinterval() == before


def test_ctrl_c_in_a_part_proposes_to_continue_the_whole() -> None:
    with pytest.raises(Interrupted) as stopped, continued_by("antpipe compare --resume"):
        raise Interrupted("after 3 of 9 epochs", "antpipe train --resume")
    assert (stopped.value.message, stopped.value.next_command) == ("after 3 of 9 epochs", "antpipe compare --resume")
    with pytest.raises(Interrupted, match="interrupted") as stopped, continued_by("antpipe compare --resume"):
        raise KeyboardInterrupt
    assert stopped.value.next_command == "antpipe compare --resume"

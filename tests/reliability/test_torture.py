"""The short form of `make torture`: a few trials of each kind; and what makes the long form's counts true."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="pip install 'antpipe[serve]'")
pytest.importorskip("resource", reason="needs limits of a process")
if sys.platform != "linux":
    pytest.skip("forks of a process that has loaded torch: Linux alone", allow_module_level=True)
from antpipe.runtime.files import flush
from tests.conftest import REPOSITORY
from tests.torture import mutations
from tests.torture.accidents import facts_in, tear
from tests.torture.commands import Ending
from tests.torture.corruption import damage, silently_wrong
from tests.torture.ledger import BEGIN, END, Ledger, Line, counted_in, rewrite, table
from tests.torture.names import MADE, RENAMED, Journal, lose, read_steps
from tests.torture.run import KINDS, available, schedule
from tests.torture.trial import CRASHED, HUNG, REFUSED, SILENT, UNEXPECTED, WHOLE, Forked, Found, Kind, Place, tried

SEED = 0
EACH = 1  # trials per kind
MORE = ("power-cut", "damaged-file")  # and these once more


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """The ledger after one trial of each kind, and a few more."""
    folder = tmp_path_factory.mktemp("torture")
    kinds = [*available(KINDS), *MORE]
    words = [sys.executable, "-W", "ignore", "-m", "tests.torture", str(folder), "--seed", str(SEED)]
    words += ["--kinds", ",".join(kinds), "--trials", str(EACH * len(kinds))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return Ledger(folder / "ledger.jsonl")


@pytest.mark.slow
def test_one_trial_of_each_kind_loses_nothing_and_hides_nothing(ledger: Ledger) -> None:
    lines = ledger.lines()
    assert {line.kind for line in lines} == set(available(KINDS))
    assert [line for line in lines if line.failed] == []


@pytest.mark.slow
def test_nothing_is_left_of_trials_that_did_not_fail(ledger: Ledger) -> None:
    assert list((ledger.path.parent / "trials").iterdir()) == []


# -- counts -----------------------------------------------------------------------------------------------------------


def line(number: int, kind: str = "kill", outcome: str = WHOLE, inputs: int = 1) -> Line:
    return Line(kind, f"a {kind}", 0, number, "x", outcome, inputs, 30.0)


def test_the_table_counts_trials_inputs_and_outcomes_by_kind() -> None:
    lines = [line(0), line(1, outcome=REFUSED), line(2, "rows", inputs=2000), line(3, outcome=SILENT)]
    assert table(lines)[2:] == [
        "| a kill | 3 | 3 | 1 | 1 | 1 | 1.5 |",
        "| a rows | 1 | 2,000 | 1 | 0 | 0 | 0.5 |",
        "| **all** | 4 | 2,003 | 2 | 1 | 1 | 2.0 |",
    ]


def test_a_table_is_written_between_its_markers_and_read_back(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    rewrite(page, [line(0), line(1, "rows", REFUSED, 1500)])
    text = page.read_text()
    assert (text[:8], text[-8:], "old" in text) == ("before\n\n", "\n\nafter\n", False)
    assert counted_in(page) == [2, 1501, 1, 1, 0]


def test_a_ledger_that_was_cut_short_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    ledger.add(line(0))
    ledger.add(line(1))
    ledger.path.write_bytes(ledger.path.read_bytes()[:-9])
    assert ledger.done(0) == {("kill", 0)}
    ledger.add(line(1))
    assert ledger.done(0) == {("kill", 0), ("kill", 1)}
    assert ledger.done(1) == set()


def test_a_trial_that_failed_is_repeated_and_counts_once(tmp_path: Path) -> None:
    ledger, page = Ledger(tmp_path / "l"), tmp_path / "page.md"
    ledger.add(line(0, outcome=SILENT))
    assert ledger.done(0) == set()
    ledger.add(line(0))
    assert ledger.done(0) == {("kill", 0)}
    page.write_text(f"{BEGIN}\n{END}\n")
    rewrite(page, ledger.lines())
    assert "1 of these trials failed at first." in page.read_text()
    assert counted_in(page) == [1, 1, 1, 0, 0]


def test_a_seed_draws_the_same_trials_however_often_it_is_asked() -> None:
    first, second = list(schedule(3, (), 50)), list(schedule(3, (), 80))
    assert first == second[:50]
    assert len({kind for kind, _ in second}) > 10
    assert list(schedule(3, ("kill", "rows"), 3)) == [("kill", 0), ("rows", 1), ("kill", 2)]


# -- what counts as a failure -----------------------------------------------------------------------------------------


def outcome_of(trial: object, folder: Path) -> str:
    return tried(Kind("x", 1, trial), Place(folder, folder / "trial"), Random(0)).outcome  # type: ignore[arg-type]


def test_errors_and_deaths_of_a_trial_are_failures_and_its_folder_stays(tmp_path: Path) -> None:
    assert outcome_of(lambda *_: 1 / 0, tmp_path) == UNEXPECTED
    assert (tmp_path / "trial").is_dir()
    assert outcome_of(lambda *_: os.kill(os.getpid(), 9), tmp_path / "b") == CRASHED
    assert outcome_of(lambda *_: Found(WHOLE, "x"), tmp_path / "c") == WHOLE
    assert list((tmp_path / "c").iterdir()) == []


def test_work_that_does_not_end_is_killed_with_all_that_it_started() -> None:
    ended = Forked(lambda: Forked(lambda: time.sleep(60)).end()).end(seconds=0.3)
    assert (ended.hung, ended.code) == (True, -9)
    assert HUNG == "hung"


@pytest.mark.parametrize(
    ("said", "code", "fault"),
    [
        ("antpipe: error: x", 3, False),
        ("antpipe: error: unexpected KeyError", 1, True),
        ("Traceback (most recent call last)", 1, True),
        ("", 139, True),
        ("antpipe: error: x\nantpipe: next: antpipe stats", 3, False),
        ("antpipe: error: x\nantpipe: next: antpipe evaluate --run r", 5, True),
        ("antpipe: error: x\nantpipe: next: antpipe no-such-command", 3, True),
    ],
)
def test_an_unexpected_error_an_odd_exit_code_and_a_wrong_next_command_are_faults(
    said: str, code: int, fault: bool
) -> None:
    assert bool(Ending(code, said, "", "").fault()) is fault


def test_a_used_damage_is_told_from_a_refused_one() -> None:
    right, name = Ending(0, "", "1", ""), Path("s/A/text.arrow")
    assert silently_wrong(Ending(5, "s/A/text.arrow: its content", "", ""), right, name) == ""
    assert silently_wrong(right, right, name) == ""
    assert silently_wrong(Ending(0, "", "2", ""), right, name)
    assert silently_wrong(Ending(5, "another file", "", ""), right, name)


def test_every_damage_changes_a_file(tmp_path: Path) -> None:
    path, random = tmp_path / "f", Random(0)
    for _ in range(200):
        path.write_bytes(bytes(20))
        damage(tmp_path, Path("f"), random)
        assert path.read_bytes() != bytes(20)


def test_a_power_cut_tears_only_what_was_not_flushed(tmp_path: Path) -> None:
    (tmp_path / "flushed").write_bytes(b"x" * 100)
    safe = facts_in(tmp_path)
    (tmp_path / "new").write_bytes(b"y" * 100)
    random, seen = Random(1), set()
    for _ in range(20):
        assert tear(tmp_path, safe, random) == 1
        seen.add((tmp_path / "new").read_bytes())
        (tmp_path / "new").write_bytes(b"y" * 100)
    assert (tmp_path / "flushed").read_bytes() == b"x" * 100
    assert bytes(100) in seen
    assert len(seen) > 5


class AllOfIt(Random):
    """Draws the greatest loss."""

    def choice(self, several: Sequence[Any]) -> Any:
        return max(several)


def test_a_power_cut_undoes_names_that_were_not_flushed_and_keeps_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    (folder / "old").mkdir(parents=True)
    (folder / "a").write_text("first")
    (folder / "old" / "x").write_text("x")
    journal = Journal(folder)
    with journal.noting():
        (folder / "kept").write_text("flushed")
        flush(folder)
        (folder / "b").write_text("second")
        (folder / "b").replace(folder / "a")
        (folder / "new").mkdir()
        (folder / "new" / "y").write_text("y")
        shutil.rmtree(folder / "old")
    steps = read_steps(journal.written())
    assert {(step.kind, Path(step.path).name, step.flushed) for step in steps} >= {
        (MADE, "kept", True),
        (RENAMED, "b", False),
        (MADE, "new", False),
    }
    assert lose(steps, AllOfIt()) == sum(not step.flushed for step in steps)
    assert sorted(path.name for path in folder.rglob("*")) == ["a", "kept", "old", "x"]
    assert ((folder / "a").read_text(), (folder / "old" / "x").read_text()) == ("first", "x")


def test_mutants_of_a_seed_are_the_same_and_hardly_any_is_unchanged() -> None:
    made = [mutations.mutants([b"some bytes, and more"], Random(5), 500) for _ in range(2)]
    assert made[0] == made[1]
    assert made[0].count(b"some bytes, and more") < 50


def test_the_ledger_of_a_trial_is_one_line_of_json(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    ledger.add(line(0))
    assert set(json.loads(ledger.path.read_text())) >= {"kind", "seed", "number", "command", "outcome", "seconds"}

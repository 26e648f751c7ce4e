"""A store as a state machine: writers that end well or badly, damage, and readers that see one of the versions."""

import os
import shutil
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from antpipe.errors import AntpipeError
from tests.torture.accidents import cut_power, ended_at, facts_in, full_at, killed_at, unpowered_at, unpowered_facts
from tests.torture.corruption import damage
from tests.torture.trial import LOST, UNEXPECTED, WHOLE, Forked, Found, Place, copied
from tests.torture.works import Work, written_by
from tests.torture.writers import WRITERS

NAMES = st.sampled_from(list(WRITERS))
WHEN = st.floats(0, 1)
LONGEST = 70  # operations of a writer, about
# Whose files can be damaged without hitting another one's.
FILES = {"price": ("s/A/price.arrow",), "run": ("r/checkpoint.json",), "document": ("r/x.json",)}
STEPS = 16  # per trial, at most
REFUSED_NOW = -1  # what a reader finds that is refused


class StoreMachine(RuleBasedStateMachine):
    """known: the versions that each artefact may have now. Everything happens in forks of one clean process."""

    template: Path
    scratch: Path

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=self.scratch))
        copied(self.template, self.folder / "f")
        self.known = {name: {1} for name in WRITERS}
        self.last = 1

    @property
    def place(self) -> Path:
        return self.folder / "f"

    def next_version(self) -> int:
        self.last += 1
        return self.last

    def written(self, name: str, *, surely: bool) -> None:
        """Note a new version; surely: it is there, and not perhaps."""
        self.known[name] = {self.last} if surely else self.known[name] | {self.last}
        if name == "items":  # features belong to the items they were made for
            self.known["price"] |= {REFUSED_NOW}

    @rule(name=NAMES)
    def write(self, name: str) -> None:
        version = self.next_version()
        ended = Forked(lambda: written_by(name).do(self.place, version)).end()
        assert not ended.wrong, ended.wrong
        assert ended.value == "", f"{name} cannot be written: {ended.value}"
        self.written(name, surely=True)

    @rule(name=NAMES, when=WHEN)
    def kill(self, name: str, when: float) -> None:
        self._disturb(killed_at, name, when)

    @rule(name=NAMES, when=WHEN)
    def fill_the_disk(self, name: str, when: float) -> None:
        self._disturb(full_at, name, when)

    @rule(name=NAMES, when=WHEN, random=st.integers(0, 10**6))
    def cut_the_power(self, name: str, when: float, random: int) -> None:
        before = facts_in(self.place)
        self._disturb(unpowered_at, name, when)
        if (flushed := unpowered_facts(self.place)) is not None:
            cut_power(self.place, before, flushed, Random(random))

    def _disturb(self, how: Any, name: str, when: float) -> None:
        version, write = self.next_version(), WRITERS[name][0]
        work = Work(name, "", lambda folder, _: write_as(write, folder, version), *2 * [lambda _: None])
        ended = ended_at(how, work, self.place, 1 + int(when * LONGEST))
        assert not ended.wrong or "Counted: " in ended.wrong, ended.wrong
        self.written(name, surely="Counted: " in ended.wrong)

    @rule(name=st.sampled_from(list(FILES)), random=st.integers(0, 10**6))
    def damage(self, name: str, random: int) -> None:
        draw = Random(random)
        file = Path(draw.choice(FILES[name]))
        if (self.place / file).exists():
            damage(self.place, file, draw)
            self.known[name] |= {REFUSED_NOW}

    @invariant()
    def every_reader_sees_a_version_that_was_written(self) -> None:
        if not hasattr(self, "folder"):
            return
        ended = Forked(lambda: {name: seen(self.place, name) for name in WRITERS}).end()
        assert not ended.wrong, ended.wrong
        for name, version in ended.value.items():
            assert version in self.known[name], f"{name} is {version} and not one of {self.known[name]}"
            if version != REFUSED_NOW:
                self.known[name] = {version}

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


def write_as(write: Any, folder: Path, version: int) -> str:
    try:
        write(folder, version)
    except (OSError, AntpipeError) as error:
        return str(error)
    return ""


def seen(folder: Path, name: str) -> int:
    """The version a reader finds."""
    try:
        return WRITERS[name][1](folder)
    except AntpipeError:
        return REFUSED_NOW


def store_machine(place: Place, random: Random) -> Found:
    """A trial: a few sequences of steps; hypothesis shortens one that fails."""
    drawn = random.randrange(10**9)
    machine = type("Machine", (StoreMachine,), {"template": place.whole / "artefacts", "scratch": place.scratch})
    examples = settings(
        max_examples=2,
        stateful_step_count=8,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(place.scratch / "hypothesis")
    try:
        run_state_machine_as_test(seed(drawn)(machine), settings=examples)
    except AssertionError as error:
        return Found(LOST, f"store machine, seed {drawn}", str(error)[:2500], STEPS)
    except Exception as error:
        return Found(UNEXPECTED, f"store machine, seed {drawn}", f"{type(error).__name__}: {error}"[:2500], STEPS)
    return Found(WHOLE, f"store machine, seed {drawn}", "", STEPS)

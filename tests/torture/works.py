"""What is disturbed while it writes: writers of single artefacts, and whole commands; and what must hold afterwards."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from antpipe.errors import AntpipeError
from antpipe.features.status import status
from antpipe.store.store import Store
from tests.torture.commands import COMMANDS, Ending, contents, ending_of, made_in, right_ending
from tests.torture.trial import REFUSED, UNEXPECTED, WHOLE, Found, Place, copied
from tests.torture.writers import WRITERS, look

WRITING = ("train", "relearn", "evaluate", "recommend-all", "whiten", "subset", "build-sequences", "quantize-price")
WRITING += ("export", "ingest", "resume", "embed-text", "continue", "compare-on")
THERE = ("is there", "holds another", "is finished")  # what a command says that finds its own result


class LostError(Exception):
    """Something that was complete is not there any more, or a result is another one."""


@dataclass(frozen=True)
class Work:
    """template: it is done in a copy of this folder. do: does it (number: in which version, from 2), and returns what
    it refused with. check: raises LostError or AssertionError unless all is whole, now and after the next writer. done:
    raises one of them unless its result is there."""

    name: str
    template: str
    do: Callable[[Path, int], str]
    check: Callable[[Path], None]
    done: Callable[[Path], None]

    def copy(self, place: Place, name: str = "copy") -> Path:
        return copied(place.whole / self.template, place.scratch / name)


def works(place: Place) -> list[Work]:
    """All of them. The most often drawn are the commands, which write more."""
    return [written_by(name) for name in WRITERS] + [command(name, place) for name in WRITING]


def written_by(name: str) -> Work:
    write, now = WRITERS[name]

    def do(folder: Path, version: int) -> str:
        try:
            write(folder, version)
        except (OSError, AntpipeError) as error:
            return str(error)
        return ""

    def done(folder: Path) -> None:
        assert now(folder) == 2

    return Work(name, "artefacts", do, lambda folder: look(folder, now, write), done)


def command(name: str, place: Place) -> Work:
    def do(folder: Path, _: int) -> str:
        ending = ending_of(name, folder)
        if fault := ending.fault():
            raise AssertionError(fault)
        return "" if ending.code == 0 else ending.said

    def done(folder: Path) -> None:
        right, made = right_ending(name, place.whole).made, json.dumps(made_in(folder), sort_keys=True)
        if made != right:
            raise LostError(f"it said that it was done, and now there is {made} and not {right}")
        require_whole(folder, place.whole / COMMANDS[name].template)

    return Work(name, COMMANDS[name].template, do, lambda folder: check_command(name, folder, place), done)


def check_command(name: str, folder: Path, place: Place) -> None:
    """Nothing in the store is damaged, all that was there is there, and the same command now ends as it always does."""
    right, template = right_ending(name, place.whole), place.whole / COMMANDS[name].template
    before, now = contents(template), contents(folder)
    ours = json.loads(right.made)[0]
    for artefact, files in before.items():
        if now.get(artefact) not in (files, ours.get(artefact)):
            raise LostError(f"{artefact} is neither as it was nor as it was to be")
    require_whole(folder, template)
    require_right(ending_of(name, folder), right, "the next time")


def require_whole(folder: Path, template: Path) -> None:
    """Raise LostError for an artefact that is stale and was not in the template."""
    for store in folder.glob("[se]"):
        before = stale_in(Store(template / store.name), verify=False)
        for artefact, why in stale_in(Store(store), verify=True).items():
            if artefact not in before and (template / store.name / artefact.partition("/")[0]).exists():
                raise LostError(f"{artefact}: {why}")


def stale_in(store: Store, *, verify: bool) -> dict[str, str]:
    """The artefacts of a store that are stale, and why."""
    return {
        f"{domain}/{state.artefact}": state.why
        for domain, states in status(store, verify=verify).items()
        for state in states
        if state.status == "stale"
    }


def require_right(found: Ending, right: Ending, when: str) -> None:
    """A command ended as it does if nothing happens, or says that its result is there, and it is the right one."""
    if fault := found.fault():
        raise AssertionError(fault)
    if found.code != 0 and not any(word in found.said for word in THERE):
        raise LostError(f"{when}, it ends with {found.code}: {found.said}")
    if found.made != right.made:
        raise LostError(f"{when}, its result is another one: {found.made} and not {right.made}")


def measured(work: Work, place: Place, what: str, measure: Callable[[], int]) -> int:
    """How many operations or milliseconds a work takes; measured once and remembered."""
    path = place.whole / f"{work.name}.{what}"
    if not path.exists():
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text(str(measure()))
        part.replace(path)
    return int(path.read_text())


def outcome(said: str) -> str:
    """Of a command that ran to its end, by what it refused with."""
    return REFUSED if said else WHOLE


def unexpected(what: str, wrong: str) -> Found:
    return Found(UNEXPECTED, what, wrong)

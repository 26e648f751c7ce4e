"""One flipped bit anywhere in a store or a run is refused by name, or changes nothing."""

import random
import shutil
from pathlib import Path

import pytest

from tests.support.flips import CONSUMERS, Ending, ending_of, files_of, flipped, silently_wrong, small_store

SEED = 7
OFTEN = ("evaluate", "recommend", "train")  # each file is tried with these, and with one of the others


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    small_store(folder)
    return folder


def ended(command: str, whole: Path, folder: Path, name: Path | None, draw: random.Random) -> tuple[Ending, str]:
    shutil.copytree(whole, folder)
    what = flipped(folder, name, draw) if name else ""
    found = ending_of(command, folder)
    shutil.rmtree(folder)
    return found, what


@pytest.mark.slow
def test_no_flipped_bit_is_used_in_silence(whole: Path, tmp_path: Path) -> None:
    draw, folder = random.Random(SEED), tmp_path / "copy"
    right = {command: ended(command, whole, folder, None, draw)[0] for command in CONSUMERS}
    assert {command for command, found in right.items() if found.code != 0} == set()
    others = [command for command in CONSUMERS if command not in OFTEN]
    wrong, refused = [], 0
    for number, name in enumerate(files_of(whole)):
        for command in (OFTEN[number % len(OFTEN)], others[number % len(others)]):
            found, what = ended(command, whole, folder, name, draw)
            refused += found.code == 5
            wrong += [f"{command}: {what}: {why}"] if (why := silently_wrong(found, right[command], name)) else []
    assert wrong == []
    assert refused > len(files_of(whole)) // 2


def test_the_test_tells_a_used_flip_from_a_refused_one() -> None:
    right, name = Ending(0, "", "1"), Path("s/A/text.arrow")
    assert silently_wrong(Ending(5, "s/A/text.arrow: its content", ""), right, name) == ""
    assert silently_wrong(Ending(0, "", "1"), right, name) == ""
    assert silently_wrong(Ending(0, "", "2"), right, name)
    assert silently_wrong(Ending(5, "another file", ""), right, name)
    assert silently_wrong(Ending(1, "unexpected KeyError", ""), right, name)

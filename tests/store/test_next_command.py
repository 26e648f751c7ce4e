"""The commands that messages propose: they repeat what an artefact was last built with, and can be pasted."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from antpipe.store.artefacts import ARTEFACTS
from antpipe.store.next_command import build_command, build_command_with, spell, supply_command, with_flag
from tests.support.commands import run


@dataclass(frozen=True)
class Shop:
    """A domain, as far as commands know it."""

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    root: Path = Path("my store")
    name: str = "A"

    def manifest(self) -> dict[str, dict[str, Any]]:
        return self.entries


ITEMS = {"parameters": {"format": "table"}, "flags": ["--items", "a b.csv"], "stage": "ingest"}


def test_words_that_a_shell_would_split_are_quoted() -> None:
    command = spell("embed-text", domains=["A", "B"], store=Path("my store"), flags=["--prefix", "a b"])
    assert command == "antpipe embed-text --domains A,B --store 'my store' --prefix 'a b'"
    assert with_flag(command, "--prompt", "c d") == f"{command} --prompt 'c d'"


def test_an_artefact_is_built_again_with_its_settings_and_the_domains_it_was_built_with() -> None:
    entry = {"stage": "embed-text", "flags": ["--encoder", "my encoder"], "domains": ["A", "B"]}
    shop = Shop({"items": ITEMS, "text": entry})
    common = "antpipe embed-text --domains A,B --store 'my store'"
    assert build_command(shop, "text") == f"{common} --encoder 'my encoder'"
    assert build_command(shop, "text", force=True) == f"{common} --encoder 'my encoder' --force"
    assert build_command(shop, "text", flags=["--encoder", "other"]) == f"{common} --encoder other"
    assert build_command_with(shop, "text", "--encoder", "other") == f"{common} --encoder other"
    assert build_command_with(shop, "text", "--dims", "8") == f"{common} --encoder 'my encoder' --dims 8"


def test_an_imported_artefact_is_imported_again_and_its_flags_are_not_those_of_its_own_stage() -> None:
    shop = Shop({"items": ITEMS, "text": {"stage": "import embeddings", "flags": ["--path", "x.npy"]}})
    assert build_command(shop, "text") == "antpipe import embeddings --domains A --store 'my store' --path x.npy"
    own = "antpipe embed-text --domains A --store 'my store' --encoder e"
    assert build_command_with(shop, "text", "--encoder", "e") == own


def test_an_artefact_that_came_with_the_items_is_built_with_them() -> None:
    items = {"parameters": {"format": "import unisrec"}, "flags": ["--path", "p"], "stage": "ingest"}
    shop = Shop({"items": items, "text": {"came_with_items": True, "stage": "import unisrec"}})
    assert build_command(shop, "text") == "antpipe import unisrec --domains A --store 'my store' --path p --force"


def test_a_subset_is_drawn_again_and_what_it_lacks_is_built_for_the_whole_domain() -> None:
    items = {"parameters": {"format": "subset", "of": "Shop"}, "flags": ["--target-users", "5"], "domains": ["Shop"]}
    part = Shop({"items": items, "text": {"came_with_items": True, "stage": "embed-text"}}, name="Shop-5-users")
    again = "antpipe subset --domains Shop --store 'my store' --target-users 5"
    assert build_command(part, "items") == again
    assert build_command(part, "text") == f"{again} --force"
    assert build_command(part, "image") == "antpipe embed-image --domains Shop --store 'my store'"


def test_the_sample_names_its_own_domains() -> None:
    shop = Shop({"items": {"parameters": {"format": "sample"}, "flags": ["--seed", "3"]}})
    assert build_command(shop, "items") == "antpipe ingest sample --store 'my store' --seed 3"


def test_what_the_items_lack_is_supplied_by_a_command_with_a_name_to_replace() -> None:
    shop = Shop({"items": ITEMS})
    command = "antpipe ingest table --domains A --store 'my store' --items 'a b.csv' --interactions FILE --force"
    assert supply_command(shop, "sequences") == command
    assert supply_command(shop, "image") == "antpipe embed-image --domains A --store 'my store' --images DIR"
    assert supply_command(shop, "text") is None


@pytest.mark.parametrize("artefact", ARTEFACTS)
def test_each_command_that_builds_an_artefact_exists(artefact: str) -> None:
    entries = {"items": ITEMS} if artefact != "items" else {}
    program, *words = shlex.split(build_command(Shop(entries), artefact))
    assert program == "antpipe"
    assert run(*words, *(["--help"] if "--help" not in words else [])).code == 0

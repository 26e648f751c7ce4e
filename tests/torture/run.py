"""Draws trials by a seed, does each in a process of its own, and writes the ledger."""

import gc
import importlib
import itertools
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random

import faiss  # noqa: F401 -- this and others are loaded before the forks, which would each load them again
import filelock  # noqa: F401
import polars  # noqa: F401
import torch
import torch._dynamo

from tests.torture import accidents, commands, corruption, downloads, fuzz, machine, writers
from tests.torture.ledger import Ledger, Line
from tests.torture.trial import Forked, Kind, Place, copied, remove, tried

KINDS: dict[str, Kind] = {
    "kill": Kind("killed at an operation on files", 3, accidents.at_operation(accidents.KILL)),
    "kill-any-time": Kind("killed at any time, or Ctrl-C", 3, accidents.at_any_time),
    "kill-system-call": Kind("killed at a system call that changes files", 2, accidents.at_system_call),
    "power-cut": Kind("power cut at an operation on files", 3, accidents.at_operation(accidents.POWER)),
    "power-cut-after": Kind("power cut after a command said that it was done", 2, accidents.power_cut_after),
    "disk-full": Kind("disk full at an operation on files", 2, accidents.at_operation(accidents.FULL)),
    "file-limit": Kind("a write breaks off in the middle", 2, accidents.file_limit),
    "memory-limit": Kind("memory runs out", 1, accidents.memory_limit),
    "permission": Kind("read-only or unreadable files and folders", 2, accidents.forbidden),
    "two-writers": Kind("two writers at once", 1, accidents.two_writers),
    "damaged-file": Kind("a damaged file, read by a command", 12, corruption.damaged_file),
    "missing-file": Kind("a missing or foreign file, read by a command", 3, corruption.missing_file),
    "doctor": Kind("damage that `doctor --deep` looks for", 4, corruption.doctor),
    "damaged-downloads": Kind("a damaged ledger or picture of `fetch-images`", 2, downloads.damaged_downloads),
    "killed-download": Kind("`fetch-images` killed, or the power cut", 2, downloads.killed_download),
    "edited-document": Kind("an edited JSON document", 3, corruption.edited_documents),
    "store-machine": Kind("sequences of all this on one store", 1, machine.store_machine),
    "bad-server": Kind("a server that answers badly", 2, downloads.bad_server),
    "cells": Kind("odd cells: lists, prices, times, ids, addresses, conditions", 6, fuzz.cells),
    "rows": Kind("odd rows of CSV, TSV, JSON and JSON lines", 4, fuzz.table_rows),
    "ingest-table": Kind("a domain of odd rows, `ingest table`", 3, fuzz.ingested_table),
    "ingest-amazon": Kind("a domain of odd rows, `ingest amazon`", 3, fuzz.ingested_reviews),
    "table-file": Kind("odd Parquet, Arrow, packed and text files", 5, fuzz.table_files),
    "vector-file": Kind("odd files of vectors", 2, fuzz.vector_files),
    "checkpoint-file": Kind("odd checkpoints of others", 2, fuzz.checkpoint_files),
    "settings-file": Kind("odd settings files", 1, fuzz.settings_files),
    "json-document": Kind("odd bytes of JSON documents", 1, fuzz.json_documents),
    "picture": Kind("odd pictures", 4, fuzz.pictures),
    "body": Kind("odd packed answers of servers", 1, fuzz.bodies),
    "request": Kind("odd requests to the service", 2, fuzz.requests),
}


def available(kinds: Iterable[str]) -> list[str]:
    """Those that this system can do: system calls are traced by strace, memory is limited as Linux does it."""
    lacking = set() if accidents.has_strace() else {"kill-system-call"}
    lacking |= set() if sys.platform == "linux" else {"memory-limit"}
    return [kind for kind in kinds if kind not in lacking]


def schedule(seed: int, only: Sequence[str], trials: int) -> Iterator[tuple[str, int]]:
    """The kinds and numbers of the trials of a seed. only: these in turns; otherwise they are drawn by their weights.

    trials: how many (0: without end).
    """
    numbers = range(trials) if trials else itertools.count()
    for number in numbers:
        if only:
            yield only[number % len(only)], number
        else:
            [kind] = Random(f"{seed}/{number}").choices(list(KINDS), [kind.weight for kind in KINDS.values()])
            yield kind, number


def prepare(folder: Path) -> None:
    """Make the templates, and load what commands load, so that no fork has to."""
    torch.set_num_threads(1)
    commands.in_small_pieces()
    os.umask(0o022)
    sys.setswitchinterval(0.005)
    whole = folder / "whole"
    if not (whole / "made").exists():
        if whole.exists():
            remove(whole)
        for name, make in (*commands.TEMPLATES.items(), ("artefacts", writers.begin)):
            (whole / name).mkdir(parents=True)
            made = Forked(lambda make=make, name=name: make(whole / name)).end()  # type: ignore[misc]
            assert not made.wrong, made.wrong
        (whole / "made").touch()
    loaded = Forked(lambda: warmed(folder)).end()
    assert loaded.value, loaded.wrong
    for name in loaded.value:
        with suppress(ImportError, ValueError):  # modules that others make while they run
            importlib.import_module(name)
    gc.freeze()


def warmed(folder: Path) -> list[str]:
    """The modules that the commands load, in their order."""
    scratch = folder / f"warm-{os.getpid()}"
    scratch.mkdir()
    for name, command in commands.COMMANDS.items():
        ending = commands.ending_of(name, copied(folder / "whole" / command.template, scratch / name))
        assert ending.code == 0, f"{name}: {ending.said}"
        commands.remember(name, ending, folder / "whole")
    remove(scratch)
    return list(sys.modules)


def torture(folder: Path, ledger: Ledger, seed: int, numbers: Iterable[tuple[str, int]], until: float) -> None:
    """Do the trials that the ledger lacks, until a time of the monotonic clock."""
    there, done = set(available(KINDS)), ledger.done(seed)
    for kind, number in numbers:
        if time.monotonic() > until:
            return
        if kind not in there or (kind, number) in done:
            continue
        scratch = folder / "trials" / f"{kind}-{seed}-{number}"
        if scratch.exists():
            remove(scratch)
        began = time.monotonic()
        found = tried(KINDS[kind], Place(folder / "whole", scratch), Random(f"{seed}/{kind}/{number}"))
        seconds = round(time.monotonic() - began, 3)
        facts = (found.command, found.outcome, found.inputs, seconds, found.told)
        ledger.add(Line(kind, KINDS[kind].about, seed, number, *facts))

"""Malformed lines: how many are tolerated, and what is kept of them."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from antpipe.errors import DataError
from antpipe.features.ingest.advice import SettingsError
from antpipe.features.ingest.domain import REJECTS
from antpipe.store.looking import first_lines

EXCERPT = 200  # characters of a malformed line that are kept
KINDS_SHOWN = 3
NEARLY_ALL = 0.9


@dataclass
class Rejects:
    """The malformed lines of one ingest, of which `limit` are tolerated.

    All are counted before there are too many; only the first of them, as many as are allowed, are kept in `rows`.
    kinds: for each file and kind of reason, how many, and the first.
    """

    limit: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    first: str = ""
    total: int = 0
    kinds: Counter[tuple[Path, str]] = field(default_factory=Counter)
    examples: dict[tuple[Path, str], str] = field(default_factory=dict)

    def add(self, path: Path, number: int, reason: str, line: bytes) -> None:
        """Note a line. number: of the line, from 1."""
        excerpt = line.decode("utf-8", "replace")[:EXCERPT]
        self.total += 1
        kind = (path, kind_of(reason))
        self.kinds[kind] += 1
        self.examples.setdefault(kind, f"{path}:{number}: {reason}")
        self.first = self.first or f"{path}:{number}: {reason}"
        if self.total <= max(self.limit, 1):
            self.rows.append({"file": path.name, "line": number, "reason": reason, "excerpt": excerpt})

    def require_few(self, lines: Mapping[Path, int]) -> None:
        """Raises DataError, with all kinds of reasons, if there are too many. Call it when all files are read.

        lines: of each file. If nearly all lines of a file are malformed in one way, tolerating them does not help.
        """
        if self.total <= self.limit:
            return
        for path, count in lines.items():
            _, times = self.main_kind(path)
            if times >= NEARLY_ALL * max(count, 1):
                raise DataError(f"{self.example(path)}; {times} of {count} lines are like this", first_lines(path))
        often = [f"{count} like {self.examples[kind]}" for kind, count in self.kinds.most_common(KINDS_SHOWN)]
        what = "; ".join(often) if len(self.kinds) > 1 else f"the first: {self.first}"
        raise SettingsError(f"{_lines(self.total)}, {self.limit} allowed; {what}", {"max_rejects": self.total})

    def count(self, path: Path) -> int:
        """How many lines of a file are malformed."""
        return sum(count for (file, _), count in self.kinds.items() if file == path)

    def main_kind(self, path: Path) -> tuple[str, int]:
        """The most frequent kind of reason in a file, and its count."""
        own = {kind: count for (file, kind), count in self.kinds.items() if file == path}
        return max(own.items(), key=lambda pair: pair[1], default=("", 0))

    def example(self, path: Path) -> str:
        """The first line of a file that is malformed for the most frequent reason: file, line and reason."""
        kind, _ = self.main_kind(path)
        return self.examples[path, kind]

    def table(self) -> pl.DataFrame:
        """One row per malformed line, with the columns of REJECTS."""
        return pl.DataFrame(self.rows, schema=REJECTS)


def kind_of(reason: str) -> str:
    """A reason without the part that differs from line to line: "time 'soon' is neither …" is of the kind `time`."""
    return re.split(r"['\"\d:]", reason, maxsplit=1)[0].strip() or "values"


def _lines(count: int) -> str:
    return f"{count} malformed {'line' if count == 1 else 'lines'}"

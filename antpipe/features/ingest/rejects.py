"""Malformed lines: how many are tolerated, and what is kept of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from antpipe.features.ingest.advice import SettingsError
from antpipe.features.ingest.domain import REJECTS

EXCERPT = 200  # characters of a malformed line that are kept


@dataclass
class Rejects:
    """The malformed lines of one ingest, at most `limit` of them."""

    limit: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    first: str = ""

    def add(self, path: Path, number: int, reason: str, line: bytes) -> None:
        """Note a line. number: of the line, from 1. Raises SettingsError if there are too many."""
        excerpt = line.decode("utf-8", "replace")[:EXCERPT]
        self.rows.append({"file": path.name, "line": number, "reason": reason, "excerpt": excerpt})
        self.first = self.first or f"{path}:{number}: {reason}"
        count = len(self.rows)
        if count > self.limit:
            raise SettingsError(
                f"{count} malformed {'line' if count == 1 else 'lines'} so far, {self.limit} allowed; the first: "
                f"{self.first}",
                {"max_rejects": 10 * (self.limit + 1)},
            )

    def count(self, path: Path) -> int:
        """How many lines of a file are malformed."""
        return sum(row["file"] == path.name for row in self.rows)

    def table(self) -> pl.DataFrame:
        """One row per malformed line, with the columns of REJECTS."""
        return pl.DataFrame(self.rows, schema=REJECTS)

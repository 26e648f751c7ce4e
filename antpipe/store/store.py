"""A store: a folder of domains."""

import re
import shlex
from pathlib import Path

from antpipe.errors import DataError, UsageError
from antpipe.store.domain import MANIFEST, Domain


class Store:
    """A folder of domains."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def domains(self) -> list[str]:
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"--store {self.root}: is a file, not a folder")
        return sorted(path.parent.name for path in self.root.glob(f"*/{MANIFEST}"))

    def domain(self, name: str) -> "Domain":
        """A domain that exists; DataError names those that do."""
        if name not in self.domains():
            there = ", ".join(self.domains()) or "none"
            raise DataError(
                f"no domain {name!r} in store {self.root} (there: {there})",
                shlex.join(
                    ["antpipe", "ingest", "amazon", "--source", "DIR", "--domains", name, "--store", str(self.root)]
                ),
            )
        return Domain(self.root, name)

    def new_domain(self, name: str) -> "Domain":
        """A domain that need not exist yet; nothing is written before its first artefact is complete."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise UsageError(f"domain name {name!r}: use letters, digits, '_', '-', '.'")
        return Domain(self.root, name)

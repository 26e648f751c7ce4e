"""A store: a folder of domains."""

import re
from pathlib import Path

from antpipe.errors import DataError, UsageError
from antpipe.store.commit import MANIFEST, PENDING
from antpipe.store.domain import Domain
from antpipe.store.next_command import CHOOSE_INGEST


class Store:
    """A folder of domains. It need not exist before something is written.

    >>> "Toys" in ant.Store("shop").domains()
    True
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def domains(self) -> list[str]:
        """The names of its domains, sorted. Raises UsageError if the store is a file."""
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"--store {self.root}: is a file, not a folder")
        begun = {path.parent.parent.name for path in self.root.glob(f"*/{PENDING}/{MANIFEST}")}
        return sorted({path.parent.name for path in self.root.glob(f"*/{MANIFEST}")} | begun)

    def domain(self, name: str) -> Domain:
        """An existing domain. Raises DataError, which names the existing ones, if there is no such domain."""
        there = self.domains()
        if name not in there:
            names = ", ".join(there) or "none"
            raise DataError(f"no domain {name!r} in store {self.root} (there: {names})", CHOOSE_INGEST)
        return Domain(self.root, name)

    def new_domain(self, name: str) -> Domain:
        """A domain that need not exist; no folder is left unless its first artefact is completed.

        Raises UsageError for a name that could leave the store or start like a flag.
        """
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise UsageError(f"domain name {name!r}: use letters, digits, '_', '-', '.'")
        return Domain(self.root, name)

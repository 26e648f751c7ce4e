"""JSON documents of stores and runs as tests read and edit them: without the checksum that would notice."""

import json
from pathlib import Path
from typing import Any

from antpipe.store.documents import CHECKSUM


def plain(path: Path) -> dict[str, Any]:
    """The content of a document, without its checksum."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found.pop(CHECKSUM)
    return found

"""The end of every write to a domain: all new files of an artefact and the manifest that names them appear, or none.

A stage writes into a scratch folder. The new manifest is written there too, and everything is flushed to the disk. Then
the folder is renamed to PENDING, which decides the commit. After that its files are moved into place, which needs no
space. A process that finds a folder of that name, after a kill or power cut, completes the commit (`finish`).
"""

import shutil
from pathlib import Path
from typing import Any

from antpipe.runtime.files import flush, flush_tree, naming
from antpipe.store.documents import as_text

MANIFEST = "manifest.json"
PENDING = ".commit"


def commit(folder: Path, scratch: Path, manifest: dict[str, Any]) -> None:
    """Flush the files of a scratch folder inside a domain's folder, and let them replace those of the same names.

    The caller holds `committing`, and has called `finish`.
    """
    with naming(folder / MANIFEST):
        (scratch / MANIFEST).write_text(as_text(manifest), encoding="utf-8")
    flush_tree(scratch)
    scratch.rename(folder / PENDING)
    flush(folder)
    finish(folder)


def finish(folder: Path) -> None:
    """Move the files of a commit that was decided into place, the manifest last. The caller holds `committing`."""
    pending = folder / PENDING
    if not pending.is_dir():
        return
    paths = sorted(pending.iterdir(), key=lambda path: (path.name == MANIFEST, path.is_file(), path.name))
    for path in paths:  # folders first: tables refer to them
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    flush(folder)
    pending.rmdir()

"""Loading of heavy libraries, with progress, while a user waits for it."""

from collections.abc import Sequence
from importlib import import_module

from antpipe.runtime.progress import Progress


def load_libraries(names: Sequence[str], progress: Progress) -> None:
    """Import these modules, which takes seconds the first time, and show how far that is."""
    with progress("loading libraries") as update:
        for done, name in enumerate(names):
            update(done, len(names), name)
            import_module(name)
        update(len(names), len(names))

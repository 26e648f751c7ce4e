"""How antpipe spells the commands it proposes: the only place that does."""

import shlex
from collections.abc import Sequence
from pathlib import Path


def spell(
    command: str, *, domains: Sequence[str] = (), store: Path | None = None, flags: Sequence[str | Path] = ()
) -> str:
    """A command line that works when it is pasted into a shell.

    command: such as `embed-text` or `import embeddings`. domains: of `--domains`; flags: further words.
    """
    words = ["antpipe", *command.split()]
    words += ["--domains", ",".join(domains)] if domains else []
    words += ["--store", str(store)] if store is not None else []
    return shlex.join([*words, *(str(word) for word in flags)])

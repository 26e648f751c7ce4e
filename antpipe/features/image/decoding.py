"""Batches of picture files to pixels, ahead of the model: in threads of this process or in worker processes.

Worker processes are those of torch's DataLoader: one that is killed is noticed; and they end with their parent.
Threads start at once; processes take seconds and the memory of an interpreter with torch each, and decode without
waiting for this process's interpreter lock.
"""

import hashlib
import multiprocessing
import os
import signal
import socket
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from antpipe.errors import AntpipeError
from antpipe.features.image.pictures import UnreadableError
from antpipe.features.image.preparation import Preparation

if TYPE_CHECKING:
    import torch

# Fewer pictures are done before processes that import torch would have begun.
WORTH_PROCESSES = 2_000
MOST_PROCESSES = 16
CHANGED = "not what it was when its content was hashed"


@dataclass(frozen=True, slots=True)
class Source:
    """A picture file. sha256: what its content must be; None where it could not be read when it was hashed.

    content, why: of one that was read already: its bytes, or why there are none.
    """

    path: str
    sha256: str | None
    content: bytes | None = None
    why: str = ""

    def read(self) -> "Source":
        if self.content is not None or self.why:
            return self
        try:
            return replace(self, content=Path(self.path).read_bytes())
        except OSError as error:
            return replace(self, why=f"cannot be read: {error.strerror or type(error).__name__}")

    def gone(self) -> bool:
        """Whether it cannot be read, though it could be when it was hashed: not a bad picture."""
        return bool(self.why) and self.sha256 is not None

    def changed(self) -> str:
        """What to tell of a file that is gone or has another content."""
        return f"{CHANGED}: {self.path} on {socket.gethostname()}" + (f": {self.why}" if self.why else "")


@dataclass(frozen=True)
class Decoded:
    """A batch. pixels: (m, 3, H, W) of those that can be read, in order; failures: (position in the batch, why)."""

    pixels: NDArray[Any] | None
    failures: list[tuple[int, str]]


@dataclass(frozen=True)
class Decoder:
    """Can be pickled. scaled: decode large JPEGs at a fraction of their size."""

    preparation: Preparation
    scaled: bool

    def one(self, source: Source) -> NDArray[Any] | str:
        """The pixels of a file, or why there are none; that begins with CHANGED where the file is at fault, not the
        picture."""
        found = source.read()
        content = found.content
        if content is None:
            return found.changed() if found.gone() else found.why
        if hashlib.sha256(content).hexdigest() != source.sha256:
            return found.changed()
        try:
            return self.preparation.pixels(content, self.scaled)
        except UnreadableError as error:
            return str(error)

    def __getitem__(self, batch: Sequence[Source]) -> Decoded:
        """What a worker of a DataLoader calls: its `index` is the batch itself."""
        return stacked([self.one(source) for source in batch])


def stacked(outcomes: Sequence[NDArray[Any] | str]) -> Decoded:
    pixels = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    failures = [(position, outcome) for position, outcome in enumerate(outcomes) if isinstance(outcome, str)]
    return Decoded(np.stack(pixels) if pixels else None, failures)


def choose_workers(asked: int | None, pictures: int, device: "torch.device") -> int:
    """How many processes decode (0: threads of this one).

    asked: None leaves it to the size of the work. On a CPU the model needs the cores too, and one process decodes for
    two of them; a GPU waits for every core there is.
    """
    if asked is not None:
        return asked
    if pictures < WORTH_PROCESSES:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_PROCESSES, max(1, cores if device.type == "cuda" else cores // 2))


class Decoding:
    """Decodes batches in order, some of them ahead. Its processes, if any, start with the first batch and stay.

    threads: that decode where there are no processes; 0: as many as this machine has cores.
    """

    def __init__(self, decoder: Decoder, workers: int, threads: int = 0) -> None:
        self.decoder = decoder
        self.workers = workers
        self.threads = threads or os.cpu_count() or 1
        self._plan: list[list[Source]] = []
        self._loader: Any = None

    def batches(self, batches: list[list[Source]]) -> Iterator[Decoded]:
        """RuntimeError where a process was killed (`told_of_workers`)."""
        if not self.workers:
            yield from _in_threads(self.decoder, batches, self.threads)
            return
        if self._loader is None:
            self._loader = self._start()
        self._plan[:] = batches  # what the next pass of the loader goes through
        yield from self._loader

    def _start(self) -> Any:
        from torch.utils.data import DataLoader

        return DataLoader(
            self.decoder,  # type: ignore[arg-type]  # a map from batches of sources
            sampler=self._plan,
            batch_size=None,
            collate_fn=_as_it_is,  # arrays go through a pipe: shared memory is often limited to 64 MB in containers
            num_workers=self.workers,
            prefetch_factor=2,
            persistent_workers=True,
            # Not fork: a copy of a process whose threads of torch hold locks may never go on. Nor forkserver: its
            # children keep it alive, so they do not notice the end of the process they work for.
            multiprocessing_context="spawn",
            worker_init_fn=_begin,
        )


def _as_it_is(decoded: Any) -> Any:
    return decoded


def _begin(_: int) -> None:
    """Of a worker process: Ctrl-C is for its parent; Pillow's remarks on odd files help nobody.

    It ends at once when its parent does. Left to itself it would wait for somebody to take the pixels it has ready: the
    DataLoader looks after its parent only between batches.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_threads(decoder: Decoder, batches: Sequence[Sequence[Source]], threads: int) -> Iterator[Decoded]:
    """The batch after the one that is asked for is being decoded meanwhile."""
    ahead: deque[Any] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for batch in batches:
            ahead.append([pool.submit(decoder.one, source) for source in batch])
            if len(ahead) > 1:
                yield stacked([future.result() for future in ahead.popleft()])
        while ahead:
            yield stacked([future.result() for future in ahead.popleft()])


@contextmanager
def told_of_workers(command: str) -> Iterator[None]:
    """A decoding process that was killed ends the work with one line, an AntpipeError.

    torch notices by a signal, so its error may be raised anywhere while such processes are at work.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise AntpipeError(
            f"a process that decodes pictures was killed, perhaps for lack of memory "
            f"({str(error).splitlines()[0]}); finished shards are kept, and --workers 0 decodes without processes",
            command,
        ) from error

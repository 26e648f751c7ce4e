"""Decodes batches of picture files ahead of the model, in threads of this process or in worker processes.

Worker processes are those of torch's DataLoader, which notices if one is killed; they end with their parent. Threads
start at once. Processes take seconds to start and the memory of an interpreter with torch each, but decode without
waiting for this process's interpreter lock.
"""

import hashlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from antpipe.errors import AntpipeError
from antpipe.features.image.decoding import UnreadableError, plain_jpeg_size
from antpipe.features.image.pictures import PictureFile
from antpipe.features.image.preparation import Preparation

if TYPE_CHECKING:
    import torch

# With fewer pictures, the work is done before processes that import torch have started.
WORTH_PROCESSES = 2_000
MOST_PROCESSES = 16


@dataclass(frozen=True)
class DecodingFailure:
    """Why a file gives no pixels. changed: it is not the file that was hashed, so it is not a bad picture."""

    reason: str
    changed: bool = False


@dataclass(frozen=True)
class Jpeg:
    """A file that is left to the encoder's device (gpu_decoding.py). size: width and height."""

    content: bytes
    size: tuple[int, int]


Outcome = NDArray[Any] | Jpeg | DecodingFailure


@dataclass(frozen=True)
class Decoded:
    """A batch. pixels: (m, 3, H, W) of the pictures decoded here, in order, None without any; the rest by position."""

    pixels: NDArray[Any] | None
    failures: dict[int, DecodingFailure]
    jpegs: dict[int, Jpeg] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoder:
    """Decodes picture files for one model; can be pickled.

    scaled: large JPEGs at a fraction of their size. leave_jpegs: do not decode the JPEGs that a GPU can decode.
    """

    preparation: Preparation
    scaled: bool
    leave_jpegs: bool = False

    def one(self, file: PictureFile) -> Outcome:
        """The pixels of a file, or why there are none."""
        found = file.read()
        content = found.content
        if content is None:
            return DecodingFailure(found.changed(), True) if found.gone() else DecodingFailure(found.why)
        if hashlib.sha256(content).hexdigest() != file.sha256:
            return DecodingFailure(found.changed(), True)
        if self.leave_jpegs and (size := plain_jpeg_size(content)) is not None:
            return Jpeg(content, size)
        try:
            return self.preparation.pixels(content, self.scaled)
        except UnreadableError as error:
            return DecodingFailure(str(error))

    def __getitem__(self, batch: Sequence[PictureFile]) -> Decoded:
        """What a DataLoader's worker calls; its `index` is the batch itself."""
        return stacked([self.one(file) for file in batch])


def stacked(outcomes: Sequence[Outcome]) -> Decoded:
    pixels = [outcome for outcome in outcomes if isinstance(outcome, np.ndarray)]
    failures = {number: outcome for number, outcome in enumerate(outcomes) if isinstance(outcome, DecodingFailure)}
    jpegs = {number: outcome for number, outcome in enumerate(outcomes) if isinstance(outcome, Jpeg)}
    return Decoded(np.stack(pixels) if pixels else None, failures, jpegs)


def choose_workers(asked: int | None, pictures: int, device: "torch.device") -> int:
    """How many processes decode (0: threads of this one).

    asked: None lets the amount of work decide. On a CPU the model needs the cores too, so one process decodes per two
    cores; a GPU keeps all cores busy.
    """
    if asked is not None:
        return asked
    if pictures < WORTH_PROCESSES:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_PROCESSES, max(1, cores if device.type == "cuda" else cores // 2))


class Prefetcher:
    """Decodes batches in order, some of them ahead. Its processes, if any, start with the first batch and stay.

    threads: how many decode if there are no processes; 0: as many as this machine has cores.
    """

    def __init__(self, decoder: Decoder, workers: int, threads: int = 0) -> None:
        self.decoder = decoder
        self.workers = workers
        self.threads = threads or os.cpu_count() or 1
        self._plan: list[list[PictureFile]] = []
        self._loader: Any = None

    def batches(self, batches: list[list[PictureFile]]) -> Iterator[Decoded]:
        """The decoded batches, in order. Raises RuntimeError if a process was killed (see `when_killed`)."""
        if not self.workers:
            yield from _in_threads(self.decoder, batches, self.threads)
            return
        if self._loader is None:
            self._loader = self._start()
        self._plan[:] = batches  # what the loader's next pass goes through
        yield from self._loader

    def _start(self) -> Any:
        from torch.utils.data import DataLoader

        return DataLoader(
            self.decoder,  # type: ignore[arg-type]  # a map from batches of files
            sampler=self._plan,
            batch_size=None,
            collate_fn=_unchanged,  # arrays go through a pipe: containers often limit shared memory to 64 MB
            num_workers=self.workers,
            prefetch_factor=2,
            persistent_workers=True,
            # Not fork: a copy of a process whose torch threads hold locks may hang. Nor forkserver: its children keep
            # it alive, so they do not notice the end of the process they work for.
            multiprocessing_context="spawn",
            worker_init_fn=_begin,
        )


def _unchanged(decoded: Any) -> Any:
    return decoded


def _begin(_: int) -> None:
    """Set up a worker process: Ctrl-C is left to its parent, and Pillow's warnings about odd files are suppressed.

    It ends as soon as its parent does. Otherwise it would wait forever for its finished pixels to be taken: the
    DataLoader checks for its parent only between batches.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_threads(decoder: Decoder, batches: Sequence[Sequence[PictureFile]], threads: int) -> Iterator[Decoded]:
    """Yields each batch while the next one is being decoded."""
    ahead: deque[Any] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for batch in batches:
            ahead.append([pool.submit(decoder.one, file) for file in batch])
            if len(ahead) > 1:
                yield stacked([future.result() for future in ahead.popleft()])
        while ahead:
            yield stacked([future.result() for future in ahead.popleft()])


@contextmanager
def when_killed(command: str) -> Iterator[None]:
    """Raises AntpipeError if a decoding process was killed within the block. command: the one that continues the work.

    torch learns about it by a signal, so its error may be raised anywhere while such processes are running.
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

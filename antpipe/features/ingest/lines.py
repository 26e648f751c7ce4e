"""Lines of plain and gzip files, many at a time.

gzip is read by ISA-L (isal), three times as fast as by zlib, in a thread ahead of those that work on the lines.
"""

import gzip
import zlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
from isal import isal_zlib
from numpy.typing import NDArray

from antpipe.errors import DataError

T = TypeVar("T")

AT_ONCE = 1 << 22  # bytes that are worked on in one go
PACKED_AT_ONCE = 1 << 23  # bytes of a .gz that are read in one go
WAITING = 3  # blocks that are made before they are asked for
LINE_FEED = ord("\n")
LONGEST_LINE = 1 << 24
ISAL_ERROR: Any = isal_zlib.error  # a class; its stub file calls it an instance
# What reading a damaged .gz can raise.
DAMAGED: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, ISAL_ERROR)


@dataclass(frozen=True)
class Block:
    """Whole lines, each with its end. text: (B,) bytes. ends: (N,) places of the line feeds."""

    text: NDArray[np.uint8]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def part(self, first: int, stop: int) -> "Block":
        """The lines from `first` on, before `stop`, nothing copied; there is at least one."""
        ends = self.ends[first:stop]
        begin = self.ends[first - 1] + 1 if first else 0
        return Block(self.text[begin : ends[-1] + 1], ends - begin)

    def lines(self) -> list[bytes]:
        """Without their ends, which are a carriage return too in files written on Windows."""
        whole = self.text.tobytes()
        lines = whole.split(b"\n")
        lines.pop()  # what follows the last end
        return [line.rstrip(b"\r") for line in lines] if b"\r" in whole else lines


def block_of(lines: Iterable[bytes]) -> Block:
    """lines: without their ends."""
    text = np.frombuffer(b"".join(line + b"\n" for line in lines), np.uint8)
    return Block(text, line_ends(text))


def join(blocks: Sequence[Block]) -> Block:
    """The lines of several blocks, of which some may have none."""
    begins = np.cumsum([0, *(len(block.text) for block in blocks)])[:-1]
    ends = [begin + block.ends for begin, block in zip(begins, blocks, strict=True)]
    return Block(np.concatenate([block.text for block in blocks]), np.concatenate(ends))


def ahead(work: Generator[T, None, None]) -> Generator[T, None, None]:
    """The same, made by a thread of its own while the caller is busy with what came before.

    An error of `work` comes in its place. Whoever stops early waits for what is being made, and leaves no thread.
    """
    thread = ThreadPoolExecutor(1)
    try:
        coming = deque(thread.submit(next, work, None) for _ in range(WAITING))
        while (made := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, work, None))
            yield made
    finally:
        thread.shutdown(cancel_futures=True)
        work.close()  # not where a second Ctrl-C ends the waiting: the thread is still within


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of read_blocks one by one, without their ends."""
    for block in read_blocks(path):
        yield from block.lines()


def read_blocks(path: Path) -> Generator[Block, None, None]:
    """Whole lines, some MiB of them at a time, by a thread ahead of the caller.

    DataError where the file cannot be read, is damaged or has no lines (one JSON array).
    """
    return ahead(_blocks(path))


def _blocks(path: Path) -> Generator[Block, None, None]:
    try:
        with path.open("rb", buffering=0) as file:
            # Not isal.igzip, which has this reader within, but unpacks so little in one go that its thread would
            # mostly wait for those that run Python.
            packed = path.suffix.lower() == ".gz"
            yield from _cut(isal_zlib._GzipReader(file, PACKED_AT_ONCE) if packed else file, path)
    except EOFError:
        good = good_lines(path)
        raise DataError(f"{path}: truncated, the gzip data break off after {good} good lines", again(path)) from None
    except DAMAGED as error:
        good = good_lines(path)
        raise DataError(f"{path}: corrupt gzip data after {good} good lines: {error}", again(path)) from None
    except OSError as error:
        raise unreadable(path, error) from None


def _cut(stream: Any, path: Path) -> Iterator[Block]:
    """Blocks that end where a line does; the last line gets its end where it has none. stream: with `readinto`."""
    whole, rest = 0, np.empty(0, np.uint8)
    while True:
        text = np.empty(len(rest) + AT_ONCE, np.uint8)
        text[: len(rest)] = rest
        read = stream.readinto(text[len(rest) :].data)
        if not read:
            break
        text = text[: len(rest) + read]
        ends = len(rest) + line_ends(text[len(rest) :])
        if (ends[0] if len(ends) else len(text)) > LONGEST_LINE:
            raise DataError(
                f"{path}:{whole + 1}: longer than {LONGEST_LINE >> 20} MiB; one JSON object a line is expected",
                f"jq -c '.[]' {path.name} > lines.json",
            )
        rest = text
        if len(ends):
            stop = int(ends[-1]) + 1
            yield Block(text[:stop], ends)
            whole, rest = whole + len(ends), text[stop:]
    if len(rest):
        yield block_of([rest.tobytes()])


def line_ends(text: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(N,) places of the line feeds."""
    return np.flatnonzero(text == LINE_FEED)


def line_hashes(block: Block) -> pl.Series:
    """(N,) 64 bits of each line, nothing copied. The same line has the same hash in every block of a run."""
    offsets = np.zeros(len(block) + 1, np.int64)
    offsets[1:] = block.ends + 1
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(block.text)]
    return pl.Series(pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(block), buffers)).hash()


def good_lines(path: Path) -> int:
    """Lines of a damaged .gz before the damage. zlib tells all of them; isal drops the block that it comes in."""
    count = 0
    try:
        with gzip.open(path) as stream:
            while block := stream.read1(AT_ONCE):
                count += block.count(b"\n")
    except (OSError, EOFError, zlib.error):
        return count
    return count


def unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read: {error.strerror}", f"chmod u+r {path}")


def again(path: Path) -> str:
    return f"download {path.name} again, then repeat the command"

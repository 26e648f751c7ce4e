"""Lines of plain and gzip files, many at a time.

gzip is read by ISA-L (isal), three times as fast as by zlib, in a thread that works ahead of the consumer of the lines.
"""

import codecs
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
from antpipe.features.ingest.packed import DAMAGED as OTHERS_DAMAGED
from antpipe.features.ingest.packed import GZIP, open_unpacked, packing_of
from antpipe.store.looking import unpacking
from antpipe.store.next_command import shell

T = TypeVar("T")

AT_ONCE = 1 << 22  # bytes per block
PACKED_AT_ONCE = 1 << 23  # bytes of a .gz read in one go
WAITING = 3  # blocks made ahead
LINE_FEED = ord("\n")
LONGEST_LINE = 1 << 24  # bytes
ISAL_ERROR: Any = isal_zlib.error  # a class, though its stub file says an instance
# What reading a damaged .gz can raise.
DAMAGED: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, ISAL_ERROR)


@dataclass(frozen=True)
class LineBlock:
    """Whole lines, each with its end. text: (B,) bytes. ends: (N,) positions of the line feeds."""

    text: NDArray[np.uint8]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def part(self, first: int, stop: int) -> "LineBlock":
        """Lines first:stop, at least one, without copying."""
        ends = self.ends[first:stop]
        begin = self.ends[first - 1] + 1 if first else 0
        return LineBlock(self.text[begin : ends[-1] + 1], ends - begin)

    def lines(self) -> list[bytes]:
        """The lines without their ends, which include a carriage return in files written on Windows."""
        whole = self.text.tobytes()
        lines = whole.split(b"\n")
        lines.pop()  # what follows the last line feed
        return [line.rstrip(b"\r") for line in lines] if b"\r" in whole else lines


def block_of(lines: Iterable[bytes]) -> LineBlock:
    """A block of lines given without their ends."""
    text = np.frombuffer(b"".join(line + b"\n" for line in lines), np.uint8)
    return LineBlock(text, line_ends(text))


def join(blocks: Sequence[LineBlock]) -> LineBlock:
    """One block of the lines of several, some of which may be empty."""
    begins = np.cumsum([0, *(len(block.text) for block in blocks)])[:-1]
    ends = [begin + block.ends for begin, block in zip(begins, blocks, strict=True)]
    return LineBlock(np.concatenate([block.text for block in blocks]), np.concatenate(ends))


def ahead(work: Generator[T, None, None]) -> Generator[T, None, None]:
    """What `work` yields, computed by a thread of its own while the caller is busy with earlier values.

    An error of `work` is raised where its value would come. Closing it early waits for the value in progress.
    """
    thread = ThreadPoolExecutor(1)
    try:
        coming = deque(thread.submit(next, work, None) for _ in range(WAITING))
        while (made := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, work, None))
            yield made
    finally:
        thread.shutdown(cancel_futures=True)
        work.close()  # not reached if a second Ctrl-C ends the wait while the thread is still running `work`


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of `read_blocks` one by one, without their ends."""
    for block in read_blocks(path):
        yield from block.lines()


def read_blocks(path: Path) -> Generator[LineBlock, None, None]:
    """Whole lines, a few MiB at a time, read by a thread ahead of the caller.

    Raises DataError if the file cannot be read, is damaged or has no lines (one JSON array).
    """
    return ahead(_blocks(path))


def _blocks(path: Path) -> Generator[LineBlock, None, None]:
    try:
        with path.open("rb", buffering=0) as file:
            # Not isal.igzip, which wraps this reader but unpacks so little in one go that its thread would mostly wait
            # for those that run Python.
            packing = packing_of(path)
            if not packing:
                _require_no_utf_16(path)
            if packing == GZIP:
                yield from _cut(isal_zlib._GzipReader(file, PACKED_AT_ONCE), path)
            elif packing:
                with open_unpacked(path) as unpacked:
                    yield from _cut(unpacked, path)
            else:
                yield from _cut(file, path)
    except EOFError:
        if packing != GZIP:
            raise DataError(f"{path}: truncated, the packed data break off", shell("ls", "-l", path)) from None
        raise _damaged(path, "truncated, the gzip data break off") from None
    except DAMAGED as error:
        raise _damaged(path, f"corrupt gzip data ({error})") from None
    except OTHERS_DAMAGED as error:  # OSError among them
        if isinstance(error, OSError) and error.strerror is not None:
            raise unreadable(path, error) from None
        raise DataError(f"{path}: corrupt packed data ({error}); download it again", shell("ls", "-l", path)) from None


def _require_no_utf_16(path: Path) -> None:
    """Published files are UTF-8; some programs write what they copy as UTF-16."""
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            command = f"{shell('iconv', '-f', 'UTF-16', '-t', 'UTF-8', path)} > utf-8.{path.name}"
            raise DataError(f"{path}: it is UTF-16; expected UTF-8", command)


def _cut(stream: Any, path: Path) -> Iterator[LineBlock]:
    """Blocks of whole lines; the last line gets a line feed if it has none. stream: has `readinto`."""
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
                f"{path}:{whole + 1}: longer than {LONGEST_LINE >> 20} MiB; expected one JSON object per line, such as "
                "jq makes of an array",
                f"{unpacking(path)} | jq -c '.[]' > {shell(f'lines-{path.stem}')}",
            )
        rest = text
        if len(ends):
            stop = int(ends[-1]) + 1
            yield LineBlock(text[:stop], ends)
            whole, rest = whole + len(ends), text[stop:]
    if len(rest):
        yield block_of([rest.tobytes()])


def line_ends(text: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(N,) positions of the line feeds."""
    return np.flatnonzero(text == LINE_FEED)


def line_hashes(block: LineBlock) -> pl.Series:
    """(N,) 64-bit hashes of the lines, without copying. Equal lines have equal hashes in all blocks of a run."""
    offsets = np.zeros(len(block) + 1, np.int64)
    offsets[1:] = block.ends + 1
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(block.text)]
    return pl.Series(pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(block), buffers)).hash()


def good_lines(path: Path) -> int:
    """How many lines of a damaged .gz come before the damage. zlib gives them all; isal drops the damaged block."""
    count = 0
    try:
        with gzip.open(path) as stream:
            while block := stream.read1(AT_ONCE):
                count += block.count(b"\n")
    except (OSError, EOFError, zlib.error):
        return count
    return count


def unreadable(path: Path, error: OSError) -> DataError:
    look = ("chmod", "u+r") if isinstance(error, PermissionError) else ("ls", "-l")
    return DataError(f"{path}: cannot be read: {error.strerror}", shell(*look, path))


def _damaged(path: Path, how: str) -> DataError:
    """The next command shows the damage."""
    return DataError(f"{path}: {how} after {good_lines(path)} good lines; download it again", shell("gzip", "-t", path))

"""Lines of plain and gzip files, many at a time.

gzip is read by ISA-L (isal), three times as fast as by zlib, in a thread ahead of the one that works on the lines.
"""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
import pyarrow as pa
from isal import igzip_threaded, isal_zlib
from numpy.typing import NDArray

from antpipe.errors import DataError

BLOCK, AT_ONCE = 1 << 20, 1 << 22  # bytes the unpacking thread hands over, and that are worked on in one go
LINE_FEED = ord("\n")
LONGEST_LINE = 1 << 24
ISAL_ERROR: Any = isal_zlib.error  # a class; its stub file calls it an instance
# What reading a damaged .gz can raise.
DAMAGED: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, ISAL_ERROR)


def open_unpacked(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked where it is a .gz."""
    if path.suffix.lower() != ".gz":
        return path.open("rb")
    stream: BinaryIO = igzip_threaded.open(path, "rb", threads=1, block_size=BLOCK)
    return stream


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of read_blocks one by one, without their ends."""
    for block in read_blocks(path):
        yield from split(block)


def read_blocks(path: Path) -> Iterator[bytes]:
    """Whole lines, some MiB of them at a time, each with its end.

    DataError where the file cannot be read, is damaged or has no lines (one JSON array).
    """
    whole = 0
    try:
        with open_unpacked(path) as stream:
            rest = b""
            while block := stream.read(AT_ONCE):
                first, end = block.find(b"\n"), block.rfind(b"\n") + 1
                if len(rest) + (first if end else len(block)) > LONGEST_LINE:
                    raise DataError(
                        f"{path}:{whole + 1}: longer than {LONGEST_LINE >> 20} MiB; one JSON object a line is expected",
                        f"jq -c '.[]' {path.name} > lines.json",
                    )
                if end:
                    lines, rest = rest + block[:end], block[end:]
                    yield lines
                    whole += lines.count(b"\n")
                else:
                    rest += block
            if rest:
                yield rest + b"\n"
    except EOFError:
        good = good_lines(path)
        raise DataError(f"{path}: truncated, the gzip data break off after {good} good lines", again(path)) from None
    except DAMAGED as error:
        good = good_lines(path)
        raise DataError(f"{path}: corrupt gzip data after {good} good lines: {error}", again(path)) from None
    except OSError as error:
        raise unreadable(path, error) from None


def split(block: bytes) -> list[bytes]:
    """The lines without their ends, which are a carriage return too in files written on Windows."""
    lines = block.split(b"\n")
    lines.pop()  # what follows the last end
    return [line.rstrip(b"\r") for line in lines] if b"\r" in block else lines


def line_ends(block: bytes) -> NDArray[np.int64]:
    """(N,) places of the line feeds."""
    return np.flatnonzero(np.frombuffer(block, np.uint8) == LINE_FEED)


def line_hashes(block: bytes) -> pl.Series:
    """(N,) 64 bits of each line, nothing copied. The same line has the same hash in every block of a run."""
    ends = line_ends(block)
    offsets = np.zeros(len(ends) + 1, np.int64)
    offsets[1:] = ends + 1
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(block)]
    return pl.Series(pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(ends), buffers)).hash()


def good_lines(path: Path) -> int:
    """Lines of a damaged .gz before the damage. zlib tells all of them; isal drops the block that it comes in."""
    count = 0
    try:
        with gzip.open(path) as stream:
            while block := stream.read1(BLOCK):
                count += block.count(b"\n")
    except (OSError, EOFError, zlib.error):
        return count
    return count


def unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read: {error.strerror}", f"chmod u+r {path}")


def again(path: Path) -> str:
    return f"download {path.name} again, then repeat the command"

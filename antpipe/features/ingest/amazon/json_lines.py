"""Files of one JSON object per line: good lines become records, malformed ones go to the rejects.

Empty lines do not count. Others are malformed if they are not UTF-8 or not JSON, if an id or the time is missing or
empty, if a value that is used has the wrong type, or if a rating is not between 0 and 5. A missing rating stays
missing. Some published files are not strict JSON: the metadata of 2014 are Python literals. NaN is a missing value.
"""

import ast
import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Meta, Struct
from numpy.typing import NDArray

from antpipe.errors import DataError
from antpipe.features.ingest import json_text
from antpipe.features.ingest.lines import LineBlock, block_of, join, read_blocks
from antpipe.features.ingest.rejects import Rejects
from antpipe.store.looking import first_lines

T = TypeVar("T", bound=Struct)
Kept = TypeVar("Kept")
BRACES = b"{}"
CARRIAGE_RETURN = ord("\r")
PIECE = 2_000  # lines decoded in one go

Id = Annotated[str, Meta(min_length=1)]

# What decoding a hostile line can raise: ValueError covers msgspec, json and UTF-8, the others are Python literals.
MALFORMED = (ValueError, TypeError, SyntaxError, RecursionError, MemoryError)


def decode(line: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """One line as a record. Raises one of MALFORMED."""
    if not line.isascii():
        line.decode("utf-8")  # msgspec does not look into the values it skips
    try:
        return decoder.decode(line)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        # Usable though not strict JSON: Python literals, NaN, and texts cut in the middle of an emoji.
        value = ast.literal_eval(line.decode()) if line.startswith(b"{'") else json_text.loads(line)
        return decoder.decode(json_text.strict(value))


def read_records(
    path: Path, layout: Callable[[bytes], type[T]], keep: Callable[[list[T]], Kept], rejects: Rejects, limit: int = 0
) -> Generator[tuple[LineBlock, list[Kept]], None, None]:
    """Good lines and what is kept of them, many at a time; the others go to `rejects`.

    layout: the record type of a line; the first line that shows one decides for the file. keep: takes what is needed
    from some records, while they are still in the processor's cache. limit: lines to read (0: all).
    Raises DataError if the file has no good line.
    """
    decoder: msgspec.json.Decoder[T] | None = None
    good = number = empty = 0
    for every in read_blocks(path):
        block = every.part(0, up_to(every, limit - number + empty)) if limit else every
        found: list[Kept] = []
        whole, pieces = True, [block.part(first, first + PIECE) for first in range(0, len(block), PIECE)]
        for at, piece in enumerate(pieces):
            records = decode_block(piece, decoder)
            if records is None:  # one of the lines is malformed
                records, lines = [], []
                for line_number, line in enumerate(piece.lines(), number + 1):
                    if not line.strip():
                        empty += 1
                        continue
                    try:
                        decoder = decoder or msgspec.json.Decoder(layout(line))
                        records.append(decode(line, decoder))
                        lines.append(line)
                    except MALFORMED as error:
                        rejects.add(path, line_number, _reason(error), line)
                pieces[at], whole = block_of(lines), False
            if records:
                found.append(keep(records))
            good += len(records)
            number += len(piece)
        yield block if whole else join(pieces), found
        if limit and number - empty >= limit:
            break
    if number == empty:
        raise DataError(f"{path}: empty", first_lines(path))
    if not good:
        raise DataError(f"{rejects.example(path)}; no line of {number - empty} is usable", first_lines(path))


def up_to(block: LineBlock, count: int) -> int:
    """How many lines of a block to read until `count` of them are not empty."""
    lengths = np.diff(block.ends, prepend=-1) - 1
    filled = np.flatnonzero(lengths > (block.text[block.ends - 1] == CARRIAGE_RETURN))
    return int(filled[count - 1]) + 1 if len(filled) >= count else len(block)


def decode_block(block: LineBlock, decoder: msgspec.json.Decoder[T] | None) -> list[T] | None:
    """The records of whole lines, one per line. None if `decode` must look at the lines one by one.

    Decoding them in one go is twice as fast, but msgspec treats a line feed as any white space: a line could hold two
    objects, or an object could continue in the next line. If all lines begin and end with a brace, no object can
    continue (nothing but a comma could stand between these braces, and a string holds no line feed), so equal numbers
    of lines and records mean that each line has one.
    """
    text, ends = block.text, block.ends
    if decoder is None or text[0] != BRACES[0]:
        return None
    if (text[ends - 1] != BRACES[1]).any() or (text[ends[:-1] + 1] != BRACES[0]).any():
        return None
    try:
        require_utf8(text)  # msgspec does not look into the values it skips
        records = decoder.decode_lines(text.data)
    except MALFORMED:
        return None
    return records if len(records) == len(block) else None


def require_utf8(text: NDArray[np.uint8]) -> None:
    """Raises one of MALFORMED if bytes are not UTF-8. Unlike `bytes.decode`, this creates no string."""
    buffers = [None, pa.py_buffer(np.array([0, len(text)])), pa.py_buffer(text)]
    pa.Array.from_buffers(pa.large_string(), 1, buffers).validate(full=True)


def _reason(error: BaseException) -> str:
    if isinstance(error, msgspec.ValidationError):
        return str(error)
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: byte {error.start}"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at character {error.pos}"
    return "not JSON"

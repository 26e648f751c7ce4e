"""Ids as numbers, which take less memory and compare faster; and checks for ids that were turned into floats.

Floating point numbers are exact integers only up to 2^53 (float32: 2^24). Beyond that, neighbours become the same
number, so ids in a column of floats (pandas makes one if a value is missing) may have merged before they are read here.
"""

import re

import numpy as np
import polars as pl
import pyarrow as pa

from antpipe.errors import DataError

EXACT_BITS = {16: 11, 32: 24, 64: 53}  # by the width of a float: whole numbers below 2^bits are exact
# What pandas, polars, R and spreadsheets write for such a number. 12E4567 is more likely an article number.
FLOAT = re.compile(r"[+-]?(\d+\.0+|\d+(\.\d+)?[eE]\+\d+|\d+\.\d+[eE]\d+)")

SHORTENED = re.compile(r"[+-]?\d(?:\.(\d+))?E\+(\d+)")


def numbered(ids: pl.Series | pa.ChunkedArray) -> tuple[pl.Series, pl.Series]:
    """(N,) strings -> (N,) int32 positions among the distinct ids, and the distinct ids by first appearance."""
    arrow = ids.to_arrow() if isinstance(ids, pl.Series) else ids
    coded = pa.chunked_array([arrow] if isinstance(arrow, pa.Array) else arrow).dictionary_encode()
    if not coded.num_chunks:
        return pl.Series([], dtype=pl.Int32), pl.Series([], dtype=pl.String)
    positions = pa.chunked_array([chunk.indices for chunk in coded.chunks], pa.int32())
    # All chunks share one dictionary.
    return pl.Series(positions), pl.Series(coded.chunk(0).dictionary, dtype=pl.String)


def require_exact(column: pa.Array, where: str, name: str, first: int) -> None:
    """Raises DataError for an id in a column of floats that may stand for several integers; other columns pass.

    where: what a message calls a row, without its number. first: the number of the first row.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not pa.types.is_floating(column.type):
        return
    bits = EXACT_BITS[column.type.bit_width]
    numbers = column.to_numpy(zero_copy_only=False)
    inexact = np.isfinite(numbers) & (np.abs(numbers) >= 2.0**bits)
    if inexact.any():
        row = int(np.argmax(inexact))
        raise inexact_id(f"{where}{first + row}", name, repr(float(numbers[row])), bits)


def is_inexact_text(text: str) -> bool:
    """Whether a text looks like a float of 2^53 or more, or like a number that a spreadsheet shortened."""
    if "." not in text and "+" not in text:
        return False
    text = text.strip()
    if FLOAT.fullmatch(text) is None:
        return False
    return abs(float(text)) >= 2.0 ** EXACT_BITS[64] or is_shortened(text)


def is_shortened(text: str) -> bool:
    """Whether a spreadsheet wrote the first digits of a long number, such as 4.00638E+12; R writes 1e+05 for 100000."""
    match = SHORTENED.fullmatch(text)
    return match is not None and len(match[1] or "") < int(match[2])


def inexact_id(where: str, column: str | None, value: str, bits: int = EXACT_BITS[64]) -> DataError:
    """where: file and row. column: of the ids, None if they are not in a table."""
    there, these = (f" in column {column!r}", f"column {column!r}") if column else ("", "the ids")
    lost = f"a floating point number of 2^{bits} or more, where different integers become the same number"
    if is_shortened(value) and abs(float(value)) < 2.0**bits:
        lost = "a number with fewer digits than it had, as spreadsheets write long ones"
    return DataError(
        f"{where}: the id {value}{there} is {lost}, so several ids may already be one; write {these} as integers or "
        "text, from data in which the ids are still whole"
    )

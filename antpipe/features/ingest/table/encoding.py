"""The encoding of a text file: from its byte order mark, or else guessed from its bytes."""

import codecs
import re
from collections.abc import Iterator
from typing import BinaryIO

from antpipe.errors import UsageError

UTF_8 = "utf-8-sig"  # with or without a byte order mark
MARKS = {
    codecs.BOM_UTF8: UTF_8,
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
NAMES = {UTF_8: "UTF-8", "utf-16": "UTF-16", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "utf-32": "UTF-32"}
BLOCK = 1 << 20
SAMPLE = 4096
# Windows-1252, a superset of Latin-1: letters stand alone or in pairs among ASCII, as in "Größe", perhaps beside signs
# such as € “ ” ° ®. Longer runs of high bytes are another alphabet.
HIGH = re.compile(rb"[\x80-\xff]+")
SIGNS = bytes([0x80, 0x82, 0x84, 0x85, 0x8B, *range(0x91, 0x98), 0x99, 0x9B, 0xA0, 0xA1, 0xA3, *range(0xA7, 0xAC)]) + (
    bytes([*range(0xAD, 0xB8), *range(0xB9, 0xC0), 0xD7])
)
LETTERS = re.compile(rb"[\x8a\x8c\x8e\x9a\x9c\x9e\x9f\xc0-\xd6\xd8-\xf6\xf8-\xfe]{0,2}")
PLAUSIBLE = 0.9  # share of the high bytes


def encoding_of(stream: BinaryIO) -> str:
    """The name that Python knows the encoding by: UTF-8, UTF-16 or Windows-1252. The whole stream is read.

    A file that fits none of them, or in which most characters beyond ASCII are valid UTF-8, counts as UTF-8: then only
    some lines are damaged, and they are rejected one by one.
    """
    first = stream.read(BLOCK)
    for mark, name in MARKS.items():
        if first.startswith(mark):
            return name
    if wide := _utf_16(first[:SAMPLE]):
        return wide
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    good = bad = plausible = 0
    for block in _blocks(first, stream):
        text = decoder.decode(block)
        if text.isascii():
            continue
        escaped = sum(map(len, re.findall("[\udc80-\udcff]+", text)))
        good += sum(map(len, re.findall("[^\x00-\x7f\udc80-\udcff]+", text)))
        bad += escaped
        plausible += _plausible(block) if escaped else 0
    return "cp1252" if bad > good and plausible >= PLAUSIBLE * bad else UTF_8


def require_encoding(name: str) -> str:
    """An encoding that the user names, as Python knows it. Raises UsageError for an unknown one."""
    try:
        "".encode(name)
        known = codecs.lookup(name).name
    except (LookupError, ValueError):
        raise UsageError(
            f"--encoding {name}: unknown encoding; examples: utf-8, utf-16, cp1252, latin-1, cp850"
        ) from None
    return UTF_8 if known == "utf-8" else known


def _blocks(first: bytes, stream: BinaryIO) -> Iterator[bytes]:
    block = first
    while block:
        yield block
        block = stream.read(BLOCK)


def _utf_16(sample: bytes) -> str:
    """UTF-16 without a mark: every other byte of Western text is zero."""
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    half = len(sample) // 2
    if half < 2 or max(even, odd) < 0.7 * half or min(even, odd) > 0.05 * half:
        return ""
    return "utf-16-le" if odd > even else "utf-16-be"


def _plausible(block: bytes) -> int:
    """How many of the high bytes make sense as Windows-1252 text."""
    runs = HIGH.findall(block)
    return sum(len(run) for run in runs if LETTERS.fullmatch(run.strip(SIGNS)))

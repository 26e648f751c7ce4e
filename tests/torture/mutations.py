"""Inputs of strangers: good ones, and what becomes of them when bytes are lost, doubled, changed or put in."""

from collections.abc import Sequence
from random import Random

# What readers stumble over more often than over random bytes.
TOKENS = (
    b'"', b"'", b"\\", b"{", b"}", b"[", b"]", b"(", b")", b",", b";", b"\t", b"\r", b"\n", b"\x00", b"\xff", b"\xfe",
    b"null", b"nan", b"NaN", b"inf", b"-inf", b"1e999", b"-1", b"0", b"1e-400", b"9" * 25, b"1.797e308", b"1_0",
    b"true", b"None", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xe2\x80\xae", b"\x1b[2J", b"\\u0000", b"\\ud800", b"&#0;",
    b"&#x110000;", b"&lt;", b"<script>", b"<!--", b"<br", b"../", b"/etc/passwd", b"http://", b"https://[::1", b"file://",
    b"%00", b"%s", b"{0}", b"$1.234,56", b"1970-01-01", b"9999-12-31T23:59:60Z", b"0000-00-00", b"31.02.2020", b"=1+1",
    b"\xf0\x9f\x98\x80", b"\xcc\x81" * 20, b"\xef\xbf\xbe", b"\xc2\x85", b"\xe2\x80\xa8", b"array(", b"[" * 200,
    b"a" * 3000,
)  # fmt: skip
WIDTHS = (1, 2, 4, 8)
NUMBERS = tuple(int(one).to_bytes(width, "little", signed=one < 0) for width in WIDTHS for one in (0, 1, -1))
NUMBERS += tuple((2 ** (8 * width - 1) - 1).to_bytes(width, "little") for width in WIDTHS)


def mutated(content: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """The content after one to four accidents. others: of the same kind, of which it may get a piece."""
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(content) + 1)
        many = random.choice((1, 1, 2, 4, 16, 64))
        how = random.randrange(8)
        if how == 0:
            content = content[:at] + content[at + many :]
        elif how == 1:
            content = content[: at + many] + content[at:]
        elif how == 2:
            content = content[:at] + random.randbytes(many) + content[at + many :]
        elif how == 3 and at < len(content):
            content = content[:at] + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :]
        elif how == 4:
            number = random.choice(NUMBERS)
            content = content[:at] + number + content[at + len(number) :]
        elif how == 5 and others:
            other = random.choice(others)
            begin = random.randrange(len(other) + 1)
            content = content[:at] + other[begin : begin + many] + content[at:]
        elif how == 6 and random.random() < 0.1:
            content = content[:at]
        else:
            content = content[:at] + random.choice(TOKENS) + content[at:]
    return content


def mutants(seeds: Sequence[bytes], random: Random, count: int) -> list[bytes]:
    """So many, each made of one of the seeds."""
    return [mutated(random.choice(seeds), random, seeds) for _ in range(count)]


def text_of(content: bytes) -> str:
    """Bytes as the text that a reader of UTF-8 would pass on."""
    return content.decode("utf-8", "replace")

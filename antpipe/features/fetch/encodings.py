"""Bodies that a server compressed although it was asked not to (Content-Encoding, RFC 9110 8.4)."""

import zlib

import pyarrow as pa

CODECS = {"gzip": "gzip", "x-gzip": "gzip", "br": "brotli", "zstd": "zstd"}
MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}  # content without it was not packed after all
PLAIN = ("", "identity", "none", "binary", "aws-chunked", "utf-8")  # what servers write of plain content
BLOCK = 1 << 16


class EncodedError(Exception):
    """A body that cannot be unpacked. reason: why, in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def unpacked(content: bytes, encodings: str, most: int) -> bytes | None:
    """The body without its encodings, the last of which was applied last. None if it is longer than `most` bytes.

    Raises EncodedError for an encoding that is not known, and for damaged data.
    """
    for encoding in reversed([part.strip().lower() for part in encodings.split(",")]):
        if encoding in PLAIN:
            continue
        if encoding != "deflate" and encoding not in CODECS:
            raise EncodedError(f"Content-Encoding {encoding[:40]} is not known")
        codec = CODECS.get(encoding, "")
        if not content.startswith(MAGIC.get(codec, b"")):
            continue
        try:
            content = _inflated(content, most) if encoding == "deflate" else _decompressed(content, codec, most)
        except (zlib.error, OSError, pa.ArrowException) as error:
            raise EncodedError(f"damaged {encoding} data: {str(error).splitlines()[0]}") from None
        if len(content) > most:
            return None
    return content


def _decompressed(content: bytes, codec: str, most: int) -> bytes:
    """At most a block more than `most` bytes."""
    found = bytearray()
    with pa.CompressedInputStream(pa.BufferReader(content), codec) as stream:
        while len(found) <= most and (block := stream.read(BLOCK)):
            found += block
    return bytes(found)


def _inflated(content: bytes, most: int) -> bytes:
    """deflate means zlib data; some servers send raw ones."""
    try:
        return zlib.decompressobj().decompress(content, most + 1)
    except zlib.error:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, most + 1)

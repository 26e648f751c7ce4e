"""Packed files, recognised by their first bytes, not by name: gzip, bzip2, xz, Zstandard, and zip with one file."""

import bz2
import gzip
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import pyarrow as pa

from antpipe.errors import DataError
from antpipe.store.next_command import shell

GZIP, BZIP2, XZ, ZSTD, ZIP = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"
NAMES = {GZIP: "gzip", BZIP2: "bzip2", XZ: "xz", ZSTD: "Zstandard", ZIP: "zip"}
SUFFIXES = {".gz": GZIP, ".bz2": BZIP2, ".xz": XZ, ".zst": ZSTD, ".zip": ZIP}
# What reading a file can raise if it is damaged.
DAMAGED: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    pa.ArrowException,
)


def packing_of(path: Path) -> bytes:
    """How a file is packed: the bytes that packed data begin with, or b"" if it is not.

    A name that ends in .gz and the like counts too, so that such a file with other content is refused as damaged.
    """
    with path.open("rb") as file:
        begin = file.read(max(map(len, NAMES)))
    found = next((mark for mark in NAMES if begin.startswith(mark)), b"")
    return found or (SUFFIXES.get(path.suffix.lower(), b"") if begin else b"")


def open_unpacked(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked as they are read. Raises DataError for a zip archive of several files."""
    packing = packing_of(path)
    if packing == GZIP:
        return cast(BinaryIO, gzip.GzipFile(path))
    if packing in (BZIP2, XZ):
        return cast(BinaryIO, io.BufferedReader(Streams(path, packing)))
    if packing == ZSTD:
        return cast(BinaryIO, pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    if packing == ZIP:
        return _only_member(path)[1]
    return path.open("rb")


class Streams(io.RawIOBase):
    """The content of a file of one or more bzip2 or xz streams.

    Python's own readers stop at anything after a stream that is not another stream: the rest of a damaged file, or of
    one whose xz streams have padding between them, would be missing. Raises EOFError, OSError or LZMAError.
    """

    def __init__(self, path: Path, packing: bytes) -> None:
        self.file, self.padded = path.open("rb"), packing == XZ
        self.make: Callable[[], Any] = lzma.LZMADecompressor if self.padded else bz2.BZ2Decompressor
        self.stream, self.waiting = self.make(), b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        found = b""
        while not found:
            if self.stream.eof and not self._next_stream():
                return 0
            if self.stream.needs_input:
                self.waiting = self.waiting or self.file.read(io.DEFAULT_BUFFER_SIZE)
                if not self.waiting:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            found, self.waiting = self.stream.decompress(self.waiting, len(buffer)), b""
        buffer[: len(found)] = found
        return len(found)

    def _next_stream(self) -> bool:
        """Begin the next stream; False at the end of the file."""
        self.waiting = self.stream.unused_data
        while True:
            self.waiting = self.waiting or self.file.read(io.DEFAULT_BUFFER_SIZE)
            rest = self.waiting.lstrip(b"\0") if self.padded else self.waiting
            if rest or not self.waiting:
                break
            self.waiting = b""
        self.waiting = rest
        self.stream = self.make() if rest else self.stream
        return bool(rest)


def name_inside(path: Path) -> str:
    """The name that tells the format of a packed file: without .gz and the like; of the one file in a zip archive."""
    if packing_of(path) == ZIP:
        name, member = _only_member(path)
        member.close()
        inside = PurePosixPath(name).name
        if PurePosixPath(inside).suffix:
            return inside
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def _only_member(path: Path) -> tuple[str, BinaryIO]:
    """The only file of an archive, opened. Raises DataError if there is none, several, or one that cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:  # files opened in it stay open
            files = [
                one for one in archive.infolist() if not one.filename.endswith("/") and not _is_other(one.filename)
            ]
            if any(one.filename == "xl/workbook.xml" for one in files):
                raise DataError(
                    f"{path}: an Excel workbook; save its sheet as CSV or Parquet", shell("unzip", "-l", path)
                )
            if len(files) == 1:
                return files[0].filename, cast(BinaryIO, archive.open(files[0]))
    except RuntimeError as error:  # NotImplementedError among them
        raise DataError(f"{path}: the zip archive cannot be read: {error}", shell("unzip", path)) from None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, LookupError, struct.error) as error:
        raise DataError(
            f"{path}: cannot be read: {error}; make or download it again", shell("unzip", "-t", path)
        ) from None
    shown = ", ".join(one.filename for one in files[:5]) + (" …" if len(files) > 5 else "")
    raise DataError(
        f"{path}: a zip archive of {len(files)} files ({shown or 'none'}); unpack it and name the one to read",
        shell("unzip", path),
    )


def in_words(packing: bytes) -> str:
    """The packing, to append to a format in a message: ', gzip', or ''."""
    return f", {NAMES[packing]}" if packing else ""


def _is_other(name: str) -> bool:
    """Whether a name in an archive is a folder, or a file that operating systems add."""
    return name.endswith("/") or name.startswith("__MACOSX/") or PurePosixPath(name).name.startswith(".")

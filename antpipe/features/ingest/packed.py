"""Packed files, known by how they begin rather than by names: gzip, bzip2, xz, Zstandard, and zip with one file."""

import bz2
import gzip
import lzma
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

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
    NotImplementedError,
    pa.ArrowException,
)


def packing_of(path: Path) -> bytes:
    """How a file is packed: the bytes that packed data begin with, or b"" if it is not.

    A name that ends in .gz and the like decides, too, so that such a file with other content is refused as damaged.
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
    if packing == BZIP2:
        return cast(BinaryIO, bz2.BZ2File(path))
    if packing == XZ:
        return cast(BinaryIO, lzma.LZMAFile(path))
    if packing == ZSTD:
        return cast(BinaryIO, pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    if packing == ZIP:
        with zipfile.ZipFile(path) as archive:  # what is open in it stays open
            return cast(BinaryIO, archive.open(member_of(path, archive)))
    return path.open("rb")


def name_inside(path: Path) -> str:
    """The name that tells the format of a packed file: without .gz and the like; of the one file in a zip archive."""
    if packing_of(path) == ZIP:
        try:
            with zipfile.ZipFile(path) as archive:
                inside = PurePosixPath(member_of(path, archive)).name
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(
                f"{path}: cannot be read: {error}; make or download it again", shell("unzip", "-t", path)
            ) from None
        if PurePosixPath(inside).suffix:
            return inside
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def member_of(path: Path, archive: zipfile.ZipFile) -> str:
    """The one file of an archive. Raises DataError if there are none, or several."""
    files = [one for one in archive.infolist() if not one.is_dir() and not _is_other(one.filename)]
    names = [one.filename for one in files]
    if len(names) != 1:
        shown = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
        raise DataError(
            f"{path}: a zip archive of {len(names)} files ({shown or 'none'}); unpack it and name the one to read",
            shell("unzip", path),
        )
    if files[0].flag_bits & 1:
        raise DataError(f"{path}: the zip archive is encrypted; unpack it with its password", shell("unzip", path))
    return names[0]


def in_words(packing: bytes) -> str:
    """The packing for a message about a format: ', gzip', or nothing."""
    return f", {NAMES[packing]}" if packing else ""


def _is_other(name: str) -> bool:
    """Whether a file in an archive is one that systems add."""
    return name.startswith("__MACOSX/") or PurePosixPath(name).name.startswith(".")

"""The pictures of a catalogue: which file belongs to which item, and a file's way to RGB pixels."""

import hashlib
import io
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features
from PIL import __version__ as PILLOW

from antpipe.store.files import digest

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# Resizing the short side of a longer strip to an encoder's input could take gigabytes, and nothing could be seen on it.
LONGEST = 20
HASHED_AT_ONCE = 4096  # pictures


@dataclass(frozen=True, slots=True)
class Picture:
    """A file that shows the item of this row. All of a catalogue are in memory, so a path is no Path.

    name: how it is told to the user and in the digest. sha256: of its content, None before it was read (`hashed`) and
    where it cannot be read.
    """

    row: int
    name: str
    path: str
    sha256: str | None = field(default=None, compare=False)


class UnreadableError(Exception):
    """A file gives no picture. reason: one of a few; detail: what the decoder said."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def decoder_name() -> str:
    """The library that decodes, and its decoder of JPEGs, as far as it tells."""
    turbo = features.version_feature("libjpeg_turbo")
    return f"Pillow {PILLOW}" + (f", libjpeg-turbo {turbo}" if turbo else "")


def listed_pictures(root: Path, files: Sequence[Sequence[str]]) -> list[Picture]:
    """files: for each row, paths relative to `root`."""
    folder = root.absolute()
    return [Picture(row, name, str(folder / name)) for row, names in enumerate(files) for name in names]


def folder_pictures(folder: Path, item_ids: Sequence[str]) -> list[Picture]:
    """Files of a folder named ITEM_ID.EXT, ITEM_ID_2.EXT …, in this order within an item; other files are ignored.

    Ids are compared with file names and never made into paths, so any id is safe. A name that is itself an id
    (`A_2.jpg` where there is an item `A_2`) belongs to that item alone.
    """
    row_of = {item_id: row for row, item_id in enumerate(item_ids)}
    found: list[tuple[int, int, str, Path]] = []
    for path in folder.absolute().iterdir():
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        numbered = re.fullmatch(r"(.+)_([0-9]+)", path.stem, re.DOTALL)
        if path.stem in row_of:
            found.append((row_of[path.stem], 1, path.name, path))
        elif numbered and numbered[1] in row_of:
            found.append((row_of[numbered[1]], int(numbered[2]), path.name, path))
    return [Picture(row, name, str(path)) for row, _, name, path in sorted(found)]


def first_of_each_item(pictures: Sequence[Picture], most: int) -> list[Picture]:
    """At most `most` pictures of each item, by row, in the order given; a file that is named twice counts once."""
    kept: list[Picture] = []
    for _, own in groupby(sorted(pictures, key=lambda picture: picture.row), key=lambda picture: picture.row):
        files: dict[str, Picture] = {}  # keeps the order, as the sort above does within an item
        for picture in own:
            files.setdefault(os.path.normpath(picture.path), picture)
        kept += list(files.values())[:most]
    return kept


def hashed(pictures: Sequence[Picture]) -> list[Picture]:
    """The same pictures with the sha256 of their files, which are read on all cores."""

    def with_hash(picture: Picture) -> Picture:
        try:
            with Path(picture.path).open("rb") as stream:
                return replace(picture, sha256=hashlib.file_digest(stream, "sha256").hexdigest())
        except OSError:  # told to the user when the picture is to be embedded
            return replace(picture, sha256=None)

    found: list[Picture] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(pictures), HASHED_AT_ONCE):  # what waits for a thread takes more than a picture
            found += pool.map(with_hash, pictures[start : start + HASHED_AT_ONCE])
    return found


def pictures_digest(pictures: Sequence[Picture]) -> str:
    """sha256 over row, name and content of every picture (`hashed`); one that cannot be read counts by its name."""
    return digest([[picture.row, picture.name, picture.sha256] for picture in pictures])


def read_picture(path: Path) -> Image.Image:
    """An upright RGB picture: EXIF orientation applied, transparency on white, of an animation the first frame.

    Raises UnreadableError for files that are missing, empty, not of FORMATS, damaged or truncated, of more pixels
    than Pillow's limit against decompression bombs, or more than LONGEST times as long as wide.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableError("cannot be read", error.strerror or type(error).__name__) from None
    return decode_picture(content)[0]


def decode_picture(
    content: bytes, most_pixels: int | None = None, least_side: int | None = None
) -> tuple[Image.Image, str]:
    """The picture of a file's content, as `read_picture` gives it, and its format (one of FORMATS).

    most_pixels: a tighter limit than Pillow's. Sizes are checked before pixels are decoded. least_side: a JPEG may be
    decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides keep so many pixels (the decoder's own scaling, in the
    frequency domain; other formats keep their size).
    """
    if not content:
        raise UnreadableError("empty file")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_size(image, most_pixels)
            form = str(image.format)
            if least_side is not None:
                image.draft(None, (least_side, least_side))
            return _to_rgb(ImageOps.exif_transpose(image)), form
    except (UnreadableError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnreadableError("not a picture", f"formats read: {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableError("too many pixels") from None
    except Exception as error:  # decoders fed with damaged files raise nearly anything
        raise UnreadableError("damaged", str(error).strip() or type(error).__name__) from None


def _check_size(image: Image.Image, most_pixels: int | None) -> None:
    limits = [limit for limit in (Image.MAX_IMAGE_PIXELS, most_pixels) if limit is not None]
    if any(image.width * image.height > limit for limit in limits):
        raise UnreadableError("too many pixels", f"{image.width} x {image.height}")
    if max(image.size) > LONGEST * min(image.size):
        raise UnreadableError("too long and narrow", f"{image.width} x {image.height}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16 bits of grey: Pillow's own conversion clips them to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        # What lies under transparent pixels is arbitrary, often black; shops show them on white.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")

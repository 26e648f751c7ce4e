"""A picture file's way to an upright RGB picture, or to the reason why there is none."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features
from PIL import __version__ as PILLOW

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# Resizing the short side of a longer strip to an encoder's input could take gigabytes, and show nothing.
LONGEST = 20


class UnreadableError(Exception):
    """A file gives no picture. reason: a short, fixed phrase; detail: what the decoder said."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def decoder_name() -> str:
    """The decoding library and, if it tells, its JPEG decoder, with their versions."""
    turbo = features.version_feature("libjpeg_turbo")
    return f"Pillow {PILLOW}" + (f", libjpeg-turbo {turbo}" if turbo else "")


def read_picture(path: Path) -> Image.Image:
    """An upright RGB picture: EXIF orientation applied, transparency on white, the first frame of an animation.

    Raises UnreadableError for files that are missing, empty, not of FORMATS, damaged or truncated, have more pixels
    than Pillow's limit against decompression bombs, or are more than LONGEST times as long as wide.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableError("cannot be read", error.strerror or type(error).__name__) from None
    return decode_picture(content)[0]


def decode_picture(
    content: bytes, most_pixels: int | None = None, least_side: int | None = None
) -> tuple[Image.Image, str]:
    """The picture in a file's content, as `read_picture` gives it, and its format (one of FORMATS).

    most_pixels: a tighter limit than Pillow's; sizes are checked before pixels are decoded. least_side: decode a JPEG
    at 1/2, 1/4 or 1/8 of its size if both sides keep at least this many pixels (the decoder scales in the frequency
    domain; other formats keep their size). Raises UnreadableError.
    """
    if not content:
        raise UnreadableError("empty file")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_size(image, most_pixels)
            form = _format_of(image)
            if least_side is not None:
                image.draft(None, (least_side, least_side))
            return _to_rgb(ImageOps.exif_transpose(image)), form
    except (UnreadableError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnreadableError("not a picture", f"formats read: {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableError("too many pixels") from None
    except Exception as error:  # given damaged files, decoders raise nearly anything
        raise UnreadableError("damaged", str(error).strip() or type(error).__name__) from None


def _format_of(image: Image.Image) -> str:
    """The format of a file, one of FORMATS.

    Pillow may report a refinement: MPO for a JPEG that holds further pictures, as phones write them.
    """
    for kind in type(image).__mro__:
        form = getattr(kind, "format", None)
        if form in FORMATS:
            return str(form)
    raise UnreadableError("not a picture", f"format {image.format}")


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
        # The colour under transparent pixels is arbitrary, often black; shops show them on white.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")

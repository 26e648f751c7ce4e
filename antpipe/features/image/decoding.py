"""A picture file's way to an upright RGB picture, or to the reason why there is none."""

import io
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError, features
from PIL import __version__ as PILLOW

# Pillow reads AVIF from version 11.3 on.
AVIF = "avif" in features.modules and features.check_module("avif")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if AVIF else ()))
# How files begin that shops publish too, but that are not read; ISO media files name their kind at byte 8.
OTHERS = {
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
    b"\x00\x00\x01\x00": "an icon",
    b"<svg": "SVG",
    b"<?xml": "SVG or other XML",
    b"<!doctype": "a web page",
    b"<html": "a web page",
}
MEDIA = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF", b"avif": "AVIF", b"avis": "AVIF"}
ORIENTATION = 0x0112  # the EXIF tag
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
JPEG, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# Chunks that only describe the pixels, and the flags in VP8X that announce them (EXIF, XMP, ICC).
PNG = b"\x89PNG\r\n\x1a\n"
DESCRIBING_PNG = (b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"tIME", b"pHYs")
DESCRIBING_WEBP, DESCRIBED_WEBP = (b"EXIF", b"XMP ", b"ICCP"), 0b0010_1100
# Resizing the short side of a longer strip to an encoder's input could take gigabytes, and show nothing.
LONGEST = 20


class UnreadableError(Exception):
    """A file gives no picture. reason: a short, fixed phrase; detail: what the decoder said."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def decoder_name(*, on_gpu: bool = False) -> str:
    """The decoding libraries with their versions, and Pillow's JPEG decoder if it tells."""
    turbo = features.version_feature("libjpeg_turbo")
    gpu = f"TorchCodec {version('torchcodec')}, " if on_gpu else ""
    return f"{gpu}Pillow {PILLOW}" + (f", libjpeg-turbo {turbo}" if turbo else "")


def read_picture(path: Path) -> Image.Image:
    """An upright RGB picture: transparency on white, the first frame of an animation.

    EXIF orientation is applied; if the EXIF data are damaged, the picture stays as it is stored.

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
        return _decoded(content, most_pixels, least_side)
    except UnreadableError as error:
        # Junk beside the pixels, such as a broken EXIF block, is no reason to lose a picture.
        bare = without_metadata(content) if error.reason in ("damaged", "not a picture") else None
        if bare is None:
            raise
        try:
            return _decoded(bare, most_pixels, least_side)
        except UnreadableError:
            pass  # so that was not the cause
        raise


def plain_jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that every decoder reads alike; None for any other file.

    Such a file holds one complete, upright picture of grey or YCbCr values, within the limits of `decode_picture`.
    """
    if not (content.startswith(JPEG) and content.endswith(JPEG_END)):
        return None
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            _check_size(image, None)
            turned = int(image.getexif().get(ORIENTATION, 1)) in TURNED
            coded_rgb = image.info.get("adobe_transform") == 0 or _component_names(image) == b"RGB"
            plain = image.format == "JPEG" and image.mode in ("L", "RGB") and not coded_rgb and not turned
            return image.size if plain else None
    except Exception:  # given damaged files, Pillow raises nearly anything; decode_picture says what is wrong
        return None


def _component_names(image: Image.Image) -> bytes:
    """The ids of a JPEG's colour components."""
    return bytes(component[0] for component in image.layer)  # type: ignore[attr-defined]


def _decoded(content: bytes, most_pixels: int | None, least_side: int | None) -> tuple[Image.Image, str]:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_size(image, most_pixels)
            form = _format_of(image)
            if least_side is not None:
                image.draft(None, (least_side, least_side))
            return _to_rgb(_upright(image)), form
    except (UnreadableError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnreadableError("not a picture", f"{_kind_of(content)}formats read: {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableError("too many pixels") from None
    except Exception as error:  # given damaged files, decoders raise nearly anything
        raise UnreadableError("damaged", str(error).strip() or type(error).__name__) from None


def _kind_of(content: bytes) -> str:
    """The format of a file that is not read, for a message; '' if it is unknown."""
    begin = content[:16].lstrip(b"\xef\xbb\xbf \r\n\t")
    kind = MEDIA.get(content[8:12]) if content[4:8] == b"ftyp" else None
    kind = kind or next((name for mark, name in OTHERS.items() if begin.lower().startswith(mark.lower())), None)
    return f"{kind}; " if kind else ""


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data say; as it is if they are damaged."""
    image.load()  # raises if the pixels are damaged
    try:
        turned = TURNED.get(int(image.getexif().get(ORIENTATION, 1)))
    except Exception:  # given junk, Pillow raises nearly anything
        turned = None
    return image if turned is None else image.transpose(turned)


def without_metadata(content: bytes) -> bytes | None:
    """A PNG or WebP file without what only describes its pixels; None for others and if there is nothing of this."""
    if content.startswith(PNG):
        chunks, at = [PNG], len(PNG)
        while at + 8 <= len(content):
            size = 12 + int.from_bytes(content[at : at + 4], "big")  # with length, kind and checksum
            if content[at + 4 : at + 8] not in DESCRIBING_PNG:
                chunks.append(content[at : at + size])
            at += size
    elif content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        chunks, at = [], 12
        while at + 8 <= len(content):
            size = int.from_bytes(content[at + 4 : at + 8], "little")
            chunk = content[at : at + 8 + size + size % 2]
            if chunk[:4] == b"VP8X":
                chunk = chunk[:8] + bytes([chunk[8] & ~DESCRIBED_WEBP]) + chunk[9:] if len(chunk) > 8 else chunk
            if chunk[:4] not in DESCRIBING_WEBP:
                chunks.append(chunk)
            at += 8 + size + size % 2
        chunks.insert(0, b"RIFF" + (4 + sum(map(len, chunks))).to_bytes(4, "little") + b"WEBP")
    else:
        return None
    bare = b"".join(chunks)
    return bare if len(bare) < len(content) else None


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

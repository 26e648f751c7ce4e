"""A picture file becomes an upright RGB picture, whole or at a fraction of its size, or a reason why not."""

import io
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile

from antpipe.features.image.decoding import FORMATS, UnreadableError, decode_picture, read_picture
from tests.support.shops import phone_picture, picture


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


# -- reading one file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_common_formats_are_read(tmp_path: Path, form: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(picture(1, (40, 30), form))
    image = read_picture(path)
    assert (image.mode, image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize("least_side", [None, 20])
def test_a_jpeg_with_further_pictures_is_a_jpeg(least_side: int | None) -> None:
    content = phone_picture(1, (160, 120))
    assert Image.open(io.BytesIO(content)).format == "MPO"
    image, form = decode_picture(content, least_side=least_side)
    plain, _ = decode_picture(picture(1, (160, 120), "JPEG"), least_side=least_side)
    assert (form, image.mode, image.size) == ("JPEG", "RGB", plain.size)
    assert np.abs(np.asarray(image, np.float32) - np.asarray(plain, np.float32)).mean() < 5


def test_an_unknown_format_is_not_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BmpImageFile, "format", "odd")
    with pytest.raises(UnreadableError, match="not a picture: format odd"):
        decode_picture(picture(1, form="BMP"))


@pytest.mark.parametrize(("mode", "form"), [("L", "PNG"), ("1", "PNG"), ("P", "GIF"), ("CMYK", "JPEG")])
def test_other_colour_modes_become_rgb(tmp_path: Path, mode: str, form: str) -> None:
    path = saved(Image.new("RGB", (8, 8), "white").convert(mode), tmp_path / "picture", format=form)
    image = read_picture(path)
    assert image.mode == "RGB"
    assert min(image.getpixel((4, 4))) >= 250  # type: ignore[type-var]


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    for mode, colour in (("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))):
        path = saved(Image.new(mode, (8, 8), colour), tmp_path / "picture.png")
        assert read_picture(path).getpixel((4, 4)) == (255, 255, 255)


def test_transparent_palette_colour_becomes_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([200, 0, 0, 0, 200, 0])
    path = saved(image, tmp_path / "picture.png", transparency=0)
    assert read_picture(path).getpixel((4, 4)) == (255, 255, 255)


def test_sixteen_bits_of_grey_keep_their_shades(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.full((8, 8), 128 * 256, dtype=np.uint16)), tmp_path / "picture.png")
    assert read_picture(path).getpixel((4, 4)) == (128, 128, 128)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10), "blue")
    image.paste("red", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: the picture's left side is up
    upright = read_picture(saved(image, tmp_path / "picture.png", exif=exif))
    assert upright.size == (10, 20)
    assert upright.getpixel((5, 2)) == (255, 0, 0)


def test_an_animation_shows_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "picture.gif", save_all=True, append_images=frames[1:])
    assert read_picture(path).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<html>404</html>", "not a picture"),
        (picture(1, (200, 200), "JPEG")[:-300], "damaged"),
        (picture(1)[:60], "damaged"),
        (picture(1, (100, 4)), "too long and narrow"),
    ],
)
def test_unreadable_files_have_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableError) as caught:
        read_picture(path)
    assert caught.value.reason == reason


def test_formats_outside_the_list_are_not_decoded(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (8, 8)), tmp_path / "picture.jpg", format="PCX")
    with pytest.raises(UnreadableError, match="not a picture: formats read: JPEG, PNG, "):
        read_picture(path)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIC"),
        (b'  <SVG xmlns="http://www.w3.org/2000/svg">', "SVG"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"%PDF-1.7", "PDF"),
    ],
)
def test_formats_that_are_not_read_are_named(content: bytes, name: str) -> None:
    with pytest.raises(UnreadableError, match=f"not a picture: {name}; formats read: "):
        decode_picture(content)


def with_exif(form: str, exif: bytes) -> bytes:
    stream = io.BytesIO()
    image = Image.new("RGB", (20, 10), "blue")
    image.paste("red", (0, 0, 10, 10))
    image.save(stream, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    return stream.getvalue()


def require_as_stored(content: bytes) -> None:
    image, _ = decode_picture(content)
    assert image.size == (20, 10)
    assert image.getpixel((2, 2)) == (255, 0, 0)


@settings(deadline=None)
@given(
    st.binary(max_size=60) | st.binary(max_size=60).map(lambda junk: b"Exif\0\0II*\0\x08\0\0\0\x01\0" + junk),
    st.sampled_from(["PNG", "WEBP"]),
)
def test_exif_data_never_lose_a_picture(junk: bytes, form: str) -> None:
    with catch_warnings():
        simplefilter("ignore")  # of Pillow, about the junk
        image, found = decode_picture(with_exif(form, junk))
    assert (sorted(image.size), found) == ([10, 20], form)


def test_a_png_whose_exif_block_has_a_wrong_checksum_is_as_stored() -> None:
    exif = Image.Exif()
    exif[274] = 6
    content = with_exif("PNG", exif.tobytes())
    at = content.index(b"eXIf")
    size = int.from_bytes(content[at - 4 : at], "big")
    require_as_stored(content[: at + 4 + size] + b"junk" + content[at + 8 + size :])


def test_a_webp_whose_exif_block_is_cut_is_as_stored() -> None:
    content = with_exif("WEBP", b"Exif\0\0" + b"x" * 50)
    require_as_stored(content[:-30])


def test_a_missing_file_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="cannot be read"):
        read_picture(tmp_path / "absent.jpg")


@pytest.mark.parametrize("limit", [1000, 700, 100])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(picture(1, (40, 30)))  # 1,200 pixels: beyond the limit, once beyond twice the limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UnreadableError, match="too many pixels"):
        read_picture(path)


@settings(deadline=None)  # it writes files
@given(st.binary(max_size=60), st.integers(0, 400), st.sampled_from(FORMATS))
def test_overwritten_bytes_give_a_picture_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int, form: str
) -> None:
    content = picture(1, form=form)
    path = tmp_path_factory.mktemp("pictures") / "picture"
    path.write_bytes(content[:at] + junk + content[at + len(junk) :])
    try:
        outcome = read_picture(path).mode
    except UnreadableError as error:
        outcome = error.reason
    assert outcome in {"RGB", "not a picture", "damaged", "too many pixels", "too long and narrow"}


# -- decoding large files smaller -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"), [((800, 600), (200, 150)), ((801, 603), (201, 151)), ((200, 250), (200, 250))]
)
def test_large_jpegs_are_decoded_smaller_but_not_below_least_side(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    image, form = decode_picture(picture(1, size, "JPEG"), least_side=130)
    assert (image.mode, form, image.size) == ("RGB", "JPEG", expected)


def test_other_formats_keep_their_size() -> None:
    assert decode_picture(picture(1, (800, 600), "PNG"), least_side=100)[0].size == (800, 600)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpegs_of_other_colour_modes_decoded_smaller_become_rgb(tmp_path: Path, mode: str) -> None:
    path = saved(Image.new("RGB", (400, 320), (200, 90, 40)).convert(mode), tmp_path / "picture", format="JPEG")
    whole, small = (decode_picture(path.read_bytes(), least_side=least)[0] for least in (None, 80))
    assert (small.mode, small.size) == ("RGB", (100, 80))
    assert small.getpixel((50, 40)) == pytest.approx(whole.getpixel((200, 160)), abs=2)


def test_turned_jpegs_decoded_smaller_are_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (640, 320), "blue")
    image.paste("red", (0, 0, 320, 320))
    exif = Image.Exif()
    exif[274] = 6
    path = saved(image, tmp_path / "picture.jpg", exif=exif, quality=95)
    upright, _ = decode_picture(path.read_bytes(), least_side=160)
    assert upright.size == (160, 320)
    assert upright.getpixel((80, 40)) == pytest.approx((254, 0, 0), abs=3)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_jpegs_decoded_smaller_are_damaged(share: float) -> None:
    content = picture(1, (900, 700), "JPEG")
    with pytest.raises(UnreadableError, match="damaged"):
        decode_picture(content[: int(len(content) * share)], least_side=100)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_not_decoded_smaller_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300_000)
    with pytest.raises(UnreadableError, match="too many pixels"):
        decode_picture(picture(1, (800, 600), "JPEG"), least_side=100)

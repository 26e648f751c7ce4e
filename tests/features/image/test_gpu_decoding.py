"""`--decode gpu` gives the pixels of exact decoding. TorchCodec runs on the CPU here, through the same functions."""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from antpipe.errors import DataError, UsageError
from antpipe.features import embed_image as stage
from antpipe.features.embed_image import embed_image
from antpipe.features.image import gpu_decoding
from antpipe.features.image.decoding import UnreadableError, decode_picture, plain_jpeg_size
from antpipe.features.image.embedder import make_embedder
from antpipe.features.image.encoders import ImageSettings, locate_image_encoder
from antpipe.features.image.gpu_decoding import completed, decoded_on, parts_of, require_gpu_decoding
from antpipe.features.image.pictures import PictureFile
from antpipe.features.image.prefetch import Decoded, Decoder, DecodingFailure, Jpeg, stacked
from antpipe.features.image.preparation import Preparation, split_transform
from antpipe.settings.features import EngineConfig, ImageConfig
from antpipe.store.store import Store
from tests.support.fake_encoders import tiny_encoder
from tests.support.shops import phone_picture, picture, picture_shop

CPU = torch.device("cpu")
needs_torchcodec = pytest.mark.skipif(
    gpu_decoding.importlib.util.find_spec("torchcodec") is None, reason="pip install 'antpipe[gpu]'"
)


def preparation(side: int = 16) -> Preparation:
    steps = [Resize(side, InterpolationMode.BICUBIC), CenterCrop(side), ToTensor(), Normalize([0.5] * 3, [0.5] * 3)]
    return split_transform(Compose(steps))


def jpeg(image: Image.Image, **more: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **more)
    return stream.getvalue()


def left(content: bytes) -> Jpeg:
    size = plain_jpeg_size(content)
    assert size is not None
    return Jpeg(content, size)


def written(folder: Path, contents: Sequence[bytes]) -> list[PictureFile]:
    files = []
    for number, content in enumerate(contents):
        path = folder / f"{number}"
        path.write_bytes(content)
        files.append(PictureFile(str(path), hashlib.sha256(content).hexdigest()))
    return files


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    return jpeg(Image.new("RGB", (30, 20), "red"), exif=exif)


PLAIN = Image.open(io.BytesIO(picture(1, (300, 200)))).convert("RGB")


@pytest.mark.parametrize(
    "content",
    [
        jpeg(PLAIN),
        jpeg(PLAIN.convert("L")),
        jpeg(PLAIN, progressive=True),
        jpeg(PLAIN, subsampling=0),
        turned(1),
        turned(0),
    ],
    ids=["plain", "grey", "progressive", "full colour", "upright by its EXIF data", "with an unknown orientation"],
)
def test_an_upright_complete_jpeg_is_left_to_the_gpu(content: bytes) -> None:
    assert plain_jpeg_size(content) == decode_picture(content)[0].size


@pytest.mark.parametrize(
    "content",
    [
        *(turned(orientation) for orientation in range(2, 9)),
        jpeg(PLAIN.convert("CMYK")),
        jpeg(PLAIN, keep_rgb=True),
        jpeg(PLAIN)[:-2],
        jpeg(PLAIN)[:100],
        jpeg(PLAIN) + b"more",
        jpeg(PLAIN.resize((210, 10))),
        phone_picture(1, (300, 200)),
        picture(1),
        b"\xff\xd8\xff\xd9",
        b"",
    ],
)
def test_any_other_file_is_not(content: bytes) -> None:
    assert plain_jpeg_size(content) is None


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_jpeg_over_the_limit_of_pixels_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 200 - 1)
    assert plain_jpeg_size(jpeg(PLAIN)) is None


@needs_torchcodec
@pytest.mark.parametrize("size", [(300, 200), (17, 16), (5, 9), (640, 480)])
def test_pixels_are_those_of_exact_decoding_but_for_rounding(size: tuple[int, int]) -> None:
    for content in (jpeg(PLAIN.resize(size)), jpeg(PLAIN.resize(size).convert("L"))):
        [found] = decoded_on(CPU, preparation(), [left(content)])
        assert isinstance(found, torch.Tensor)
        exact = preparation().pixels(content, scaled=False).astype(int)
        assert np.abs(found.numpy() - exact).max() <= 1


@needs_torchcodec
def test_a_jpeg_that_torchcodec_refuses_is_decoded_by_the_cpu(
    monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    good, odd = jpeg(PLAIN), jpeg(PLAIN.rotate(180))
    decode = torchcodec_decoders().decode_jpeg

    def refusing(sources: list[bytes], **more: Any) -> Any:
        if odd in sources:
            raise RuntimeError("not supported\nby the hardware")
        return decode(sources, **more)

    monkeypatch.setattr(torchcodec_decoders(), "decode_jpeg", refusing)
    first, second, third = decoded_on(CPU, preparation(), [left(good), left(odd), left(good)])
    assert isinstance(second, torch.Tensor)
    assert np.array_equal(second.numpy(), preparation().pixels(odd, scaled=True))
    assert torch.equal(first, third)  # type: ignore[arg-type]
    assert messages == [
        "TorchCodec does not decode every JPEG (not supported): the CPU decodes the others, which takes longer"
    ]


@needs_torchcodec
@pytest.mark.parametrize("error", [RuntimeError("no libnvjpeg"), OSError("undefined symbol"), ImportError("of torch")])
def test_a_decoder_that_does_not_work_is_refused_before_any_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(torchcodec_decoders(), "decode_jpeg", broken)
    located = locate_image_encoder(tiny_encoder(tmp_path, monkeypatch).encoder, "")
    with pytest.raises(DataError, match=rf"torchcodec .* with torch .* decodes no JPEGs on cpu .*: {error}") as caught:
        make_embedder(ImageSettings(located, "cpu", "fp32", "gpu", None, False, 4, 0))
    assert str(caught.value.next_command) == "the same command with --decode scaled"


@needs_torchcodec
def test_a_lack_of_gpu_memory_is_not_taken_for_a_bad_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torchcodec_decoders(), "decode_jpeg", full)
    with pytest.raises(torch.OutOfMemoryError):
        decoded_on(CPU, preparation(), [left(jpeg(PLAIN))])


@pytest.fixture(autouse=True)
def messages_again() -> None:
    gpu_decoding.warn_of.cache_clear()


def torchcodec_decoders() -> Any:
    import torchcodec.decoders

    return torchcodec.decoders


@needs_torchcodec
def test_a_damaged_jpeg_has_a_reason() -> None:
    content = bytearray(jpeg(PLAIN))
    table = content.index(b"\xff\xc4")  # its Huffman tables
    content[table + 4 : table + 24] = b"\xff" * 20
    assert plain_jpeg_size(bytes(content)) is not None
    [found] = decoded_on(CPU, preparation(), [left(bytes(content))])
    assert isinstance(found, UnreadableError)
    assert found.reason == "damaged"


def test_parts_hold_as_many_files_as_fit_into_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_decoding, "DECODED_AT_ONCE", 3 * 100)
    sizes = [(10, 4), (10, 6), (5, 2), (30, 30), (10, 5), (10, 5), (1, 1)]
    parts = [[one.size for one in part] for part in parts_of([Jpeg(b"", size) for size in sizes])]
    assert parts == [[(10, 4), (10, 6)], [(5, 2)], [(30, 30)], [(10, 5), (10, 5)], [(1, 1)]]
    assert list(parts_of([])) == []


@needs_torchcodec
def test_pictures_of_both_kinds_come_back_in_their_order(tmp_path: Path) -> None:
    contents = [picture(1), jpeg(PLAIN), b"no picture", phone_picture(1, (300, 200)), jpeg(PLAIN.convert("L"))]
    decoder = Decoder(preparation(), scaled=True, leave_jpegs=True)
    outcomes = [decoder.one(file) for file in written(tmp_path, contents)]
    assert [type(outcome) for outcome in outcomes] == [np.ndarray, Jpeg, DecodingFailure, np.ndarray, Jpeg]
    pixels, failures = completed(stacked(outcomes), preparation(), CPU)
    assert pixels is not None
    assert [*failures] == [2]
    readable = [content for number, content in enumerate(contents) if number != 2]
    expected = np.stack([preparation().pixels(content, scaled=True) for content in readable]).astype(int)
    assert np.abs(pixels.numpy() - expected).max() <= 2  # scaled decoding, too, is within rounding at this size


def test_a_batch_of_failures_has_no_pixels() -> None:
    failure = DecodingFailure("empty file")
    assert completed(Decoded(None, {0: failure}), preparation(), CPU) == (None, {0: failure})


@needs_torchcodec
def test_vectors_of_an_item_are_those_of_exact_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    located = locate_image_encoder(tiny_encoder(tmp_path, monkeypatch).encoder, "")
    exact = ImageSettings(located, "cpu", "fp32", "exact", None, False, 3, 0)
    contents = [jpeg(PLAIN), picture(2), jpeg(PLAIN.convert("L")), jpeg(PLAIN)[:500], phone_picture(3, (300, 200))]
    files = written(tmp_path, contents)
    items = [files[:2], files[2:3], files[3:4], files[4:]]
    one, other = (make_embedder(replace(exact, decode=how))(items, lambda _: None) for how in ("exact", "gpu"))
    assert one.failures == other.failures
    assert np.array_equal(one.present, other.present)
    np.testing.assert_allclose(other.values, one.values, rtol=0.02, atol=0.02)
    with_jpegs = [0, 1]
    assert not np.array_equal(one.values[with_jpegs], other.values[with_jpegs])  # they took another way


def test_a_transform_that_only_works_in_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    located = locate_image_encoder(tiny_encoder(tmp_path, monkeypatch).encoder, "")
    whole = replace(preparation(), quick=None)
    settings = ImageSettings(located, "cpu", "fp32", "gpu", None, False, 4, 0)
    monkeypatch.setattr("antpipe.features.image.embedder.load_image_encoder", with_preparation(whole))
    with pytest.raises(UsageError, match="steps that cannot run on a GPU") as caught:
        make_embedder(settings)
    assert str(caught.value.next_command) == "the same command with --decode scaled"


def with_preparation(preparation: Preparation) -> Callable[[ImageSettings], Any]:
    class Encoder:
        def __init__(self, _: ImageSettings) -> None:
            self.preparation = preparation

    return Encoder


def test_without_a_gpu_it_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, config = Store(tmp_path / "store"), tiny_encoder(tmp_path, monkeypatch)
    domain = picture_shop(store, {"1": jpeg(PLAIN)}, {"A": ["1"]})
    with pytest.raises(UsageError, match="--decode gpu: pictures are embedded on cpu"):
        embed_image(store, "shop", replace(config, device="cpu", decode="gpu"))
    assert "image" not in domain.manifest()


def test_without_torchcodec_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_decoding.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataError, match="torchcodec is not installed") as caught:
        require_gpu_decoding("cuda:0")
    assert caught.value.next_command == "pip install 'antpipe[gpu]'"


@needs_torchcodec
def test_the_manifest_says_what_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]) -> None:
    store, config = Store(tmp_path / "store"), tiny_encoder(tmp_path, monkeypatch)
    domain = picture_shop(store, {"1": jpeg(PLAIN), "2": picture(2)}, {"A": ["1"], "B": ["2"]})
    monkeypatch.setattr(stage, "require_gpu_decoding", lambda _: None)
    config = replace(config, device="cpu", decode="gpu", min_cosine=0.9)
    assert embed_image(store, "shop", config).figures["decode"] == "gpu"
    entry = domain.entry("image")
    assert entry["encoder"]["decoder"].startswith("TorchCodec 0.")
    assert 0.9 <= entry["fidelity"]["decode"] <= 1
    assert messages == []
    assert embed_image(store, "shop", config).status == "fresh"


@needs_torchcodec
def test_vectors_that_differ_too_much_are_given_up_for_exact_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    store, config = Store(tmp_path / "store"), tiny_encoder(tmp_path, monkeypatch)
    picture_shop(store, {"1": jpeg(PLAIN)}, {"A": ["1"]})
    monkeypatch.setattr(stage, "require_gpu_decoding", lambda _: None)
    found = embed_image(store, "shop", replace(config, device="cpu", precision="fp32", decode="gpu", min_cosine=1.0))
    assert found.figures["decode"] == "exact"
    assert [message.partition(" is only")[0] for message in messages] == ["shop: the cosine of gpu to exact decoding"]


def test_after_a_return_to_exact_decoding_processes_decode_again() -> None:
    config, lists, plan = ImageConfig(decode="gpu", device="cpu"), None, None
    settings = ImageSettings(None, "cpu", "fp32", "gpu", None, False, 4, 0)  # type: ignore[arg-type]
    workers = stage._decoding_workers
    assert workers(config, settings, lists, plan, EngineConfig()) == 0  # type: ignore[arg-type]
    ray = EngineConfig(engine="ray", ray_cpus=4)
    assert workers(config, replace(settings, decode="exact"), lists, plan, ray) == 3  # type: ignore[arg-type]

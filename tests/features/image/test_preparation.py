"""A model's own transform, split into pixels and arithmetic, gives the same numbers as the whole."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import Compose, GaussianBlur, Normalize, Resize, ToTensor

from antpipe.features.image.preparation import MARGIN, Preparation, split_transform
from tests.support.shops import picture

CLIP: dict[str, Any] = {"image_size": 64}
SIGLIP: dict[str, Any] = {"image_size": 64, "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash"}
PADDED: dict[str, Any] = {"image_size": 64, "resize_mode": "longest", "interpolation": "bilinear"}
OBLONG: dict[str, Any] = {"image_size": (48, 64)}


def of_open_clip(options: dict[str, Any]) -> Any:
    from open_clip.transform import image_transform

    return image_transform(**options, is_train=False)


def of_timm(options: dict[str, Any]) -> Any:
    from timm.data.transforms_factory import create_transform

    return create_transform(**options, is_training=False)


TRANSFORMS: dict[str, Callable[[], Any]] = {
    "clip": lambda: of_open_clip(CLIP),
    "siglip": lambda: of_open_clip(SIGLIP),
    "padded": lambda: of_open_clip(PADDED),
    "oblong": lambda: of_open_clip(OBLONG),
    "timm": lambda: of_timm({"input_size": (3, 64, 64), "crop_pct": 0.9, "interpolation": "bicubic"}),
    "timm squash": lambda: of_timm({"input_size": (3, 64, 64), "crop_mode": "squash"}),
    "timm border": lambda: of_timm({"input_size": (3, 64, 64), "crop_mode": "border"}),
}


def theirs(transform: Any, content: bytes) -> torch.Tensor:
    tensor: torch.Tensor = transform(Image.open(io.BytesIO(content)).convert("RGB"))
    return tensor


def ours(preparation: Preparation, content: bytes, scaled: bool = False) -> torch.Tensor:
    return preparation.normalised(torch.from_numpy(preparation.pixels(content, scaled))[None])[0]


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("size", [(200, 130), (40, 90), (64, 64)])
def test_exact_pixels_equal_the_models_transform_bit_for_bit(name: str, size: tuple[int, int]) -> None:
    transform = TRANSFORMS[name]()
    preparation = split_transform(transform)
    content = picture(3, size, "JPEG")
    assert preparation.mean is not None
    assert preparation.pixels(content, scaled=False).dtype == np.uint8
    assert torch.equal(ours(preparation, content), theirs(transform, content))


@settings(deadline=None, max_examples=40)
@given(st.integers(8, 400), st.integers(8, 400), st.sampled_from(["clip", "siglip", "timm", "timm squash"]))
def test_tensors_are_resized_like_pictures(width: int, height: int, name: str) -> None:
    if max(width, height) > 20 * min(width, height):
        return
    preparation = split_transform(TRANSFORMS[name]())
    content = picture(width, (width, height))  # PNG: nothing is decoded smaller
    exact, quick = (preparation.pixels(content, scaled).astype(int) for scaled in (False, True))
    assert exact.shape == quick.shape
    assert np.abs(exact - quick).max() <= 3
    assert np.abs(exact - quick).mean() < 0.25


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("size", [(900, 700), (700, 300), (150, 600)])
def test_pictures_decoded_smaller_stay_near_those_decoded_whole(name: str, size: tuple[int, int]) -> None:
    preparation = split_transform(TRANSFORMS[name]())
    content = picture(5, size, "JPEG")
    difference = np.abs(preparation.pixels(content, False).astype(int) - preparation.pixels(content, True))
    assert difference.max() <= 24
    assert difference.mean() < 1


@pytest.mark.parametrize(
    ("name", "side"), [("clip", 64), ("siglip", 64), ("padded", 64), ("oblong", 64), ("timm", 71), ("timm border", 73)]
)
def test_pictures_are_decoded_at_twice_the_size_they_are_resized_to(
    name: str, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(Image.Image, "draft", lambda _, mode, size: asked.append((mode, size)))
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", lambda _, mode, size: asked.append((mode, size)))
    preparation = split_transform(TRANSFORMS[name]())
    preparation.pixels(picture(1, (400, 300), "JPEG"), scaled=True)
    preparation.pixels(picture(1, (400, 300), "JPEG"), scaled=False)
    assert asked == [(None, (MARGIN * side, MARGIN * side))]


@pytest.mark.parametrize("steps", [[Resize(16), ToTensor()], [ToTensor(), Normalize([0], [1]), GaussianBlur(3)]])
def test_other_transforms_are_kept_whole(steps: list[Any]) -> None:
    transform = Compose(steps)
    preparation = split_transform(transform)
    content = picture(1, (16, 16))
    assert (preparation.mean, preparation.quick, preparation.side) == (None, None, None)
    torch.manual_seed(0)
    expected = theirs(transform, content)
    torch.manual_seed(0)
    assert torch.equal(ours(preparation, content, scaled=True), expected)


def test_steps_without_a_tensor_version_are_done_on_the_picture() -> None:
    steps = [Resize(16), GaussianBlur(3, sigma=(1, 1)), ToTensor(), Normalize([0.5], [0.5])]
    preparation = split_transform(Compose(steps))
    assert preparation.quick is None
    content = picture(1, (20, 20))
    assert torch.equal(ours(preparation, content, scaled=True), theirs(Compose(steps), content))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_preparation_can_be_sent_to_other_processes(name: str) -> None:
    preparation = split_transform(TRANSFORMS[name]())
    copy: Preparation = pickle.loads(pickle.dumps(preparation))
    content = picture(1, (300, 200), "JPEG")
    for scaled in (False, True):
        assert np.array_equal(copy.pixels(content, scaled), preparation.pixels(content, scaled))


@pytest.mark.realdata
def test_exact_pixels_of_photographs_equal_open_clips_bit_for_bit(real_data: Path) -> None:
    transform = of_open_clip({"image_size": 224})
    preparation = split_transform(transform)
    paths = (
        sorted((real_data / "images" / "hires").glob("*.jpg"))[::4]
        + sorted((real_data / "images" / "small").glob("*.jpg"))[::20]
    )
    assert len(paths) > 30
    for path in paths:
        content = path.read_bytes()
        assert torch.equal(ours(preparation, content), theirs(transform, content)), path.name

"""What is computed fast is compared with fp32 and whole pictures, and given up, loudly, where it differs."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from antpipe.features.embed_image import embed_image
from antpipe.features.encoders.identity import least_cosine
from antpipe.features.image import fidelity as image_fidelity
from antpipe.features.image.embedder import ImageEmbedder, ImageSettings
from antpipe.features.image.fidelity import Fidelity, plain, settle
from antpipe.features.shards.plan import Vectors
from antpipe.settings.features import ImageConfig
from antpipe.store.store import Store
from tests.support.fake_encoders import tiny_encoder
from tests.support.shops import picture, picture_shop

WANTED = ImageSettings(None, "cpu", "bf16", "scaled", None, False, 4, 0)  # type: ignore[arg-type]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageConfig:
    return replace(tiny_encoder(tmp_path, monkeypatch), precision="bf16")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def angles(monkeypatch: pytest.MonkeyPatch, precision: float, decode: float) -> None:
    """Embedders whose vectors turn by so many radians in bf16 and where pictures are decoded smaller."""

    class Turned:
        def __init__(self, settings: ImageSettings) -> None:
            self.angle = precision * (settings.precision == "bf16") + decode * (settings.decode == "scaled")

        def __call__(self, contents: Sequence[Any], _: Any) -> Vectors:
            vector = np.array([[np.cos(self.angle), np.sin(self.angle)]], np.float32)
            return Vectors(np.repeat(vector, len(contents), 0), np.ones(len(contents), np.bool_))

    monkeypatch.setattr(image_fidelity, "make_embedder", Turned)


@pytest.mark.parametrize(
    ("precision", "decode", "expected", "told"),
    [
        (0.01, 0.01, ("bf16", "scaled"), []),
        (0.1, 0.01, ("fp32", "scaled"), ["fp32 instead"]),
        (0.01, 0.1, ("bf16", "exact"), ["whole pictures instead"]),
        (0.1, 0.1, ("fp32", "exact"), ["fp32 instead", "whole pictures instead"]),
        (0.04, 0.03, ("fp32", "scaled"), ["fp32 instead"]),  # each alone would do, both do not
        (0.03, 0.04, ("bf16", "exact"), ["whole pictures instead"]),
    ],
)
def test_what_brings_the_cosine_down_is_given_up(
    monkeypatch: pytest.MonkeyPatch, precision: float, decode: float, expected: tuple[str, str], told: list[str]
) -> None:
    angles(monkeypatch, precision, decode)
    said: list[str] = []
    settings, fidelity = settle(WANTED, [("a", None)] * 3, 0.999, said.append)  # type: ignore[list-item]
    assert (settings.precision, settings.decode) == expected
    assert len(said) == len(told)
    assert all(word in text for word, text in zip(told, said, strict=True))
    angle = precision * (expected[0] == "bf16") + decode * (expected[1] == "scaled")
    assert fidelity.cosine == pytest.approx(np.cos(angle), abs=1e-6)
    assert fidelity.pictures == (3 if settings != plain(WANTED) else 0)


def test_the_plain_way_needs_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_fidelity, "make_embedder", pytest.fail)
    settings, fidelity = settle(plain(WANTED), [], 1.0, pytest.fail)
    assert (settings, fidelity) == (plain(WANTED), Fidelity(0, 1.0, 1.0, 1.0))


def test_cosines_of_zeros() -> None:
    zero, one = np.zeros((1, 2), np.float32), np.array([[2, 0]], np.float32)
    assert [least_cosine(a, b) for a, b in ((zero, zero), (zero, one), (one, zero), (one, -one))] == [1, 0, 0, -1]
    assert least_cosine(zero[:0], zero[:0]) == 1


def test_bf16_vectors_are_near_those_of_fp32_and_the_manifest_says_how_near(store: Store, tiny: ImageConfig) -> None:
    files = {str(seed): picture(seed, (200, 150), "JPEG") for seed in range(5)}
    domain = picture_shop(store, files, {f"I{seed}": [str(seed)] for seed in range(5)})
    embed_image(store, "shop", replace(tiny, precision="fp32", decode="exact"))
    exact = domain.feature("image").values.astype(np.float32)
    assert domain.entry("image")["fidelity"] == asdict(Fidelity(0, 1.0, 1.0, 1.0))
    said: list[str] = []
    result = embed_image(store, "shop", tiny, say=said.append)
    entry = domain.entry("image")
    assert said == []
    assert (entry["encoder"]["precision"], entry["encoder"]["decode"]) == ("bf16", "scaled")
    assert entry["encoder"]["decoder"].startswith("Pillow ")
    found = entry["fidelity"]
    assert found["pictures"] == 5
    assert 0.999 <= found["cosine"] < 1
    assert result.figures["cosine"] == round(found["cosine"], 6)
    made = domain.feature("image").values.astype(np.float32)
    assert least_cosine(made, exact) == pytest.approx(found["cosine"], abs=1e-4)  # the store keeps float16


def test_below_the_least_cosine_fp32_is_used_and_told(store: Store, tiny: ImageConfig) -> None:
    files = {str(seed): picture(seed) for seed in range(3)}
    domain = picture_shop(store, files, {f"I{seed}": [str(seed)] for seed in range(3)})
    said: list[str] = []
    result = embed_image(store, "shop", replace(tiny, min_cosine=1.0, decode="exact"), say=said.append)
    assert result.figures["precision"] == domain.entry("image")["encoder"]["precision"] == "fp32"
    assert [text.startswith("shop: the cosine of bf16 to fp32 is only 0.99") for text in said] == [True]
    assert embed_image(store, "shop", replace(tiny, min_cosine=1.0, decode="exact")).status == "fresh"


def test_a_later_run_does_not_decide_anew(store: Store, tiny: ImageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(tiny, min_cosine=1.0, decode="exact")
    files = {str(seed): picture(seed) for seed in range(4)}
    picture_shop(store, files, {"A": ["0"], "B": ["1"], "C": ["2"]})
    embed_image(store, "shop", config)
    picture_shop(store, files, {"A": ["0"], "B": ["1"], "C": ["2"], "D": ["3"]})
    said: list[str] = []
    asked = []
    embed = ImageEmbedder.__call__

    def watched(self: ImageEmbedder, contents: Any, advance: Any) -> Vectors:
        asked.append(self.settings.precision)
        return embed(self, contents, advance)

    monkeypatch.setattr(ImageEmbedder, "__call__", watched)
    embed_image(store, "shop", config, say=said.append)
    assert asked == ["fp32"]
    assert said == ["shop: 1 new or changed items to embed, 3 kept from before"]


@pytest.mark.realdata
def test_scaled_decoding_of_photographs_keeps_the_meaning(store: Store, real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install 'antpipe[offline]'")
    folder = tmp_path / "photographs"
    folder.mkdir()
    paths = sorted((real_data / "images" / "hires").glob("*.jpg"), key=lambda path: -path.stat().st_size)[:16]
    for path in paths:
        (folder / path.name).symlink_to(path)
    picture_shop(store, {}, {path.stem: [] for path in paths})
    config = ImageConfig(encoder="packaged/efficientnet-lite0", device="cpu", precision="fp32", images=folder)
    said: list[str] = []
    result = embed_image(store, "shop", config, say=said.append)
    assert said == []
    assert result.figures["decode"] == "scaled"
    assert 0.999 <= result.figures["cosine"] < 1

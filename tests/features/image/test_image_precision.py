"""The fast way is compared with fp32 and whole pictures on a sample, and given up with a message if it differs."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from antpipe.errors import DataError
from antpipe.features import embed_image as stage
from antpipe.features.embed_image import embed_image
from antpipe.features.image import precision as image_precision
from antpipe.features.image.embedder import ImageEmbedder
from antpipe.features.image.encoders import ImageSettings
from antpipe.features.image.precision import SampleCosines, exact, measured, near_enough, settle
from antpipe.features.shards.embedding import least_cosine
from antpipe.features.shards.folder import ShardVectors
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
    """Embedders whose vectors turn by these angles (radians) in bf16 and with scaled decoding."""

    class Turned:
        def __init__(self, settings: ImageSettings) -> None:
            self.angle = precision * (settings.precision == "bf16") + decode * (settings.decode == "scaled")

        def __call__(self, contents: Sequence[Any], _: Any) -> ShardVectors:
            vector = np.array([[np.cos(self.angle), np.sin(self.angle)]], np.float32)
            return ShardVectors(np.repeat(vector, len(contents), 0), np.ones(len(contents), np.bool_))

    monkeypatch.setattr(image_precision, "make_embedder", Turned)


@pytest.mark.parametrize(
    ("precision", "decode", "expected", "words"),
    [
        (0.01, 0.01, ("bf16", "scaled"), []),
        (0.1, 0.01, ("fp32", "scaled"), ["fp32 instead"]),
        (0.01, 0.1, ("bf16", "exact"), ["exactly instead"]),
        (0.1, 0.1, ("fp32", "exact"), ["fp32 instead", "exactly instead"]),
        (0.04, 0.03, ("fp32", "scaled"), ["fp32 instead"]),  # each alone would be near enough, both are not
        (0.03, 0.04, ("bf16", "exact"), ["exactly instead"]),
    ],
)
def test_what_brings_the_cosine_down_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
    messages: list[str],
    precision: float,
    decode: float,
    expected: tuple[str, str],
    words: list[str],
) -> None:
    angles(monkeypatch, precision, decode)
    settings, cosines = near_enough(WANTED, [("a", None)] * 3, ImageConfig(precision="bf16"), "shop")  # type: ignore[list-item]
    assert (settings.precision, settings.decode) == expected
    assert len(messages) == len(words)
    assert all(word in message for word, message in zip(words, messages, strict=True))
    angle = precision * (expected[0] == "bf16") + decode * (expected[1] == "scaled")
    assert cosines.cosine == pytest.approx(np.cos(angle), abs=1e-6)
    assert cosines.pictures == (3 if settings != exact(WANTED) else 0)


def test_a_precision_that_auto_tried_and_gave_up_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    angles(monkeypatch, 0.1, 0.01)
    with caplog.at_level(logging.DEBUG, "antpipe"):
        settings, _ = near_enough(WANTED, [("a", None)] * 3, ImageConfig(precision="auto"), "shop")  # type: ignore[list-item]
        near_enough(WANTED, [("a", None)] * 3, ImageConfig(precision="bf16"), "shop")  # type: ignore[list-item]
    assert settings.precision == "fp32"
    assert [record.levelname for record in caplog.records] == ["DEBUG", "WARNING"]
    assert len({record.getMessage() for record in caplog.records}) == 1


def test_a_picture_that_only_one_decoder_can_read_is_not_compared() -> None:
    values, without = np.eye(3, 2, dtype=np.float32) + 1, np.array([True, False, True])

    def vectors(_: str, decode: str) -> ShardVectors:
        return ShardVectors(values, np.ones(3, np.bool_) if decode == "exact" else without)

    assert measured(vectors, replace(WANTED, precision="fp32")) == SampleCosines(2, 1.0, 1.0, 1.0)


def test_the_exact_way_needs_no_comparison(monkeypatch: pytest.MonkeyPatch, messages: list[str]) -> None:
    monkeypatch.setattr(image_precision, "make_embedder", pytest.fail)
    settings, cosines = near_enough(exact(WANTED), [], ImageConfig(min_cosine=1.0), "shop")
    assert (settings, cosines) == (exact(WANTED), SampleCosines(0, 1.0, 1.0, 1.0))
    assert messages == []


def test_bf16_vectors_are_near_those_of_fp32_and_the_manifest_says_how_near(
    store: Store, tiny: ImageConfig, messages: list[str]
) -> None:
    files = {str(seed): picture(seed, (200, 150), "JPEG") for seed in range(5)}
    domain = picture_shop(store, files, {f"I{seed}": [str(seed)] for seed in range(5)})
    embed_image(store, "shop", replace(tiny, precision="fp32", decode="exact"))
    reference = domain.feature("image").values.astype(np.float32)
    assert domain.entry("image")["fidelity"] == asdict(SampleCosines(0, 1.0, 1.0, 1.0))
    result = embed_image(store, "shop", tiny)
    entry = domain.entry("image")
    assert messages == []
    assert (entry["encoder"]["precision"], entry["encoder"]["decode"]) == ("bf16", "scaled")
    assert entry["encoder"]["decoder"].startswith("Pillow ")
    found = entry["fidelity"]
    assert found["pictures"] == 5
    assert 0.999 <= found["cosine"] < 1
    assert result.figures["cosine"] == round(found["cosine"], 6)
    made = domain.feature("image").values.astype(np.float32)
    assert least_cosine(made, reference) == pytest.approx(found["cosine"], abs=1e-4)  # the store keeps float16


def test_below_min_cosine_fp32_is_used_with_a_message(store: Store, tiny: ImageConfig, messages: list[str]) -> None:
    files = {str(seed): picture(seed) for seed in range(3)}
    domain = picture_shop(store, files, {f"I{seed}": [str(seed)] for seed in range(3)})
    result = embed_image(store, "shop", replace(tiny, min_cosine=1.0, decode="exact"))
    assert result.figures["precision"] == domain.entry("image")["encoder"]["precision"] == "fp32"
    assert [text.startswith("shop: the cosine of bf16 to fp32 is only 0.99") for text in messages] == [True]
    assert embed_image(store, "shop", replace(tiny, min_cosine=1.0, decode="exact")).status == "fresh"


def test_a_later_run_does_not_decide_again(
    store: Store, tiny: ImageConfig, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    config = replace(tiny, min_cosine=1.0, decode="exact")
    files = {str(seed): picture(seed) for seed in range(4)}
    picture_shop(store, files, {"A": ["0"], "B": ["1"], "C": ["2"]})
    embed_image(store, "shop", config)
    picture_shop(store, files, {"A": ["0"], "B": ["1"], "C": ["2"], "D": ["3"]})
    messages.clear()
    asked = []
    embed = ImageEmbedder.__call__

    def watched(self: ImageEmbedder, contents: Any, advance: Any) -> ShardVectors:
        asked.append(self.settings.precision)
        return embed(self, contents, advance)

    monkeypatch.setattr(ImageEmbedder, "__call__", watched)
    embed_image(store, "shop", config)
    assert asked == ["fp32"]
    assert messages == ["shop: 1 new or changed items to embed, 3 kept from before"]


def test_a_picture_that_changes_before_the_sample_is_read_ends_with_the_command_to_repeat(
    store: Store, tiny: ImageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = picture_shop(store, {"1": picture(1)}, {"A": ["1"]})

    def late(*given: Any) -> Any:
        for path in domain.path.rglob("1"):
            path.write_bytes(picture(2))
        return settle(*given)

    monkeypatch.setattr(stage, "settle", late)
    with pytest.raises(DataError, match=r"domain shop: picture files changed .*; image is as before") as caught:
        embed_image(store, "shop", tiny)
    assert str(caught.value.next_command).startswith("antpipe embed-image --domains shop")


@pytest.mark.realdata
def test_scaled_decoding_of_photographs_keeps_the_vectors(
    store: Store, real_data: Path, tmp_path: Path, messages: list[str]
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install 'antpipe[offline]'")
    folder = tmp_path / "photographs"
    folder.mkdir()
    paths = sorted((real_data / "images" / "hires").glob("*.jpg"), key=lambda path: -path.stat().st_size)[:16]
    for path in paths:
        (folder / path.name).symlink_to(path)
    picture_shop(store, {}, {path.stem: [] for path in paths})
    config = ImageConfig(encoder="packaged/efficientnet-lite0", device="cpu", precision="fp32", images=folder)
    result = embed_image(store, "shop", config)
    assert messages == []
    assert result.figures["decode"] == "scaled"
    assert 0.999 <= result.figures["cosine"] < 1

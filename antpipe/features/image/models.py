"""Located image encoders, loaded: pictures of a model's size to vectors, in fp32 or bf16."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from antpipe.errors import DataError, UsageError
from antpipe.features.encoders.identity import Located, card_licence, first_line, quiet
from antpipe.features.image.preparation import Preparation, split_transform
from antpipe.features.image.timm import PREFIX as TIMM
from antpipe.features.image.timm import load_timm

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ImageEncoder:
    """preparation: a file's content -> pixels (3, H, W). encode: n of them, (n, 3, H, W) -> (n, width) float32.

    facts: what the manifest keeps of the encoder.
    """

    preparation: Preparation
    encode: Callable[["NDArray[Any]"], "NDArray[np.float32]"]
    width: int
    facts: dict[str, Any]


def load_image_encoder(
    located: Located, device: "torch.device", mend: str, *, precision: str = "fp32", dims: int | None = None
) -> ImageEncoder:
    """Load an image encoder in inference mode, with the preprocessing its weights were trained with.

    open_clip: the picture's projected, not normalised vector; timm: its pooled features. precision: fp32, or bf16,
    where weights and activations are bf16 and the pixels come normalised in float32. dims: keep only the first
    values of a vector (models trained for it: Matryoshka, arXiv 2205.13147). The last one stays loaded, for the next
    domain. Raises DataError where the checkpoint is damaged or of another model, UsageError for more `dims` than it
    has.
    """
    try:
        encoder = _load(located, device, precision)
    except DataError as error:
        raise DataError(error.message, mend) from error
    if dims is None:
        return encoder
    if dims > encoder.width:
        raise UsageError(f"--dims {dims}: image encoder {located.name} has {encoder.width}")

    def encode(pixels: "NDArray[Any]") -> "NDArray[np.float32]":
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
    except Exception as error:  # the libraries raise whatever they meet in the files
        raise DataError(
            f"image encoder {located.asked}: {located.path} does not hold weights of this model: {first_line(error)}"
        ) from error
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    layout = torch.channels_last if convolutional(network) else torch.contiguous_format
    network = network.to(dtype=kind, memory_format=layout)
    forward = getattr(network, "encode_image", network)

    def encode(pixels: "NDArray[Any]") -> "NDArray[np.float32]":
        with torch.inference_mode():
            batch = preparation.normalised(torch.from_numpy(pixels).to(device))
            vectors: NDArray[np.float32] = forward(batch.to(kind, memory_format=layout)).float().cpu().numpy()
        return vectors

    width = encode(blank[None]).shape[1]
    named = {"name": located.name, "source": located.source, "revision": located.revision}
    facts = {**named, "dimension": width, "pixels": list(blank.shape[1:]), "precision": precision, **facts}
    facts.setdefault("licence", _licence(located))
    return ImageEncoder(preparation, encode, width, facts)


def library_model(located: Located, device: "torch.device") -> tuple[Any, Any, dict[str, Any]]:
    """As the library gives it: transform of a picture, network in float32 and inference mode, and facts for the
    manifest. Raises whatever the library meets in the files."""
    if located.source == "packaged":
        return _load_efficientnet(located, device)
    return load_timm(located, device) if located.asked.startswith(TIMM) else _load_open_clip(located, device)


def _blank(preparation: Preparation) -> "NDArray[Any]":
    """A white picture as the model takes it, (3, H, W); its transform runs whole, so that errors in it come here."""
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(stream, "PNG")
    return preparation.pixels(stream.getvalue(), scaled=False)


def convolutional(network: Any) -> bool:
    """Whether most of the weights that are multiplied belong to convolutions: these are faster with channels last.

    A Transformer's one convolution cuts the picture into patches, and gains nothing.
    """
    import torch

    def weights(kind: type[Any]) -> int:
        return sum(module.weight.numel() for module in network.modules() if isinstance(module, kind))

    return weights(torch.nn.Conv2d) > weights(torch.nn.Linear)


def _licence(located: Located) -> str | None:
    """What the card of a model says, where it came with the weights."""
    folder = located.path if located.path.is_dir() else located.path.parent
    return card_licence(folder) if located.source in ("hub", "folder") else None


def _load_open_clip(located: Located, device: "torch.device") -> tuple[Any, Any, dict[str, Any]]:
    import open_clip

    model, _, tag = located.asked.partition("/")
    settings = _preprocessing(model, tag)
    in_folder = located.path.is_dir()
    # The located weights by their path, not by their tag: they are those the revision speaks of. This function of
    # open_clip refuses to go on with random weights; the others only log it.
    network, transform = open_clip.create_model_from_pretrained(
        f"local-dir:{located.path}" if in_folder else model,
        None if in_folder else str(located.path),
        device=device,
        image_mean=settings.get("mean"),
        image_std=settings.get("std"),
        image_interpolation=settings.get("interpolation"),
        image_resize_mode=settings.get("resize_mode"),
    )
    facts = {"pooling": "projected, not normalised", "library": f"open_clip {open_clip.__version__}"}
    return transform, network.eval(), facts


def _preprocessing(model: str, tag: str) -> dict[str, Any]:
    """The preprocessing of a tag of open_clip; of a checkpoint file, what all tags of its model have in common.

    Models as SigLIP have another one than CLIP, and open_clip names it for the tags alone. Empty for a folder or a
    repository, which bring their own.
    """
    import open_clip

    settings: dict[str, Any] = open_clip.get_pretrained_cfg(model, tag)
    known = [open_clip.get_pretrained_cfg(model, one) for one in open_clip.list_pretrained_tags_by_model(model)]
    if settings or not known:
        return settings
    return {key: value for key, value in known[0].items() if all(other.get(key) == value for other in known)}


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

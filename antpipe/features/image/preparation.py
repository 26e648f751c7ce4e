"""An image model's own transform, split into work on one picture and arithmetic on a batch.

Transforms of open_clip, timm and torchvision end in ToTensor and Normalize. The steps before them give 8-bit pixels,
so a quarter of the bytes move from the decoding process to the computing one. The latter divides by 255 and normalises
a whole batch, with the same float32 operations in the same order, so the numbers are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from antpipe.features.image.decoding import decode_picture

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

# A JPEG is decoded at no less than this many times the size the model's transform resizes to. At 1, the lowest cosine
# to exact decoding among 80 product photographs was .991 (EfficientNet-lite0); at 2 it is .9991, and it is measured
# again on every catalogue (precision.py).
MARGIN = 2


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes a model's input; can be pickled, for other processes.

    exact: the model's transform of an RGB picture, giving a picture of the model's size or, if mean is None, the
    finished tensor. quick: the same resizing and cropping of an 8-bit tensor (3, H, W) by torch's vectorised kernels
    (now and then off by 1 of 255); None if the transform has steps we have no tensor version of. side: pixels the
    transform resizes the longer side to; None if it does not begin with a resize. mean, std: per channel.
    """

    exact: Callable[["Image"], Any]
    quick: "Callable[[torch.Tensor], torch.Tensor] | None"
    side: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def pixels(self, content: bytes, scaled: bool) -> NDArray[Any]:
        """(3, H, W) pixels of a file's content: uint8, or float32 if mean is None. Raises UnreadableError.

        scaled: decode large JPEGs at a fraction of their size, and resize with `quick`.
        """
        least = MARGIN * self.side if scaled and self.side is not None else None
        image, _ = decode_picture(content, least_side=least)
        if scaled and self.quick is not None:
            import torch

            # With a picture's strides (colours last), torch resizes without a copy and in the calling thread.
            tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            return np.ascontiguousarray(self.quick(tensor).numpy())
        prepared = self.exact(image)
        if self.mean is None:
            return np.asarray(prepared, dtype=np.float32)
        return np.ascontiguousarray(np.asarray(prepared).transpose(2, 0, 1))

    def normalised(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """The model's float32 input from (n, 3, H, W) as `pixels` gives them, on any device."""
        import torch

        if self.mean is None or self.std is None:
            return pixels
        mean, std = (torch.tensor(values, device=pixels.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return pixels.float().div_(255).sub_(mean).div_(std)


def split_transform(transform: Any) -> Preparation:
    """The preparation equivalent to a model's evaluation transform (a Compose); any other callable is kept whole."""
    from torchvision.transforms import Normalize

    steps = list(getattr(transform, "transforms", []))
    to_tensor = [number for number, step in enumerate(steps) if type(step).__name__ in ("ToTensor", "MaybeToTensor")]
    if not to_tensor or len(steps) != to_tensor[0] + 2 or not isinstance(steps[-1], Normalize):
        return Preparation(transform, None, None, None, None)
    # Pictures come as RGB, so there is nothing to convert.
    before = [step for step in steps[: to_tensor[0]] if "convert" not in _name(step)]
    mean, std = (tuple(float(value) for value in values) for values in (steps[-1].mean, steps[-1].std))
    return Preparation(_composed(before), _quick(before), _resized_side(before), mean, std)


def _name(step: Any) -> str:
    return getattr(step, "__name__", type(step).__name__).lower()


def _composed(steps: list[Any]) -> Any:
    from torchvision.transforms import Compose

    return Compose(steps)


def _quick(steps: list[Any]) -> Any:
    """Resize and CenterCrop for 8-bit tensors; None if there are other steps or other interpolations."""
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize, v2

    known = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
    twins: list[Any] = []
    for step in steps:
        if type(step) is Resize and step.interpolation in known:
            twins.append(v2.Resize(step.size, step.interpolation, step.max_size, antialias=True))
        elif type(step) is CenterCrop:
            twins.append(v2.CenterCrop(step.size))
        else:
            return None
    return v2.Compose(twins) if twins else None


def _resized_side(steps: list[Any]) -> int | None:
    """The longer side that a first resizing step aims at (torchvision's Resize; open_clip's, timm's ResizeKeepRatio).

    Both sides of a picture decoded smaller stay above it, so it is safe for every way to fit a picture in.
    """
    if not steps or "resize" not in _name(steps[0]) or not hasattr(steps[0], "size"):
        return None
    size = steps[0].size
    return int(max(size)) if isinstance(size, list | tuple) else int(size)

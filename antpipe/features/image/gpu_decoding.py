"""JPEGs decoded by the encoder's GPU instead of the processor (`--decode gpu`).

TorchCodec decodes a list of files at full size (nvJPEG), and the resizing of the encoder's transform runs on the GPU,
so only compressed bytes travel to it. Other formats, and JPEGs that decoders may read differently, are decoded on the
CPU (prefetch.py). Every function also works with the CPU as the device, which is how the tests compare the two.
"""

import importlib.util
import io
import socket
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING

from PIL import Image

from antpipe.errors import DataError, SameCommand, UsageError
from antpipe.features.encoders.located import first_line
from antpipe.features.image.decoding import UnreadableError
from antpipe.features.image.prefetch import Decoded, DecodingFailure, Jpeg
from antpipe.features.image.preparation import Preparation
from antpipe.runtime.logs import log

if TYPE_CHECKING:
    import torch

INSTALL = "pip install 'antpipe[gpu]'"
SCALED = SameCommand({"--decode": "scaled"})
DECODED_AT_ONCE = 1 << 30  # bytes of decoded pictures on the GPU


def require_gpu_decoding(device: str) -> None:
    """Raises UsageError if the device is not a GPU, DataError if TorchCodec is not installed."""
    if not device.startswith("cuda"):
        raise UsageError(f"--decode gpu: pictures are embedded on {device}, which decodes no JPEGs", SCALED)
    require_torchcodec()


def require_torchcodec() -> None:
    if importlib.util.find_spec("torchcodec") is None:
        raise DataError(f"--decode gpu: torchcodec is not installed on {socket.gethostname()}", INSTALL)


def try_decoder(device: str) -> None:
    """Decode a small JPEG. Raises DataError if TorchCodec is missing, does not fit torch, or cannot use the device."""
    require_torchcodec()
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), "white").save(stream, "JPEG")
    try:
        from torchcodec.decoders import decode_jpeg  # type: ignore[attr-defined]

        decode_jpeg([stream.getvalue()], mode="RGB", device=device)
    except (ImportError, OSError, RuntimeError) as error:
        libraries = " with ".join(f"{name} {version(name)}" for name in ("torchcodec", "torch"))
        raise DataError(
            f"--decode gpu: {libraries} decodes no JPEGs on {device} of {socket.gethostname()}: {first_line(error)}",
            SCALED,
        ) from error


def require_resizing(preparation: Preparation, encoder: str) -> None:
    """Raises UsageError if an encoder's transform has steps that only work on pictures in memory."""
    if preparation.quick is None:
        raise UsageError(f"--decode gpu: the transform of {encoder} has steps that cannot run on a GPU", SCALED)


def completed(
    decoded: Decoded, preparation: Preparation, device: "torch.device"
) -> "tuple[torch.Tensor | None, dict[int, DecodingFailure]]":
    """A batch with its JPEGs decoded: pixels (n, 3, H, W) of its readable pictures, in order, on the device (None if
    there are none), and by position why the others have none."""
    import torch

    failures, found = dict(decoded.failures), dict[int, torch.Tensor]()
    pictures = decoded_on(device, preparation, list(decoded.jpegs.values()))
    for position, picture in zip(decoded.jpegs, pictures, strict=True):
        if isinstance(picture, UnreadableError):
            failures[position] = DecodingFailure(str(picture))
        else:
            found[position] = picture
    if decoded.pixels is not None:
        taken = decoded.failures.keys() | decoded.jpegs.keys()
        places = [position for position in range(len(taken) + len(decoded.pixels)) if position not in taken]
        found |= zip(places, torch.from_numpy(decoded.pixels).to(device), strict=True)
    return torch.stack([found[position] for position in sorted(found)]) if found else None, failures


def decoded_on(
    device: "torch.device", preparation: Preparation, jpegs: Sequence[Jpeg]
) -> "list[torch.Tensor | UnreadableError]":
    """The pixels (3, H, W) of each file, uint8, resized and cropped on the device; or why there are none.

    What TorchCodec cannot decode, the CPU decodes.
    """
    import torch

    assert preparation.quick is not None
    found: list[torch.Tensor | UnreadableError] = []
    for part in parts_of(jpegs):
        for jpeg, picture in zip(part, _decoded(part, device), strict=True):
            if isinstance(picture, torch.Tensor):
                found.append(preparation.quick(picture))
                continue
            warn_of(picture)
            try:
                found.append(torch.from_numpy(preparation.pixels(jpeg.content, scaled=True)).to(device))
            except UnreadableError as error:
                found.append(error)
    return found


@cache
def warn_of(why: str) -> None:
    log.warning(f"TorchCodec does not decode every JPEG ({why}): the CPU decodes the others, which takes longer")


def parts_of(jpegs: Sequence[Jpeg]) -> Iterator[list[Jpeg]]:
    """The files in parts, in order, which take at most DECODED_AT_ONCE bytes when decoded, or hold one file."""
    part: list[Jpeg] = []
    taken = 0
    for jpeg in jpegs:
        size = 3 * jpeg.size[0] * jpeg.size[1]
        if part and taken + size > DECODED_AT_ONCE:
            yield part
            part, taken = [], 0
        part.append(jpeg)
        taken += size
    if part:
        yield part


def _decoded(jpegs: Sequence[Jpeg], device: "torch.device") -> "list[torch.Tensor | str]":
    """The pixels (3, height, width) of each file, or why TorchCodec cannot decode it."""
    import torch
    from torchcodec.decoders import decode_jpeg  # type: ignore[attr-defined]

    try:
        return list(decode_jpeg([jpeg.content for jpeg in jpegs], mode="RGB", device=device))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if len(jpegs) == 1:
            return [first_line(error)]
    half = len(jpegs) // 2  # one of them may be to blame
    return [*_decoded(jpegs[:half], device), *_decoded(jpegs[half:], device)]

"""Pictures of a shard through an image encoder: decoded ahead, in batches of pictures, averaged for each item."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from antpipe.errors import DataError
from antpipe.features.encoders.identity import Located
from antpipe.features.image.decoding import CHANGED, Decoder, Decoding, Source
from antpipe.features.image.models import ImageEncoder, load_image_encoder
from antpipe.features.shards.files import Vectors


@dataclass(frozen=True)
class ImageSettings:
    """All an embedder is made from, in whatever process. precision: fp32 or bf16; decode: exact or scaled.

    workers, threads: that decode (`Decoding`).
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


def load_encoder(settings: ImageSettings, mend: str = "") -> ImageEncoder:
    import torch

    device = torch.device(settings.device)
    return load_image_encoder(settings.located, device, mend, precision=settings.precision, dims=settings.dims)


def make_embedder(settings: ImageSettings) -> "ImageEmbedder":
    """Its processes, if any, end with it."""
    return ImageEmbedder(load_encoder(settings), settings)


class ImageEmbedder:
    """Embeds the pictures of a shard's items; equal pictures give the same bytes, whatever was embedded before."""

    def __init__(self, encoder: ImageEncoder, settings: ImageSettings) -> None:
        self.encoder = encoder
        self.settings = settings
        self.decoding = Decoding(
            Decoder(encoder.preparation, settings.decode == "scaled"), settings.workers, settings.threads
        )

    def __call__(self, contents: Sequence[Sequence[Source]], advance: Callable[[int], None]) -> Vectors:
        """Each item's mean over its pictures that can be read, (n, d) float32.

        A failure says which picture of the item it is about: `NUMBER why`. Raises DataError where a file is not what
        it was when its content was hashed, or cannot be read any more.
        """
        owners = [(item, number) for item, sources in enumerate(contents) for number in range(len(sources))]
        size = self.settings.batch_size
        batches = [owners[start : start + size] for start in range(0, len(owners), size)]
        decoded = self.decoding.batches([[contents[item][number] for item, number in batch] for batch in batches])
        sums = np.zeros((len(contents), self.encoder.width), np.float32)
        counts = np.zeros(len(contents), np.int64)
        failures: list[tuple[int, str]] = []
        # How many items are done after each batch: the last item of a batch may have more pictures in the next one.
        ends = [batch[0][0] for batch in batches[1:]] + [len(contents)]
        done = 0
        for batch, end, outcome in zip(batches, ends, decoded, strict=False):  # no batch: an end is left over
            failed = dict(outcome.failures)
            if told := next((why for why in failed.values() if why.startswith(CHANGED)), ""):
                raise DataError(f"picture files changed while they were embedded: {told}")
            if outcome.pixels is not None:
                items = [item for position, (item, _) in enumerate(batch) if position not in failed]
                np.add.at(sums, items, self.encoder.encode(outcome.pixels))
                np.add.at(counts, items, 1)
            failures += [(batch[position][0], f"{batch[position][1]} {why}") for position, why in failed.items()]
            advance(end - done)
            done = end
        return Vectors(self._means(sums, counts), counts > 0, failures)

    def _means(self, sums: NDArray[np.float32], counts: NDArray[np.int64]) -> NDArray[np.float32]:
        """In float32; zeros where there is no picture."""
        divisors: NDArray[np.float32] = np.maximum(counts, 1).astype(np.float32)[:, None]
        values: NDArray[np.float32] = sums / divisors
        if self.settings.normalize:
            lengths = np.sqrt((values * values).sum(axis=1, keepdims=True))
            values /= np.where(lengths > 0, lengths, np.float32(1))
        return values

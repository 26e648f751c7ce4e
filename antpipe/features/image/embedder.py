"""Runs the pictures of a shard through an image encoder: decoded ahead, in batches, averaged per item."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from antpipe.errors import DataError
from antpipe.features.image.encoders import ImageEncoder, ImageSettings, load_image_encoder
from antpipe.features.image.gpu_decoding import completed, require_resizing, try_decoder
from antpipe.features.image.pictures import PictureFile
from antpipe.features.image.prefetch import Decoded, Decoder, DecodingFailure, Prefetcher
from antpipe.features.shards.folder import ShardVectors

if TYPE_CHECKING:
    import torch


def make_embedder(settings: ImageSettings) -> "ImageEmbedder":
    """The embedder for these settings. Raises what `load_image_encoder` raises and, if a GPU is to decode, what
    `try_decoder` and `require_resizing` raise."""
    encoder = load_image_encoder(settings)
    if settings.decode == "gpu":
        try_decoder(settings.device)
        require_resizing(encoder.preparation, settings.located.name)
    return ImageEmbedder(encoder, settings)


class ImageEmbedder:
    """Embeds the pictures of a shard's items. Equal pictures give the same bytes, whatever was embedded before.

    Its decoding processes, if any, end with it.
    """

    def __init__(self, encoder: ImageEncoder, settings: ImageSettings) -> None:
        self.encoder = encoder
        self.settings = settings
        decoder = Decoder(encoder.preparation, settings.decode != "exact", leave_jpegs=settings.decode == "gpu")
        self.prefetcher = Prefetcher(decoder, settings.workers, settings.threads)

    def __call__(self, contents: Sequence[Sequence[PictureFile]], advance: Callable[[int], None]) -> ShardVectors:
        """Each item's mean over its readable pictures, (n, d) float32.

        A failure says which of the item's pictures it is about: `NUMBER reason`. Raises DataError if a file has changed
        or vanished since it was hashed.
        """
        owners = [(item, number) for item, files in enumerate(contents) for number in range(len(files))]
        size = self.settings.batch_size
        batches = [owners[start : start + size] for start in range(0, len(owners), size)]
        decoded = self.prefetcher.batches([[contents[item][number] for item, number in batch] for batch in batches])
        sums = np.zeros((len(contents), self.encoder.width), np.float32)
        counts = np.zeros(len(contents), np.int64)
        failures: list[tuple[int, str]] = []
        # How many items are done after each batch: its last item may have more pictures in the next one.
        ends = [batch[0][0] for batch in batches[1:]] + [len(contents)]
        done = 0
        for batch, end, outcome in zip(batches, ends, decoded, strict=False):  # without batches, one end is left over
            pixels, failed = self._pixels(outcome)
            for position, failure in failed.items():
                if failure.changed:
                    raise DataError(f"picture files changed while they were embedded: {failure.reason}")
                item, number = batch[position]
                failures.append((item, f"{number} {failure.reason}"))
            if pixels is not None:
                items = [item for position, (item, _) in enumerate(batch) if position not in failed]
                np.add.at(sums, items, self.encoder.encode(pixels))
                np.add.at(counts, items, 1)
            advance(end - done)
            done = end
        return ShardVectors(self._means(sums, counts), counts > 0, failures)

    def _pixels(self, outcome: Decoded) -> "tuple[NDArray[Any] | torch.Tensor | None, dict[int, DecodingFailure]]":
        """(m, 3, H, W) of a batch's readable pictures, None without any, and by position why the others have none."""
        if not outcome.jpegs:
            return outcome.pixels, outcome.failures
        import torch

        return completed(outcome, self.encoder.preparation, torch.device(self.settings.device))

    def _means(self, sums: NDArray[np.float32], counts: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, d) float32; zeros for items without a picture."""
        divisors: NDArray[np.float32] = np.maximum(counts, 1).astype(np.float32)[:, None]
        values: NDArray[np.float32] = sums / divisors
        if self.settings.normalize:
            lengths = np.sqrt((values * values).sum(axis=1, keepdims=True))
            values /= np.where(lengths > 0, lengths, np.float32(1))
        return values

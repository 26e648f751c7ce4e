"""How near vectors made the fast way are to those in fp32 of pictures that are decoded whole, on a sample."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from antpipe.features.encoders.identity import least_cosine
from antpipe.features.image.decoding import Source
from antpipe.features.image.embedder import ImageSettings, make_embedder


@dataclass(frozen=True)
class Fidelity:
    """Least cosines over `pictures` of the catalogue; 1 where there is nothing to lose.

    cosine: of the vectors as they are made, to fp32 and exact decoding. precision: what bf16 changes, decode: what
    scaled decoding changes, each by itself.
    """

    pictures: int
    cosine: float
    precision: float
    decode: float

    def and_also(self, other: "Fidelity") -> "Fidelity":
        """Of both samples together."""
        least = (min(getattr(self, name), getattr(other, name)) for name in ("cosine", "precision", "decode"))
        return Fidelity(self.pictures + other.pictures, *least)


def settle(
    wanted: ImageSettings, sample: Sequence[Source], least: float, say: Callable[[str], None]
) -> tuple[ImageSettings, Fidelity]:
    """The settings that are wanted, or, of bf16 and scaled decoding, without what brings the cosine below `least`."""
    vectors = SampleVectors(wanted, sample)
    settings = wanted
    while True:
        fidelity = measured(vectors, settings)
        if fidelity.cosine >= least or settings == plain(settings):
            return settings, fidelity
        slow_precision = fidelity.precision < least or (
            fidelity.decode >= least and fidelity.precision <= fidelity.decode
        )
        if slow_precision and settings.precision != "fp32":
            say(
                f"the cosine of {settings.precision} to fp32 is only {fidelity.precision:.5f} on {fidelity.pictures} "
                f"pictures (--min-cosine {least}): computing in fp32 instead, which takes longer"
            )
            settings = replace(settings, precision="fp32")
        else:
            say(
                f"the cosine of scaled to exact decoding is only {fidelity.decode:.5f} on {fidelity.pictures} pictures "
                f"(--min-cosine {least}): decoding whole pictures instead, which takes longer"
            )
            settings = replace(settings, decode="exact")


def plain(settings: ImageSettings) -> ImageSettings:
    return replace(settings, precision="fp32", decode="exact")


class SampleVectors:
    """Vectors of the sample under different settings, each computed once."""

    def __init__(self, wanted: ImageSettings, sample: Sequence[Source]) -> None:
        self.wanted = replace(wanted, workers=0, normalize=False)
        self.sample = [(source,) for source in sample]
        self.found: dict[tuple[str, str], NDArray[np.float32]] = {}

    def of(self, precision: str, decode: str) -> NDArray[np.float32]:
        """(n, d) of the pictures that can be read: these are the same however they are decoded."""
        if (precision, decode) not in self.found:
            embedder = make_embedder(replace(self.wanted, precision=precision, decode=decode))
            vectors = embedder(self.sample, lambda _: None)
            self.found[precision, decode] = np.asarray(vectors.values)[vectors.present]
        return self.found[precision, decode]


def measured(vectors: SampleVectors, settings: ImageSettings) -> Fidelity:
    if settings == plain(settings):
        return Fidelity(0, 1.0, 1.0, 1.0)
    # In this order a model is loaded once for each precision.
    reference = vectors.of("fp32", "exact")
    whole = vectors.of(settings.precision, "exact")
    made = vectors.of(settings.precision, settings.decode)
    return Fidelity(
        len(reference), least_cosine(made, reference), least_cosine(whole, reference), least_cosine(made, whole)
    )

"""Settles how pictures are embedded: the fast way, if a sample shows that its vectors are those of the exact way.

The exact way computes in fp32 and decodes whole pictures.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from antpipe.features.image.embedder import make_embedder
from antpipe.features.image.encoders import ImageSettings, load_image_encoder
from antpipe.features.image.pictures import PictureFile, PictureLists
from antpipe.features.shards.embedding import Embedding, least_cosine
from antpipe.features.shards.folder import ShardFolder, ShardVectors
from antpipe.features.shards.plan import Shard
from antpipe.runtime.logs import log
from antpipe.settings.features import ImageConfig
from antpipe.store.artefacts import ARTEFACTS

SAMPLE = 32  # pictures whose vectors are compared with those of the exact way


@dataclass(frozen=True)
class SampleCosines:
    """Lowest cosines over a sample of `pictures`; 1 where the settings are the exact ones.

    cosine: between the vectors as they are made and those of the exact way. precision: what bf16 alone changes; decode:
    what another decoding alone changes.
    """

    pictures: int
    cosine: float
    precision: float
    decode: float

    def and_also(self, other: "SampleCosines") -> "SampleCosines":
        """The cosines over both samples together."""
        least = (min(getattr(self, name), getattr(other, name)) for name in ("cosine", "precision", "decode"))
        return SampleCosines(self.pictures + other.pictures, *least)


def recipe(settings: ImageSettings) -> dict[str, Any]:
    """Everything a vector depends on besides its pictures; vectors made by the same recipe can be copied."""
    return {
        "version": ARTEFACTS["image"].version,
        "source": settings.located.source,
        "name": settings.located.name,
        "revision": settings.located.revision,
        "dims": settings.dims,
        "normalize": settings.normalize,
        "precision": settings.precision,
        "decode": settings.decode,
    }


def settle(
    work: Embedding,
    lists: PictureLists,
    wanted: ImageSettings,
    folder: ShardFolder,
    config: ImageConfig,
    packaged: str,
) -> tuple[ImageSettings, SampleCosines]:
    """The wanted settings, or slower ones if a sample of the pictures to embed has a cosine below min_cosine.

    What an interrupted run settled, as noted in the folder, is kept. packaged: the command with the packaged encoder
    instead, for the DataError that is raised if this one cannot be loaded.
    """
    if notes := folder.notes():
        settings = replace(wanted, precision=notes["precision"], decode=notes["decode"])
        return settings, SampleCosines(**notes["fidelity"])
    plan = work.plan(wanted)
    before = SampleCosines(**work.place.manifest()["image"]["fidelity"]) if plan.earlier is not None else None
    if before is not None and not len(plan.compute):
        return wanted, before
    chosen = np.linspace(0, len(plan.compute) - 1, min(SAMPLE, len(plan.compute))).astype(int)
    sample = [files[0] for files in lists(Shard(0, plan.compute[chosen]))]
    load_image_encoder(replace(wanted, precision="fp32"), packaged)
    settings, cosines = near_enough(wanted, sample, config, work.place.name)
    if before is not None and settings == wanted:  # copied vectors count with the cosines measured for them
        cosines = cosines.and_also(before)
    folder.note({"precision": settings.precision, "decode": settings.decode, "fidelity": asdict(cosines)})
    return settings, cosines


def near_enough(
    wanted: ImageSettings, sample: Sequence[PictureFile], config: ImageConfig, domain: str
) -> tuple[ImageSettings, SampleCosines]:
    """The wanted settings without what brings the cosine below the config's min_cosine: bf16, scaled decoding, or both.

    Giving up a precision that `auto` tried is logged as a debug message; giving up anything else as a warning.
    """
    base = replace(wanted, workers=0, normalize=False)

    @cache
    def vectors(precision: str, decode: str) -> ShardVectors:
        embedder = make_embedder(replace(base, precision=precision, decode=decode))
        return embedder([(file,) for file in sample], lambda _: None)

    min_cosine, settings = config.min_cosine, wanted
    while True:
        cosines = measured(vectors, settings)
        if cosines.cosine >= min_cosine or settings == exact(settings):
            return settings, cosines
        slow_precision = cosines.precision < min_cosine or (
            cosines.decode >= min_cosine and cosines.precision <= cosines.decode
        )
        if slow_precision and settings.precision != "fp32":
            log.log(
                logging.DEBUG if config.precision == "auto" else logging.WARNING,
                f"{domain}: the cosine of {settings.precision} to fp32 is only {cosines.precision:.5f} on "
                f"{cosines.pictures} pictures (--min-cosine {min_cosine}): computing in fp32 instead, "
                "which takes longer",
            )
            settings = replace(settings, precision="fp32")
        else:
            log.warning(
                f"{domain}: the cosine of {settings.decode} to exact decoding is only {cosines.decode:.5f} on "
                f"{cosines.pictures} pictures (--min-cosine {min_cosine}): decoding exactly instead, which takes longer"
            )
            settings = replace(settings, decode="exact")


def exact(settings: ImageSettings) -> ImageSettings:
    return replace(settings, precision="fp32", decode="exact")


def measured(vectors: Callable[[str, str], ShardVectors], settings: ImageSettings) -> SampleCosines:
    """The cosines of these settings. vectors: those of the sample, by precision and decode."""
    if settings == exact(settings):
        return SampleCosines(0, 1.0, 1.0, 1.0)
    # In this order a model is loaded once per precision.
    all_three = [vectors("fp32", "exact"), vectors(settings.precision, "exact")]
    all_three.append(vectors(settings.precision, settings.decode))
    there = np.logical_and.reduce([one.present for one in all_three])  # decoders may disagree on a damaged picture
    reference, whole, made = (np.asarray(one.values)[there] for one in all_three)
    return SampleCosines(
        len(reference), least_cosine(made, reference), least_cosine(whole, reference), least_cosine(made, whole)
    )

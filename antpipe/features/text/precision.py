"""Settles how texts are embedded: the fast way, if a sample shows that its vectors are those of the library in fp32."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from antpipe.errors import DataError
from antpipe.features.shards.embedding import Embedding, least_cosine
from antpipe.features.shards.folder import ShardFolder
from antpipe.features.text.column import TextColumn
from antpipe.features.text.embedder import make_embedder
from antpipe.features.text.encoders import TextSettings, reference
from antpipe.runtime.logs import log
from antpipe.settings.features import TextConfig
from antpipe.store.artefacts import ARTEFACTS

SAMPLE = 64  # texts whose vectors are compared with those of the library
SAME = 0.9999  # lowest cosine between fp32 vectors that differ by rounding alone


@dataclass(frozen=True)
class SettledText:
    """How to embed. cosine: the lowest to the library's fp32 vectors on the sample. facts: about the encoder."""

    settings: TextSettings
    cosine: float
    facts: dict[str, Any]


def recipe(settings: TextSettings) -> dict[str, Any]:
    """Everything a vector depends on besides its text; vectors made by the same recipe can be copied."""
    return {
        "version": ARTEFACTS["text"].version,
        "source": settings.located.source,
        "revision": settings.located.revision,
        "prompt": settings.prompt,
        "prefix": settings.prefix,
        "dims": settings.dims,
        "normalize": settings.normalize,
        "backend": settings.backend,
        "precision": settings.precision,
    }


def settle(
    work: Embedding, column: TextColumn, wanted: TextSettings, folder: ShardFolder, config: TextConfig
) -> SettledText:
    """The wanted settings, or plain fp32 if a sample has a cosine below the config's min_cosine.

    Giving up settings that were asked for is logged as a warning; giving up what `auto` tried as a debug message. What
    an interrupted run settled, as noted in the folder, is kept. Raises DataError if not even fp32 gives the library's
    vectors.
    """
    plain = replace(wanted, backend="torch", precision="fp32", compile=False)
    if notes := folder.notes():
        settings = next(one for one in (wanted, plain) if recipe(one) == notes["recipe"])
        return SettledText(settings, notes["cosine"], notes["facts"])
    for settings in dict.fromkeys((wanted, plain)):
        settled = _measured(work, column, settings)
        if settled.cosine >= (SAME if settings == plain else config.min_cosine):
            folder.note({"recipe": recipe(settings), "cosine": settled.cosine, "facts": settled.facts})
            return settled
        if settings != plain:
            how = f"{settings.backend} {settings.precision}{' compiled' if settings.compile else ''}"
            unasked = config.precision == "auto" and replace(settings, precision="fp32") == plain
            log.log(
                logging.DEBUG if unasked else logging.WARNING,
                f"{work.place.name}: the cosine of {how} to fp32 vectors is only {settled.cosine:.5f} (--min-cosine "
                f"{config.min_cosine}): computing in fp32 instead",
            )
    raise DataError(
        f"text encoder {plain.located.asked}: in batches its vectors are not those of the library's encode: cosine "
        f"{settled.cosine:.5f}"
    )


def _measured(work: Embedding, column: TextColumn, settings: TextSettings) -> SettledText:
    """Measure these settings on texts to be computed; vectors to be copied count with the cosine measured then."""
    plan = work.plan(settings)
    cosines, facts = [], {}
    if plan.earlier is not None:
        entry = work.place.manifest()["text"]
        cosines, facts = [float(entry["figures"]["cosine"])], entry["encoder"] | {"name": settings.located.name}
    if len(plan.compute):
        assert work.sizes is not None
        by_size = plan.compute[np.argsort(work.sizes[plan.compute], kind="stable")]
        chosen = np.unique(np.linspace(0, len(by_size) - 1, min(SAMPLE, len(by_size))).astype(int))
        sample = column.at(np.sort(by_size[chosen]))
        expected, facts = reference(settings, sample)
        vectors = make_embedder(settings)(sample, lambda _: None)
        cosines.append(least_cosine(expected, np.asarray(vectors.values, np.float32)))
    return SettledText(settings, min(cosines), facts)

"""Commands that make the features and sequences of a domain."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from antpipe.commands import show
from antpipe.commands.flags import Common, Domains, Force, Modality, app, command, embedded, names, notice
from antpipe.errors import PartialError
from antpipe.runtime.progress import Update
from antpipe.runtime.progress import on_stderr as progress
from antpipe.settings.features import (
    EngineConfig,
    FetchConfig,
    ImageConfig,
    PriceConfig,
    SequenceConfig,
    TextConfig,
    WhitenConfig,
)

if TYPE_CHECKING:
    from antpipe.store.artefacts import StageResult


@command(app, "fetch-images")
def fetch_images(common: Common, domains: Domains, config: FetchConfig, force: Force = False) -> None:
    """Pictures from the web, for the image URLs of the items; a later run goes on where this one ends."""
    from antpipe.features.fetch_images import fetch_images as stage

    def fetch(name: str, bar: Update) -> "StageResult":
        return stage(common.store, name, config, force=force, progress=bar, say=notice)

    embed(common, domains, "pictures", fetch)


@command(app, "embed-text")
def embed_text(
    common: Common, domains: Domains, config: TextConfig, engine: EngineConfig, force: Force = False
) -> None:
    """Texts to vectors, with sentence-transformers."""
    from antpipe.features.embed_text import embed_text as stage

    def run(name: str, bar: Update) -> "StageResult":
        return stage(common.store, name, config, force=force, progress=bar, say=notice, engine=engine)

    embed(common, domains, "text", run)


@command(app, "embed-image")
def embed_image(
    common: Common, domains: Domains, config: ImageConfig, engine: EngineConfig, force: Force = False
) -> None:
    """Pictures to vectors, with open_clip or timm."""
    from antpipe.features.embed_image import embed_image as stage

    def run(name: str, bar: Update) -> "StageResult":
        return stage(common.store, name, config, force=force, progress=bar, say=notice, engine=engine)

    embed(common, domains, "image", run)


def embed(common: Common, domains: str, what: str, stage: "Callable[[str, Update], StageResult]") -> None:
    """Do this for each domain under a progress bar. One that is covered in part does not keep the others from it."""
    results, partial = [], []
    for name in names(domains):
        try:
            with progress(f"{name} {what}") as bar:
                results.append(stage(name, bar))
        except PartialError as error:
            partial.append(error)
    common.show(results, show.artefacts(results))
    if partial:
        raise PartialError("; ".join(error.message for error in partial), partial[0].next_command)


@command(app, "quantize-price")
def quantize_price(common: Common, domains: Domains, config: PriceConfig, force: Force = False) -> None:
    """Prices to codes of quantile bins."""
    from antpipe.features.quantize_price import quantize_price as stage

    results = stage(common.store, names(domains), config, force=force)
    common.show(results, show.artefacts(results))


@command(app, "whiten")
def whiten(common: Common, domains: Domains, modality: Modality, config: WhitenConfig, force: Force = False) -> None:
    """Features to uncorrelated columns of unit variance, as an artefact of their own."""
    from antpipe.features.whiten import whiten as stage

    with progress(f"{modality} whitened") as bar:
        results = stage(common.store, names(domains), embedded(modality), config, force=force, progress=bar)
    common.show(results, show.artefacts(results))


@command(app, "build-sequences")
def build_sequences(common: Common, domains: Domains, config: SequenceConfig, force: Force = False) -> None:
    """Interactions to one chronological sequence a user, split into train, valid and test."""
    from antpipe.features.build_sequences import build_sequences as stage

    results = stage(common.store, names(domains), config, force=force, warn=notice)
    common.show(results, show.artefacts(results))

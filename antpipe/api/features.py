"""Features and sequences of domains: what stands between the store's items and training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Unpack

from antpipe.api.data import embedded
from antpipe.api.keywords import (
    EmbedImageKeywords,
    EmbedTextKeywords,
    FetchKeywords,
    PriceKeywords,
    SequenceKeywords,
    SubsetKeywords,
    WhitenKeywords,
)
from antpipe.api.settings import given, names_of, store_of, takes
from antpipe.errors import PartialError
from antpipe.runtime.progress import Progress, silent
from antpipe.settings.features import (
    EngineConfig,
    FetchConfig,
    ImageConfig,
    PriceConfig,
    SequenceConfig,
    SubsetConfig,
    TextConfig,
    WhitenConfig,
)
from antpipe.store.artefacts import StageResult
from antpipe.store.store import Store


@takes(FetchConfig)
def fetch_images(
    store: Store | str | Path,
    domains: str | Sequence[str],
    *,
    force: bool = False,
    config: str | Path | None = None,
    progress: Progress = silent,
    **settings: Unpack[FetchKeywords],
) -> list[StageResult]:
    """Download the pictures that the items' image URLs name; a later call continues where this one ended.

    force: request everything again. config: a TOML file with settings. Returns one result per domain; its artefact,
    `pictures`, is a table of what became of each URL. Raises PartialError, with what was fetched kept, for a coverage
    below `min_coverage`.

    >>> [result] = ant.fetch_images("shop", ["Linked"], user_agent="my-shop (me@example.org)")
    >>> result.artefact, result.figures["refused"]  # its only URL is a private address
    ('pictures', 1)
    """
    from antpipe.features.fetch_images import fetch_images as stage

    place, chosen = store_of(store), given(settings, config).resolve(FetchConfig)
    return _each(names_of(domains), lambda name: stage(place, name, chosen, force=force, progress=progress))


@takes(TextConfig, EngineConfig)
def embed_text(
    store: Store | str | Path,
    domains: str | Sequence[str],
    *,
    force: bool = False,
    config: str | Path | None = None,
    progress: Progress = silent,
    **settings: Unpack[EmbedTextKeywords],
) -> list[StageResult]:
    """Turn the items' texts into vectors with a sentence-transformers model.

    Only texts that are new or changed are computed; interrupted work continues with the next call. force: recompute
    everything, or replace vectors of another encoder. Returns one result per domain. Raises DataError if the encoder
    cannot be loaded or no item has a text, UsageError for an unknown encoder, prompt or device.

    >>> [result] = ant.embed_text("shop", ["Toys"], encoder="packaged/all-MiniLM-L6-v2")
    >>> result.figures["width"]
    384
    """
    from antpipe.features.embed_text import embed_text as stage

    place, chosen = store_of(store), given(settings, config)
    text, engine = chosen.resolve(TextConfig), chosen.resolve(EngineConfig)
    return _each(
        names_of(domains), lambda name: stage(place, name, text, engine=engine, force=force, progress=progress)
    )


@takes(ImageConfig, EngineConfig)
def embed_image(
    store: Store | str | Path,
    domains: str | Sequence[str],
    *,
    force: bool = False,
    config: str | Path | None = None,
    progress: Progress = silent,
    **settings: Unpack[EmbedImageKeywords],
) -> list[StageResult]:
    """Turn the items' pictures into vectors with an open_clip or timm model; an item's vector is their mean.

    Pictures that cannot be read are left out and listed, with the reason, in unreadable.parquet. force, config and
    errors: as embed_text; PartialError, with the artefact written, for a coverage below `min_coverage`.

    >>> [result] = ant.embed_image("shop", ["Pictured"], encoder="packaged/efficientnet-lite0")
    >>> result.figures["present"], result.figures["items"]
    (2, 2)
    """
    from antpipe.features.embed_image import embed_image as stage

    place, chosen = store_of(store), given(settings, config)
    image, engine = chosen.resolve(ImageConfig), chosen.resolve(EngineConfig)
    return _each(
        names_of(domains), lambda name: stage(place, name, image, engine=engine, force=force, progress=progress)
    )


@takes(PriceConfig)
def quantize_price(
    store: Store | str | Path,
    domains: str | Sequence[str],
    *,
    force: bool = False,
    config: str | Path | None = None,
    **settings: Unpack[PriceKeywords],
) -> list[StageResult]:
    """Turn the items' prices into codes of quantile bins of log(1 + price).

    Returns one result per domain; an item without a price has zeros and is not present.

    >>> [result] = ant.quantize_price("shop", ["Toys"], bins=4)
    >>> result.figures["bins"], result.figures["width"]
    (4, 64)
    """
    from antpipe.features.quantize_price import quantize_price as stage

    return stage(store_of(store), names_of(domains), given(settings, config).resolve(PriceConfig), force=force)


@takes(WhitenConfig)
def whiten(
    store: Store | str | Path,
    domains: str | Sequence[str],
    modality: str,
    *,
    force: bool = False,
    config: str | Path | None = None,
    progress: Progress = silent,
    **settings: Unpack[WhitenKeywords],
) -> list[StageResult]:
    """PCA-whiten the text or image features of domains, as an artefact of its own that `whitened` of train reads.

    modality: `text` or `image`. Returns one result per domain. Raises DataError if the features are not built.

    >>> [result] = ant.whiten("shop", ["Toys"], "text", dims=8)
    >>> result.figures["width"], result.figures["of_width"]
    (8, 384)
    """
    from antpipe.features.whiten import whiten as stage

    chosen = given(settings, config).resolve(WhitenConfig)
    return stage(store_of(store), names_of(domains), embedded(modality), chosen, force=force, progress=progress)


@takes(SequenceConfig)
def build_sequences(
    store: Store | str | Path,
    domains: str | Sequence[str],
    *,
    force: bool = False,
    config: str | Path | None = None,
    **settings: Unpack[SequenceKeywords],
) -> list[StageResult]:
    """Turn interactions into one chronological sequence per user, split into train, validation and test.

    Returns one result per domain. Raises DataError for a domain without interactions.

    >>> [result] = ant.build_sequences("shop", ["Toys"])
    >>> result.figures["users"] == result.figures["test"]
    True
    """
    from antpipe.features.build_sequences import build_sequences as stage

    return stage(store_of(store), names_of(domains), given(settings, config).resolve(SequenceConfig), force=force)


@takes(SubsetConfig)
def subset(
    store: Store | str | Path,
    domains: str | Sequence[str],
    *,
    force: bool = False,
    config: str | Path | None = None,
    **settings: Unpack[SubsetKeywords],
) -> list[StageResult]:
    """Draw random users of domains, as domains of their own, with the split and the features that are there.

    Subsets are nested: each has the users of all smaller ones of the same seed. Nothing is embedded again. Returns one
    result per artefact of each subset. Raises UsageError for more users than there are.

    >>> results = ant.subset("shop", ["Toys"], target_users=[5, 10])
    >>> [(one.domain, one.figures["users"]) for one in results if one.artefact == "sequences"]
    [('Toys-5-users', 5), ('Toys-10-users', 10)]
    """
    from antpipe.features.subset import subset as stage

    return stage(store_of(store), names_of(domains), given(settings, config).resolve(SubsetConfig), force=force)


def _each(domains: Sequence[str], stage: Callable[[str], StageResult]) -> list[StageResult]:
    """The stage on each domain. One that is covered only in part does not stop the others, and is reported at the end.

    Raises PartialError, with the results of the others, if any is.
    """
    results, partial = [], []
    for name in domains:
        try:
            results.append(stage(name))
        except PartialError as error:
            partial.append(error)
    if partial:
        raise PartialError("; ".join(error.message for error in partial), partial[0].next_command, results)
    return results

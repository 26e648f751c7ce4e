"""Commands that make the features and sequences of a domain."""

from collections.abc import Callable

from antpipe import api
from antpipe.commands import show
from antpipe.commands.flags import FEATURES, Call, Domains, Force, Modality, app, command
from antpipe.errors import PartialError
from antpipe.runtime.terminal import on_stderr
from antpipe.store.artefacts import StageResult


def show_results(call: Call, stage: Callable[..., list[StageResult]], domains: str, force: bool) -> None:
    """Run a stage on domains and print its results; after a PartialError, those of the other domains."""
    try:
        results = stage(call.store, domains, force=force, progress=on_stderr, **call.settings)
    except PartialError as error:
        call.show(list(error.results), show.artefacts(error.results))
        raise
    call.show(results, show.artefacts(results))


@command(
    app,
    "fetch-images",
    FEATURES,
    takes=api.features.fetch_images,
    examples=["antpipe fetch-images --domains Shop --rate 5 --user-agent 'my-shop (me@example.org)'"],
)
def fetch_images(call: Call, domains: Domains, force: Force = False) -> None:
    """Download pictures; continue where the last run ended."""
    show_results(call, api.features.fetch_images, domains, force)


@command(
    app,
    "embed-text",
    FEATURES,
    takes=api.features.embed_text,
    examples=["antpipe embed-text --domains Shop --encoder packaged/all-MiniLM-L6-v2"],
)
def embed_text(call: Call, domains: Domains, force: Force = False) -> None:
    """Turn texts into vectors with sentence-transformers."""
    show_results(call, api.features.embed_text, domains, force)


@command(
    app,
    "embed-image",
    FEATURES,
    takes=api.features.embed_image,
    examples=["antpipe embed-image --domains Shop --device cuda"],
)
def embed_image(call: Call, domains: Domains, force: Force = False) -> None:
    """Turn pictures into vectors with open_clip or timm."""
    show_results(call, api.features.embed_image, domains, force)


@command(
    app,
    "quantize-price",
    FEATURES,
    takes=api.features.quantize_price,
    examples=["antpipe quantize-price --domains Shop --bins 50"],
)
def quantize_price(call: Call, domains: Domains, force: Force = False) -> None:
    """Turn prices into codes of quantile bins."""
    results = api.features.quantize_price(call.store, domains, force=force, **call.settings)
    call.show(results, show.artefacts(results))


@command(
    app,
    "whiten",
    FEATURES,
    takes=api.features.whiten,
    examples=["antpipe whiten --modality text --domains Shop --dims 256"],
)
def whiten(call: Call, domains: Domains, modality: Modality, force: Force = False) -> None:
    """PCA-whiten features, as artefacts of their own."""
    results = api.features.whiten(call.store, domains, modality, force=force, progress=on_stderr, **call.settings)
    call.show(results, show.artefacts(results))


@command(
    app,
    "build-sequences",
    FEATURES,
    takes=api.features.build_sequences,
    examples=["antpipe build-sequences --domains Shop,Source --split time"],
)
def build_sequences(call: Call, domains: Domains, force: Force = False) -> None:
    """Build each user's chronological sequence and its split."""
    results = api.features.build_sequences(call.store, domains, force=force, **call.settings)
    call.show(results, show.artefacts(results))


@command(
    app,
    "subset",
    FEATURES,
    takes=api.features.subset,
    examples=["antpipe subset --domains Shop --target-users 500,1000"],
)
def subset(call: Call, domains: Domains, force: Force = False) -> None:
    """Draw random users of a domain, as domains of their own."""
    results = api.features.subset(call.store, domains, force=force, **call.settings)
    call.show(results, show.artefacts(results))

"""Commands that turn raw data into domains of the store."""

from pathlib import Path
from typing import Annotated

import typer

from antpipe import show
from antpipe.commands.flags import Common, Domains, Force, command, ingest, names, notice
from antpipe.config import IngestConfig, SampleConfig


@command(ingest, "amazon")
def ingest_amazon(
    common: Common,
    source: Annotated[Path, typer.Option("--source", help="folder with the published review and metadata files")],
    domains: Domains,
    config: IngestConfig,
    force: Force = False,
) -> None:
    """Amazon reviews and metadata, as published, from local files."""
    from antpipe.features.ingest.amazon import ingest_amazon as stage

    results = [stage(common.store, source, name, config, force=force, announce=notice) for name in names(domains)]
    common.show(results, show.artefacts(results))


@command(ingest, "sample")
def ingest_sample(common: Common, config: SampleConfig, force: Force = False) -> None:
    """Generated shops, for a first try without data (see docs/sample.md)."""
    from antpipe.features.ingest.sample import ingest_sample as stage

    results = stage(common.store, config, force=force)
    common.show(results, show.artefacts(results))

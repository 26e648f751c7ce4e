"""Commands that turn raw data into domains of the store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from antpipe.commands import show
from antpipe.commands.flags import Common, Domains, DryRun, Force, command, ingest, names, notice
from antpipe.runtime.progress import on_stderr as progress
from antpipe.settings.ingest import AmazonConfig, DownloadConfig, IngestConfig, SampleConfig, TableConfig

if TYPE_CHECKING:
    from antpipe.features.ingest.amazon.files import Request
    from antpipe.store.artefacts import StageResult


@command(ingest, "amazon")
def ingest_amazon(
    common: Common,
    source: Annotated[Path, typer.Option("--source", help="folder with the published review and metadata files")],
    domains: Domains,
    config: IngestConfig,
    options: AmazonConfig,
    network: DownloadConfig,
    download: Annotated[bool, typer.Option("--download", help="fetch files that are not in the folder")] = False,
    dry_run: DryRun = False,
    force: Force = False,
) -> None:
    """Amazon reviews and metadata, as published, from local files."""
    from antpipe.features.ingest.amazon.files import Request
    from antpipe.features.ingest_amazon import ingest_amazon as stage

    results = []
    for name in names(domains):
        missing = fetch(Request(common.store, source, name, config, options), network, dry_run) if download else []
        results += missing or [
            stage(common.store, source, name, config, options=options, force=force, dry_run=dry_run, announce=notice)
        ]
    common.show(results, show.artefacts(results))


def fetch(request: "Request", network: DownloadConfig, dry_run: bool) -> "list[StageResult]":
    """Fetch the files of a domain. In a dry run nothing is; the result says what would be."""
    from antpipe.features.ingest.amazon.downloads import download_files, would_be_fetched

    if dry_run:
        return would_be_fetched(request, network)
    download_files(request, network, announce=notice, progress=progress)
    return []


@command(ingest, "sample")
def ingest_sample(common: Common, config: SampleConfig, force: Force = False) -> None:
    """Generated shops, for a first try without data (see docs/sample.md)."""
    from antpipe.features.ingest_sample import ingest_sample as stage

    results = stage(common.store, config, force=force)
    common.show(results, show.artefacts(results))


@command(ingest, "table")
def ingest_table(
    common: Common,
    domain: Annotated[str, typer.Option("--domain", "--domains", help="name of the domain")],
    config: IngestConfig,
    table: TableConfig,
    interactions: Annotated[Path | None, typer.Option("--interactions", help="table of who met what, when")] = None,
    items: Annotated[Path | None, typer.Option("--items", help="table of the items; alone: a catalogue")] = None,
    dry_run: DryRun = False,
    force: Force = False,
) -> None:
    """Interactions and items of any shop, from CSV, TSV (both also .gz), Parquet or Arrow files."""
    from antpipe.features.ingest_table import ingest_table as stage
    from antpipe.features.ingest_table import table_source

    source = table_source(interactions, items)
    result = stage(common.store, domain, source, config, table, force=force, dry_run=dry_run, announce=notice)
    common.show([result], show.artefacts([result]))

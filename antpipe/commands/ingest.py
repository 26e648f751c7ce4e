"""Commands that turn raw data into domains of the store."""

from pathlib import Path
from typing import Annotated

from antpipe import api
from antpipe.commands import show
from antpipe.commands.flags import Call, Domains, DryRun, Force, Name, command, flag, ingest
from antpipe.runtime.terminal import on_stderr


@command(
    ingest,
    "amazon",
    takes=api.data.ingest_amazon,
    examples=["antpipe ingest amazon --source amazon2018 --domains Gift_Cards,Magazine_Subscriptions --download"],
)
def ingest_amazon(
    call: Call,
    source: Annotated[Path, flag("--source", "folder with the published review and metadata files")],
    domains: Domains,
    download: Annotated[bool, flag("--download", "download the files that are missing from the folder")] = False,
    dry_run: DryRun = False,
    force: Force = False,
) -> None:
    """Amazon reviews and metadata, as published."""
    results = api.data.ingest_amazon(
        call.store,
        domains,
        source=source,
        download=download,
        dry_run=dry_run,
        force=force,
        progress=on_stderr,
        **call.settings,
    )
    call.show(results, show.artefacts(results))


@command(
    ingest,
    "table",
    takes=api.data.ingest_table,
    examples=["antpipe ingest table --domain Shop --interactions orders.csv --items products.csv"],
)
def ingest_table(
    call: Call,
    domain: Name,
    interactions: Annotated[Path | None, flag("--interactions", "table of who bought or rated what, and when")] = None,
    items: Annotated[Path | None, flag("--items", "table of the items; alone, it makes a catalogue")] = None,
    dry_run: DryRun = False,
    force: Force = False,
) -> None:
    """Any shop's tables: CSV, TSV (both also .gz), Parquet or Arrow."""
    result = api.data.ingest_table(
        call.store, domain, interactions=interactions, items=items, dry_run=dry_run, force=force, **call.settings
    )
    call.show([result], show.artefacts([result]))


@command(ingest, "sample", takes=api.data.ingest_sample, examples=["antpipe ingest sample --users 200"])
def ingest_sample(call: Call, force: Force = False) -> None:
    """Four generated shops, for a first try without data."""
    results = api.data.ingest_sample(call.store, force=force, **call.settings)
    call.show(results, show.artefacts(results))

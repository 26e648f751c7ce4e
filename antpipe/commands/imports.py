"""Commands that take over data sets as other recommenders lay them out."""

from pathlib import Path
from typing import Annotated

import typer

from antpipe import show
from antpipe.commands.flags import Common, DryRun, Force, command, imports, notice
from antpipe.config import IngestConfig, LayoutConfig, TableConfig

Folder = Annotated[Path, typer.Option("--path", help="folder of the data set")]
Name = Annotated[str, typer.Option("--domain", "--domains", help="name of the domain")]


@command(imports, "recbole")
def import_recbole(
    common: Common,
    path: Folder,
    domain: Name,
    config: IngestConfig,
    table: TableConfig,
    dry_run: DryRun = False,
    force: Force = False,
) -> None:
    """RecBole's atomic files NAME.inter and NAME.item."""
    from antpipe.features.ingest.layout_recbole import find_recbole
    from antpipe.features.ingest.table import ingest_table

    source = find_recbole(path, domain, common.store.root, config.keep_without_metadata)
    result = ingest_table(common.store, domain, source, config, table, force=force, dry_run=dry_run, announce=notice)
    common.show([result], show.artefacts([result]))


@command(imports, "unisrec")
def import_unisrec(common: Common, path: Folder, domain: Name, config: LayoutConfig, force: Force = False) -> None:
    """Processed data sets of UniSRec, MISSRec and ANT, with their own split, numbering and features."""
    from antpipe.features.ingest.layout_unisrec import import_unisrec as stage

    results = stage(common.store, domain, path, config, force=force, announce=notice)
    common.show(results, show.artefacts(results))

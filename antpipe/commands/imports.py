"""Commands that take over what other tools made: data sets as they lay them out, and vectors."""

from pathlib import Path
from typing import Annotated

import typer

from antpipe.commands import show
from antpipe.commands.flags import Common, DryRun, Force, Modality, command, embedded, imports, notice
from antpipe.settings.ingest import EmbeddingsConfig, IngestConfig, LayoutConfig, TableConfig

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
    from antpipe.features.import_recbole import find_recbole
    from antpipe.features.ingest_table import ingest_table

    source = find_recbole(path, domain, common.store.root, config.keep_without_metadata)
    result = ingest_table(common.store, domain, source, config, table, force=force, dry_run=dry_run, announce=notice)
    common.show([result], show.artefacts([result]))


@command(imports, "unisrec")
def import_unisrec(common: Common, path: Folder, domain: Name, config: LayoutConfig, force: Force = False) -> None:
    """Processed data sets of UniSRec, MISSRec and ANT, with their own split, numbering and features."""
    from antpipe.features.import_unisrec import import_unisrec as stage

    results = stage(common.store, domain, path, config, force=force, announce=notice)
    common.show(results, show.artefacts(results))


@command(imports, "embeddings")
def import_embeddings(
    common: Common,
    path: Annotated[Path, typer.Option("--path", help="file or folder of the vectors")],
    domain: Name,
    modality: Modality,
    config: EmbeddingsConfig,
    force: Force = False,
) -> None:
    """Vectors made elsewhere (.npy, Parquet, .feat1CLS, clip-retrieval), joined by the ids of items."""
    from antpipe.features.import_embeddings import import_embeddings as stage

    result = stage(common.store, domain, path, embedded(modality), config, force=force, announce=notice)
    common.show([result], show.artefacts([result]))

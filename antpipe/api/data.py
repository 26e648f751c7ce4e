"""Data into the store: ingest, and what other tools made."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

from antpipe.api.keywords import (
    EmbeddingsKeywords,
    IngestAmazonKeywords,
    IngestTableKeywords,
    LayoutKeywords,
    SampleKeywords,
)
from antpipe.api.settings import given, names_of, store_of, takes
from antpipe.errors import UsageError
from antpipe.runtime.files import atomic
from antpipe.runtime.progress import Progress, silent
from antpipe.settings.ingest import (
    AmazonConfig,
    DownloadConfig,
    EmbeddingsConfig,
    IngestConfig,
    LayoutConfig,
    SampleConfig,
    TableConfig,
)
from antpipe.settings.model import EMBEDDED
from antpipe.store.artefacts import StageResult
from antpipe.store.store import Store

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import pyarrow as pa
    from numpy.typing import NDArray

    Table: TypeAlias = str | Path | pl.DataFrame | pa.Table
    Vectors: TypeAlias = str | Path | NDArray[np.floating]

INPUTS = ".inputs"  # folder of a store: tables and vectors that came from memory


@takes(IngestConfig, AmazonConfig, DownloadConfig)
def ingest_amazon(
    store: Store | str | Path,
    domains: str | Sequence[str],
    *,
    source: str | Path,
    download: bool = False,
    dry_run: bool = False,
    force: bool = False,
    config: str | Path | None = None,
    progress: Progress = silent,
    **settings: Unpack[IngestAmazonKeywords],
) -> list[StageResult]:
    """Amazon reviews and metadata, as published in 2014, 2018 or 2023, become domains of the store.

    source: folder with the published files. download: fetch those that are missing. dry_run: read and clean, but write
    and fetch nothing. force: replace a domain that holds other data. config: a TOML file with settings.

    Returns one result per domain (with download and dry_run: one per file that would be fetched). Raises DataError for
    files that are missing, damaged or malformed, and if no interaction is left; the store is then as it was.

    >>> [result] = ant.ingest_amazon("shop", ["Kites"], source="published", min_user=1, min_item=1)
    >>> result.status, result.figures["interactions"]
    ('built', 4)
    """
    from antpipe.features.ingest.amazon.download import download_files, would_be_fetched
    from antpipe.features.ingest.amazon.files import Release
    from antpipe.features.ingest_amazon import ingest_amazon as stage

    chosen = given(settings, config)
    rules, options = chosen.resolve(IngestConfig), chosen.resolve(AmazonConfig)
    network = chosen.resolve(DownloadConfig)
    results: list[StageResult] = []
    for name in names_of(domains):
        release = Release(store_of(store), Path(source), name, rules, options)
        missing = would_be_fetched(release, network) if download and dry_run else []
        if download and not dry_run:
            download_files(release, network, progress=progress)
        results += missing or [stage(release, force=force, dry_run=dry_run)]
    return results


@takes(IngestConfig, TableConfig)
def ingest_table(
    store: Store | str | Path,
    domain: str,
    *,
    interactions: "Table | None" = None,
    items: "Table | None" = None,
    dry_run: bool = False,
    force: bool = False,
    config: str | Path | None = None,
    **settings: Unpack[IngestTableKeywords],
) -> StageResult:
    """Interactions and items of any shop become a domain of the store.

    interactions, items: CSV, TSV, Parquet or Arrow files, or tables of polars or Arrow in memory; items alone make a
    catalogue. Columns are recognised by their usual names or named by `map`. A table in memory is kept as Parquet in
    the store's folder `.inputs`. dry_run, force, config: as for ingest_amazon.

    Returns the result with its figures. Raises UsageError for a `map` that names no column, DataError for files,
    columns and times that cannot be used, and if no interaction is left; the store is then as it was.

    >>> import polars as pl
    >>> orders = pl.DataFrame({"user": ["u1", "u1", "u2"], "item": ["a", "b", "a"], "time": [1, 2, 3]})
    >>> products = pl.DataFrame({"item": ["a", "b"], "title": ["Red kite", "Blue kite"]})
    >>> result = ant.ingest_table("shop", "Two", interactions=orders, items=products, min_user=1, min_item=1,
    ...                           time_unit="s")
    >>> result.figures["users"], result.figures["items"]
    (2, 2)
    """
    from antpipe.features.ingest_table import ingest_table as stage
    from antpipe.features.ingest_table import table_source

    place, chosen = store_of(store), given(settings, config)
    rules, table = chosen.resolve(IngestConfig), chosen.resolve(TableConfig)
    place.new_domain(domain)  # refuses names that could leave the store
    with _inputs(place, keep=not dry_run) as folder:
        files = _file_of(interactions, folder, f"{domain}-interactions"), _file_of(items, folder, f"{domain}-items")
        return stage(place, domain, table_source(*files), rules, table, force=force, dry_run=dry_run)


@takes(SampleConfig)
def ingest_sample(
    store: Store | str | Path,
    *,
    force: bool = False,
    config: str | Path | None = None,
    **settings: Unpack[SampleKeywords],
) -> list[StageResult]:
    """Four generated shops with texts, pictures and prices, for a first try without data (docs/sample.md).

    Returns one result per shop.

    >>> [result.domain for result in ant.ingest_sample("sample", users=80, items=40)]
    ['sample-outdoor', 'sample-kitchen', 'sample-office', 'sample-garden']
    """
    from antpipe.features.ingest_sample import ingest_sample as stage

    return stage(store_of(store), given(settings, config).resolve(SampleConfig), force=force)


@takes(IngestConfig, TableConfig)
def import_recbole(
    store: Store | str | Path,
    domain: str,
    path: str | Path,
    *,
    dry_run: bool = False,
    force: bool = False,
    config: str | Path | None = None,
    **settings: Unpack[IngestTableKeywords],
) -> StageResult:
    """RecBole's atomic files NAME.inter and NAME.item become a domain; everything else as ingest_table.

    path: folder of the data set.

    >>> ant.import_recbole("shop", "ml", "recbole", min_user=1, min_item=1).figures["items"]
    2
    """
    from antpipe.features.import_recbole import find_recbole
    from antpipe.features.ingest_table import ingest_table as stage

    place, chosen = store_of(store), given(settings, config)
    rules, table = chosen.resolve(IngestConfig), chosen.resolve(TableConfig)
    source = find_recbole(Path(path), domain, place.root, rules.keep_without_metadata)
    return stage(place, domain, source, rules, table, force=force, dry_run=dry_run)


@takes(LayoutConfig)
def import_unisrec(
    store: Store | str | Path,
    domain: str,
    path: str | Path,
    *,
    force: bool = False,
    config: str | Path | None = None,
    **settings: Unpack[LayoutKeywords],
) -> list[StageResult]:
    """A processed data set of UniSRec, MISSRec or ANT becomes a domain, with its split, numbering and features.

    path: folder of the data set. Returns one result per artefact. Raises DataError for files that contradict each
    other.

    >>> [result.artefact for result in ant.import_unisrec("shop", "Tiny", "unisrec", feature_width=4)]
    ['items', 'text']
    """
    from antpipe.features.import_unisrec import import_unisrec as stage

    return stage(store_of(store), domain, Path(path), given(settings, config).resolve(LayoutConfig), force=force)


@takes(EmbeddingsConfig)
def import_embeddings(
    store: Store | str | Path,
    domain: str,
    vectors: "Vectors",
    modality: str,
    *,
    force: bool = False,
    config: str | Path | None = None,
    **settings: Unpack[EmbeddingsKeywords],
) -> StageResult:
    """Vectors made elsewhere become the text or image features of a domain, joined by the ids of items.

    vectors: a file or folder (.npy, Parquet, .feat1CLS, clip-retrieval), or an array (N, d) in memory; `ids` then names
    a file with one item id per row. modality: `text` or `image`. force: replace features that are there. An array is
    kept as .npy in the store's folder `.inputs`.

    Raises DataError if ids and vectors do not go together or no item matches, PartialError, with the artefact written,
    for a coverage below `min_coverage`.

    >>> import numpy as np
    >>> vectors = np.eye(2, 4, dtype=np.float32)
    >>> ant.import_embeddings("shop", "Pair", vectors, "image", ids="ids.txt").figures["present"]
    2
    """
    from antpipe.features.import_embeddings import import_embeddings as stage

    place, chosen = store_of(store), given(settings, config).resolve(EmbeddingsConfig)
    place.domain(domain)
    with _inputs(place, keep=True) as folder:
        path = _vectors_of(vectors, folder, f"{domain}-{embedded(modality)}")
        return stage(place, domain, path, modality, chosen, force=force)


def embedded(modality: str, flag: str = "--modality") -> str:
    """A modality whose features are vectors of an encoder; others are refused."""
    if modality not in EMBEDDED:
        raise UsageError(f"{flag} {modality}: choose from {', '.join(EMBEDDED)}")
    return modality


@contextmanager
def _inputs(store: Store, *, keep: bool) -> Iterator[Path]:
    """The folder for tables in memory: in the store, or a temporary one."""
    if keep:
        yield store.root / INPUTS
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _file_of(table: "Table | None", folder: Path, name: str) -> Path | None:
    """The file of a table; one in memory is written to the folder first."""
    if table is None or isinstance(table, str | Path):
        return None if table is None else Path(table)
    import polars as pl

    path = folder / f"{name}.parquet"
    frame: Any = table if isinstance(table, pl.DataFrame) else pl.from_arrow(table)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(path) as scratch:
        frame.write_parquet(scratch)
    return path


def _vectors_of(vectors: "Vectors", folder: Path, name: str) -> Path:
    """The file of vectors; an array in memory is written to the folder first."""
    if isinstance(vectors, str | Path):
        return Path(vectors)
    import numpy as np

    path = folder / f"{name}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(path) as scratch, scratch.open("wb") as stream:
        np.save(stream, vectors)
    return path

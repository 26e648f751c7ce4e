"""How raw data becomes domains of the store."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from antpipe import __version__
from antpipe.settings.base import Config, setting


@dataclass(frozen=True)
class IngestConfig(Config):
    """Rules that turn raw reviews into a domain (design: malformed, duplicates, repeats, metadata, k-core)."""

    section: ClassVar[str] = "ingest"
    repeats: str = setting(
        "keep-all", "what to do when a user meets an item again", ("keep-all", "keep-first", "keep-last")
    )
    min_user: int = setting(5, "k-core: fewest interactions of a user", least=1)
    min_item: int = setting(5, "k-core: fewest interactions of an item", least=1)
    keep_without_metadata: bool = setting(False, "keep items that the metadata does not describe")
    text_fields: tuple[str, ...] = setting(
        ("title", "category", "brand", "features", "description"),
        "parts of an item's text, in order",
        ("title", "category", "brand", "features", "description"),
    )
    max_rejects: int = setting(0, "go on with up to this many malformed lines, listed in rejects.parquet", least=0)
    drop_shared_users_from: tuple[str, ...] | None = setting(
        None, "leave out users that these domains of the store have too (the targets, when a source is ingested)"
    )


# Benchmarks of the release of 2023, folders below `benchmark/`; which is read where several are there: the first.
BENCHMARKS = tuple(
    f"{core}/{split}"
    for core in ("5core", "0core")
    for split in ("last_out", "timestamp", "rating_only", "last_out_w_his", "timestamp_w_his")
)


@dataclass(frozen=True)
class AmazonConfig(Config):
    """Which of the published files are read, and as what (features/ingest/amazon/files.py)."""

    section: ClassVar[str] = "ingest-amazon"
    files: str = setting(
        "auto",
        "review files to read; auto: the first kind that is there",
        ("auto", "5-core", "complete", "ratings", "benchmark"),
    )
    benchmark: str = setting("auto", "folder of the benchmark of 2023; auto: the first there", ("auto", *BENCHMARKS))
    review_format: str = setting(
        "auto",
        "what the lines of the review files are; auto: as they look",
        ("auto", "reviews-2018", "reviews-2023", "ratings-2014", "ratings-2018", "benchmark-2023"),
    )
    limit: int = setting(0, "read only the first lines of each review file, for a try (0: all)", least=0)


@dataclass(frozen=True)
class DownloadConfig(Config):
    """How published files are fetched."""

    section: ClassVar[str] = "download"
    release: str = setting("2018", "release to download", ("2014", "2018", "2023"))
    base_url: str | None = setting(None, "address of a mirror, in place of the release's own")
    timeout: float = setting(60.0, "seconds without an answer after which a connection counts as lost", least=0.1)
    retries: int = setting(5, "failures in a row that are put up with, before a download ends", least=0)
    backoff: float = setting(1.0, "seconds before the second try, doubled for each further one up to 30", least=0)
    max_wait: float = setting(300.0, "longest wait a server may ask for before the download is given up", least=0)
    user_agent: str = setting(f"antpipe/{__version__}", "who asks")


@dataclass(frozen=True)
class SampleConfig(Config):
    """The generated shops; the process is described in docs/sample.md."""

    section: ClassVar[str] = "sample"
    users: int = setting(600, "users of each source shop (the target shop has a quarter)", least=20)
    items: int = setting(240, "items of each source shop (the target shop has half)", least=20)
    seed: int = setting(7, "seed of the generator", least=0)


@dataclass(frozen=True)
class TableConfig(Config):
    """How tables are read: which column is what, what their times count."""

    section: ClassVar[str] = "table"
    map: tuple[str, ...] = setting(
        (),
        "columns as ROLE=COLUMN (user, item, time, rating; title, text, price, image, category, brand, description); "
        "text=COLUMN+COLUMN joins several; a role that is not named is found by the usual names of its column",
    )
    time_unit: str = setting(
        "auto",
        "what a time that is a number counts (auto: by its size; order: times are only an order, that of the rows "
        "where there is no such column)",
        ("auto", "s", "ms", "us", "ns", "order"),
    )
    quotes: bool = setting(True, "double quotes enclose values of CSV and TSV files, and double each other")
    limit: int = setting(
        0,
        "read only the first rows of the interactions (of the items where these are alone), for a try (0: all)",
        least=0,
    )


@dataclass(frozen=True)
class LayoutConfig(Config):
    """Processed data sets of UniSRec, MISSRec and ANT."""

    section: ClassVar[str] = "unisrec"
    feature_width: int = setting(768, "width of the text features", least=1)
    encoder: str | None = setting(
        None, "what made the features: domains go together in training where it is the same (default: the file itself)"
    )


@dataclass(frozen=True)
class EmbeddingsConfig(Config):
    """Vectors that were made elsewhere."""

    section: ClassVar[str] = "import-embeddings"
    ids: Path | None = setting(
        None, "whose the rows are: one id a line, a JSON list, an .npy of strings, an item2index"
    )
    map: tuple[str, ...] = setting(
        (),
        "columns of Parquet: id=COLUMN, vector=COLUMN (or vector=A+B, vector=PREFIX*); of clip-retrieval: id=COLUMN",
    )
    encoder: str | None = setting(None, "what made them: domains go together where it is the same (default: the file)")
    min_coverage: float = setting(0.0, "share of items that must have a vector (else exit code 4)", least=0, most=1)

"""How raw data becomes domains of the store."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from antpipe import __version__
from antpipe.errors import SameCommand, UsageError
from antpipe.settings.base import Config, setting


@dataclass(frozen=True)
class IngestConfig(Config):
    """Cleaning rules that turn raw interactions into a domain, in the order of docs/published-data.md."""

    section: ClassVar[str] = "ingest"
    panel: ClassVar[str] = "Cleaning"
    repeats: str = setting(
        "keep-all", "what to keep if a user interacts with an item again", ("keep-all", "keep-first", "keep-last")
    )
    min_user: int = setting(5, "k-core: minimum interactions per user", least=1)
    min_item: int = setting(5, "k-core: minimum interactions per item", least=1)
    keep_without_metadata: bool = setting(False, "keep items without metadata")
    text_fields: tuple[str, ...] = setting(
        ("title", "category", "brand", "features", "description"),
        "parts of an item's text, in order",
        ("title", "category", "brand", "features", "description"),
    )
    max_rejects: int = setting(0, "malformed lines tolerated; they are listed in rejects.parquet", least=0)
    drop_shared_users_from: tuple[str, ...] | None = setting(
        None, "drop users who also appear in these domains of the store (the targets, when ingesting a source)"
    )
    cold_items: int | None = setting(
        None,
        "keep at most this many cold items: described items outside the k-core, which are recommended but not trained "
        "on (default: all items of a table; none of Amazon's and RecBole's metadata, most of which may be unsold)",
        least=0,
    )
    drop_cold: bool = setting(False, "leave out all cold items")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop_cold and self.cold_items:
            raise UsageError(
                f"--drop-cold leaves out all cold items, --cold-items {self.cold_items} keeps some: choose one of them",
                SameCommand(without=("--drop-cold",)),
            )

    def most_cold(self, usual: int | None) -> int | None:
        """The maximum number of cold items to keep (None: all). usual: the default if these settings do not say."""
        if self.drop_cold:
            return 0
        return usual if self.cold_items is None else self.cold_items


# Benchmark splits of the 2023 release, as folders below `benchmark/`; auto reads the first one present.
BENCHMARKS = tuple(
    f"{core}/{split}"
    for core in ("5core", "0core")
    for split in ("last_out", "timestamp", "rating_only", "last_out_w_his", "timestamp_w_his")
)


@dataclass(frozen=True)
class AmazonConfig(Config):
    """Which of the published files are read, and in which format (features/ingest/amazon/files.py)."""

    section: ClassVar[str] = "ingest-amazon"
    panel: ClassVar[str] = "Input"
    files: str = setting(
        "auto",
        "review files to read; auto: the first kind present",
        ("auto", "5-core", "complete", "ratings", "benchmark"),
    )
    benchmark: str = setting(
        "auto", "benchmark folder of the 2023 release; auto: the first one present", ("auto", *BENCHMARKS)
    )
    review_format: str = setting(
        "auto",
        "format of the review files; auto: detected from their lines",
        ("auto", "reviews-2018", "reviews-2023", "ratings-2014", "ratings-2018", "benchmark-2023"),
    )
    limit: int = setting(0, "read only this many lines of each review file, for a trial (0: all)", least=0)


@dataclass(frozen=True)
class DownloadConfig(Config):
    """How published files are downloaded."""

    section: ClassVar[str] = "download"
    panel: ClassVar[str] = "Network"
    release: str = setting("2018", "release to download", ("2014", "2018", "2023"), panel="Input")
    base_url: str | None = setting(None, "URL of a mirror to use instead of the release's own")
    timeout: float = setting(60.0, "seconds without data before a connection counts as lost", least=0.1)
    retries: int = setting(5, "consecutive failures tolerated before giving up", least=0)
    backoff: float = setting(1.0, "seconds before the first retry, doubled for each further one up to 30", least=0)
    max_wait: float = setting(300.0, "give up if a server asks for a longer wait, in seconds", least=0)
    user_agent: str = setting(f"antpipe/{__version__}", "User-Agent header")


@dataclass(frozen=True)
class SampleConfig(Config):
    """The generated shops (docs/sample.md describes the process)."""

    section: ClassVar[str] = "sample"
    panel: ClassVar[str] = "Shops"
    users: int = setting(600, "users per source shop (the target shop has a quarter)", least=20)
    items: int = setting(240, "items per source shop (the target shop has half)", least=20)
    seed: int = setting(7, "random seed of the generator", least=0)


@dataclass(frozen=True)
class TableConfig(Config):
    """How tables are read: the role of each column, and the unit of times."""

    section: ClassVar[str] = "table"
    panel: ClassVar[str] = "Input"
    map: tuple[str, ...] = setting(
        (),
        "columns as ROLE=COLUMN (user, item, time, rating, verified, quantity; title, text, price, image, category, "
        "brand, description); text=COLUMN+COLUMN joins several; columns of other roles are found by their usual names",
    )
    time_unit: str = setting(
        "auto",
        "unit of numeric times (auto: by their size; order: times only give an order, or the order of the rows if "
        "there is no time column)",
        ("auto", "s", "ms", "us", "ns", "order"),
    )
    date_format: str = setting(
        "auto",
        "how dates are written: day-first (31.12.2025), month-first (12/31/2025), year-first, or a pattern such as "
        "'%d.%m.%Y %H:%M' (auto: ISO 8601, or the one order that all dates of the column allow)",
    )
    encoding: str = setting(
        "auto",
        "encoding of CSV and TSV files, such as cp1252, utf-16 or latin-1 (auto: the byte order mark, else UTF-8, "
        "UTF-16 or cp1252, as the bytes show)",
    )
    where: str | None = setting(
        None,
        "read only the rows of the interactions (of the items if there are no interactions) for which this is true, "
        "such as 'qty > 0' or 'status in (\"paid\", \"sent\") and not test'",
    )
    drop_users: tuple[str, ...] = setting((), "ids of users to leave out, such as one that stands for all guests")
    category_separator: str | None = setting(
        None, "what separates the levels of a category, such as / (default: ' > ' and |)"
    )
    quotes: bool | None = setting(
        None,
        "in CSV and TSV files, double quotes enclose values and are escaped by doubling (default: yes, but refuse "
        "quotes that swallow what looks like rows)",
    )
    keep_column: tuple[str, ...] = setting(
        (), "further columns of the items to keep, for conditions of recommend --where"
    )
    allow_outside: bool = setting(
        False, "take picture files that the table names outside of its own folder (default: only those below it)"
    )
    limit: int = setting(
        0,
        "read only this many rows of the interactions, or of the items if there are no interactions, for a trial "
        "(0: all)",
        least=0,
    )


@dataclass(frozen=True)
class LayoutConfig(Config):
    """Processed data sets of UniSRec, MISSRec and ANT."""

    section: ClassVar[str] = "unisrec"
    panel: ClassVar[str] = "Input"
    feature_width: int = setting(768, "width of the text features", least=1)
    encoder: str | None = setting(
        None,
        "name of the encoder that made the features; only domains with the same encoder can be trained together "
        "(default: the file itself)",
    )


@dataclass(frozen=True)
class EmbeddingsConfig(Config):
    """Vectors made by other tools."""

    section: ClassVar[str] = "import-embeddings"
    panel: ClassVar[str] = "Input"
    ids: Path | None = setting(
        None,
        "item ids of the rows: one id per line, a JSON list, an .npy of strings, or an item2index",
    )
    map: tuple[str, ...] = setting(
        (),
        "columns of Parquet: id=COLUMN, vector=COLUMN (or vector=A+B, vector=PREFIX*); of clip-retrieval: id=COLUMN",
    )
    encoder: str | None = setting(
        None,
        "name of the encoder that made them; only domains with the same encoder can be trained together "
        "(default: the file itself)",
    )
    min_coverage: float = setting(0.0, "share of items that must have a vector, else exit code 4", least=0, most=1)

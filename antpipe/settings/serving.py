"""What is recommended, and to whom."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from antpipe.settings.base import DEVICES, Config, setting
from antpipe.settings.model import MODALITIES

WHERE = "only items for which this is true, such as: price < 50 and category contains 'Guitars'"


@dataclass(frozen=True)
class RecommendConfig(Config):
    """Which items may be recommended, and how the best of them are chosen."""

    section: ClassVar[str] = "recommend"
    panel: ClassVar[str] = "Filters"
    k: int = setting(10, "number of items", least=1)
    include_seen: bool = setting(False, "items of the history may be recommended again")
    where: str | None = setting(None, f"{WHERE} (columns of the catalogue)")
    exclude: Path | None = setting(None, "file of item ids, one per line, that are not recommended")
    only: Path | None = setting(None, "file of item ids, one per line: nothing else is recommended")
    diversify: float = setting(
        0.0,
        "penalty for items that resemble those above them (0: no penalty, 1: nothing else counts)",
        least=0,
        most=1,
        panel="Output",
    )
    explain: bool = setting(
        False, "name the items of the history and the modality that contribute most to a score", panel="Output"
    )
    unknown: str = setting(
        "error",
        "what to do with users or items that the store does not know; popularity: skip such items, and recommend the "
        "most popular items to users without a history",
        ("error", "popularity"),
        panel="Input",
    )
    device: str = setting("auto", "device to compute on", DEVICES, panel="Run")


@dataclass(frozen=True)
class SimilarConfig(Config):
    """What counts as similar."""

    section: ClassVar[str] = "similar"
    panel: ClassVar[str] = "Filters"
    k: int = setting(10, "number of items", least=1)
    by: str = setting(
        "fused",
        "what is compared: the run's item vectors (fused), the features of one modality, or learned ids",
        ("fused", *MODALITIES, "id"),
    )
    where: str | None = setting(None, WHERE)


@dataclass(frozen=True)
class ServeConfig(Config):
    """Where a service listens, and what bounds it."""

    section: ClassVar[str] = "serve"
    panel: ClassVar[str] = "Limits"
    host: str = setting("127.0.0.1", "address to listen on; other machines may reach any address but this one")
    port: int = setting(8000, "port to listen on (0: any free one)", least=0, most=65535)
    token_file: Path | None = setting(
        None, "file with the bearer token that requests must carry [else $ANTPIPE_TOKEN, else none]", panel="Input"
    )
    max_k: int = setting(100, "maximum items per answer", least=1)
    max_body: int = setting(1_000_000, "maximum bytes per request; larger ones get 413", least=1000)
    max_requests: int = setting(256, "maximum requests in progress; further ones get 503", least=1)
    max_connections: int = setting(512, "maximum open connections; further ones get 503 and are closed", least=1)
    timeout: float = setting(10.0, "seconds for a request, and for a connection to send one", least=0.1)
    batch: int = setting(64, "maximum requests answered together", least=1)
    wait: float = setting(2.0, "milliseconds to wait for further requests to answer together", least=0, most=1000)
    cache: int = setting(256, "MB of item vectors kept for filters that were used before", least=0)
    reload_every: float = setting(1.0, "seconds between checks for a new checkpoint or a changed domain", least=0.05)

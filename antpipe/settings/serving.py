"""What is recommended, and to whom."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from antpipe.settings.base import Config, setting
from antpipe.settings.model import MODALITIES

WHERE = "only items of which this is true, such as: price < 50 and category contains 'Guitars'"


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
        "how much an item counts less for being like those above it (0: not at all, 1: nothing else counts)",
        least=0,
        most=1,
        panel="Output",
    )
    explain: bool = setting(
        False, "name the items of the history and the modality that a score owes most to", panel="Output"
    )
    unknown: str = setting(
        "error",
        "what users or items that the store does not know lead to; popularity: such items are skipped, and who has no "
        "history gets the most popular items",
        ("error", "popularity"),
        panel="Input",
    )


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

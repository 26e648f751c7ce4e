"""What a report shows, and what a single figure shows."""

from dataclasses import dataclass
from typing import ClassVar

from antpipe.settings.base import Config, setting


@dataclass(frozen=True)
class ReportConfig(Config):
    """How much of the data a report shows. A report holds no more than a few MB, whatever the size of the shops."""

    section: ClassVar[str] = "report"
    panel: ClassVar[str] = "Output"
    users: int = setting(12, "example users per target, drawn at random (0: none)", least=0, most=100)
    k: int = setting(6, "recommendations per example user", least=1, most=50)
    map_items: int = setting(2000, "maximum items on a map, else a random sample (0: no map)", least=0, most=5000)
    pictures: bool = setting(True, "show small pictures of items that have one")
    seed: int = setting(0, "seed of the samples", least=0)


@dataclass(frozen=True)
class PlotConfig(Config):
    """What a single figure is about."""

    section: ClassVar[str] = "plot"
    panel: ClassVar[str] = "Output"
    target: str | None = setting(None, "the target, if there are several")
    metric: str | None = setting(None, "metric, such as recall@10 [default: that of the verdict]")
    protocol: str | None = setting(None, "protocol: all or unseen [default: that of the verdict]", ("all", "unseen"))
    width: int = setting(720, "width in pixels", least=280, most=4000)
    scale: float = setting(2.0, "pixels of a PNG per pixel of width", least=0.5, most=8)
    map_items: int = setting(2000, "maximum items on a map, else a random sample", least=2, most=20_000)
    seed: int = setting(0, "seed of the sample", least=0)

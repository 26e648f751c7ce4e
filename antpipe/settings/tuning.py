"""What `antpipe tune` searches: which settings, in which ranges, and for how long."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from antpipe.errors import SameCommand, UsageError
from antpipe.settings.base import Config, setting

Value: TypeAlias = bool | int | float


@dataclass(frozen=True)
class Span:
    """All numbers between two bounds. log: on a log scale."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[Value, ...]


Dimension: TypeAlias = Span | Choice
# Settings of [train] and [model] that matter for most shops, and the range of each.
SPACE: Mapping[str, Dimension] = {
    "lr": Span(1e-4, 1e-2, log=True),
    "batch_size": Choice((128, 256, 512, 1024, 2048)),
    "lr_decay": Span(0.8, 1.0),
    "unsold_negatives": Choice((True, False)),
    "item_dropout": Span(0.0, 0.6),
    "hidden_dropout": Span(0.0, 0.7),
    "attention_dropout": Span(0.0, 0.7),
    "temperature": Span(0.03, 0.3, log=True),
    "transductive": Choice((False, True)),
    "history_score": Choice((False, True)),
    "width": Choice((64, 128, 256, 512)),
    "layers": Choice((1, 2, 3)),
    "experts": Choice((0, 4, 8)),
}
STAGES = ("scratch", "finetune", "relearn")


@dataclass(frozen=True)
class TuneConfig(Config):
    """How settings are searched (docs/training.md)."""

    section: ClassVar[str] = "tune"
    panel: ClassVar[str] = "Search"
    stage: str = setting("scratch", "stage to tune", STAGES)
    trials: int = setting(20, "runs to train; the first uses the settings as given", least=1)
    search: tuple[str, ...] = setting((), "settings to search (default: all that are not given)", tuple(SPACE))
    prune: bool = setting(True, "stop a trial that is in the worse half after some of its epochs")
    first_rung: float = setting(
        0.25,
        "share of the epochs after which trials are first stopped; again at twice that, and so on",
        least=0.001,
        most=0.5,
    )

    def __post_init__(self) -> None:
        unknown = next((name for name in self.search if name not in SPACE), None)
        if unknown is not None:
            corrected = [name.replace("-", "_") for name in self.search]
            change = SameCommand({"--search": ",".join(corrected)}) if set(corrected) <= set(SPACE) else None
            raise UsageError(f"--search {unknown}: choose from {', '.join(SPACE)}", change)
        super().__post_init__()

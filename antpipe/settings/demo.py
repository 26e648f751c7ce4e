"""Sizes of `antpipe demo`."""

from dataclasses import dataclass
from typing import ClassVar

from antpipe.settings.base import Config, setting


@dataclass(frozen=True)
class DemoConfig(Config):
    """Sizes small enough for a demonstration on two CPU cores; they are not recommended settings."""

    section: ClassVar[str] = "demo"
    panel: ClassVar[str] = "Optimisation"
    width: int = setting(64, "width D of item and sequence vectors", least=2, panel="Model")
    experts: int = setting(2, "experts K per modality", least=0, panel="Model")
    pretrain_epochs: int = setting(4, "epochs of pre-training on the source shops", least=1)
    epochs: int = setting(12, "epochs of each arm on the target shop", least=1)
    pretrain_batch: int = setting(512, "training positions per step of pre-training", least=1)
    batch: int = setting(256, "training positions per step on the target shop", least=1)
    eval_every: int = setting(4, "epochs between validations", least=1, panel="Run")
    seeds: int = setting(3, "seeds per arm on the target shop", least=1, panel="Run")

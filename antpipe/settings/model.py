"""Sizes and constants of the model."""

from dataclasses import dataclass
from typing import ClassVar

from antpipe.errors import UsageError
from antpipe.settings.base import Config, setting


@dataclass(frozen=True)
class ModelConfig(Config):
    """ANT's sizes and constants (arXiv 2309.10195, section 4 and its table of hyper-parameters)."""

    section: ClassVar[str] = "model"
    width: int = setting(256, "width D of item and sequence vectors", least=2)
    experts: int = setting(8, "experts K of each modality (0: one linear layer and no gate)", least=0)
    layers: int = setting(2, "Transformer layers", least=1)
    heads: int = setting(2, "attention heads", least=1)
    inner_width: int | None = setting(None, "width of the feed-forward part (default: as wide as the model)", least=1)
    feed_forward_experts: int = setting(1, "feed-forward experts of the last Transformer layers", least=1)
    feed_forward_expert_layers: int = setting(1, "how many of the last layers have feed-forward experts", least=1)
    item_dropout: float = setting(0.2, "dropout on raw features", least=0, most=1)
    hidden_dropout: float = setting(0.5, "dropout in the Transformer and at its input", least=0, most=1)
    attention_dropout: float = setting(0.5, "dropout on attention weights", least=0, most=1)
    fusion: float = setting(0.1, "weight beta of the product image * text", least=0)
    temperature: float = setting(0.07, "temperature tau of the scores", least=1e-6)
    layer_norm_eps: float = setting(1e-8, "epsilon in LayerNorm", least=0)
    gate_noise: bool = setting(True, "noisy gates in training")
    transductive: bool = setting(False, "add a learned vector for each item id")
    history_score: bool = setting(
        False, "learn what to add to the score of items that are in the history (ANT: nothing)"
    )
    learned_missing: bool = setting(False, "a learned vector stands for a missing modality (ANT: zeros)")
    modality_dropout: float = setting(
        0.0, "share of present modalities hidden in training (ANT: none)", least=0, most=1
    )
    init: str = setting(
        "xavier",
        "first values of the experts; authors: normal, and xavier where a stage starts from a checkpoint",
        ("xavier", "normal", "authors"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise UsageError(f"--width {self.width}: must be a multiple of --heads {self.heads}")

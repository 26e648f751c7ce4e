"""Sizes and constants of the model."""

from dataclasses import dataclass
from typing import ClassVar

from antpipe.errors import UsageError
from antpipe.settings.base import Config, setting

MODALITIES = ("text", "image", "price")
EMBEDDED = ("text", "image")  # made by an encoder
# Initial weights of `floor` (core/floor.py), as logits: a weight divided by the temperature. "cosine" is that of
# trained vectors. The others are close to fits to shops of 500 to 4,000 users of Beauty, Sports, Toys and Games.
FLOOR = {
    "cosine": 3.0,
    "text": 6.0,
    "words": 2.2,
    "transitions": 3.5,
    "history": -7.0,
    "novelty": 1.5,
    "popularity": 0.7,
}
RERANKER_FEATURES, RERANKER_WIDTH = 31, 64  # core/reranker.py


@dataclass(frozen=True)
class ModelConfig(Config):
    """ANT's sizes and constants (arXiv 2309.10195, section 4 and its table of hyper-parameters)."""

    section: ClassVar[str] = "model"
    panel: ClassVar[str] = "Model"
    width: int = setting(256, "width D of item and sequence vectors", least=2)
    experts: int = setting(8, "experts K per modality (0: one linear layer without a gate)", least=0)
    layers: int = setting(2, "Transformer layers", least=1)
    heads: int = setting(2, "attention heads", least=1)
    inner_width: int | None = setting(None, "width of the feed-forward layers (default: --width)", least=1)
    feed_forward_experts: int = setting(1, "feed-forward experts in the last Transformer layers", least=1)
    feed_forward_expert_layers: int = setting(1, "number of last layers with feed-forward experts", least=1)
    item_dropout: float = setting(0.2, "dropout on raw features", least=0, most=1)
    hidden_dropout: float = setting(0.5, "dropout in the Transformer and on its input", least=0, most=1)
    attention_dropout: float = setting(0.5, "dropout on attention weights", least=0, most=1)
    fusion: float = setting(0.1, "weight beta of the product image * text", least=0)
    temperature: float = setting(0.07, "temperature tau of the scores", least=1e-6)
    layer_norm_eps: float = setting(1e-8, "epsilon in LayerNorm", least=0)
    gate_noise: bool = setting(True, "add noise to the gates in training")
    transductive: bool = setting(False, "add a learned vector per item id")
    history_score: bool = setting(False, "learn a score bonus for items in the history (ANT: no bonus)")
    floor: bool = setting(
        False,
        "add the scores of trained vectors to terms that need no training: texts and words of the history, counted "
        "transitions, history, novelty and popularity (ANT: no)",
    )
    reranker: bool = setting(
        False,
        "re-rank the best items of the floor by a small network, trained on small shops drawn from the domains of "
        "pre-training and on the target itself (ANT: no)",
    )
    learned_missing: bool = setting(False, "replace a missing modality by a learned vector (ANT: by zeros)")
    modality_dropout: float = setting(
        0.0, "share of the available modalities hidden in training (ANT: 0)", least=0, most=1
    )
    init: str = setting(
        "xavier",
        "initial values of the experts; authors: normal, but xavier if the stage starts from a checkpoint",
        ("xavier", "normal", "authors"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise UsageError(f"--width {self.width}: must be a multiple of --heads {self.heads}")

"""Every setting of antpipe, with its default and its explanation (settings.py reads them).

Those of ingest and features are in config_features.py, and to be had from here as well.
"""

from dataclasses import dataclass
from typing import ClassVar

from antpipe.config_features import (
    BENCHMARKS,
    AmazonConfig,
    DownloadConfig,
    EmbeddingsConfig,
    EngineConfig,
    FetchConfig,
    ImageConfig,
    IngestConfig,
    LayoutConfig,
    PriceConfig,
    SampleConfig,
    SequenceConfig,
    TableConfig,
    TextConfig,
    WhitenConfig,
)
from antpipe.errors import UsageError
from antpipe.settings import Config, setting

__all__ = [
    "BENCHMARKS",
    "CANDIDATES",
    "CONFIGS",
    "EMBEDDED",
    "MODALITIES",
    "NO_MODALITY",
    "WITHOUT_EFFECT",
    "AmazonConfig",
    "CompareConfig",
    "DemoConfig",
    "DownloadConfig",
    "EmbeddingsConfig",
    "EngineConfig",
    "EvaluateConfig",
    "FetchConfig",
    "ImageConfig",
    "IngestConfig",
    "LayoutConfig",
    "ModelConfig",
    "PriceConfig",
    "RaceConfig",
    "SampleConfig",
    "SequenceConfig",
    "TableConfig",
    "TextConfig",
    "TrainConfig",
    "WhitenConfig",
]


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


MODALITIES = ("text", "image", "price")
EMBEDDED = ("text", "image")  # those that are vectors of an encoder
NO_MODALITY = "none"  # items are their ids alone


@dataclass(frozen=True)
class TrainConfig(Config):
    section: ClassVar[str] = "train"
    epochs: int = setting(100, "passes over the training positions", least=1)
    batch_size: int = setting(2048, "training positions a step", least=1)
    stride: int = setting(
        1, "targets of each further window of a history beyond --max-len (1: each prefix as if it stood alone)", least=1
    )
    lr: float = setting(1e-3, "learning rate of Adam", least=0)
    pretrain_lr_decay: float = setting(0.995, "factor on the learning rate an epoch, pretrain", least=0)
    lr_decay: float = setting(0.99, "factor on the learning rate an epoch, stages on the target", least=0)
    image_text_weight: float = setting(1e-3, "weight of the image-text loss in pretrain", least=0)
    modalities: tuple[str, ...] = setting(
        MODALITIES, "modalities to use where a domain has them; none: ids alone", (*MODALITIES, NO_MODALITY)
    )
    whitened: tuple[str, ...] = setting((), "modalities to read as `antpipe whiten` wrote them (ANT: none)", EMBEDDED)
    eval_every: int = setting(1, "epochs between validations", least=1)
    valid_sample: int = setting(0, "validate on at most this many positions of each domain (0: all)", least=0)
    reference: bool = setting(False, "reproduce the quirks of the authors' code (docs/method.md)")
    patience: int = setting(0, "stop after this many epochs without a better validation (0: never)", least=0)
    limit_steps: int = setting(0, "stop after this many optimiser steps in all (0: no limit)", least=0)
    clip: float = setting(0.0, "greatest norm of the gradient; longer ones are shortened to it (0: off)", least=0)
    precision: str = setting(
        "auto", "of matrix products in training; auto: bf16 where it is native", ("auto", "fp32", "bf16")
    )
    compile: bool = setting(False, "torch.compile the model: minutes at the start, less time a step")
    sampled_above: int = setting(50_000, "items of a target from which on the softmax is over a sample", least=1)
    drawn: int = setting(8192, "items drawn for each step of a sampled softmax, besides the batch's own", least=1)
    pretrain_drawn: int = setting(
        0, "items of all domains drawn for each step of pre-training as further negatives, logQ-corrected "
        "(0: the batch's next items alone, as ANT)", least=0,
    )  # fmt: skip
    seed: int = setting(0, "seed of weights, order and dropout", least=0)
    device: str = setting("auto", "where to compute", ("auto", "cpu", "cuda"))
    save_every: float = setting(
        300.0,
        "most seconds between training states (0: one each step); all but short epochs end with one",
        least=0,
    )
    track: str = setting("none", "show the figures of each epoch elsewhere too", ("none", "tensorboard", "wandb"))

    def __post_init__(self) -> None:
        super().__post_init__()
        for modality in set(self.whitened) - set(self.modalities):
            raise UsageError(f"--whitened {modality}: is not among --modalities {','.join(self.modalities)}")
        if NO_MODALITY in self.modalities and len(self.modalities) > 1:
            raise UsageError(f"--modalities {','.join(self.modalities)}: {NO_MODALITY} goes with no other")
        if self.reference and self.pretrain_drawn:
            raise UsageError(f"--pretrain-drawn {self.pretrain_drawn}: --reference has the batch's next items alone")

    def features(self) -> tuple[str, ...]:
        """The modalities to read."""
        return () if self.modalities == (NO_MODALITY,) else self.modalities


# Settings of [train] that cannot change what is learned: they are no part of a run's fingerprint.
WITHOUT_EFFECT = ("device", "save_every", "track")


CANDIDATES = ("scratch", "finetune", "relearn", "relearn-then-unfreeze")


@dataclass(frozen=True)
class RaceConfig(Config):
    """How `train --stage auto` chooses (racing.py)."""

    section: ClassVar[str] = "race"
    candidates: tuple[str, ...] = setting(CANDIDATES, "what --stage auto chooses among", CANDIDATES)
    first_rung: float = setting(
        0.25, "share of the epochs after which the worse half is dropped; again at twice that, and so on",
        least=0.001, most=0.5,
    )  # fmt: skip


@dataclass(frozen=True)
class EvaluateConfig(Config):
    section: ClassVar[str] = "evaluate"
    split: str = setting("test", "positions to predict", ("valid", "test"))
    device: str = setting("auto", "where to compute", ("auto", "cpu", "cuda"))
    block_size: int = setting(
        0, "positions ranked at once (0: as many as fit about 100 MB); no figure depends on it", least=0
    )
    index: str = setting(
        "exact", "search that proposes the candidates; ivf and hnsw are approximate, and so are their figures",
        ("exact", "ivf", "hnsw"),
    )  # fmt: skip
    nlist: int = setting(0, "inverted lists of ivf (0: 4 times the square root of the items)", least=0)
    nprobe: int = setting(16, "inverted lists of ivf that are searched", least=1)
    hnsw_m: int = setting(32, "links of each item in the graph of hnsw", least=2)
    ef_construction: int = setting(40, "items kept in view while the graph of hnsw is built", least=1)
    ef_search: int = setting(128, "items kept in view while the graph of hnsw is searched", least=1)


@dataclass(frozen=True)
class CompareConfig(Config):
    """What is compared and how it is judged (docs/verdict.md). The training settings are those of [train]."""

    section: ClassVar[str] = "compare"
    arms: tuple[str, ...] = setting(
        ("scratch", "finetune", "relearn"),
        "stages (also auto and your own) and baselines: popularity, item-knn, markov, tfidf-nearest, text-nearest, "
        "sasrec, unisrec; baselines stands for all of these",
    )
    seeds: int = setting(5, "seeds of each arm, counted from --seed", least=1)
    protocol: str = setting("all", "protocol the verdict is about; both are reported", ("all", "unseen"))
    alpha: float = setting(0.05, "accepted chance of any false finding", least=1e-6, most=0.5)
    resamples: int = setting(10_000, "resamples of users and seeds for a standard error", least=100)
    resample_seed: int = setting(0, "seed of the resampling", least=0)
    leave_one_out: bool = setting(False, "pre-train on all --sources and on all but each one, to find which one hurts")
    pretrain_epochs: int | None = setting(None, "epochs of pre-training on --sources (default: --epochs)", least=1)
    pretrain_batch_size: int | None = setting(
        None, "training positions a step of pre-training on --sources (default: --batch-size)", least=1
    )


@dataclass(frozen=True)
class DemoConfig(Config):
    """Sizes small enough for a demonstration on two processor cores; they are not recommended settings."""

    section: ClassVar[str] = "demo"
    width: int = setting(64, "width D of item and sequence vectors", least=2)
    experts: int = setting(4, "experts K of each modality", least=0)
    pretrain_epochs: int = setting(10, "epochs of pre-training on the source shops", least=1)
    epochs: int = setting(24, "epochs of each stage on the target shop", least=1)
    pretrain_batch: int = setting(512, "training positions a step in pre-training", least=1)
    batch: int = setting(256, "training positions a step on the target shop", least=1)
    eval_every: int = setting(2, "epochs between validations", least=1)
    seeds: int = setting(2, "seeds of each stage on the target shop", least=1)


CONFIGS: tuple[type[Config], ...] = (
    IngestConfig, AmazonConfig, DownloadConfig, SampleConfig, TextConfig, ImageConfig, EngineConfig, FetchConfig,
    PriceConfig, WhitenConfig, SequenceConfig, TableConfig, LayoutConfig, EmbeddingsConfig, ModelConfig, TrainConfig,
    RaceConfig, EvaluateConfig, CompareConfig, DemoConfig,
)  # fmt: skip

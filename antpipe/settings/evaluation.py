"""How a run is evaluated, and what a comparison compares."""

from dataclasses import dataclass
from typing import ClassVar

from antpipe.settings.base import Config, setting


@dataclass(frozen=True)
class EvaluateConfig(Config):
    section: ClassVar[str] = "evaluate"
    split: str = setting("test", "positions to predict", ("valid", "test"))
    device: str = setting("auto", "where to compute", ("auto", "cpu", "cuda"))
    block_size: int = setting(
        0, "positions ranked at once (0: as many as fit about 100 MB); no figure depends on it", least=0
    )
    index: str = setting(
        "exact",
        "search that proposes the candidates; ivf and hnsw are approximate, and so are their figures",
        ("exact", "ivf", "hnsw"),
    )
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

"""How items and interactions become features and sequences."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from antpipe import __version__
from antpipe.errors import UsageError
from antpipe.settings.base import Config, setting

MODALITIES = ("text", "image", "price")


EMBEDDED = ("text", "image")  # those that are vectors of an encoder


@dataclass(frozen=True)
class TextConfig(Config):
    """How texts become vectors."""

    section: ClassVar[str] = "embed-text"
    encoder: str = setting(
        "sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers name, folder, or packaged/all-MiniLM-L6-v2"
    )
    prompt: str | None = setting(None, "name of a prompt of the model, put before each text")
    prefix: str = setting("", "words put before each text, for models that ask for them")
    dims: int | None = setting(None, "keep only the first dimensions, of Matryoshka models (default: all)", least=1)
    normalize: bool = setting(False, "scale vectors to length 1, where the model does not")
    device: str = setting("auto", "where to compute", ("auto", "cpu", "cuda"))
    precision: str = setting(
        "auto", "of the encoder's weights; auto: bf16 where the processor has it", ("auto", "fp32", "bf16")
    )
    min_cosine: float = setting(
        0.999,
        "least cosine to vectors in fp32, measured on a sample; below it, all is computed in fp32",
        least=0,
        most=1,
    )
    backend: str = setting("torch", "what runs the encoder", ("torch", "onnx", "openvino"))
    compile: bool = setting(False, "let torch compile the encoder: for large catalogues; needs a C++ compiler")
    token_budget: int = setting(2048, "tokens a step, padding included", least=1)
    shard_size: int = setting(8192, "texts that are computed and kept together: what a kill costs at most", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefix and self.prompt is not None:
            raise UsageError("--prefix and --prompt: choose one")
        if self.compile and self.backend != "torch":
            raise UsageError(f"--compile with --backend {self.backend}: it is for --backend torch")
        if self.precision == "bf16" and self.backend == "onnx":
            raise UsageError("--precision bf16 with --backend onnx: ONNX models have the precision of their file")


@dataclass(frozen=True)
class ImageConfig(Config):
    """How pictures become vectors."""

    section: ClassVar[str] = "embed-image"
    encoder: str = setting(
        "ViT-B-32/laion2b_s34b_b79k",
        "open_clip MODEL/PRETRAINED-TAG or MODEL/CHECKPOINT-FILE, timm:NAME or timm:NAME/CHECKPOINT-FILE, or "
        "packaged/efficientnet-lite0 (no network needed)",
    )
    dims: int | None = setting(None, "keep only the first dimensions, of Matryoshka models (default: all)", least=1)
    normalize: bool = setting(False, "scale an item's vector to length 1")
    device: str = setting("auto", "where to compute", ("auto", "cpu", "cuda"))
    precision: str = setting(
        "auto", "of the encoder's weights; auto: bf16 where the processor has it", ("auto", "fp32", "bf16")
    )
    decode: str = setting(
        "scaled",
        "scaled: large JPEGs are decoded at 1/2, 1/4 or 1/8, at least twice the size the encoder takes; exact: whole",
        ("scaled", "exact"),
    )
    min_cosine: float = setting(
        0.999,
        "least cosine to vectors in fp32 of pictures decoded whole, on a sample; below it, done that way",
        least=0,
        most=1,
    )
    batch_size: int = setting(32, "pictures a step", least=1)
    workers: int | None = setting(
        None,
        "processes that decode pictures; 0: none, threads do (default: by the cores, none for small catalogues)",
        least=0,
    )
    shard_size: int = setting(1024, "items that are computed and kept together: what a kill costs at most", least=1)
    images: Path | None = setting(None, "folder with pictures named ITEM_ID.jpg, ITEM_ID_2.jpg, …")
    max_images: int = setting(4, "pictures an item, averaged", least=1)
    min_coverage: float = setting(0.0, "share of items that must have a picture (else exit code 4)", least=0, most=1)


@dataclass(frozen=True)
class EngineConfig(Config):
    """Who computes the shards of embed-text and embed-image, and with what (docs/scale.md)."""

    section: ClassVar[str] = "engine"
    engine: str = setting("local", "who computes: this process, or the workers of a Ray cluster", ("local", "ray"))
    threads: int = setting(0, "threads of torch in each process (0: as torch chooses here)", least=0)
    shards: str | None = setting(
        None,
        "folder or address (s3://…) through which shards are exchanged with workers that do not see the store "
        "(default: the store)",
    )
    ray_address: str | None = setting(
        None, "cluster, HOST:PORT or auto (default: $RAY_ADDRESS, else one is started on this machine)"
    )
    ray_workers: int = setting(0, "workers (0: as many as the cluster has room for)", least=0)
    ray_cpus: float = setting(0.0, "CPUs a worker takes (0: one for each thread; with a GPU, one)", least=0)
    ray_gpus: float = setting(0.0, "GPUs a worker takes; a fraction where workers share one", least=0)


@dataclass(frozen=True)
class FetchConfig(Config):
    """How the pictures of a catalogue are downloaded (docs/data.md says what is refused)."""

    section: ClassVar[str] = "fetch-images"
    max_images: int = setting(4, "URLs an item, the first ones", least=1)
    concurrency: int = setting(16, "requests at the same time, in all", least=1)
    per_host: int = setting(4, "requests at the same time to one host", least=1)
    rate: float = setting(10.0, "requests a second to one host (0: no limit)", least=0)
    retries: int = setting(4, "further tries after a failure that may pass", least=0)
    backoff: float = setting(1.0, "seconds before the second try, doubled for each further one, more or less", least=0)
    max_wait: float = setting(60.0, "longest wait before a further try, even if a server asks for more", least=0)
    give_up: int = setting(20, "leave a host after this many failures in a row that may pass (0: never)", least=0)
    timeout: float = setting(20.0, "seconds to connect, and to wait for the next byte", least=0.001)
    deadline: float = setting(120.0, "seconds for a whole answer", least=0.001)
    max_bytes: int = setting(20_000_000, "largest file", least=1)
    max_pixels: int = setting(40_000_000, "largest picture, width times height", least=1)
    max_redirects: int = setting(5, "redirects that are followed", least=0)
    allow_private: bool = setting(False, "ask private, loopback and other addresses that are not public, too")
    min_side: int = setting(8, "a picture with a shorter side is a placeholder", least=1)
    placeholder_urls: int = setting(10, "the same bytes under this many URLs are a placeholder (0: never)", least=0)
    retry_failed: bool = setting(False, "ask again for what failed in a way that may pass")
    retry_permanent: bool = setting(False, "ask again for what is gone, was refused or is no picture")
    limit: int = setting(0, "ask for at most this many URLs in this run (0: all)", least=0)
    save_every: float = setting(5.0, "seconds between two writings of the ledger", least=0)
    user_agent: str = setting(f"antpipe/{__version__}", "who asks; add how to reach you")
    min_coverage: float = setting(0.0, "share of items that must have a picture (else exit code 4)", least=0, most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        agent = self.user_agent
        if not agent or agent != agent.strip() or not agent.isascii() or not agent.isprintable():
            raise UsageError(f"--user-agent {agent!r}: use printable ASCII characters")


@dataclass(frozen=True)
class PriceConfig(Config):
    section: ClassVar[str] = "quantize-price"
    bins: int = setting(100, "quantile bins of log(1 + price)", least=2)
    scope: str = setting("domain", "catalogue the bins are fitted on", ("domain", "category", "global"))
    encoding: str = setting("sinusoid", "code of a bin", ("sinusoid", "onehot"))
    price_width: int = setting(64, "width of the sinusoidal code (onehot is as wide as there are bins)", least=2)


@dataclass(frozen=True)
class WhitenConfig(Config):
    """PCA-whitening of features (Su et al. 2021, arXiv 2103.15316); an option, ANT reads features as they are."""

    section: ClassVar[str] = "whiten"
    dims: int = setting(0, "directions to keep, those of the largest variance (0: all in which items differ)", least=0)
    epsilon: float = setting(0.0, "shrinkage: share of the mean variance that is added to each variance", least=0)
    scope: str = setting("domain", "catalogue it is fitted on; global: all named domains", ("domain", "global"))
    like: str | None = setting(None, "take over the whitening of this domain instead of fitting one")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.like is not None and (self.dims, self.epsilon, self.scope) != (0, 0.0, "domain"):
            raise UsageError(
                f"--like {self.like} takes over dimensions, shrinkage and scope: leave the other flags out"
            )


@dataclass(frozen=True)
class SequenceConfig(Config):
    section: ClassVar[str] = "build-sequences"
    max_len: int = setting(50, "items the model looks back on", least=1)
    split: str = setting(
        "auto",
        "how positions become train, valid, test (auto: given where the data came with a split, else leave-one-out)",
        ("auto", "leave-one-out", "time", "given"),
    )
    valid_share: float = setting(0.1, "share of interactions in the validation period (split time)", least=0, most=1)
    test_share: float = setting(0.1, "share of interactions in the test period (split time)", least=0, most=1)

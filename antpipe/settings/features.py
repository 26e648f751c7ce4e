"""How items and interactions become features and sequences."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from antpipe import __version__
from antpipe.errors import SameCommand, UsageError
from antpipe.settings.base import DEVICES, Config, as_word, setting


@dataclass(frozen=True)
class TextConfig(Config):
    """How texts become vectors."""

    section: ClassVar[str] = "embed-text"
    panel: ClassVar[str] = "Encoder"
    encoder: str = setting(
        "sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers name, folder, or packaged/all-MiniLM-L6-v2"
    )
    prompt: str | None = setting(None, "name of a prompt of the model, prepended to each text")
    prefix: str = setting("", "string prepended to each text, for models that need one")
    dims: int | None = setting(None, "keep only the first dimensions of a Matryoshka model (default: all)", least=1)
    normalize: bool = setting(False, "scale vectors to unit length, if the model does not")
    device: str = setting("auto", "device to compute on", DEVICES, panel="Run")
    precision: str = setting(
        "auto",
        "precision of the encoder's weights; auto: bf16 if the hardware supports it",
        ("auto", "fp32", "bf16"),
        panel="Run",
    )
    min_cosine: float = setting(
        0.999,
        "minimum cosine to fp32 vectors, measured on a sample; below it, everything is computed in fp32",
        least=0,
        most=1,
        panel="Run",
    )
    backend: str = setting("torch", "library that runs the encoder", ("torch", "onnx", "openvino"), panel="Run")
    compile: bool = setting(
        False, "torch.compile the encoder; pays off for large catalogues, needs a C++ compiler", panel="Run"
    )
    token_budget: int = setting(
        0, "tokens per batch, padding included (0: 2048 on a CPU, 65536 on a GPU)", least=0, panel="Run"
    )
    shard_size: int = setting(8192, "texts per shard; an interrupted run loses at most one shard", least=1, panel="Run")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefix and self.prompt is not None:
            raise UsageError("--prefix and --prompt: choose one")
        if self.compile and self.backend != "torch":
            raise UsageError(f"--compile with --backend {self.backend}: works with --backend torch only")
        if self.precision == "bf16" and self.backend == "onnx":
            raise UsageError("--precision bf16 with --backend onnx: an ONNX model has the precision of its file")


@dataclass(frozen=True)
class ImageConfig(Config):
    """How pictures become vectors."""

    section: ClassVar[str] = "embed-image"
    panel: ClassVar[str] = "Encoder"
    encoder: str = setting(
        "ViT-B-32/laion2b_s34b_b79k",
        "open_clip MODEL/PRETRAINED-TAG or MODEL/CHECKPOINT-FILE, timm:NAME or timm:NAME/CHECKPOINT-FILE, or "
        "packaged/efficientnet-lite0 (needs no network)",
    )
    dims: int | None = setting(None, "keep only the first dimensions of a Matryoshka model (default: all)", least=1)
    normalize: bool = setting(False, "scale an item's vector to unit length")
    device: str = setting("auto", "device to compute on", DEVICES, panel="Run")
    precision: str = setting(
        "auto",
        "precision of the encoder's weights; auto: bf16 if the hardware supports it",
        ("auto", "fp32", "bf16"),
        panel="Run",
    )
    decode: str = setting(
        "scaled",
        "scaled: decode large JPEGs at 1/2, 1/4 or 1/8, at least twice the encoder's input size; exact: full size; "
        "gpu: full size, on the GPU (pip install 'antpipe[gpu]')",
        ("scaled", "exact", "gpu"),
        panel="Run",
    )
    min_cosine: float = setting(
        0.999,
        "minimum cosine to vectors of fully decoded pictures in fp32, measured on a sample; below it, everything is "
        "computed that way",
        least=0,
        most=1,
        panel="Run",
    )
    batch_size: int = setting(32, "pictures per batch", least=1, panel="Run")
    workers: int | None = setting(
        None,
        "processes that decode pictures (0: threads instead; default: by the number of cores, 0 for small catalogues)",
        least=0,
        panel="Run",
    )
    shard_size: int = setting(1024, "items per shard; an interrupted run loses at most one shard", least=1, panel="Run")
    images: Path | None = setting(None, "folder of pictures named ITEM_ID.jpg, ITEM_ID_2.jpg, …", panel="Input")
    max_images: int = setting(4, "pictures per item, averaged", least=1, panel="Input")
    min_coverage: float = setting(
        0.0, "share of items that must have a picture, else exit code 4", least=0, most=1, panel="Input"
    )


@dataclass(frozen=True)
class EngineConfig(Config):
    """What computes the shards of embed-text and embed-image (docs/scale.md)."""

    section: ClassVar[str] = "engine"
    panel: ClassVar[str] = "Engine"
    engine: str = setting("local", "local: this process; ray: the workers of a Ray cluster", ("local", "ray"))
    threads: int = setting(0, "torch threads per process (0: torch's default)", least=0)
    shards: str | None = setting(
        None,
        "folder or address (s3://…) to exchange shards with workers that cannot see the store (default: the store)",
    )
    ray_address: str | None = setting(
        None, "Ray cluster, HOST:PORT or auto (default: $RAY_ADDRESS, else a new one on this machine)"
    )
    ray_workers: int = setting(0, "Ray workers (0: as many as the cluster has room for)", least=0)
    ray_cpus: float = setting(0.0, "CPUs per worker (0: one per thread, or one if the worker has a GPU)", least=0)
    ray_gpus: float = setting(0.0, "GPUs per worker; a fraction lets workers share one", least=0)


@dataclass(frozen=True)
class FetchConfig(Config):
    """How the pictures of a catalogue are downloaded (docs/data.md lists what is rejected)."""

    section: ClassVar[str] = "fetch-images"
    panel: ClassVar[str] = "Network"
    max_images: int = setting(4, "URLs per item, the first ones", least=1, panel="Input")
    concurrency: int = setting(16, "concurrent requests in total", least=1)
    per_host: int = setting(4, "concurrent requests per host", least=1)
    rate: float = setting(10.0, "requests per second per host (0: no limit)", least=0)
    retries: int = setting(4, "retries after a temporary failure", least=0)
    backoff: float = setting(1.0, "seconds before the first retry, about doubled for each further one", least=0)
    max_wait: float = setting(60.0, "maximum seconds before a retry, even if the server asks for more", least=0)
    give_up: int = setting(20, "consecutive temporary failures before giving up on a host (0: never)", least=0)
    timeout: float = setting(20.0, "seconds to connect, and to wait for the next byte", least=0.001)
    deadline: float = setting(120.0, "seconds for a complete response", least=0.001)
    least_rate: float = setting(
        500.0, "slowest response to accept, in bytes per second after its first 10 seconds (0: any)", least=0
    )
    max_bytes: int = setting(20_000_000, "maximum file size in bytes", least=1, panel="Checks")
    max_pixels: int = setting(40_000_000, "maximum picture size, width times height", least=1, panel="Checks")
    max_redirects: int = setting(5, "redirects to follow", least=0)
    allow_private: bool = setting(False, "allow private, loopback and other non-public addresses")
    min_side: int = setting(
        8, "a picture with a side shorter than this many pixels is a placeholder", least=1, panel="Checks"
    )
    placeholder_urls: int = setting(
        10, "a file found at this many URLs is a placeholder (0: never)", least=0, panel="Checks"
    )
    retry_failed: bool = setting(False, "retry URLs that failed temporarily", panel="Input")
    retry_permanent: bool = setting(
        False, "retry URLs that failed for good: gone, rejected or not a picture", panel="Input"
    )
    limit: int = setting(0, "maximum URLs to request in this run (0: all)", least=0, panel="Input")
    save_every: float = setting(5.0, "seconds between saves of the ledger", least=0, panel="Run")
    user_agent: str = setting(f"antpipe/{__version__}", "User-Agent header; add how to reach you")
    min_coverage: float = setting(
        0.0, "share of items that must have a picture, else exit code 4", least=0, most=1, panel="Checks"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        agent = self.user_agent
        if not agent or agent != agent.strip() or not agent.isascii() or not agent.isprintable():
            raise UsageError(f"--user-agent {agent!r}: use printable ASCII characters")


@dataclass(frozen=True)
class PriceConfig(Config):
    """How prices become vectors."""

    section: ClassVar[str] = "quantize-price"
    panel: ClassVar[str] = "Price"
    bins: int = setting(100, "quantile bins of log(1 + price)", least=2)
    scope: str = setting(
        "domain", "items the bins are fitted on; global: all given domains", ("domain", "category", "global")
    )
    encoding: str = setting("sinusoid", "encoding of a bin", ("sinusoid", "onehot"))
    price_width: int = setting(64, "width of the sinusoidal encoding (onehot: one dimension per bin)", least=2)


@dataclass(frozen=True)
class WhitenConfig(Config):
    """PCA whitening of features (Su et al. 2021, arXiv 2103.15316). An option: ANT reads raw features."""

    section: ClassVar[str] = "whiten"
    panel: ClassVar[str] = "Whitening"
    dims: int = setting(0, "principal components to keep (0: all with variance)", least=0)
    epsilon: float = setting(0.0, "shrinkage: share of the mean variance added to each variance", least=0)
    scope: str = setting("domain", "items it is fitted on; global: all given domains", ("domain", "global"))
    like: str | None = setting(None, "apply the whitening of this domain instead of fitting one")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.like is not None and (self.dims, self.epsilon, self.scope) != (0, 0.0, "domain"):
            raise UsageError(
                f"--like {self.like}: dimensions, shrinkage and scope come from there; leave the other flags out"
            )


@dataclass(frozen=True)
class SequenceConfig(Config):
    """How interactions become sequences with a split."""

    section: ClassVar[str] = "build-sequences"
    panel: ClassVar[str] = "Sequences"
    max_len: int = setting(50, "maximum number of past items the model reads", least=1)
    split: str = setting(
        "auto",
        "how positions are split into train, valid and test; auto: given if the data came with a split, "
        "else leave-one-out; cold-items: leave-one-out, with some items taken out of training altogether",
        ("auto", "leave-one-out", "time", "given", "cold-items"),
    )
    valid_share: float = setting(0.1, "share of interactions in the validation period (--split time)", least=0, most=1)
    test_share: float = setting(0.1, "share of interactions in the test period (--split time)", least=0, most=1)
    cold_share: float = setting(0.1, "share of items taken out of training (--split cold-items)", least=0, most=0.9)
    cold_seed: int = setting(0, "seed by which these items are drawn", least=0)


@dataclass(frozen=True)
class SubsetConfig(Config):
    """Random subsets of a domain's users. They are nested: each contains the users of every smaller one."""

    section: ClassVar[str] = "subset"
    panel: ClassVar[str] = "Subsets"
    target_users: tuple[int, ...] = setting((), "numbers of users; each gives a subset", least=1)
    subset_seed: int = setting(0, "seed by which users are drawn", least=0)
    catalogue: str = setting("cut", "items of a subset; cut: those its users met; whole: all", ("cut", "whole"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.target_users)) != len(self.target_users):
            once = as_word(tuple(sorted(set(self.target_users))))
            raise UsageError(
                f"--target-users {as_word(self.target_users)}: give each number once",
                SameCommand({"--target-users": once}),
            )

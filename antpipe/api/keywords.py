"""The settings that functions of antpipe take as keywords, for type checkers and editors.

Names and types are those of the fields in antpipe/settings, where the defaults and explanations are; a test compares
the two. A setting that is not given comes from the environment, the TOML file, the preset or the defaults.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict


class IngestKeywords(TypedDict, total=False):
    """The section `[ingest]`."""

    repeats: str
    min_user: int
    min_item: int
    keep_without_metadata: bool
    text_fields: Sequence[str]
    max_rejects: int
    drop_shared_users_from: Sequence[str] | None
    cold_items: int | None
    drop_cold: bool


class AmazonKeywords(TypedDict, total=False):
    """The section `[ingest-amazon]`."""

    files: str
    benchmark: str
    review_format: str
    limit: int


class DownloadKeywords(TypedDict, total=False):
    """The section `[download]`."""

    release: str
    base_url: str | None
    timeout: float
    retries: int
    backoff: float
    max_wait: float
    user_agent: str


class SampleKeywords(TypedDict, total=False):
    """The section `[sample]`."""

    users: int
    items: int
    seed: int


class TextKeywords(TypedDict, total=False):
    """The section `[embed-text]`."""

    encoder: str
    prompt: str | None
    prefix: str
    dims: int | None
    normalize: bool
    device: str
    precision: str
    min_cosine: float
    backend: str
    compile: bool
    token_budget: int
    shard_size: int


class ImageKeywords(TypedDict, total=False):
    """The section `[embed-image]`."""

    encoder: str
    dims: int | None
    normalize: bool
    device: str
    precision: str
    decode: str
    min_cosine: float
    batch_size: int
    workers: int | None
    shard_size: int
    images: str | Path | None
    max_images: int
    min_coverage: float


class EngineKeywords(TypedDict, total=False):
    """The section `[engine]`."""

    engine: str
    threads: int
    shards: str | None
    ray_address: str | None
    ray_workers: int
    ray_cpus: float
    ray_gpus: float


class FetchKeywords(TypedDict, total=False):
    """The section `[fetch-images]`."""

    max_images: int
    concurrency: int
    per_host: int
    rate: float
    retries: int
    backoff: float
    max_wait: float
    give_up: int
    timeout: float
    deadline: float
    least_rate: float
    max_bytes: int
    max_pixels: int
    max_redirects: int
    allow_private: bool
    min_side: int
    placeholder_urls: int
    retry_failed: bool
    retry_permanent: bool
    limit: int
    save_every: float
    user_agent: str
    min_coverage: float


class PriceKeywords(TypedDict, total=False):
    """The section `[quantize-price]`."""

    bins: int
    scope: str
    encoding: str
    price_width: int


class WhitenKeywords(TypedDict, total=False):
    """The section `[whiten]`."""

    dims: int
    epsilon: float
    scope: str
    like: str | None


class SequenceKeywords(TypedDict, total=False):
    """The section `[build-sequences]`."""

    max_len: int
    split: str
    valid_share: float
    test_share: float
    cold_share: float
    cold_seed: int


class TableKeywords(TypedDict, total=False):
    """The section `[table]`."""

    map: Sequence[str]
    time_unit: str
    date_format: str
    encoding: str
    where: str | None
    drop_users: Sequence[str]
    category_separator: str | None
    quotes: bool | None
    keep_column: Sequence[str]
    allow_outside: bool
    limit: int


class LayoutKeywords(TypedDict, total=False):
    """The section `[unisrec]`."""

    feature_width: int
    encoder: str | None


class EmbeddingsKeywords(TypedDict, total=False):
    """The section `[import-embeddings]`."""

    ids: str | Path | None
    map: Sequence[str]
    encoder: str | None
    min_coverage: float


class ModelKeywords(TypedDict, total=False):
    """The section `[model]`."""

    width: int
    experts: int
    layers: int
    heads: int
    inner_width: int | None
    feed_forward_experts: int
    feed_forward_expert_layers: int
    item_dropout: float
    hidden_dropout: float
    attention_dropout: float
    fusion: float
    temperature: float
    layer_norm_eps: float
    gate_noise: bool
    transductive: bool
    history_score: bool
    floor: bool
    reranker: bool
    learned_missing: bool
    modality_dropout: float
    init: str


class TrainKeywords(TypedDict, total=False):
    """The section `[train]`."""

    method: str
    peer_layers: int
    peer_candidates: int
    peer_top: int
    peer_weight: float
    teacher_weight: float
    distil_weight: float
    distil_temperature: float
    balance_weight: float
    balance_temperature: float
    balance_epochs: int
    low_rated_weight: float
    low_rated_gate: float
    unverified_weight: float
    unverified_gate: float
    epochs: int
    batch_size: int
    stride: int
    lr: float
    pretrain_lr_decay: float
    lr_decay: float
    image_text_weight: float
    modalities: Sequence[str]
    words: bool
    whitened: Sequence[str]
    eval_every: int
    valid_sample: int
    reference: bool
    patience: int
    limit_steps: int
    least_steps: int
    smallest_batch: int
    unsold_negatives: bool
    clip: float
    precision: str
    compile: bool
    sampled_above: int
    drawn: int
    pretrain_drawn: int
    seed: int
    device: str
    gpu_features: str
    save_every: float
    track: str


class RaceKeywords(TypedDict, total=False):
    """The section `[race]`."""

    candidates: Sequence[str]
    first_rung: float


class ForkMergeKeywords(TypedDict, total=False):
    """The section `[fork_merge]`."""

    prune_epochs: int
    epoch_step: int
    branches: Sequence[int]
    merge_steps: int


class TuneKeywords(TypedDict, total=False):
    """The section `[tune]`."""

    stage: str
    trials: int
    search: Sequence[str]
    prune: bool
    first_rung: float


class EvaluateKeywords(TypedDict, total=False):
    """The section `[evaluate]`."""

    split: str
    device: str
    block_size: int
    beyond_accuracy: bool
    index: str
    nlist: int
    nprobe: int
    hnsw_m: int
    ef_construction: int
    ef_search: int


class SubsetKeywords(TypedDict, total=False):
    """The section `[subset]`."""

    target_users: Sequence[int]
    subset_seed: int
    catalogue: str


class CompareKeywords(SubsetKeywords, total=False):
    """The section `[compare]`."""

    arms: Sequence[str]
    seeds: int
    protocol: str
    metric: str
    alpha: float
    margin: float
    pretrain_seeds: int
    leave_one_out: bool
    refit: bool
    beyond_accuracy: bool
    pretrain_epochs: int | None
    pretrain_batch_size: int | None


class RecommendKeywords(TypedDict, total=False):
    """The section `[recommend]`."""

    k: int
    include_seen: bool
    where: str | None
    exclude: str | Path | None
    only: str | Path | None
    diversify: float
    explain: bool
    unknown: str
    device: str


class SimilarKeywords(TypedDict, total=False):
    """The section `[similar]`."""

    k: int
    by: str
    where: str | None


class ServeKeywords(TypedDict, total=False):
    """The section `[serve]`."""

    host: str
    port: int
    token_file: str | Path | None
    max_k: int
    max_body: int
    max_requests: int
    max_connections: int
    timeout: float
    batch: int
    wait: float
    cache: int
    reload_every: float


class ReportKeywords(TypedDict, total=False):
    """The section `[report]`."""

    users: int
    k: int
    map_items: int
    pictures: bool
    seed: int


class PlotKeywords(TypedDict, total=False):
    """The section `[plot]`."""

    target: str | None
    metric: str | None
    protocol: str | None
    width: int
    scale: float
    map_items: int
    seed: int


class DemoKeywords(TypedDict, total=False):
    """The section `[demo]`."""

    width: int
    experts: int
    pretrain_epochs: int
    epochs: int
    pretrain_batch: int
    batch: int
    eval_every: int
    seeds: int


class IngestAmazonKeywords(IngestKeywords, AmazonKeywords, DownloadKeywords):
    """The sections `[ingest]`, `[ingest-amazon]`, `[download]`."""


class IngestTableKeywords(IngestKeywords, TableKeywords):
    """The sections `[ingest]`, `[table]`."""


class EmbedTextKeywords(TextKeywords, EngineKeywords):
    """The sections `[embed-text]`, `[engine]`."""


class EmbedImageKeywords(ImageKeywords, EngineKeywords):
    """The sections `[embed-image]`, `[engine]`."""


class RecommendToFileKeywords(RecommendKeywords, EngineKeywords):
    """The sections `[recommend]`, `[engine]`."""


class RunKeywords(TrainKeywords, ModelKeywords, RaceKeywords, ForkMergeKeywords):
    """The sections `[train]`, `[model]`, `[race]`, `[fork_merge]`."""


class SearchKeywords(TuneKeywords, TrainKeywords, ModelKeywords):
    """The sections `[tune]`, `[train]`, `[model]`."""


class ComparisonKeywords(CompareKeywords, TrainKeywords, ModelKeywords, RaceKeywords, ForkMergeKeywords):
    """The sections `[compare]`, `[train]`, `[model]`, `[race]`, `[fork_merge]`."""

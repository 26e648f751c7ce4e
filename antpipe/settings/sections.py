"""All settings classes, one per section of a TOML file."""

from antpipe.settings.base import Config
from antpipe.settings.comparison import CompareConfig, RaceConfig
from antpipe.settings.demo import DemoConfig
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.settings.features import (
    EngineConfig,
    FetchConfig,
    ImageConfig,
    PriceConfig,
    SequenceConfig,
    SubsetConfig,
    TextConfig,
    WhitenConfig,
)
from antpipe.settings.fork_merge import ForkMergeConfig
from antpipe.settings.ingest import (
    AmazonConfig,
    DownloadConfig,
    EmbeddingsConfig,
    IngestConfig,
    LayoutConfig,
    SampleConfig,
    TableConfig,
)
from antpipe.settings.model import ModelConfig
from antpipe.settings.report import PlotConfig, ReportConfig
from antpipe.settings.serving import RecommendConfig, ServeConfig, SimilarConfig
from antpipe.settings.training import TrainConfig
from antpipe.settings.tuning import TuneConfig

CONFIGS: tuple[type[Config], ...] = (
    IngestConfig,
    AmazonConfig,
    DownloadConfig,
    SampleConfig,
    TextConfig,
    ImageConfig,
    EngineConfig,
    FetchConfig,
    PriceConfig,
    WhitenConfig,
    SequenceConfig,
    SubsetConfig,
    TableConfig,
    LayoutConfig,
    EmbeddingsConfig,
    ModelConfig,
    TrainConfig,
    RaceConfig,
    ForkMergeConfig,
    TuneConfig,
    EvaluateConfig,
    CompareConfig,
    ReportConfig,
    PlotConfig,
    RecommendConfig,
    SimilarConfig,
    ServeConfig,
    DemoConfig,
)

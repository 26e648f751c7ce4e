"""Every setting of antpipe, with its default and its explanation, in one place.

A field of a class below is at once a command line flag (`--batch-size`), an environment variable
(`ANTPIPE_TRAIN_BATCH_SIZE`) and a key of the TOML section named by the class (`[train]` `batch_size`).
The order of precedence is flag, environment, TOML, default. Unknown names are refused.
"""

import dataclasses
import math
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from antpipe.errors import UsageError

T = TypeVar("T")


def setting(
    default: T, about: str, choices: tuple[str, ...] = (), least: float | None = None, most: float | None = None
) -> T:
    """A dataclass field with its explanation, and the values it admits."""
    metadata = {"about": about, "choices": choices, "least": least, "most": most}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """What all groups of settings share: their TOML section, and the check of their values."""

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            choices, least, most = (field.metadata[key] for key in ("choices", "least", "most"))
            if choices and not set(value if isinstance(value, tuple) else (value,)) <= set(choices):
                shown = ",".join(value) if isinstance(value, tuple) else value
                raise UsageError(f"--{flag_name(field.name)} {shown}: choose from {', '.join(choices)}")
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"--{flag_name(field.name)} {value}: must be finite")
            if least is not None and value is not None and value < least:
                raise UsageError(f"--{flag_name(field.name)} {value}: must be at least {least:g}")
            if most is not None and value is not None and value > most:
                raise UsageError(f"--{flag_name(field.name)} {value}: must be at most {most:g}")


@dataclass(frozen=True)
class IngestConfig(Config):
    """Rules that turn raw reviews into a domain (design: malformed, duplicates, repeats, metadata, k-core)."""

    section: ClassVar[str] = "ingest"
    repeats: str = setting(
        "keep-all", "what to do when a user meets an item again", ("keep-all", "keep-first", "keep-last")
    )
    min_user: int = setting(5, "k-core: fewest interactions of a user", least=1)
    min_item: int = setting(5, "k-core: fewest interactions of an item", least=1)
    keep_without_metadata: bool = setting(False, "keep items that the metadata does not describe")
    text_fields: tuple[str, ...] = setting(
        ("title", "category", "brand", "features", "description"),
        "parts of an item's text, in order",
        ("title", "category", "brand", "features", "description"),
    )
    max_rejects: int = setting(0, "go on with up to this many malformed lines, listed in rejects.parquet", least=0)


@dataclass(frozen=True)
class SampleConfig(Config):
    """The generated shops; the process is described in docs/sample.md."""

    section: ClassVar[str] = "sample"
    users: int = setting(600, "users of each source shop (the target shop has a quarter)", least=20)
    items: int = setting(240, "items of each source shop (the target shop has half)", least=20)
    seed: int = setting(7, "seed of the generator", least=0)


@dataclass(frozen=True)
class TextConfig(Config):
    section: ClassVar[str] = "embed-text"
    encoder: str = setting(
        "sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers name, folder, or packaged/all-MiniLM-L6-v2"
    )
    device: str = setting("auto", "where to compute", ("auto", "cpu", "cuda"))
    batch_size: int = setting(64, "texts a step", least=1)


@dataclass(frozen=True)
class ImageConfig(Config):
    section: ClassVar[str] = "embed-image"
    encoder: str = setting(
        "ViT-B-32/laion2b_s34b_b79k",
        "open_clip MODEL/PRETRAINED-TAG or MODEL/CHECKPOINT-FILE, or packaged/efficientnet-lite0 (no network needed)",
    )
    device: str = setting("auto", "where to compute", ("auto", "cpu", "cuda"))
    batch_size: int = setting(32, "pictures a step", least=1)
    images: Path | None = setting(None, "folder with pictures named ITEM_ID.jpg, ITEM_ID_2.jpg, …")
    max_images: int = setting(4, "pictures an item, averaged", least=1)
    min_coverage: float = setting(0.0, "share of items that must have a picture (else exit code 4)", least=0, most=1)


@dataclass(frozen=True)
class PriceConfig(Config):
    section: ClassVar[str] = "quantize-price"
    bins: int = setting(100, "quantile bins of log(1 + price)", least=2)
    scope: str = setting("domain", "catalogue the bins are fitted on", ("domain", "category", "global"))
    encoding: str = setting("sinusoid", "code of a bin", ("sinusoid", "onehot"))
    price_width: int = setting(64, "width of the sinusoidal code (onehot is as wide as there are bins)", least=2)


@dataclass(frozen=True)
class SequenceConfig(Config):
    section: ClassVar[str] = "build-sequences"
    max_len: int = setting(50, "items the model looks back on", least=1)
    split: str = setting("leave-one-out", "how positions become train, valid, test", ("leave-one-out", "time"))
    valid_share: float = setting(0.1, "share of interactions in the validation period (split time)", least=0, most=1)
    test_share: float = setting(0.1, "share of interactions in the test period (split time)", least=0, most=1)


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


@dataclass(frozen=True)
class TrainConfig(Config):
    section: ClassVar[str] = "train"
    epochs: int = setting(100, "passes over the training positions", least=1)
    batch_size: int = setting(2048, "training positions a step", least=1)
    lr: float = setting(1e-3, "learning rate of Adam", least=0)
    pretrain_lr_decay: float = setting(0.995, "factor on the learning rate an epoch, pretrain", least=0)
    lr_decay: float = setting(0.99, "factor on the learning rate an epoch, stages on the target", least=0)
    image_text_weight: float = setting(1e-3, "weight of the image-text loss in pretrain", least=0)
    modalities: tuple[str, ...] = setting(MODALITIES, "modalities to use where a domain has them", MODALITIES)
    eval_every: int = setting(1, "epochs between validations", least=1)
    reference: bool = setting(False, "reproduce the quirks of the authors' code (docs/method.md)")
    patience: int = setting(0, "stop after this many epochs without a better validation (0: never)", least=0)
    limit_steps: int = setting(0, "stop after this many optimiser steps in all (0: no limit)", least=0)
    clip: float = setting(0.0, "greatest norm of the gradient; longer ones are shortened to it (0: off)", least=0)
    seed: int = setting(0, "seed of weights, order and dropout", least=0)
    device: str = setting("auto", "where to compute", ("auto", "cpu", "cuda"))
    save_every: float = setting(
        300.0, "seconds between training states within an epoch (0: each step); each epoch ends with one", least=0
    )
    track: str = setting("none", "show the figures of each epoch elsewhere too", ("none", "tensorboard", "wandb"))


# Settings of [train] that cannot change what is learned: they are no part of a run's fingerprint.
WITHOUT_EFFECT = ("device", "save_every", "track")


@dataclass(frozen=True)
class EvaluateConfig(Config):
    section: ClassVar[str] = "evaluate"
    split: str = setting("test", "positions to predict", ("valid", "test"))
    device: str = setting("auto", "where to compute", ("auto", "cpu", "cuda"))


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
    IngestConfig, SampleConfig, TextConfig, ImageConfig, PriceConfig, SequenceConfig,
    ModelConfig, TrainConfig, EvaluateConfig, DemoConfig,
)  # fmt: skip
ENVIRONMENT_ONLY = ("ANTPIPE_STORE", "ANTPIPE_DEBUG")


def flag_name(field_name: str) -> str:
    return field_name.replace("_", "-")


def variable_name(config: type[Config], field_name: str) -> str:
    """The environment variable of a field: ANTPIPE_SECTION_FIELD, since sections share names of fields."""
    return f"ANTPIPE_{config.section}_{field_name}".replace("-", "_").upper()


def flags_of(config: Config, without: tuple[str, ...] = ()) -> list[str]:
    """The words of a command line that ask for these settings; defaults and fields in `without` are left out."""
    words: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default or field.name in without:
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag_name(field.name)}")
        else:
            words += [f"--{flag_name(field.name)}", ",".join(value) if isinstance(value, tuple) else str(value)]
    return words


def base_type(annotation: Any) -> Any:
    """`int | None` -> int; other annotations as they are."""
    if isinstance(annotation, types.UnionType):
        return next(part for part in annotation.__args__ if part is not types.NoneType)
    return annotation


def parse_value(annotation: Any, value: Any, where: str) -> Any:
    """A flag's, variable's or TOML key's value as the field's type; `where` names it in the error."""
    kind = base_type(annotation)
    if typing.get_origin(kind) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) and part for part in parts):
            raise UsageError(f"{where}: {value!r} is not a list of names")
        return tuple(part.strip() for part in parts)
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
        return value.lower() in ("true", "1")
    if kind is not bool and isinstance(value, bool):
        raise UsageError(f"{where}: {value!r} is not a {kind.__name__}")
    if kind is float and isinstance(value, int):
        return float(value)
    if kind in (int, float, Path) and isinstance(value, str):
        try:
            return kind(value)
        except ValueError:
            raise UsageError(f"{where}: {value!r} is not a {kind.__name__}") from None
    if not isinstance(value, kind):
        raise UsageError(f"{where}: {value!r} is not a {kind.__name__}")
    return value


def read_toml(path: Path) -> dict[str, dict[str, Any]]:
    """The sections of a settings file; a section or key that no config class has is refused by name."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: not TOML: {error}") from None
    known = {config.section: {field.name for field in dataclasses.fields(config)} for config in CONFIGS}
    for section, keys in document.items():
        if section == "stage":  # the user's own stages; transfer.py knows what they may say
            continue
        if section not in known or not isinstance(keys, dict):
            raise UsageError(f"{path}: unknown section [{section}]; known: {', '.join(sorted(known))}")
        for key in keys:
            if key not in known[section]:
                raise UsageError(
                    f"{path}: unknown key {key!r} in [{section}]; known: {', '.join(sorted(known[section]))}"
                )
    return document


def check_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a misspelt ANTPIPE_ variable instead of ignoring it (ANTPIPE_TEST_… belong to the test suite)."""
    known = set(ENVIRONMENT_ONLY)
    for config in CONFIGS:
        known |= {variable_name(config, field.name) for field in dataclasses.fields(config)}
    for name in environment:
        if name.startswith("ANTPIPE_") and not name.startswith("ANTPIPE_TEST_") and name not in known:
            raise UsageError(f"unknown environment variable {name}")


C = TypeVar("C", bound=Config)


def resolve(
    config: type[C],
    flags: Mapping[str, Any],
    toml: Mapping[str, Mapping[str, Any]],
    environment: Mapping[str, str] = os.environ,
    inherited: C | None = None,
) -> C:
    """One config of flags (None: not given), environment, TOML sections and defaults, in this precedence.

    inherited: takes the place of the defaults (a checkpoint's settings).
    """
    values: dict[str, Any] = dataclasses.asdict(inherited) if inherited else {}
    for field in dataclasses.fields(config):
        variable = variable_name(config, field.name)
        if flags.get(field.name) is not None:
            values[field.name] = parse_value(field.type, flags[field.name], f"--{flag_name(field.name)}")
        elif variable in environment:
            values[field.name] = parse_value(field.type, environment[variable], variable)
        elif field.name in toml.get(config.section, {}):
            values[field.name] = parse_value(
                field.type, toml[config.section][field.name], f"[{config.section}] {field.name}"
            )
    return config(**values)


def to_json(config: Config) -> dict[str, Any]:
    """The config as plain data, for manifests and checkpoints."""
    values = dataclasses.asdict(config)
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def from_json(config: type[C], values: Mapping[str, Any]) -> C:
    """The inverse of `to_json`; keys the class does not have are refused by name."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    for key in values:
        if key not in fields:
            raise UsageError(f"unknown setting {key!r} in [{config.section}]")
    return config(
        **{
            k: None if v is None else parse_value(fields[k].type, v, f"[{config.section}] {k}")
            for k, v in values.items()
        }
    )

"""Settings that go together, by name: `--preset NAME` of train and compare.

A preset replaces the defaults and the model settings of the run to start from; flags, environment and TOML override
it. `ant` is the published method. Its values equal the defaults and are spelt out so that they also replace the
settings of the run to start from. `strong` did best on validation across several shops (docs/results.md).
"""

from collections.abc import Mapping
from typing import Any

from antpipe.errors import UsageError
from antpipe.settings.base import to_json
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import TrainConfig

Preset = Mapping[str, Mapping[str, Any]]  # values by section and key
TARGET = "target"  # settings of [model] that apply only to stages on a target

# Settings of [train] that belong to the method, not to the machine, the budget or the data.
METHOD = (
    "batch_size",
    "stride",
    "lr",
    "pretrain_lr_decay",
    "lr_decay",
    "image_text_weight",
    "whitened",
    "pretrain_drawn",
    "least_steps",
    "smallest_batch",
    "unsold_negatives",
)

PRESETS: dict[str, Preset] = {
    "ant": {
        "model": to_json(ModelConfig()),
        "train": {key: value for key, value in to_json(TrainConfig()).items() if key in METHOD},
    },
    "strong": {
        # Ids learn which item follows which; features help with rare items. Pre-training uses no ids: they do not
        # transfer, and with them the feature projection, which does transfer, learns little.
        TARGET: {"transductive": True},
        "model": {
            # One linear layer: experts gained nothing on top of ids.
            "experts": 0,
            "hidden_dropout": 0.3,
            "attention_dropout": 0.3,
            "temperature": 0.1,
            # Below 2,000 users, texts and counted transitions alone beat a model that does not build on them.
            "floor": True,
            # What pre-training learns about ranking small shops helps there; a larger shop teaches it itself.
            "reranker": True,
            # Some shoppers never buy an item twice, others mostly do; without it the model prefers seen items.
            "history_score": True,
        },
        "train": {
            # A fast decay: best after 4 to 12 epochs on large shops. A small shop gets more and smaller steps, or
            # its best epoch would be the first.
            "batch_size": 1024,
            "smallest_batch": 128,
            "least_steps": 128,
            "lr": 1e-3,
            "lr_decay": 0.9,
            "pretrain_lr_decay": 0.85,
            "patience": 4,
            "stride": 25,
            # In a small shop many targets are items that nobody bought before: they should not be pushed down.
            "unsold_negatives": False,
            # More negatives than the batch offers, without in-batch sampling's bias towards popular items.
            "pretrain_drawn": 4096,
        },
    },
}


def find_preset(name: str | None, *, on_target: bool) -> Preset:
    """The settings of a preset by section, for a stage on a target or for pre-training; empty if the name is None.

    Pre-training gets the defaults of target-only settings, whatever the inherited model has. Raises UsageError for an
    unknown name.
    """
    if name is None:
        return {}
    if name not in PRESETS:
        raise UsageError(f"--preset {name}: choose from {', '.join(PRESETS)}")
    preset = PRESETS[name]
    of_target = preset.get(TARGET, {})
    if not on_target:
        of_target = {key: getattr(ModelConfig, key) for key in of_target}
    return {"model": {**preset["model"], **of_target}, "train": preset["train"]}

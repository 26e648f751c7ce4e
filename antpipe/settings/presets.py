"""Settings that go together, by name: `--preset NAME` of train and compare.

A preset takes the place of defaults, and of the model settings of a run to start from; flags, environment and TOML win
over it. `ant` is the method as published, which is what the defaults are, spelt out so that it also replaces the
settings of a run to start from. `strong` is what did best on validation across several shops (docs/results.md).
"""

from collections.abc import Mapping
from typing import Any

from antpipe.errors import UsageError
from antpipe.settings.base import to_json
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import TrainConfig

Preset = Mapping[str, Mapping[str, Any]]  # values by section and key
TARGET = "target"  # settings of [model] for stages on a target alone

# Settings of [train] that belong to a method, and not to a machine, a budget or the data.
METHOD = (
    "batch_size",
    "stride",
    "lr",
    "pretrain_lr_decay",
    "lr_decay",
    "image_text_weight",
    "whitened",
    "pretrain_drawn",
)

PRESETS: dict[str, Preset] = {
    "ant": {
        "model": to_json(ModelConfig()),
        "train": {key: value for key, value in to_json(TrainConfig()).items() if key in METHOD},
    },
    "strong": {
        # Ids learn what follows what; features speak for items that are rare. Pre-training goes without: ids cannot be
        # carried over, and beside them the projection of features, which can, learns little.
        TARGET: {"transductive": True},
        "model": {
            # One linear layer: with ids beside it, experts gained nothing.
            "experts": 0,
            "hidden_dropout": 0.3,
            "attention_dropout": 0.3,
            "temperature": 0.1,
            # In some shops nobody takes an item twice, in others most do; without it the model prefers what was seen.
            "history_score": True,
        },
        "train": {
            # Three times the steps at three times the rate, falling fast: at its best after 6 to 12 epochs.
            "batch_size": 1024,
            "lr": 3e-3,
            "lr_decay": 0.9,
            "pretrain_lr_decay": 0.85,
            "patience": 3,
            "stride": 25,
            # More negatives than the batch has, and none of them too often because it is popular.
            "pretrain_drawn": 4096,
        },
    },
}


def find_preset(name: str | None, *, on_target: bool) -> Preset:
    """The settings of a preset by section, for a stage on a target or for pre-training; none of them for None.

    Pre-training gets the defaults of what is for a target alone, whatever the model it goes by has. Raises UsageError
    for an unknown name.
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

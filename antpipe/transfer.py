"""What a stage does with each group of parameters, as data (arXiv 2309.10195, section 4.4)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from antpipe.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from antpipe.model import Ant

KEEP = "keep"  # taken from the checkpoint, trained on
FREEZE = "freeze"  # taken from the checkpoint, not trained
RESET = "reset"  # drawn anew, trained

GROUPS = ("encoder", "positions", "input_norm", "experts", "gates", "ids")

STAGES: dict[str, dict[str, str]] = {
    "pretrain": dict.fromkeys(GROUPS, RESET),
    "scratch": dict.fromkeys(GROUPS, RESET),
    # Ids belong to one catalogue: no stage can keep them.
    "finetune": dict.fromkeys(GROUPS, KEEP) | {"ids": RESET},
    "relearn": {
        "encoder": FREEZE, "positions": RESET, "input_norm": KEEP, "experts": RESET, "gates": RESET, "ids": RESET,
    },
}  # fmt: skip


def needs_checkpoint(stage: str) -> bool:
    return any(action != RESET for action in STAGES[stage].values())


def group_of(parameter: str) -> str:
    """The one group a parameter of `Ant` belongs to, by its name."""
    head, *_, tail = parameter.split(".")
    if head == "modalities":
        return "gates" if tail in ("w_gate", "w_noise") else "experts"
    if head in GROUPS:
        return head
    raise AssertionError(f"parameter {parameter} belongs to no group")


def keeps(stage: str, group: str) -> bool:
    """Whether the stage takes this group from the checkpoint."""
    return STAGES[stage][group] != RESET


def apply(stage: str, model: "Ant", source: Mapping[str, "Tensor"]) -> None:
    """Give a freshly initialised model what the stage takes from a checkpoint, and freeze what it freezes.

    source: the checkpoint's tensors by name. Raises DataError, naming it, where a tensor to take is missing
    there or has another shape.
    """
    for name, parameter in model.named_parameters():
        action = STAGES[stage][group_of(name)]
        if action == RESET:
            continue
        if name not in source:
            raise DataError(f"stage {stage} takes {name} from the checkpoint, which has no such tensor")
        if source[name].shape != parameter.shape:
            shapes = f"{tuple(source[name].shape)} in the checkpoint, {tuple(parameter.shape)} in the model"
            raise DataError(f"stage {stage} takes {name} from the checkpoint, but its shape differs: {shapes}")
        parameter.data.copy_(source[name])
        parameter.requires_grad_(action == KEEP)

"""What a stage does with each parameter group, as a table: `train --dry-run`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from antpipe.core.stages import GROUPS, Stage, group_of

if TYPE_CHECKING:
    from antpipe.core.model import Ant


@dataclass(frozen=True)
class GroupRow:
    """One line of `train --dry-run`: a group, what the stage does with it, and how large it is."""

    group: str
    action: str
    tensors: int
    parameters: int


def group_table(stage: Stage, model: "Ant") -> list[GroupRow]:
    """The groups of a model in the order of GROUPS, without empty groups."""
    rows = []
    for group in GROUPS:
        sizes = [parameter.numel() for name, parameter in model.named_parameters() if group_of(name) == group]
        if sizes:
            rows.append(GroupRow(group, stage[group], len(sizes), sum(sizes)))
    return rows

"""How `train --stage fork-merge` and `--stage merge` combine weights."""

from dataclasses import dataclass
from typing import ClassVar

from antpipe.settings.base import Config, setting


@dataclass(frozen=True)
class ForkMergeConfig(Config):
    """How branches are trained and merged (training/methods/fork_merge.py)."""

    section: ClassVar[str] = "fork_merge"
    panel: ClassVar[str] = "Stage fork-merge"
    prune_epochs: int = setting(1, "epochs after which auxiliaries are ranked, each trained with the target", least=1)
    epoch_step: int = setting(5, "epochs between merges", least=1)
    branches: tuple[int, ...] = setting(
        (1, 3), "auxiliaries of each branch, the best by rank; a branch on the target alone is always there", least=1
    )
    merge_steps: int = setting(5, "weights tried per branch or parameter group: 0, 1/N, 2/N … 1 of the most", least=1)

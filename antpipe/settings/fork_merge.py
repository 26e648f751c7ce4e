"""How `train --stage fork-merge` and `--stage merge` combine weights."""

from dataclasses import dataclass
from typing import ClassVar

from antpipe.settings.base import Config, setting


@dataclass(frozen=True)
class ForkMergeConfig(Config):
    """How branches are trained and merged (training/methods/fork_merge.py)."""

    section: ClassVar[str] = "fork_merge"
    panel: ClassVar[str] = "Stage fork-merge"
    prune_epochs: int = setting(1, "epochs of training the target with each auxiliary, to rank auxiliaries", least=1)
    epoch_step: int = setting(5, "epochs between merges", least=1)
    branches: tuple[int, ...] = setting(
        (1, 3), "number of best-ranked auxiliaries of each branch, besides the branch on the target alone", least=1
    )
    merge_steps: int = setting(5, "weights tried per branch or parameter group: 0, 1/N … N/N of the maximum", least=1)

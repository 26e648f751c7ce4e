"""How arms are compared, and how `--stage auto` chooses among stages."""

from dataclasses import dataclass, fields
from typing import ClassVar

from antpipe.errors import SameCommand, UsageError
from antpipe.settings.base import Config, setting
from antpipe.settings.features import SubsetConfig
from antpipe.settings.methods import NO_METHOD
from antpipe.settings.model import MODALITIES
from antpipe.settings.training import NO_MODALITY, TrainConfig

OUTCOME_FORMAT = 1  # of comparison.json
COMMON = "common"  # in a comparison: the modalities that all of its arms can read


@dataclass(frozen=True)
class CompareConfig(SubsetConfig):
    """What is compared and how it is judged (docs/verdict.md). Training settings are those of [train].

    With `target_users`, the targets are subsets of the domains named, for a learning curve.
    """

    section: ClassVar[str] = "compare"
    panel: ClassVar[str] = "Comparison"
    arms: tuple[str, ...] = setting(
        ("scratch", "finetune", "relearn"),
        "stages (scratch, finetune, relearn, rerank, rerank-scratch, linear-probe, relearn-unfrozen, unisrec, auto, "
        "fork-merge, or [stage.NAME]), these with a method (relearn+distil), and baselines (popularity, item-knn, "
        "markov, tfidf-nearest, text-nearest, tgh, floor, sasrec, unisrec; baselines: all)",
    )
    seeds: int = setting(5, "seeds per arm, counted from --seed", least=1)
    protocol: str = setting("all", "protocol of the verdict; both are reported", ("all", "unseen"))
    metric: str = setting("ndcg@10", "metric of the verdict", ("ndcg@10", "recall@10"))
    alpha: float = setting(0.05, "accepted probability of any false finding", least=1e-6, most=0.5)
    margin: float = setting(
        0.05,
        "largest difference that counts as EQUIVALENT, as a share of the control's mean (0: never)",
        least=0,
        most=1,
    )
    pretrain_seeds: int = setting(
        1, "seeds of pre-training on --sources; the runs of an arm start from these in turn", least=1
    )
    leave_one_out: bool = setting(
        False, "pre-train on all --sources, and on all but each one, to find a source that hurts"
    )
    refit: bool = setting(
        False, "also retrain each trained arm on training + validation data, up to its best epoch; reported separately"
    )
    beyond_accuracy: bool = setting(
        False,
        "also describe the lists beyond accuracy: coverage, Gini, popularity, novelty, distance within lists",
    )
    pretrain_epochs: int | None = setting(None, "epochs of pre-training on --sources (default: --epochs)", least=1)
    pretrain_batch_size: int | None = setting(
        None, "training positions per step of pre-training on --sources (default: --batch-size)", least=1
    )


@dataclass(frozen=True)
class ComparedTraining(TrainConfig):
    """The settings of [train] as `compare` takes them: unless a list is given, all arms read the same modalities."""

    modalities: tuple[str, ...] = setting(
        (COMMON,),
        "modalities to read; common: those that all arms can read; none: item ids only",
        (*MODALITIES, NO_MODALITY, COMMON),
        panel="Input",
    )

    def __post_init__(self) -> None:
        if self.method != NO_METHOD:
            raise UsageError(
                f"--method {self.method}: in a comparison it is part of an arm: --arms scratch,relearn+{self.method}",
                SameCommand(without=("--method",)),
            )
        if self.is_common():
            self.plain()  # checks the other settings
        elif COMMON in self.modalities:
            raise UsageError(f"--modalities {','.join(self.modalities)}: {COMMON} cannot be combined with others")
        else:
            super().__post_init__()

    def is_common(self) -> bool:
        return self.modalities == (COMMON,)

    def plain(self) -> TrainConfig:
        """The settings of a single run; for `common`, with all modalities, before any is left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return TrainConfig(**(values | ({"modalities": MODALITIES} if self.is_common() else {})))


CANDIDATES = ("scratch", "finetune", "relearn", "relearn-then-unfreeze")


@dataclass(frozen=True)
class RaceConfig(Config):
    """How `train --stage auto` chooses a stage (training/race.py)."""

    section: ClassVar[str] = "race"
    panel: ClassVar[str] = "Stage auto"
    candidates: tuple[str, ...] = setting(CANDIDATES, "stages that --stage auto chooses from", CANDIDATES)
    first_rung: float = setting(
        0.25,
        "share of the epochs after which the worse half of the candidates is dropped; again at twice that, and so on",
        least=0.001,
        most=0.5,
    )

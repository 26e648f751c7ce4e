"""How a model is trained, and how `--stage auto` chooses."""

from dataclasses import dataclass
from typing import ClassVar

from antpipe.errors import UsageError
from antpipe.settings.base import Config, setting
from antpipe.settings.features import EMBEDDED, MODALITIES

NO_MODALITY = "none"  # items are their ids alone


@dataclass(frozen=True)
class TrainConfig(Config):
    section: ClassVar[str] = "train"
    epochs: int = setting(100, "passes over the training positions", least=1)
    batch_size: int = setting(2048, "training positions a step", least=1)
    stride: int = setting(
        1, "targets of each further window of a history beyond --max-len (1: each prefix as if it stood alone)", least=1
    )
    lr: float = setting(1e-3, "learning rate of Adam", least=0)
    pretrain_lr_decay: float = setting(0.995, "factor on the learning rate an epoch, pretrain", least=0)
    lr_decay: float = setting(0.99, "factor on the learning rate an epoch, stages on the target", least=0)
    image_text_weight: float = setting(1e-3, "weight of the image-text loss in pretrain", least=0)
    modalities: tuple[str, ...] = setting(
        MODALITIES, "modalities to use where a domain has them; none: ids alone", (*MODALITIES, NO_MODALITY)
    )
    whitened: tuple[str, ...] = setting((), "modalities to read as `antpipe whiten` wrote them (ANT: none)", EMBEDDED)
    eval_every: int = setting(1, "epochs between validations", least=1)
    valid_sample: int = setting(0, "validate on at most this many positions of each domain (0: all)", least=0)
    reference: bool = setting(False, "reproduce the quirks of the authors' code (docs/method.md)")
    patience: int = setting(0, "stop after this many epochs without a better validation (0: never)", least=0)
    limit_steps: int = setting(0, "stop after this many optimiser steps in all (0: no limit)", least=0)
    clip: float = setting(0.0, "greatest norm of the gradient; longer ones are shortened to it (0: off)", least=0)
    precision: str = setting(
        "auto", "of matrix products in training; auto: bf16 where it is native", ("auto", "fp32", "bf16")
    )
    compile: bool = setting(False, "torch.compile the model: minutes at the start, less time a step")
    sampled_above: int = setting(50_000, "items of a target from which on the softmax is over a sample", least=1)
    drawn: int = setting(8192, "items drawn for each step of a sampled softmax, besides the batch's own", least=1)
    pretrain_drawn: int = setting(
        0,
        "items of all domains drawn for each step of pre-training as further negatives, logQ-corrected "
        "(0: the batch's next items alone, as ANT)",
        least=0,
    )
    seed: int = setting(0, "seed of weights, order and dropout", least=0)
    device: str = setting("auto", "where to compute", ("auto", "cpu", "cuda"))
    save_every: float = setting(
        300.0,
        "most seconds between training states (0: one each step); all but short epochs end with one",
        least=0,
    )
    track: str = setting("none", "show the figures of each epoch elsewhere too", ("none", "tensorboard", "wandb"))

    def __post_init__(self) -> None:
        super().__post_init__()
        for modality in set(self.whitened) - set(self.modalities):
            raise UsageError(f"--whitened {modality}: is not among --modalities {','.join(self.modalities)}")
        if NO_MODALITY in self.modalities and len(self.modalities) > 1:
            raise UsageError(f"--modalities {','.join(self.modalities)}: {NO_MODALITY} goes with no other")
        if self.reference and self.pretrain_drawn:
            raise UsageError(f"--pretrain-drawn {self.pretrain_drawn}: --reference has the batch's next items alone")

    def features(self) -> tuple[str, ...]:
        """The modalities to read."""
        return () if self.modalities == (NO_MODALITY,) else self.modalities


# Settings of [train] that cannot change what is learned: they are no part of a run's fingerprint.
WITHOUT_EFFECT = ("device", "save_every", "track")


CANDIDATES = ("scratch", "finetune", "relearn", "relearn-then-unfreeze")


@dataclass(frozen=True)
class RaceConfig(Config):
    """How `train --stage auto` chooses (racing.py)."""

    section: ClassVar[str] = "race"
    candidates: tuple[str, ...] = setting(CANDIDATES, "what --stage auto chooses among", CANDIDATES)
    first_rung: float = setting(
        0.25,
        "share of the epochs after which the worse half is dropped; again at twice that, and so on",
        least=0.001,
        most=0.5,
    )

"""How a model is trained."""

from dataclasses import dataclass
from typing import ClassVar

from antpipe.errors import UsageError
from antpipe.settings.base import DEVICES, setting
from antpipe.settings.methods import METHOD_SETTINGS, NO_METHOD, MethodConfig
from antpipe.settings.model import EMBEDDED, MODALITIES

NO_MODALITY = "none"  # the model knows items by their ids only


@dataclass(frozen=True)
class TrainConfig(MethodConfig):
    """Data, optimiser and budget of one training run."""

    section: ClassVar[str] = "train"
    panel: ClassVar[str] = "Optimisation"
    epochs: int = setting(100, "passes over the training positions", least=1)
    batch_size: int = setting(2048, "training positions per step", least=1)
    stride: int = setting(1, "targets per window beyond --max-len (1: each prefix on its own)", least=1, panel="Input")
    lr: float = setting(1e-3, "learning rate of Adam", least=0)
    pretrain_lr_decay: float = setting(0.995, "factor on the learning rate per epoch, in pretrain", least=0)
    lr_decay: float = setting(0.99, "factor on the learning rate per epoch, in stages on a target", least=0)
    image_text_weight: float = setting(1e-3, "weight of the image-text loss in pretrain", least=0)
    modalities: tuple[str, ...] = setting(
        MODALITIES,
        "modalities to read, if the domain has them; none: item ids only",
        (*MODALITIES, NO_MODALITY),
        panel="Input",
    )
    words: bool = setting(True, "compare the words of items, if the model has a floor and reads text", panel="Input")
    whitened: tuple[str, ...] = setting(
        (), "modalities to read in the form written by `antpipe whiten` (ANT: none)", EMBEDDED, panel="Input"
    )
    eval_every: int = setting(1, "epochs between validations", least=1, panel="Run")
    valid_sample: int = setting(0, "validation positions per domain (0: all)", least=0, panel="Input")
    reference: bool = setting(False, "reproduce the quirks of the authors' code (docs/method.md)", panel="Run")
    patience: int = setting(0, "epochs without a better validation before stopping (0: never stop early)", least=0)
    limit_steps: int = setting(0, "stop after this many optimiser steps (0: no limit)", least=0)
    least_steps: int = setting(
        0, "minimum optimiser steps per epoch: a small shop passes over its data several times", least=0
    )
    smallest_batch: int = setting(
        0,
        "minimum batch size of a small shop, whose batches shrink so that a pass over its data has 16 steps; the "
        "learning rate falls with the square root of the size (0: --batch-size for all)",
        least=0,
    )
    unsold_negatives: bool = setting(True, "items that do not occur in training are negatives too (ANT: yes)")
    clip: float = setting(0.0, "clip the gradient to this norm (0: no clipping)", least=0)
    precision: str = setting(
        "auto",
        "precision of matrix products in training; auto: bf16 if the hardware supports it",
        ("auto", "fp32", "bf16"),
        panel="Run",
    )
    compile: bool = setting(False, "torch.compile the model: starts minutes later, then trains faster", panel="Run")
    sampled_above: int = setting(50_000, "use a sampled softmax for targets with more items than this", least=1)
    drawn: int = setting(
        8192, "negatives sampled per step of a sampled softmax, in addition to the batch's own items", least=1
    )
    pretrain_drawn: int = setting(
        0,
        "negatives sampled per step of pretrain from the items of all domains, with logQ correction "
        "(0: in-batch negatives only, as ANT)",
        least=0,
    )
    seed: int = setting(0, "random seed of weights, order and dropout", least=0, panel="Run")
    device: str = setting("auto", "device to train on", DEVICES, panel="Run")
    gpu_features: str = setting(
        "auto",
        "keep the features on the GPU; auto: if they take at most half of its free memory",
        ("auto", "on", "off"),
        panel="Run",
    )
    save_every: float = setting(300.0, "seconds between saved training states (0: each step)", least=0, panel="Run")
    track: str = setting("none", "also send each epoch's figures to", ("none", "tensorboard", "wandb"), panel="Run")

    def __post_init__(self) -> None:
        super().__post_init__()
        for modality in set(self.whitened) - set(self.modalities):
            raise UsageError(f"--whitened {modality}: not in --modalities {','.join(self.modalities)}")
        if NO_MODALITY in self.modalities and len(self.modalities) > 1:
            raise UsageError(
                f"--modalities {','.join(self.modalities)}: {NO_MODALITY} cannot be combined with a modality"
            )
        if self.reference and self.pretrain_drawn:
            raise UsageError(f"--pretrain-drawn {self.pretrain_drawn}: --reference uses in-batch negatives only")
        if self.reference and not self.unsold_negatives:
            raise UsageError("--no-unsold-negatives: --reference scores all items")
        if self.reference and self.method != NO_METHOD:
            raise UsageError(f"--method {self.method}: --reference trains as the authors' code does")

    def features(self) -> tuple[str, ...]:
        """The modalities to read."""
        return () if self.modalities == (NO_MODALITY,) else self.modalities

    def in_batch(self) -> bool:
        """Whether the negatives of pre-training are the next items of a batch's other users."""
        return not self.reference and not self.pretrain_drawn


# Settings of [train] that do not change what is learned; they are left out of a run's fingerprint.
WITHOUT_EFFECT = ("device", "gpu_features", "save_every", "track")
# Settings that runs of antpipe 0.1.0 lack. At their defaults they are left out too, so that those runs are recognised.
LATER = ("least_steps", "smallest_batch", "unsold_negatives", "words", *METHOD_SETTINGS)

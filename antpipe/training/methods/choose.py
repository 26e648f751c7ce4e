"""The method a run is trained with."""

from typing import TYPE_CHECKING

from antpipe.core.batches import Windows
from antpipe.runtime.logs import log
from antpipe.settings.methods import BALANCE, BEHAVIOUR, CONSENSUS, DISTIL
from antpipe.settings.training import TrainConfig
from antpipe.training.data import TrainingData
from antpipe.training.methods.balance import balance
from antpipe.training.methods.behaviour import behaviour
from antpipe.training.methods.checks import pool_of
from antpipe.training.methods.consensus import consensus
from antpipe.training.methods.method import PLAIN, Method
from antpipe.training.methods.weak_positives import LOW_RATED, UNVERIFIED

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant


def method_of(
    model: "Ant", data: TrainingData, windows: Windows, config: TrainConfig, device: "torch.device"
) -> Method:
    """The method of a run, before its first step."""
    if config.method in (CONSENSUS, DISTIL):
        return consensus(model, pool_of(data, config), config, device)
    if config.method == BALANCE:
        return balance(model)
    if config.method == BEHAVIOUR:
        assert data.marks is not None
        low, unverified = ((data.marks & mark > 0).mean() for mark in (LOW_RATED, UNVERIFIED))
        log.info(f"{data.catalogue.domains[0]}: {low:.1%} of interactions are low-rated, {unverified:.1%} unverified")
        return behaviour(windows, data.marks)
    return PLAIN

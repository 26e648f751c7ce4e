"""The method a run is trained with."""

from typing import TYPE_CHECKING

from antpipe.core.batches import Windows
from antpipe.settings.methods import BALANCE, BEHAVIOUR, CONSENSUS, DISTIL
from antpipe.settings.training import TrainConfig
from antpipe.training.data import TrainingData
from antpipe.training.methods.balance import balance
from antpipe.training.methods.behaviour import behaviour
from antpipe.training.methods.checks import pool_of
from antpipe.training.methods.consensus import consensus
from antpipe.training.methods.method import PLAIN, Method

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
        assert data.low is not None
        return behaviour(windows, data.low)
    return PLAIN

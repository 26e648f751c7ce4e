"""What a method cannot be combined with, checked before training; no model is loaded."""

from dataclasses import replace

import numpy as np

from antpipe.core.catalogue import Ints
from antpipe.core.transitions import training_items
from antpipe.errors import DataError, SameCommand, UsageError
from antpipe.settings.methods import BALANCE, CONSENSUS, DISTIL, NO_METHOD
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import TrainConfig
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.data import TrainingData
from antpipe.training.parallel import world_of

UNCHANGED = ("pretrain", "floor", "rerank-scratch", "rerank")  # stages without the loss that a method changes
WITHOUT = SameCommand(without=("--method",))


def pool_of(data: TrainingData, config: TrainConfig) -> Ints:
    """The items that may be negatives: all of the catalogue, or those that occur in training."""
    if config.unsold_negatives:
        return np.arange(len(data.catalogue))
    return np.unique(training_items(data.sequences[0])[0])


def check_method(training: TrainConfig, model: ModelConfig, described: Checkpoint, data: TrainingData) -> None:
    """Refuse a method that the run cannot be trained with. described: the run, before it is trained."""
    method = training.method
    if method == NO_METHOD:
        return
    if described.stage in UNCHANGED:
        raise UsageError(f"--method {method}: is for stages on a target that train, not for {described.stage}", WITHOUT)
    if world_of().size > 1:
        raise UsageError(f"--method {method}: runs in one process", SameCommand(without=("torchrun",)))
    if method == BALANCE and len(described.modalities) < 2:
        read = " and ".join(described.modalities) or "item ids"
        raise UsageError(
            f"--method {method}: balances two or more modalities, and this run reads {read} alone", WITHOUT
        )
    if method in (CONSENSUS, DISTIL):
        check_peer(training, model, data)


def check_peer(training: TrainConfig, model: ModelConfig, data: TrainingData) -> None:
    """Refuse a catalogue that is too small or too large for the candidates, and a peer that cannot be built."""
    replace(model, layers=training.peer_layers or model.layers)
    if len(data.catalogue) > training.sampled_above:
        raise UsageError(
            f"--method {training.method}: draws its candidates from all {len(data.catalogue)} items, not from a sample",
            SameCommand({"--sampled-above": str(len(data.catalogue))}),
        )
    part = data.sequences[0]
    history = min(int(part.valid_end.max()), part.max_len + 1)
    items, wanted = len(pool_of(data, training)), training.peer_candidates
    if items < wanted + history:
        room = items - history
        fewer = {"--peer-candidates": str(room)}
        if training.method == CONSENSUS and room < training.peer_top:
            fewer["--peer-top"] = str(room)
        raise DataError(
            f"--method {training.method}: {wanted} candidates outside a history of {history} items take "
            f"{wanted + history} items, and {data.catalogue.domains[0]} has {items}",
            SameCommand(fewer) if room > 0 else WITHOUT,
        )

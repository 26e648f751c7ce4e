"""Validation between epochs: the metrics by which the best epoch is chosen."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from antpipe.core.batches import Examples
from antpipe.core.catalogue import DeviceFeatures
from antpipe.core.floor import known_in
from antpipe.core.gpu.floor import DeviceKnown, known_on
from antpipe.core.gpu.ranking import ExampleBlock, evaluate_on_device, example_blocks
from antpipe.core.ranking import Ranks, metrics
from antpipe.core.reranker import reranks
from antpipe.core.scoring import scoring
from antpipe.core.untrained import Untrained
from antpipe.runtime.devices import uncompiled
from antpipe.training.data import TrainingData

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant

Features = Callable[[], DeviceFeatures | None]  # those on the device at that time
Prepared = tuple[list[ExampleBlock], DeviceKnown | None]  # to rank one domain on a GPU


def floors_of(model: "Ant", data: TrainingData) -> dict[str, Untrained]:
    """What is known of each domain with validation examples, to rank them; nothing for a model without a floor."""
    if model.floor is None:
        return {}
    sequences = dict(zip(data.catalogue.domains, data.sequences, strict=True))
    return {name: known_in(data.catalogue, model.widths, name, sequences[name]) for name in data.validation}


def prepared_on(data: TrainingData, device: "torch.device", floors: Mapping[str, Untrained]) -> dict[str, Prepared]:
    """The validation examples of each domain on a GPU, for all epochs, and what a floor knows of it."""
    prepared: dict[str, Prepared] = {}
    for domain, part in data.validation.items():
        known, n = floors.get(domain), len(data.catalogue.rows(domain))
        prepared[domain] = (
            example_blocks(part, n, device, known=known),
            None if known is None else known_on(known, device),
        )
    return prepared


@dataclass(frozen=True)
class Judge:
    """`validate`, with everything prepared that is the same in all epochs.

    floors: what is known of each domain, with texts, for a model with a floor. prepared: on a GPU.
    """

    model: "Ant"
    data: TrainingData
    device: "torch.device"
    features: Features
    floors: Mapping[str, Untrained]
    prepared: Mapping[str, Prepared]

    def __call__(self) -> dict[str, float]:
        return validate(self.model, self.data, self.device, self.features(), self.prepared, self.floors)


def validating(
    model: "Ant", data: TrainingData, device: "torch.device", features: Features, *, vectors_alone: bool = False
) -> Judge:
    """A callable that validates the model as it stands at each call. vectors_alone: without its floor, beside which
    what pre-training learns from texts hardly shows."""
    floors = {} if vectors_alone else floors_of(model, data)
    prepared = {} if device.type == "cpu" else prepared_on(data, device, floors)
    return Judge(model, data, device, features, floors, prepared)


def validate(
    model: "Ant",
    data: TrainingData,
    device: "torch.device",
    features: DeviceFeatures | None = None,
    prepared: Mapping[str, Prepared] = MappingProxyType({}),
    floors: Mapping[str, Untrained] = MappingProxyType({}),
) -> dict[str, float]:
    """Validation metrics of protocol `all`, the mean over domains (each with the same weight); {} without any.

    features and prepared examples: what is on a GPU already; without the latter, FAISS ranks on the CPU. floors: what
    is known of each domain, for a model with a floor.
    """

    def ranks(domain: str, part: Examples) -> Ranks:
        if domain in prepared and not reranks(model):
            blocks, known = prepared[domain]
            return evaluate_on_device(model, data.catalogue, domain, device, blocks, features, known)
        return scoring(model, data.catalogue, domain, part, device, floors.get(domain)).ranks(part)

    with uncompiled(model):
        results = [metrics(ranks(*one).by_protocol["all"]) for one in data.validation.items()]
    return {name: float(np.mean([result[name] for result in results])) for name in (results[0] if results else ())}

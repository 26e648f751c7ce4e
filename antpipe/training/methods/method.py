"""What a method is to the training loop, and the parts of a step's loss that methods share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from antpipe.core.batches import Batch
from antpipe.core.catalogue import ItemInputs
from antpipe.core.losses import Bonus
from antpipe.settings.training import TrainConfig
from antpipe.training.parallel import World
from antpipe.training.step_loss import Flags, bonus_of, candidates_only, hidden_states, softmax_over_items

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant

Loss = Callable[
    ["Ant", ItemInputs, Batch, TrainConfig, World, Flags | None],
    "torch.Tensor",
]


@dataclass(frozen=True)
class Method:
    """What a method does in training.

    loss: that of a step, instead of its stage's. parameters: those that are trained besides the model's. tensors:
    everything that it changes, these parameters included; a training state keeps them, and --resume restores them in
    place. figures: called at the end of an epoch, returns its figures and starts the next one.
    """

    loss: Loss | None = None
    parameters: "Sequence[torch.nn.Parameter]" = ()
    tensors: "Mapping[str, torch.Tensor]" = field(default_factory=dict)
    figures: Callable[[], dict[str, float]] = dict


PLAIN = Method()  # no method


@dataclass(frozen=True)
class Pass:
    """What a model computes in a step: vectors of its items (n, D), what it expects at each position (P, D), and what
    is added to some cosines."""

    items: "torch.Tensor"
    hidden: "torch.Tensor"
    bonus: Bonus | None


def pass_of(model: "Ant", inputs: ItemInputs, batch: Batch) -> Pass:
    """The forward pass of `target_loss`."""
    items = model.items(inputs.features, inputs.ids, inputs.present).fused
    return Pass(items, hidden_states(model, items, batch), bonus_of(model, batch))


def softmax_of(model: "Ant", made: Pass, batch: Batch, new: Flags | None) -> "torch.Tensor":
    """The loss of `target_loss`."""
    return softmax_over_items(model, made.hidden, made.items, batch, made.bonus, candidates_only(new, batch))

"""Balanced modalities, after the multi-objective learning of arXiv 2511.06686.

Besides the loss of the whole item, each modality has its own loss: the same task with its item vectors alone. Their
smooth maximum is added, so that the modality that learns slowest counts most. The reported loss does not include it.
"""

import math
from typing import TYPE_CHECKING

from antpipe.core.batches import Batch
from antpipe.core.catalogue import ItemInputs
from antpipe.core.losses import Bonus
from antpipe.settings.training import TrainConfig
from antpipe.training.methods.method import Method, Pass, softmax_of
from antpipe.training.parallel import World
from antpipe.training.step_loss import Flags, bonus_of, hidden_states

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant


def balance(model: "Ant") -> Method:
    """The method. Its tensors: the sums of an epoch, and the first epoch's means, by modality."""
    import torch

    names = list(model.widths)
    sums, first = (torch.zeros(len(names), dtype=torch.float64) for _ in range(2))
    positions, epochs = (torch.zeros((), dtype=torch.float64) for _ in range(2))

    def loss(
        model: "Ant", inputs: ItemInputs, batch: Batch, config: TrainConfig, _: World, new: Flags | None
    ) -> "torch.Tensor":
        vectors = model.items(inputs.features, inputs.ids, inputs.present)

        def of(items: "torch.Tensor", bonus: Bonus | None) -> "torch.Tensor":
            made = Pass(items, hidden_states(model, items, batch), bonus)
            return softmax_of(model, made, batch, new)

        whole, rho = of(vectors.fused, bonus_of(model, batch)), weight_after(int(epochs), config)
        with torch.set_grad_enabled(rho > 0):
            each = torch.stack([of(vectors.parts[name], None) for name in names])
        sums.add_(each.detach().double().cpu() * len(batch.targets))
        positions.add_(len(batch.targets))
        if not rho:
            return whole
        added = rho * smooth_maximum(each / first.to(each), config.balance_temperature)
        return whole + (added - added.detach())  # adds a gradient, not a value: losses of all epochs are comparable

    def figures() -> dict[str, float]:
        means = sums / positions
        if not epochs:
            first.copy_(means)
        epochs.add_(1)
        sums.zero_()
        positions.zero_()
        return {f"loss_{name}": float(mean) for name, mean in zip(names, means, strict=True)}

    kept = {"sums": sums, "first": first, "positions": positions, "epochs": epochs}
    return Method(loss, tensors=kept, figures=figures)


def weight_after(epochs: int, config: TrainConfig) -> float:
    """The weight rho after this many epochs: 0 in the first one, then rising by equal steps."""
    return config.balance_weight * min(1.0, epochs / config.balance_epochs)


def smooth_maximum(values: "torch.Tensor", mu: float) -> "torch.Tensor":
    """mu log(mean(exp(values / mu))): the mean for a large mu, the maximum for a small one. values: (M,)."""
    import torch

    return mu * (torch.logsumexp(values / mu, 0) - math.log(len(values)))

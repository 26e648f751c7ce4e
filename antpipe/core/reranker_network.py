"""The network of a re-ranker: tensors in, tensors out. core/reranker.py computes its features and applies it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from antpipe.settings.model import RERANKER_FEATURES, RERANKER_WIDTH


class Reranker(nn.Module):
    """Computes what is added to an item's score, in logits, from features of a history and the item.

    Training steps leave it alone (training/rehearsal.py trains it). weight: 1, or 0 if the network is not used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.first = nn.Linear(RERANKER_FEATURES, RERANKER_WIDTH)
        self.second = nn.Linear(RERANKER_WIDTH, RERANKER_WIDTH)
        self.last = nn.Linear(RERANKER_WIDTH, 1)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.reset()

    def reset(self) -> None:
        """Forget what was learned: nothing is added, whatever the features."""
        for zero in (self.weight, self.last.weight, self.last.bias):
            nn.init.zeros_(zero)

    def learned(self) -> bool:
        """Whether it has learned anything."""
        return bool(self.last.weight.any())

    def forward(self, features: Tensor) -> Tensor:
        """features: (..., F). Returns (...)."""
        inner = F.relu(self.second(F.relu(self.first(features))))
        added: Tensor = self.weight * self.last(inner)[..., 0]
        return added

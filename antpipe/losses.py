"""The losses of ANT as pure functions (arXiv 2309.10195, section 4.3).

All take vectors that are not normalised yet; a score is the cosine divided by the temperature.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

REFERENCE_EPS = 1e-8  # added inside the logarithm by the authors' code


def cosine_scores(queries: Tensor, candidates: Tensor) -> Tensor:
    """queries: (P, D), candidates: (n, D). Returns (P, n), each in [-1, 1]."""
    return F.normalize(queries, dim=-1) @ F.normalize(candidates, dim=-1).T


def full_softmax(hidden: Tensor, catalogue: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Cross-entropy over the whole catalogue, mean of P positions.

    hidden: (P, D), catalogue: (N, D), targets: (P,) rows of the catalogue.
    """
    return F.cross_entropy(cosine_scores(hidden, catalogue) / temperature, targets)


def in_batch(hidden: Tensor, next_items: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """InfoNCE among the batch's next items, mean of P positions.

    hidden, next_items: (P, D); targets: (P,) ids of the next items. Other rows with the same next item are
    no negatives: they are left out of the denominator.
    """
    logits = cosine_scores(hidden, next_items) / temperature  # (P, P)
    return F.cross_entropy(logits.masked_fill(_other_rows_of_same_item(targets), -torch.inf), _rows(targets))


def image_text(images: Tensor, texts: Tensor, has_image: Tensor, temperature: float) -> Tensor:
    """InfoNCE from image to text, mean of the rows that have an image (zero where none has).

    images, texts: (P, D) parts of the next items; has_image: (P,) bool. Texts of rows without an image stay
    in the denominators.
    """
    if not has_image.any():
        return images.sum() * 0.0
    logits = cosine_scores(images[has_image], texts) / temperature  # (images, P)
    return F.cross_entropy(logits, has_image.nonzero().squeeze(1))


def reference_full_softmax(
    hidden: Tensor, catalogue: Tensor, padding: Tensor, targets: Tensor, temperature: float
) -> Tensor:
    """`full_softmax` as the authors' code has it: `padding` (D,), what the item side makes of a row of zeros,
    is one more candidate, and eps stands inside the logarithm."""
    logits = cosine_scores(hidden, torch.cat([padding[None], catalogue])) / temperature  # (P, N + 1)
    return _reference_nll(logits, targets + 1)


def reference_in_batch(hidden: Tensor, next_items: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """`in_batch` with eps as in the authors' code."""
    logits = cosine_scores(hidden, next_items) / temperature
    return _reference_nll(logits.masked_fill(_other_rows_of_same_item(targets), -torch.inf), _rows(targets))


def reference_image_text(images: Tensor, texts: Tensor, has_image: Tensor, temperature: float) -> Tensor:
    """`image_text` with eps as in the authors' code."""
    if not has_image.any():
        return images.sum() * 0.0
    logits = cosine_scores(images[has_image], texts) / temperature
    return _reference_nll(logits, has_image.nonzero().squeeze(1))


def _reference_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-mean log(exp(s_target) / (sum exp(s) + eps) + eps)."""
    weights = logits.exp()
    chosen = weights.gather(1, targets[:, None]).squeeze(1)
    return -(chosen / (weights.sum(1) + REFERENCE_EPS) + REFERENCE_EPS).log().mean()


def _rows(targets: Tensor) -> Tensor:
    return torch.arange(len(targets), device=targets.device)


def _other_rows_of_same_item(targets: Tensor) -> Tensor:
    """targets: (P,). Returns (P, P), True off the diagonal where two rows have the same next item."""
    return (targets[:, None] == targets[None, :]).fill_diagonal_(False)

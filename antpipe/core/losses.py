"""The losses of ANT as pure functions (arXiv 2309.10195, section 4.3).

All take unnormalised vectors; a score is the cosine divided by the temperature. `count` is the number of positions the
mean is taken over, if these rows are only a share of the batch (training with several processes). A `bonus` is
added to some cosines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

REFERENCE_EPS = 1e-8  # added inside the logarithm by the authors' code
SCORES_AT_ONCE = 1 << 21  # 8 MB in fp32: stays in the cache between the passes over it


def cosine_scores(queries: Tensor, candidates: Tensor) -> Tensor:
    """queries: (P, D), candidates: (n, D). Returns (P, n), each in [-1, 1]."""
    return F.normalize(queries, dim=-1) @ F.normalize(candidates, dim=-1).T


@dataclass(frozen=True)
class Bonus:
    """A learned scalar added to the cosine of some (row, candidate) pairs.

    rows: (S,) ascending; columns: (S,) indices of candidates. Pairs are unique.
    """

    score: Tensor
    rows: Tensor
    columns: Tensor

    def block(self, edges: Sequence[int], number: int, size: int) -> tuple[Tensor, Tensor]:
        """The pairs of block `number` of `size` rows: rows counted from its start, and columns."""
        pairs = slice(edges[number], edges[number + 1])
        return self.rows[pairs] - number * size, self.columns[pairs]

    def edges(self, rows: int, size: int) -> list[int]:
        """Where the pairs of each block of `size` rows begin, and where those of the last block end."""
        starts = torch.arange(0, rows + size, size, device=self.rows.device)
        ends: list[int] = torch.searchsorted(self.rows, starts).tolist()
        return ends


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of the scores query * candidate, one block of rows at a time.

    Gradients are computed together with the loss, so the whole (P, n) score matrix never exists.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        candidates: Tensor,
        labels: Tensor,
        count: int,
        groups: Sequence[tuple[Tensor, Tensor]],
        log_inclusion: Tensor | None,
        bonus: Bonus | None,
        added: Tensor | None,
    ) -> Tensor:
        """added: the score of the bonus, over the temperature; an argument of its own because it needs a gradient."""
        device = queries.device.type
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else queries.dtype
        table = candidates.to(low)  # (n, D)
        total = queries.new_zeros(())
        query_grad = torch.empty_like(queries) if ctx.needs_input_grad[0] else None
        candidate_grad = torch.zeros_like(candidates) if ctx.needs_input_grad[1] else None
        added_grad = None if added is None else torch.zeros_like(added)
        size = max(1, SCORES_AT_ONCE // max(1, len(candidates)))
        edges = None if bonus is None else bonus.edges(len(queries), size)
        with torch.autocast(device, enabled=False):
            for number, start in enumerate(range(0, len(queries), size)):
                rows = slice(start, start + size)
                block, label = queries[rows].to(low), labels[rows, None]  # (b, D), (b, 1)
                scores = (block @ table.T).to(queries.dtype)  # (b, n)
                if log_inclusion is not None:
                    scores -= log_inclusion
                pairs = None if bonus is None or edges is None else bonus.block(edges, number, size)
                if pairs is not None and added is not None:
                    scores.index_put_(pairs, added, accumulate=True)
                if groups:
                    shared = [own[rows, None] == every for own, every in groups]  # (b, n) each
                    others = reduce(Tensor.logical_or_, shared).scatter_(1, label, False)
                    scores.masked_fill_(others, -torch.inf)
                chosen, highest = scores.gather(1, label), scores.amax(1, keepdim=True)  # (b, 1)
                weights = scores.sub_(highest).exp_()
                sums = weights.sum(1, keepdim=True)  # (b, 1)
                total += (sums.log() + highest - chosen).sum()
                if query_grad is None and candidate_grad is None:
                    continue
                # The gradient of the scores is weights / sums, minus 1 at the label. Divide last, when a row has D
                # numbers instead of n.
                weights = weights.scatter_add_(1, label, -sums)
                if added_grad is not None and pairs is not None:
                    added_grad += (weights[pairs] / sums[pairs[0], 0]).sum()
                weights = weights.to(low)
                if query_grad is not None:
                    query_grad[rows] = (weights @ table).to(queries.dtype) / sums
                if candidate_grad is not None:
                    candidate_grad += weights.T @ (queries[rows] / sums).to(low)
        ctx.count = count
        ctx.save_for_backward(query_grad, candidate_grad, added_grad)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, candidates, added = (part if part is None else part * (grad / ctx.count) for part in ctx.saved_tensors)
        return queries, candidates, None, None, None, None, None, added


def _cross_entropy(
    queries: Tensor,
    candidates: Tensor,
    labels: Tensor,
    temperature: float,
    count: int | None,
    groups: Sequence[tuple[Tensor, Tensor]] = (),
    log_inclusion: Tensor | None = None,
    bonus: Bonus | None = None,
) -> Tensor:
    """Sum over P rows of -log softmax(scores - log_inclusion)[label], divided by `count` (default: P).

    queries: (P, D); candidates: (n, D); labels: (P,) indices of candidates; groups: pairs of ids (P,) and (n,), a
    candidate that shares an id with the query is not a negative; log_inclusion: (n,), infinite to exclude a candidate.
    """
    loss: Tensor = _CrossEntropy.apply(
        F.normalize(queries, dim=-1) / temperature,
        F.normalize(candidates, dim=-1),
        labels,
        max(1, len(queries) if count is None else count),
        groups,
        log_inclusion,
        bonus,
        None if bonus is None else bonus.score / temperature,
    )
    return loss


def full_softmax(
    hidden: Tensor,
    catalogue: Tensor,
    targets: Tensor,
    temperature: float,
    log_inclusion: Tensor | None = None,
    count: int | None = None,
    bonus: Bonus | None = None,
) -> Tensor:
    """Cross-entropy over the whole catalogue, mean over P positions.

    hidden: (P, D), catalogue: (N, D), targets: (P,) rows of the catalogue. log_inclusion: (N,) if `catalogue` is a
    sample, the log probability that each item is in it; infinite for an item that is not a candidate. Subtracting it
    makes the denominator an unbiased estimate of that of the whole catalogue (logQ correction; Bengio and Senecal 2008,
    https://doi.org/10.1109/TNN.2007.912312).
    """
    return _cross_entropy(hidden, catalogue, targets, temperature, count, log_inclusion=log_inclusion, bonus=bonus)


def in_batch(
    hidden: Tensor,
    next_items: Tensor,
    targets: Tensor,
    temperature: float,
    first: int = 0,
    count: int | None = None,
    bonus: Bonus | None = None,
    users: Tensor | None = None,
) -> Tensor:
    """InfoNCE among the batch's next items, mean over P positions.

    hidden: (p, D); next_items: (P, D); targets: (P,) ids of the next items; users: (P,) the user of each. Row i of
    `hidden` belongs to row first + i of the others; with one process p = P. Other rows with the same next item or of
    the same user are not negatives: they are left out of the denominator. Without `users`, as in the authors' code,
    only those with the same next item are.
    """
    own = torch.arange(first, first + len(hidden), device=targets.device)
    groups = [(ids[own], ids) for ids in (targets, users) if ids is not None]
    return _cross_entropy(hidden, next_items, own, temperature, count, groups=groups, bonus=bonus)


def image_text(
    images: Tensor, texts: Tensor, has_image: Tensor, temperature: float, first: int = 0, count: int | None = None
) -> Tensor:
    """InfoNCE from image to text, mean over the rows with an image (zero if there are none).

    images: (p, D) and texts: (P, D) parts of the next items; has_image: (p,) bool. Image i belongs to row first + i of
    the texts. Texts of rows without an image stay in the denominator.
    """
    rows = has_image.nonzero().squeeze(1)
    return _cross_entropy(images[rows], texts, rows + first, temperature, count)


def reference_full_softmax(
    hidden: Tensor, catalogue: Tensor, padding: Tensor, targets: Tensor, temperature: float
) -> Tensor:
    """`full_softmax` as in the authors' code: eps inside the logarithm, and one more candidate, the padding.

    padding: (D,) vector of an item whose features are zeros.
    """
    logits = cosine_scores(hidden, torch.cat([padding[None], catalogue])) / temperature  # (P, N + 1)
    return _reference_nll(logits, targets + 1)


def reference_in_batch(hidden: Tensor, next_items: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """`in_batch` with eps inside the logarithm, as in the authors' code."""
    logits = cosine_scores(hidden, next_items) / temperature
    same_item = (targets[:, None] == targets[None, :]).fill_diagonal_(False)
    rows = torch.arange(len(targets), device=targets.device)
    return _reference_nll(logits.masked_fill(same_item, -torch.inf), rows)


def reference_image_text(images: Tensor, texts: Tensor, has_image: Tensor, temperature: float) -> Tensor:
    """`image_text` with eps inside the logarithm, as in the authors' code."""
    if not has_image.any():
        return images.sum() * 0.0
    logits = cosine_scores(images[has_image], texts) / temperature
    return _reference_nll(logits, has_image.nonzero().squeeze(1))


def _reference_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-mean log(exp(s_target) / (sum exp(s) + eps) + eps)."""
    weights = logits.exp()
    chosen = weights.gather(1, targets[:, None]).squeeze(1)
    return -(chosen / (weights.sum(1) + REFERENCE_EPS) + REFERENCE_EPS).log().mean()

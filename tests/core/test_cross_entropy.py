"""The blockwise cross-entropy: its value and gradients against torch's own."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from antpipe.core import losses
from antpipe.core.losses import cosine_scores, full_softmax, image_text, in_batch

TAU = 0.07
P, N, D = 37, 23, 6


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    made = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return made.requires_grad_()


def gradients(loss: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


@pytest.fixture(params=[1, 5 * N, 10**9], ids=["row by row", "five rows", "all rows"], autouse=True)
def blocks(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "SCORES_AT_ONCE", request.param)


def plain_softmax(hidden: torch.Tensor, catalogue: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(cosine_scores(hidden, catalogue) / TAU, targets)


def test_full_softmax_has_the_value_and_gradients_of_torchs_cross_entropy() -> None:
    hidden, catalogue, targets = vectors(P, D), vectors(N, D, seed=1), torch.arange(P) % N
    ours, plain = full_softmax(hidden, catalogue, targets, TAU), plain_softmax(hidden, catalogue, targets)
    assert math.isclose(ours.item(), plain.item(), rel_tol=1e-12)
    for mine, theirs in zip(
        gradients(3 * ours, hidden, catalogue), gradients(3 * plain, hidden, catalogue), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_in_batch_has_the_gradients_of_masked_scores() -> None:
    hidden, items, targets = vectors(P, D), vectors(P, D, seed=1), torch.arange(P) % 5
    same = (targets[:, None] == targets).fill_diagonal_(False)
    scores = (cosine_scores(hidden, items) / TAU).masked_fill(same, -torch.inf)
    plain = F.cross_entropy(scores, torch.arange(P))
    ours = in_batch(hidden, items, targets, TAU)
    assert math.isclose(ours.item(), plain.item(), rel_tol=1e-12)
    for mine, theirs in zip(gradients(ours, hidden, items), gradients(plain, hidden, items), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


USERS = torch.arange(P) * 7 // 9 % 11  # 11 users, some with rows apart from each other


def dense_in_batch(hidden: torch.Tensor, items: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Row i is compared with itself and with the rows that differ from it in item and in user."""
    others = (targets[:, None] != targets) & (USERS[:, None] != USERS)
    compared = others | torch.eye(P, dtype=torch.bool)
    return F.cross_entropy((cosine_scores(hidden, items) / TAU).masked_fill(~compared, -torch.inf), torch.arange(P))


def test_in_batch_with_users_has_the_gradients_of_masked_scores() -> None:
    hidden, items, targets = vectors(P, D), vectors(P, D, seed=1), torch.arange(P) % 5
    plain, ours = dense_in_batch(hidden, items, targets), in_batch(hidden, items, targets, TAU, users=USERS)
    assert math.isclose(ours.item(), plain.item(), rel_tol=1e-12)
    assert ours.item() < in_batch(hidden, items, targets, TAU).item()
    for mine, theirs in zip(gradients(ours, hidden, items), gradients(plain, hidden, items), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_bf16_products_leave_the_same_rows_out() -> None:
    hidden, items = (vectors(P, D, seed=seed).detach().float().requires_grad_() for seed in (0, 1))
    targets = torch.arange(P) % 5
    with torch.autocast("cpu", torch.bfloat16):
        low = in_batch(hidden, items, targets, TAU, users=USERS)
    exact = dense_in_batch(hidden, items, targets)
    assert math.isclose(low.item(), exact.item(), rel_tol=1e-2)
    for mine, theirs in zip(gradients(low, hidden, items), gradients(exact, hidden, items), strict=True):
        assert F.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) > 0.999


def test_frozen_candidates_get_no_gradient() -> None:
    hidden, catalogue = vectors(P, D), vectors(N, D, seed=1).detach()
    (mine,) = gradients(full_softmax(hidden, catalogue, torch.arange(P) % N, TAU), hidden)
    (theirs,) = gradients(plain_softmax(hidden, catalogue, torch.arange(P) % N), hidden)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    hidden, items, targets = vectors(P, D), vectors(P, D, seed=1), torch.arange(P) % 5
    there = torch.arange(P) % 3 > 0
    whole = in_batch(hidden, items, targets, TAU, users=USERS) + image_text(hidden, items, there, TAU)
    parts = [
        in_batch(hidden[own], items, targets, TAU, own.start, P, users=USERS)
        + image_text(hidden[own], items, there[own], TAU, own.start, int(there.sum()))
        for own in (slice(0, 11), slice(11, 11), slice(11, P))
    ]
    assert math.isclose(sum(part.item() for part in parts), whole.item(), rel_tol=1e-12)


def test_bf16_products_give_nearly_the_loss_and_gradients_of_fp32() -> None:
    hidden, catalogue, targets = vectors(P, D).float(), vectors(N, D, seed=1).float(), torch.arange(P) % N
    hidden = hidden.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        low = full_softmax(hidden, catalogue, targets, TAU)
    exact = full_softmax(hidden, catalogue, targets, TAU)
    assert low.dtype == torch.float32
    assert low.item() != exact.item()
    assert math.isclose(low.item(), exact.item(), rel_tol=1e-2)
    mine, theirs = gradients(low, hidden)[0], gradients(exact, hidden)[0]
    assert F.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) > 0.999

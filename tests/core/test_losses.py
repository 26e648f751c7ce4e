"""The losses against explicit sums."""

import math

import torch

from antpipe.core.losses import full_softmax, image_text, in_batch, reference_full_softmax

TAU = 0.07


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def vectors(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def test_full_softmax_is_the_mean_negative_log_of_the_targets_share() -> None:
    hidden, catalogue, targets = vectors(3, 4), vectors(6, 4), [5, 0, 2]
    expected = 0.0
    for row, target in zip(hidden, targets, strict=True):
        weights = [math.exp(cosine(row, item) / TAU) for item in catalogue]
        expected -= math.log(weights[target] / sum(weights)) / 3
    assert math.isclose(full_softmax(hidden, catalogue, torch.tensor(targets), TAU), expected, rel_tol=1e-12)


def test_in_batch_leaves_other_rows_of_the_same_item_out() -> None:
    hidden, items = vectors(4, 5), vectors(4, 5)
    targets = [7, 3, 7, 1]
    items[2] = items[0]
    expected = 0.0
    for i in range(4):
        weights = {j: math.exp(cosine(hidden[i], items[j]) / TAU) for j in range(4)}
        negatives = sum(w for j, w in weights.items() if j == i or targets[j] != targets[i])
        expected -= math.log(weights[i] / negatives) / 4
    assert math.isclose(in_batch(hidden, items, torch.tensor(targets), TAU), expected, rel_tol=1e-12)


def test_in_batch_leaves_other_rows_of_the_same_user_out() -> None:
    hidden, items = vectors(5, 4), vectors(5, 4) - 1
    targets, users = [7, 3, 1, 3, 9], [0, 0, 1, 2, 1]
    items[3] = items[1]
    compared = {0: [0, 2, 3, 4], 1: [1, 2, 4], 2: [0, 1, 2, 3], 3: [0, 2, 3, 4], 4: [0, 1, 3, 4]}
    expected = 0.0
    for i, rows in compared.items():
        weights = {j: math.exp(cosine(hidden[i], items[j]) / TAU) for j in rows}
        expected -= math.log(weights[i] / sum(weights.values())) / 5
    found = in_batch(hidden, items, torch.tensor(targets), TAU, users=torch.tensor(users))
    assert math.isclose(found, expected, rel_tol=1e-12)


def test_in_batch_without_any_other_user_is_zero_with_a_gradient_of_zero() -> None:
    hidden = vectors(3, 4).requires_grad_()
    loss = in_batch(hidden, vectors(3, 4), torch.arange(3), TAU, users=torch.zeros(3, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad is not None and not hidden.grad.any()


def test_image_text_averages_rows_with_an_image_and_keeps_all_texts_as_candidates() -> None:
    images, texts, there = vectors(4, 5), vectors(4, 5) + 1, [True, False, True, True]
    expected = 0.0
    for i in (0, 2, 3):
        weights = [math.exp(cosine(images[i], text) / TAU) for text in texts]
        expected -= math.log(weights[i] / sum(weights)) / 3
    assert math.isclose(image_text(images, texts, torch.tensor(there), TAU), expected, rel_tol=1e-12)


def test_image_text_of_a_batch_without_images_is_zero_with_a_gradient() -> None:
    images = vectors(3, 4).requires_grad_()
    loss = image_text(images, vectors(3, 4), torch.zeros(3, dtype=torch.bool), TAU)
    loss.backward()
    assert loss.item() == 0.0
    assert images.grad is not None and not images.grad.any()


def test_the_padding_is_a_candidate_in_the_reference_softmax() -> None:
    catalogue, padding, targets = vectors(6, 4), vectors(4), torch.tensor([5, 0, 2])
    hidden = catalogue[targets] + padding  # close to their targets and to the padding, so that eps hardly matters
    with_padding = full_softmax(hidden, torch.cat([catalogue, padding[None]]), targets, TAU)
    without = full_softmax(hidden, catalogue, targets, TAU)
    reference = reference_full_softmax(hidden, catalogue, padding, targets, TAU)
    assert math.isclose(reference, with_padding, rel_tol=1e-6)
    assert abs(float(reference - without)) > 1e-3 * abs(float(reference - with_padding))

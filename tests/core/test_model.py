"""The network against its formulas."""

import math
from dataclasses import replace

import pytest
import torch

from antpipe.core.model import INIT_STD, Ant, ModalityExperts, _Mix, dropout
from antpipe.errors import UsageError
from antpipe.settings.model import ModelConfig

WIDTHS = {"text": 5, "image": 7, "price": 4}
SMALL = ModelConfig(width=8, experts=3, heads=2)


@pytest.fixture
def model() -> Ant:
    torch.manual_seed(0)
    model = Ant(SMALL, WIDTHS, max_len=6).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def features(n: int) -> dict[str, torch.Tensor]:
    return {name: torch.randn(n, width, dtype=torch.float64) for name, width in WIDTHS.items()}


def test_experts_of_text_follow_the_formula(model: Ant) -> None:
    x = features(4)["text"]
    part = model.modalities["text"]
    for row, got in zip(x, part(x[:]), strict=True):
        gate = torch.softmax(row @ part.gate.w_gate, 0)
        expected = sum(gate[k] * (part.weight[k] @ (row - part.shift[k])) for k in range(3))
        assert torch.allclose(got, expected, rtol=1e-12)


def test_experts_of_price_add_their_bias_after_the_product(model: Ant) -> None:
    x = features(4)["price"]
    part = model.modalities["price"]
    for row, got in zip(x, part(x), strict=True):
        gate = torch.softmax(row @ part.gate.w_gate, 0)
        expected = sum(gate[k] * (part.weight[k] @ row + part.bias[k]) for k in range(3))
        assert torch.allclose(got, expected, rtol=1e-12)


def test_given_noise_enters_the_gate_scaled_by_softplus(model: Ant) -> None:
    gate, x = model.modalities["text"].gate, features(4)["text"]
    noise = torch.randn(4, 3, dtype=torch.float64)
    scale = torch.log1p(torch.exp(x @ gate.w_noise)) + 0.01
    assert torch.allclose(gate(x, noise), torch.softmax(x @ gate.w_gate + noise * scale, -1), rtol=1e-12)


def test_fused_vector_is_the_sum_plus_a_tenth_of_image_times_text(model: Ant) -> None:
    vectors = model.items(features(5))
    parts = vectors.parts
    expected = parts["text"] + parts["image"] + parts["price"] + 0.1 * parts["image"] * parts["text"]
    assert torch.allclose(vectors.fused, expected, rtol=1e-12)


def test_a_model_with_text_only_has_no_fusion_term() -> None:
    model = Ant(SMALL, {"text": 5}, max_len=6).eval()
    vectors = model.items({"text": torch.randn(3, 5)})
    assert torch.equal(vectors.fused, vectors.parts["text"])


def test_later_items_never_change_earlier_outputs(model: Ant) -> None:
    sequence = torch.randn(2, 6, 8, dtype=torch.float64)
    changed = sequence.clone()
    changed[:, 4:] = 9.0
    assert torch.equal(model.encode(sequence)[:, :4], model.encode(changed)[:, :4])
    assert not torch.equal(model.encode(sequence)[:, 4:], model.encode(changed)[:, 4:])


def test_a_causal_pass_equals_a_pass_per_prefix(model: Ant) -> None:
    sequence = torch.randn(1, 6, 8, dtype=torch.float64)
    together = model.encode(sequence)[0]
    for stop in range(1, 7):
        alone = model.encode(sequence[:, :stop])[0, -1]
        assert torch.allclose(together[stop - 1], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("experts", [1, 3])
def test_encode_last_equals_the_last_position_of_encode(experts: int) -> None:
    config = replace(SMALL, feed_forward_experts=experts, layers=3)
    model = Ant(config, {"text": 5}, max_len=6).double().eval()
    sequence = torch.randn(4, 5, config.width, dtype=torch.float64)
    assert torch.allclose(model.encode_last(sequence), model.encode(sequence)[:, -1], rtol=1e-10, atol=1e-12)


def test_evaluation_draws_no_noise_and_training_does() -> None:
    torch.manual_seed(0)
    model = Ant(SMALL, WIDTHS, max_len=6)
    x = {name: torch.randn(3, width) for name, width in WIDTHS.items()}
    model.eval()
    assert torch.equal(model.items(x).fused, model.items(x).fused)
    model.train()
    assert not torch.equal(model.items(x).fused, model.items(x).fused)


@pytest.mark.parametrize(("init", "std"), [("xavier", math.sqrt(2 / (64 + 300))), ("normal", INIT_STD)])
def test_experts_start_with_the_stated_spread(init: str, std: float) -> None:
    torch.manual_seed(0)
    part = ModalityExperts(300, ModelConfig(width=64), shifted=True)
    part.reset(init)
    assert part.weight.std().item() == pytest.approx(std, rel=0.01)
    assert part.weight.mean().item() == pytest.approx(0, abs=std / 100)
    assert part.shift is not None and not part.shift.any()


def test_gates_start_at_zero_so_that_all_experts_have_equal_weight() -> None:
    model = Ant(SMALL, WIDTHS, max_len=6).eval()
    assert torch.allclose(model.modalities["text"].gate(torch.randn(2, 5)), torch.full((2, 3), 1 / 3))


def test_no_experts_means_one_linear_layer() -> None:
    model = Ant(ModelConfig(width=8, experts=0), WIDTHS, max_len=6).eval()
    x = torch.randn(3, 5)
    linear = model.modalities["text"].linear
    assert torch.equal(model.modalities["text"](x), torch.nn.functional.linear(x, linear.weight, linear.bias))


def test_a_transductive_model_adds_its_id_vectors() -> None:
    model = Ant(ModelConfig(width=8, transductive=True), {"text": 5}, max_len=6, items=10).eval()
    x, ids = {"text": torch.randn(3, 5)}, torch.tensor([9, 0, 4])
    assert model.ids is not None
    vectors = model.items(x, ids)
    assert torch.allclose(vectors.fused, vectors.parts["text"] + model.ids.weight[ids])


def test_width_must_be_a_multiple_of_heads() -> None:
    with pytest.raises(UsageError, match="--width 9"):
        ModelConfig(width=9, heads=2)


def test_a_missing_modality_enters_as_zeros_by_default() -> None:
    model = Ant(SMALL, {"text": 5}, max_len=6).eval()
    nothing = {"text": torch.zeros(2, 5)}
    absent = {"text": torch.zeros(2, dtype=torch.bool)}
    assert torch.equal(model.items(nothing, present=absent).fused, model.items(nothing).fused)


def test_a_learned_vector_replaces_a_missing_modality_and_gets_a_gradient() -> None:
    model = Ant(ModelConfig(width=8, experts=3, learned_missing=True), {"text": 5}, max_len=6).eval()
    with torch.no_grad():
        model.missing["text"].copy_(torch.arange(5.0))
    x = torch.randn(3, 5)
    present = torch.tensor([True, False, True])
    vectors = model.items({"text": x}, present={"text": present}).fused
    expected = model.modalities["text"](torch.stack([x[0], torch.arange(5.0), x[2]]))
    assert torch.allclose(vectors, expected)
    vectors[1].sum().backward()
    assert model.missing["text"].grad is not None and model.missing["text"].grad.any()


def test_modality_dropout_hides_the_stated_share_in_training_only() -> None:
    torch.manual_seed(0)
    config = ModelConfig(width=8, experts=0, modality_dropout=0.25, item_dropout=0.0)
    model = Ant(config, {"text": 5}, max_len=6)
    x, present = {"text": torch.ones(4000, 5)}, {"text": torch.ones(4000, dtype=torch.bool)}
    hidden = (model.train().items(x, present=present).fused == 0).all(1).float().mean().item()
    assert hidden == pytest.approx(0.25, abs=0.03)
    assert not (model.eval().items(x, present=present).fused == 0).all(1).any()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.001])
def test_dropout_drops_its_share_and_keeps_the_mean(share: float) -> None:
    torch.manual_seed(3)
    x = torch.full((1001, 999), 2.0)
    dropped = dropout(x, share, training=True)
    n, kept = x.numel(), dropped != 0
    assert abs(float((~kept).float().mean()) - share) < 5 * math.sqrt(share * (1 - share) / n)
    assert len(dropped[kept].unique()) == 1
    assert dropped[kept][0].item() == pytest.approx(2 / (1 - share), rel=1e-4)


def test_dropout_of_neighbours_is_independent() -> None:
    """One random number serves four values in a row; they must still be independent."""
    torch.manual_seed(4)
    kept = (dropout(torch.ones(40_000, 4), 0.5, training=True) > 0).double()
    assert torch.corrcoef(kept.T).fill_diagonal_(0).abs().max() < 5 / math.sqrt(40_000)


def test_dropout_lets_the_gradient_through_where_it_keeps() -> None:
    x = torch.ones(50, 7, dtype=torch.float64, requires_grad=True)
    dropped = dropout(x, 0.4, training=True)
    (grad,) = torch.autograd.grad(dropped.sum(), x)
    assert torch.equal(grad, dropped.detach())
    assert (grad == 0).any()


@pytest.mark.parametrize(("share", "training"), [(0.0, True), (0.7, False)])
def test_dropout_with_share_zero_or_outside_training_changes_nothing(share: float, training: bool) -> None:
    x = torch.randn(5, 6)
    assert torch.equal(dropout(x, share, training), x)


def test_dropout_of_everything_leaves_zeros() -> None:
    assert not dropout(torch.ones(3, 4), 1.0, training=True).any()


def test_encode_blocks_equals_encode_of_each_block(model: Ant) -> None:
    shapes = [(3, 2), (1, 6), (2, 4)]
    blocks = [torch.randn(*shape, 8, dtype=torch.float64, requires_grad=True) for shape in shapes]
    together = model.encode_blocks(torch.cat([block.flatten(0, 1) for block in blocks]), shapes)
    alone = torch.cat([model.encode(block).flatten(0, 1) for block in blocks])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    trained = [*blocks, *model.positions.parameters(), *model.encoder.parameters()]
    weights = torch.randn_like(alone)
    mine, theirs = (torch.autograd.grad((out * weights).sum(), trained) for out in (together, alone))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_mixed_experts_have_the_gradients_of_the_explicit_sum() -> None:
    gates = torch.rand(5, 3, dtype=torch.float64, requires_grad=True)
    outputs = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_Mix.apply, (gates, outputs))


def test_the_gradient_of_dropout_goes_where_values_went() -> None:
    x = torch.ones(1000, requires_grad=True)
    kept = dropout(x, 0.3, training=True)
    kept.sum().backward()
    assert torch.equal(x.grad, kept.detach())
    assert sorted(set(kept.tolist())) == pytest.approx([0.0, 1 / 0.7], rel=1e-4)

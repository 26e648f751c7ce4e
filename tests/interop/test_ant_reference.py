"""Models of any size from the authors' names and back, and what is refused."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from antpipe.core.model import Ant
from antpipe.errors import DataError, UsageError
from antpipe.interop.ant_reference import from_reference, rename, to_reference
from antpipe.settings.model import MODALITIES, ModelConfig
from tests.support import plain_ant

WIDTHS = {"text": 5, "image": 7, "price": 4}
SMALL = ModelConfig(width=8, experts=3, heads=2)


def random_model(config: ModelConfig, widths: dict[str, int], max_len: int = 6, items: int | None = None) -> Ant:
    """A model in float64 whose parameters all differ from their initial values."""
    torch.manual_seed(0)
    model = Ant(config, widths, max_len, items).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture
def state() -> dict[str, Tensor]:
    return to_reference(random_model(SMALL, WIDTHS))


@st.composite
def shapes(draw: st.DrawFn) -> tuple[ModelConfig, dict[str, int], int, int | None]:
    heads, layers = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    width = heads * draw(st.integers(2, 5))
    several = draw(st.sampled_from([1, 1, 2, 3]))
    transductive = draw(st.booleans())
    config = ModelConfig(
        width=width,
        experts=draw(st.integers(0, 4)),
        layers=layers,
        heads=heads,
        inner_width=draw(st.sampled_from([None, width + 3, 1])),
        feed_forward_experts=several,
        feed_forward_expert_layers=draw(st.integers(1, layers)) if several > 1 else 1,
        transductive=transductive,
    )
    names = draw(st.lists(st.sampled_from(MODALITIES), min_size=1, unique=True))
    widths = {name: draw(st.integers(1, 9)) for name in MODALITIES if name in names}
    return config, widths, draw(st.integers(1, 7)), draw(st.integers(1, 6)) if transductive else None


@settings(max_examples=60, deadline=None)
@given(shapes(), st.sampled_from(["", "module.", "model.", "_orig_mod."]), st.sampled_from(["state_dict", None]))
def test_a_model_of_any_shape_survives_the_round_trip_through_the_authors_names(
    shape: tuple[ModelConfig, dict[str, int], int, int | None], prefix: str, holder: str | None
) -> None:
    config, widths, max_len, items = shape
    model = random_model(config, widths, max_len, items)
    written: dict[str, Any] = {prefix + name: tensor for name, tensor in to_reference(model).items()}
    written = {holder: written, "epoch": 3} if holder else written
    back = from_reference(written, heads=config.heads, transductive=config.transductive, modalities=tuple(widths))
    assert (back.config, back.widths, back.max_len) == (config, widths, max_len)
    tensors = back.state_dict()
    assert set(tensors) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensors[name], tensor), name


@pytest.mark.parametrize(
    ("config", "max_len"),
    [
        (ModelConfig(width=6, experts=1, heads=1, layers=1), 3),
        (ModelConfig(width=12, experts=5, heads=3, layers=3, inner_width=7), 4),
        (ModelConfig(width=8, experts=2, heads=4, feed_forward_experts=3), 5),
        (ModelConfig(width=8, experts=2, heads=2, layers=3, feed_forward_experts=2, feed_forward_expert_layers=2), 2),
    ],
)
def test_a_loaded_model_of_any_shape_computes_the_formulas(config: ModelConfig, max_len: int) -> None:
    state = to_reference(random_model(config, WIDTHS, max_len))
    model = from_reference(state, heads=config.heads)
    torch.manual_seed(1)
    features = {name: torch.randn(max_len, width, dtype=torch.float64) for name, width in WIDTHS.items()}
    items = [plain_ant.item(state, {name: x[n] for name, x in features.items()}) for n in range(max_len)]
    fused = model.items(features).fused
    assert torch.allclose(fused, torch.stack(items), rtol=1e-9, atol=1e-12)
    expected = plain_ant.encode(state, items, config.heads)
    assert torch.allclose(model.encode(fused[None])[0, -1], expected, rtol=1e-9, atol=1e-12)


def test_arrays_load_like_tensors(state: dict[str, Tensor]) -> None:
    from_tensors, from_arrays = from_reference(state), from_reference({name: t.numpy() for name, t in state.items()})
    for name, tensor in from_tensors.state_dict().items():
        assert torch.equal(from_arrays.state_dict()[name], tensor)


def test_single_and_half_precision_load_as_single(state: dict[str, Tensor]) -> None:
    model = from_reference({name: tensor.half() for name, tensor in state.items()})
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


def test_loading_copies_the_tensors_and_draws_no_random_numbers(state: dict[str, Tensor]) -> None:
    before = torch.get_rng_state()
    model = from_reference(state)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        model.positions.weight.zero_()
    assert state["position_embedding.weight"].any()


def test_a_loaded_model_can_be_trained_and_its_gradients_have_the_authors_names(state: dict[str, Tensor]) -> None:
    model = from_reference(state)
    model.items(
        {name: torch.ones(2, width, dtype=torch.float64) for name, width in WIDTHS.items()}
    ).fused.sum().backward()
    named = rename(model, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert {"text2rec.proj.2.bias", "img2rec.proj.0.lin.weight", "meta2rec.proj.1.lin.bias"} <= set(named)
    assert named["meta_pooling.pooling.w_gate"].shape == (4, 3)


def test_item_ids_lose_the_row_of_the_padding_and_get_it_back_as_zeros() -> None:
    state = to_reference(random_model(SMALL, WIDTHS)) | {"item_embedding.weight": torch.randn(10, 8)}
    ours = from_reference(state, transductive=True)
    assert ours.ids is not None
    assert torch.equal(ours.ids.weight.float(), state["item_embedding.weight"][1:])
    back = to_reference(ours)["item_embedding.weight"]
    assert not back[0].any()
    assert torch.equal(back[1:], ours.ids.weight)


def test_entries_that_a_model_does_not_need_are_left_out_and_named(
    state: dict[str, Tensor], messages: list[str]
) -> None:
    tables = {"indices": torch.arange(10), "EmbeddingTable.img_embed.weight": torch.ones(10, 7)}
    from_reference(state | tables | {"item_embedding.weight": torch.ones(10, 8)})
    assert len(messages) == 1
    assert messages[0].endswith("EmbeddingTable.img_embed.weight, indices, item_embedding.weight")


def test_experts_beside_single_projections_are_left_out(state: dict[str, Tensor], messages: list[str]) -> None:
    single = to_reference(random_model(ModelConfig(width=8, experts=0), WIDTHS))
    model = from_reference(state | single)
    assert model.config.experts == 0
    assert "meta2rec.proj.0.lin.bias" in messages[0]
    assert "img_pooling.pooling.w_gate" in messages[0]


def test_an_unused_modality_is_left_out(state: dict[str, Tensor], messages: list[str]) -> None:
    model = from_reference(state, modalities=("image", "price"))
    assert model.widths == {"image": 7, "price": 4}
    assert "text2rec.proj.0.bias" in messages[0]


@pytest.mark.parametrize("name", sorted(to_reference(random_model(SMALL, WIDTHS))))
def test_any_missing_entry_is_refused_by_name(state: dict[str, Tensor], name: str) -> None:
    del state[name]
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        from_reference(state)


@pytest.mark.parametrize("name", sorted(to_reference(random_model(SMALL, WIDTHS))))
def test_any_entry_of_the_wrong_shape_is_refused_by_the_name_of_an_entry(state: dict[str, Tensor], name: str) -> None:
    state[name] = torch.cat([state[name], state[name][:1]])
    if name == "position_embedding.weight":  # nothing else depends on the number of positions
        assert from_reference(state).max_len == 7
        return
    with pytest.raises(DataError, match=r"[a-zA-Z0-9_.]+ has shape \(.*\); the other entries require \("):
        from_reference(state)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(state: dict[str, Tensor], value: float) -> None:
    state["img2rec.proj.1.bias"][2] = value
    with pytest.raises(DataError, match=r"img2rec\.proj\.1\.bias: 1 of 7 values are not finite"):
        from_reference(state)


def test_an_unknown_entry_is_refused_by_name(state: dict[str, Tensor]) -> None:
    with pytest.raises(DataError, match=r"item_bias is unknown"):
        from_reference(state | {"item_bias": torch.zeros(8)})


def test_a_prefix_on_some_entries_only_is_refused(state: dict[str, Tensor]) -> None:
    state["module.LayerNorm.bias"] = state.pop("LayerNorm.bias")
    with pytest.raises(DataError, match=r"LayerNorm\.bias is missing; module\.LayerNorm\.bias is unknown"):
        from_reference(state)


def test_different_numbers_of_experts_are_refused_by_name(state: dict[str, Tensor]) -> None:
    state |= {"meta2rec.proj.3.lin.weight": torch.zeros(8, 4), "meta2rec.proj.3.lin.bias": torch.zeros(8)}
    with pytest.raises(DataError, match=r"text2rec 3, img2rec 3, meta2rec 4"):
        from_reference(state)


def test_feed_forward_experts_in_a_first_layer_only_are_refused() -> None:
    config = ModelConfig(width=8, experts=3, layers=1, feed_forward_experts=2)
    state = to_reference(random_model(ModelConfig(width=8, experts=3), WIDTHS))
    state = {name: tensor for name, tensor in state.items() if "layer.0.feed_forward" not in name}
    with pytest.raises(DataError, match=r"\[2, 0\] feed-forward experts"):
        from_reference(state | to_reference(random_model(config, WIDTHS)))


def test_whole_numbers_are_refused_by_name(state: dict[str, Tensor]) -> None:
    with pytest.raises(DataError, match=r"LayerNorm\.bias holds torch\.int64"):
        from_reference(state | {"LayerNorm.bias": torch.zeros(8, dtype=torch.int64)})


def test_a_value_that_is_not_a_tensor_is_refused_by_name(state: dict[str, Tensor]) -> None:
    with pytest.raises(DataError, match="epoch holds int, not numbers"):
        from_reference(state | {"epoch": 3})


def test_an_empty_mapping_is_refused() -> None:
    with pytest.raises(DataError, match=r"position_embedding\.weight is missing"):
        from_reference({})


def test_missing_item_ids_are_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(DataError, match=r"item_embedding\.weight is missing"):
        from_reference(state, transductive=True)


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_must_divide_the_width(state: dict[str, Tensor], heads: int) -> None:
    with pytest.raises(UsageError, match=f"--heads {heads}: does not divide the checkpoint's width 8"):
        from_reference(state, heads=heads)


def test_an_unknown_modality_is_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(UsageError, match="sound"):
        from_reference(state, modalities=("text", "sound"))


def test_a_parameter_the_authors_do_not_have_is_refused() -> None:
    model = Ant(ModelConfig(width=8, learned_missing=True), WIDTHS, 6)
    with pytest.raises(DataError, match=r"missing\.image: the authors' model has no such parameter"):
        to_reference(model)

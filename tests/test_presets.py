"""`--preset`: settings that go together, and what wins over them."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from antpipe.config import ModelConfig, TrainConfig
from antpipe.errors import UsageError
from antpipe.presets import PRESETS, TARGET, find_preset
from antpipe.settings import resolve
from antpipe.store import Store

from .commands import run
from .trainable import make_trainable

STRONG = PRESETS["strong"]


def test_ant_is_what_the_defaults_are() -> None:
    ant = PRESETS["ant"]
    assert resolve(ModelConfig, {}, {}, {}, preset=ant["model"]) == ModelConfig()
    assert resolve(TrainConfig, {}, {}, {}, preset=ant["train"]) == TrainConfig()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_only_settings_there_are(name: str) -> None:
    resolve(ModelConfig, {}, {}, {}, preset=PRESETS[name]["model"])
    resolve(TrainConfig, {}, {}, {}, preset=PRESETS[name]["train"])
    assert set(PRESETS[name]) <= {"model", "train", TARGET}
    resolve(ModelConfig, {}, {}, {}, preset=PRESETS[name].get(TARGET, {}))


def test_flag_variable_and_toml_win_over_a_preset_and_it_over_a_checkpoint() -> None:
    inherited = ModelConfig(width=64, experts=5, hidden_dropout=0.9, attention_dropout=0.9)
    found = resolve(
        ModelConfig, {"attention_dropout": 0.1}, {"model": {"hidden_dropout": 0.4}}, {"ANTPIPE_MODEL_HEADS": "4"},
        inherited=inherited, preset=STRONG["model"],
    )  # fmt: skip
    assert asdict(found) == asdict(inherited) | dict(STRONG["model"]) | {
        "attention_dropout": 0.1, "hidden_dropout": 0.4, "heads": 4,
    }  # fmt: skip


def test_an_unknown_preset_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="--preset weak: choose from ant, strong"):
        find_preset("weak", on_target=True)


@pytest.mark.parametrize(("stage", "ids"), [("pretrain", False), ("scratch", True)])
def test_a_run_keeps_the_settings_of_its_preset_and_only_one_on_a_target_has_ids(
    tmp_path: Path, stage: str, ids: bool
) -> None:
    make_trainable(Store(tmp_path / "store"), "Shop")
    words = ["--preset", "strong", "--width", "8", "--epochs", "1", "--store", tmp_path / "store"]
    assert run("train", "--stage", stage, "--domains", "Shop", "--out", tmp_path / "run", *words).code == 0
    kept = json.loads((tmp_path / "run" / "checkpoint.json").read_text(encoding="utf-8"))
    assert kept["model"].items() >= STRONG["model"].items()
    assert kept["train"].items() >= STRONG["train"].items()
    assert kept["model"]["width"] == 8
    assert kept["model"]["transductive"] is ids


def test_compare_pre_trains_without_ids_and_starts_with_them(tmp_path: Path) -> None:
    for name in ("Shop", "Source"):
        make_trainable(Store(tmp_path / "store"), name)
    found = run(
        "compare", "--target", "Shop", "--sources", "Source", "--arms", "scratch,finetune", "--seeds", "2", "--preset",
        "strong", "--width", "8", "--epochs", "1", "--out", tmp_path / "out", "--store", tmp_path / "store",
    )  # fmt: skip
    assert found.code == 0, found.err
    models = {
        path: json.loads((tmp_path / "out" / path / "checkpoint.json").read_text(encoding="utf-8"))["model"]
        for path in ("pretrain/all", "Shop/scratch-0", "Shop/all/finetune-1")
    }
    assert [model["transductive"] for model in models.values()] == [False, True, True]

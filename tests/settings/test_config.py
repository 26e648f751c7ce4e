"""Settings: one default each, sources in a fixed order of precedence, unknown names refused, help texts."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antpipe.core.stages import STAGES
from antpipe.errors import UsageError
from antpipe.evaluation.baselines.judge import BASELINES
from antpipe.settings.base import Config, as_word, flags_of, from_json, parts_of, to_json, variable_name
from antpipe.settings.comparison import CompareConfig
from antpipe.settings.ingest import IngestConfig, TableConfig
from antpipe.settings.model import ModelConfig
from antpipe.settings.sections import CONFIGS
from antpipe.settings.sources import check_environment, read_toml, resolve
from antpipe.settings.training import TrainConfig


def test_flag_beats_environment_beats_toml_beats_default() -> None:
    toml = {"train": {"epochs": 3, "lr": 0.5, "batch_size": 7}}
    environment = {"ANTPIPE_TRAIN_EPOCHS": "4", "ANTPIPE_TRAIN_LR": "0.25"}
    config = resolve(TrainConfig, {"epochs": 5, "lr": None}, toml, environment)
    assert (config.epochs, config.lr, config.batch_size, config.seed) == (5, 0.25, 7, TrainConfig().seed)


def test_inherited_settings_replace_defaults() -> None:
    config = resolve(ModelConfig, {"heads": 4}, {}, {}, inherited=ModelConfig(width=64, heads=2))
    assert (config.width, config.heads) == (64, 4)


@pytest.mark.parametrize("config", CONFIGS)
def test_json_and_back_is_the_same_config(config: type) -> None:
    assert from_json(config, to_json(config())) == config()


def test_an_unknown_toml_key_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("[train]\nepoch = 3\n")
    with pytest.raises(UsageError, match=r"unknown key 'epoch' in \[train\]; known: .*epochs"):
        read_toml(path, CONFIGS)


def test_an_unknown_toml_section_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("[training]\nepochs = 3\n")
    with pytest.raises(UsageError, match=r"unknown section \[training\]"):
        read_toml(path, CONFIGS)


@pytest.mark.parametrize("content", ["[train", "epochs = 3", "\xff"])
def test_a_file_without_sections_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError):
        read_toml(path, CONFIGS)


def test_a_misspelt_environment_variable_is_refused() -> None:
    check_environment(CONFIGS, {"ANTPIPE_TRAIN_EPOCHS": "3", "ANTPIPE_STORE": "x", "PATH": "y"})
    with pytest.raises(UsageError, match=r"ANTPIPE_TRAIN_EPOCH$"):
        check_environment(CONFIGS, {"ANTPIPE_TRAIN_EPOCH": "3"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", "three"),
        ("epochs", 0),
        ("lr", "fast"),
        ("device", "tpu"),
        ("lr", -1.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("modalities", "text,sound"),
        ("epochs", True),
    ],
)
def test_invalid_values_are_refused_with_their_flag(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"--{field}"):
        resolve(TrainConfig, {field: value}, {}, {})


@pytest.mark.parametrize("config", CONFIGS)
def test_every_setting_has_a_help_text_a_panel_and_a_valid_default(config: type[Config]) -> None:
    assert config() == config()
    for field in dataclasses.fields(config):
        assert field.metadata["about"] and not field.metadata["about"].endswith("."), field.name
        assert field.metadata["panel"], field.name


def test_a_setting_is_in_the_panel_of_its_class_unless_it_names_its_own() -> None:
    panels = {field.name: field.metadata["panel"] for field in dataclasses.fields(TrainConfig)}
    assert (panels["lr"], panels["device"], panels["modalities"]) == ("Optimisation", "Run", "Input")
    assert {field.metadata["panel"] for field in dataclasses.fields(ModelConfig)} == {"Model"}


def test_the_help_of_arms_names_every_stage_and_baseline_that_compare_accepts() -> None:
    [arms] = [field for field in dataclasses.fields(CompareConfig) if field.name == "arms"]
    named = set(re.findall(r"[\w-]+", arms.metadata["about"]))
    assert {*STAGES, *BASELINES, "auto", "sasrec", "unisrec", "baselines"} - {"pretrain", "unfreeze"} <= named


def test_no_setting_of_two_groups_that_share_a_command_has_the_same_name() -> None:
    model = {field.name for field in dataclasses.fields(ModelConfig)}
    assert not model & {field.name for field in dataclasses.fields(TrainConfig)}


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--hidden-dropout 1\.5: must be at most 1"):
        ModelConfig(hidden_dropout=1.5)


def test_flags_of_a_config_give_the_same_settings() -> None:
    config = IngestConfig(min_user=2, keep_without_metadata=True, text_fields=("title", "brand"))
    assert flags_of(config) == ["--min-user", "2", "--keep-without-metadata", "--text-fields", "title,brand"]
    assert flags_of(ModelConfig(gate_noise=False, width=8), without=("width",)) == ["--no-gate-noise"]
    assert flags_of(TrainConfig()) == []


def test_flags_of_a_config_give_what_differs_from_the_run_to_start_from_or_from_a_variable() -> None:
    before = ModelConfig(width=64, hidden_dropout=0.3, inner_width=32, transductive=True)
    asked = ModelConfig(width=64, experts=0)
    assert flags_of(asked, inherited=before) == ["--experts", "0", "--hidden-dropout", "0.5", "--no-transductive"]
    assert flags_of(TrainConfig(), environment={"ANTPIPE_TRAIN_EPOCHS": "7"}) == ["--epochs", "100"]


def test_a_part_of_a_list_that_holds_a_comma_stands_in_quotes() -> None:
    config = TableConfig(drop_users=("Smith, John", 'the "guest"', "GAST"))
    words = flags_of(config)
    assert words == ["--drop-users", '"Smith, John","the ""guest""",GAST']
    assert resolve(TableConfig, {"drop_users": words[1]}, {}, {}) == config
    assert parts_of('5" screen,7" screen') == ['5" screen', '7" screen']
    assert parts_of('"A,1" , "B"') == ["A,1 ", "B"]
    assert parts_of('"never closed,b') == ['"never closed', "b"]


@given(st.lists(st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_the_parts_of_any_list_come_back(parts: list[str]) -> None:
    parts = [stripped for part in parts if (stripped := part.strip())] or ["a"]
    assert parts_of(as_word(tuple(parts))) == parts


def test_no_two_settings_have_the_same_environment_variable() -> None:
    names = [variable_name(config, field.name) for config in CONFIGS for field in dataclasses.fields(config)]
    assert len(set(names)) == len(names)
    assert "ANTPIPE_EMBED_IMAGE_BATCH_SIZE" in names


def test_a_list_of_numbers_comes_from_words_toml_and_python(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("[compare]\ntarget_users = [500, 1000]\n", encoding="utf-8")
    toml = read_toml(path, [CompareConfig])
    for found in (
        resolve(CompareConfig, {}, toml, {}),
        resolve(CompareConfig, {"target_users": "500, 1000"}, {}, {}),
        resolve(CompareConfig, {"target_users": [500, 1000]}, {}, {}),
        resolve(CompareConfig, {}, {}, {"ANTPIPE_COMPARE_TARGET_USERS": "500,1000"}),
    ):
        assert found.target_users == (500, 1000)
        assert flags_of(found) == ["--target-users", "500,1000"]
        assert from_json(CompareConfig, json.loads(json.dumps(to_json(found)))) == found


@pytest.mark.parametrize("words", ["500,many", "500,,1000", "", "1.5"])
def test_a_list_of_numbers_with_something_else_is_refused(words: str) -> None:
    with pytest.raises(UsageError, match=r"--target-users: .* is not a whole number"):
        resolve(CompareConfig, {"target_users": words}, {}, {})


def test_one_number_is_no_list() -> None:
    with pytest.raises(UsageError, match="--target-users: 500 is not a list of whole numbers"):
        resolve(CompareConfig, {"target_users": 500}, {}, {})

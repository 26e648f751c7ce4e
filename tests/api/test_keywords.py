"""Settings as keywords: those of antpipe/settings, resolved like flags."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import antpipe as ant
from antpipe.api import keywords
from antpipe.api.settings import settings_of
from antpipe.settings.base import Config
from antpipe.settings.sections import CONFIGS
from antpipe.settings.training import TrainConfig

pytestmark = pytest.mark.usefixtures("here")
TAKING = [name for name in ant.__all__ if settings_of(getattr(ant, name))]


def keyword_type(annotation: Any) -> Any:
    """A setting's type as a caller may give it: any sequence for a tuple, a string for a path."""
    if isinstance(annotation, types.UnionType):
        return typing.Union[tuple(keyword_type(part) for part in annotation.__args__)]  # noqa: UP007
    if annotation is Path:
        return str | Path
    return Sequence[typing.get_args(annotation)[0]] if typing.get_origin(annotation) is tuple else annotation


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.section)
def test_keywords_are_the_fields_of_the_settings(config: type[Config]) -> None:
    declared = typing.get_type_hints(getattr(keywords, f"{config.__name__.removesuffix('Config')}Keywords"))
    assert declared == {field.name: keyword_type(field.type) for field in dataclasses.fields(config)}


@pytest.mark.parametrize("name", TAKING)
def test_a_function_declares_the_keywords_of_the_settings_it_takes(name: str) -> None:
    function = getattr(ant, name)
    [unpacked] = [
        one.annotation
        for one in inspect.signature(function, follow_wrapped=True).parameters.values()
        if one.kind is inspect.Parameter.VAR_KEYWORD
    ] or [inspect.signature(function.__wrapped__).parameters["settings"].annotation]
    declared = set(typing.get_type_hints(typing.get_args(unpacked)[0]))
    assert declared == {field.name for config in settings_of(function) for field in dataclasses.fields(config)}


def test_a_setting_shows_in_the_signature() -> None:
    assert "epochs" in inspect.signature(ant.train).parameters


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(ant.UsageError, match="unknown setting 'epoch'"):
        ant.train("shop", "scratch", ["Toys"], out="runs/new", epoch=1)  # type: ignore[call-arg]


def test_a_value_out_of_range_is_refused_as_a_flag_is() -> None:
    with pytest.raises(ant.UsageError, match="--epochs 0: must be at least 1"):
        ant.train("shop", "scratch", ["Toys"], out="runs/new", epochs=0)


def test_keyword_beats_environment_beats_toml_beats_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[train]\nbatch_size = 7\nlr = 0.5\nseed = 3\n", encoding="utf-8")
    monkeypatch.setenv("ANTPIPE_TRAIN_LR", "0.25")
    given = ant.api.settings.given({"seed": 4}, file, "strong").resolve(TrainConfig)
    assert (given.seed, given.lr, given.batch_size, given.patience) == (4, 0.25, 7, 4)


def test_model_settings_are_inherited_from_the_run_to_start_from() -> None:
    run = ant.train(
        "shop",
        "finetune",
        ["Toys"],
        start=ant.Run.open("runs/beauty", "shop"),
        out="runs/inherited",
        epochs=1,
        device="cpu",
    )
    assert run.checkpoint.model_config().width == 16


def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTPIPE_TRAIN_EPOCS", "3")
    with pytest.raises(ant.UsageError, match="ANTPIPE_TRAIN_EPOCS"):
        ant.quantize_price("shop", ["Toys"])

"""The best settings as a file that `train` and `compare` take, and the commands that come next."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from antpipe.runtime.files import atomic
from antpipe.settings.base import Config
from antpipe.settings.methods import NO_METHOD
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.next_command import spell
from antpipe.training import checkpoint
from antpipe.training.request import RunRequest
from antpipe.tuning.search import Search
from antpipe.tuning.trials import SearchFolder, Trial

# Arms to compare with a stage that starts from nothing: they need no run, no features and no other library.
BESIDE_SCRATCH = ("popularity", "item-knn", "markov")


def write_best(search: Search, best: Trial, comment: str) -> Path:
    """Write best.toml: the searched settings, and all others that differ from what `train` takes by default."""
    path, request = SearchFolder(search.out).best, search.with_values(best.settings)
    with atomic(path) as scratch:
        scratch.write_text(f"# {comment}\n\n{as_toml(request, tuple(best.settings))}", encoding="utf-8")
    return path


def as_toml(request: RunRequest, named: tuple[str, ...]) -> str:
    """Settings that make `train` train this run. named: spelt out even if they are the defaults."""
    inherited = checkpoint.describe(request.source).model_config() if request.source else ModelConfig()
    model = section(request.model, inherited, named)
    return f"{model}\n{section(request.training, TrainConfig(), named)}"


def section(config: Config, usual: Config, named: tuple[str, ...]) -> str:
    values: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(config)}
    told = {name: value for name, value in values.items() if name in named or value != getattr(usual, name)}
    lines = [f"{name} = {toml_value(value)}\n" for name, value in told.items() if value is not None]
    return f"[{config.section}]\n{''.join(lines)}"


def toml_value(value: Any) -> str:
    """A value of a setting as TOML, which is written like JSON, with tuples as lists."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def commands_after(search: Search) -> dict[str, str]:
    """What comes next, by name: to train with the best settings, and to judge them on the test split."""
    request, file, folder = search.request, SearchFolder(search.out).best, search.out
    start: list[str | Path] = ["--from", request.source] if request.source else []
    settings: list[str | Path] = ["--config", file, *start]
    domains = [search.target]
    out = folder.with_name(f"{folder.name}-best")
    found = {
        "train": spell(
            f"train --stage {request.stage}", domains=domains, store=request.store.root, flags=[*settings, "--out", out]
        )
    }
    if request.training.method == NO_METHOD:  # which is part of an arm, not of the settings of a comparison
        arms = ",".join(["scratch", *([request.stage] if start else BESIDE_SCRATCH)])
        flags = [*settings, "--arms", arms, "--out", folder.with_name(f"{folder.name}-compare")]
        found["compare"] = spell(f"compare --target {search.target}", store=request.store.root, flags=flags)
    return found

"""What a search is: the run whose settings are searched, the ranges, and what identifies it."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from antpipe.core import stages
from antpipe.errors import SameCommand, UsageError
from antpipe.settings.base import Config, as_word, flag_name, flags_of, to_json, variable_name
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import WITHOUT_EFFECT
from antpipe.settings.tuning import SPACE, Choice, Dimension, TuneConfig, Value
from antpipe.store.manifest import digest
from antpipe.store.next_command import spell
from antpipe.training import checkpoint
from antpipe.training.compatibility import ADDED, SIZES, reads_features_of_checkpoint
from antpipe.training.race import rungs
from antpipe.training.request import RunRequest

OF_MODEL = frozenset(field.name for field in fields(ModelConfig))


@dataclass(frozen=True)
class Search:
    """A search: the run whose settings are searched, the folder, and how they are searched.

    request: with the settings as given, which are those of the first trial. fixed: the names of settings that are the
    same in every trial, because flags, environment or a settings file give them. preset: named by the user, if any.
    """

    request: RunRequest
    out: Path
    config: TuneConfig
    fixed: frozenset[str]
    preset: str | None = None

    @property
    def target(self) -> str:
        return self.request.domains[0]

    def space(self) -> dict[str, Dimension]:
        """The settings to search, with their ranges. UsageError if one of `--search` cannot be searched, or none is."""
        found = {name: allowed(self.request, name) for name in self.config.search or SPACE}
        why = {name: why_not(self, name, found[name]) for name in found}
        for name in self.config.search:
            if why[name]:
                others = [other for other in self.config.search if not why[other]]
                change = SameCommand({"--search": ",".join(others)}) if others else SameCommand(without=("--search",))
                raise UsageError(f"--search {name}: {why[name]}", change)
        if all(why.values()):
            raise UsageError("nothing to search: all settings that could be searched are given")
        return {name: dimension for name, dimension in found.items() if not why[name]}

    def rungs(self) -> list[int]:
        """Epochs after which trials are compared."""
        training = self.request.training
        return rungs(training.epochs, training.eval_every, self.config.first_rung) if self.config.prune else []

    def with_values(self, values: Mapping[str, Value]) -> RunRequest:
        """The run of a trial with these values."""
        return with_values(self.request, values)

    def as_given(self) -> dict[str, Value]:
        """The values of the first trial."""
        return {name: value_of(self.request, name) for name in self.space()}

    def about(self) -> dict[str, str]:
        """The search in readable words, to say how another one differs."""
        request = self.request
        settings = {
            f"--{flag_name(name)}": as_word(value)
            for group in (request.model, request.training)
            for name, value in to_json(group).items()
            if name not in WITHOUT_EFFECT
        }
        what = {"target": self.target, "--stage": request.stage, "--from": str(request.source)}
        rungs = {"rungs": as_word(tuple(self.rungs()))}
        return what | {"searches": ",".join(self.space())} | settings | rungs

    def fingerprint(self, of_first: str) -> str:
        """A hash of everything that determines the trials, but not of their number. of_first: that of the first run."""
        ranges = {name: [type(one).__name__, asdict(one)] for name, one in self.space().items()}
        return digest([of_first, ranges, self.rungs()])

    def command(self, *more: str) -> str:
        """The command line of this search, with more flags."""
        request = self.request
        flags = ["--out", str(self.out), *(["--from", str(request.source)] if request.source else [])]
        flags += ["--preset", self.preset] if self.preset else []
        flags += flags_of(self.config, environment=os.environ)
        flags += [*given_flags(request.model, self.fixed), *given_flags(request.training, self.fixed), *more]
        return spell(f"tune --target {self.target}", store=request.store.root, flags=flags)


def given_flags(config: Config, given: frozenset[str]) -> list[str]:
    """The flags of the settings that were given, even at their defaults, so that they are not searched."""
    others = tuple(field.name for field in fields(config) if field.name not in given)
    return flags_of(config, others, environment={variable_name(type(config), name): "" for name in given})


def with_values(request: RunRequest, values: Mapping[str, Value]) -> RunRequest:
    """The same run with other settings of [model] and [train]."""
    model: dict[str, Any] = {name: value for name, value in values.items() if name in OF_MODEL}
    training: dict[str, Any] = {name: value for name, value in values.items() if name not in OF_MODEL}
    return replace(request, model=replace(request.model, **model), training=replace(request.training, **training))


def value_of(request: RunRequest, name: str) -> Value:
    found: Value = getattr(request.model if name in OF_MODEL else request.training, name)
    return found


def allowed(request: RunRequest, name: str) -> Dimension:
    """The range of a setting, without choices that the other settings rule out."""
    whole = SPACE[name]
    return (
        Choice(tuple(one for one in whole.values if fits(request, name, one))) if isinstance(whole, Choice) else whole
    )


def fits(request: RunRequest, name: str, value: Value) -> bool:
    try:
        with_values(request, {name: value})
    except UsageError:
        return False
    return True


def why_not(search: Search, name: str, dimension: Dimension) -> str:
    """Why a setting cannot be searched; '' if it can."""
    if name in search.fixed:
        return f"--{flag_name(name)} {value_of(search.request, name)} is given, so there is nothing to search"
    if name in taken_over(search):
        return f"--stage {search.request.stage} takes it from the run to start from"
    if isinstance(dimension, Choice) and len(dimension.values) < 2:
        return "the other settings leave only one value"
    return ""


def taken_over(search: Search) -> set[str]:
    """Settings in which a trial cannot differ from the run to start from."""
    request = search.request
    actions = stages.find_stage(request.stage, request.own_stages)
    if request.source is None or not stages.needs_checkpoint(actions):
        return set()
    taken = {name for name, group in ADDED.items() if actions[group] != stages.RESET}
    taken |= set(SIZES) if actions["encoder"] != stages.RESET else set()
    reads = reads_features_of_checkpoint(actions) and checkpoint.describe(request.source).modalities
    return taken | ({"experts"} if reads else set())
